"""Scores and masks of set difference pruning: `python -m benchmarks.pruning`.

The plain ways: one backward pass for each block's layers, for as many samples as ours has at the smallest size, because the sums of scores
have to be made once; for each cell of the grid of p and q the largest scores of both data sets
anew.
"""

import random

import torch

from benchmarks.measure import Bench, main
from resurface.attacks.pruning import first_share, gradient_scores
from resurface.models import linear_names
from resurface.settings.pruning import PruningSettings


def masks_by_cell(forget: torch.Tensor, utility: torch.Tensor, p: list[float], q: list[float]) -> list[int]:
    """How many weights each cell removes, by one selection of the largest scores for each of its two shares."""
    counts = []
    for kept in p:
        for removed in q:
            if kept >= removed:
                tops = []
                for score, percent in ((forget, removed), (utility, kept)):
                    top = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
                    top[score.flatten().topk(round(score.numel() * percent / 100)).indices] = True
                    tops.append(top)
                counts.append(int((tops[0] & ~tops[1]).sum()))
    return counts


def masks_at_once(forget: torch.Tensor, utility: torch.Tensor, p: list[float], q: list[float]) -> list[int]:
    """The same from one sort of each score."""
    steps = first_share(forget, q).long() * 16 + first_share(utility, p)
    found = steps.bincount(minlength=256).reshape(16, 16).cpu()
    return [
        int(found[: q.index(removed) + 1, p.index(kept) + 1 :].sum()) for kept in p for removed in q if kept >= removed
    ]


def measure(bench: Bench) -> None:
    """Scores of all layers at growing numbers of samples, then masks of one block's layers."""
    model, _ = bench.load()
    length, answer = bench.choose(48, 1024), bench.choose(16, 50)
    few, sizes = bench.choose(2, 16), bench.choose([2, 4, 8], [16, 32, 64])
    generator = random.Random(0)
    samples = [(generator.choices(range(bench.shape.vocabulary), k=length), length - answer) for _ in range(max(sizes))]
    layers = linear_names(model, None, "all-linear")
    by_block = [linear_names(model, [block], "all-linear") for block in range(bench.shape.blocks)]
    gradient_scores(model, by_block[-1], samples[:1])

    def block_by_block() -> torch.Tensor:
        sums = [gradient_scores(model, names, samples[:few])[names[0]].sum().cpu() for names in by_block]
        return sums[0]

    plain = bench.take_time("one pass per block", "sample", few, block_by_block, few * length, passes=3, is_plain=True)
    first = gradient_scores(model, layers, samples[:few])[layers[0]].sum().cpu()
    relative = float(abs(first - plain) / plain)
    scores = {}
    for size in sizes:
        scores.clear()  # or those of the last size would count
        scores = bench.take_time(
            "resurface",
            "sample",
            size,
            lambda size=size: gradient_scores(model, layers, samples[:size]),
            size * length,
            passes=3,
        )
        bench.note(largest_difference=relative)
    forget = {name: scores[name] for name in by_block[0]}
    del scores
    other = gradient_scores(model, by_block[0], samples[:1])
    settings = PruningSettings()
    p, q = sorted(settings.p), sorted(settings.q)
    first_share(forget[by_block[0][0]], q)
    cells = bench.take_time(
        "largest scores for each cell",
        "grid of a block",
        1,
        lambda: [masks_by_cell(forget[name], other[name], p, q) for name in forget],
        is_plain=True,
    )
    grid = bench.take_time(
        "resurface",
        "grid of a block",
        1,
        lambda: [masks_at_once(forget[name], other[name], p, q) for name in forget],
    )
    differences = (torch.tensor(cells) - torch.tensor(grid)).abs() / torch.tensor(cells).clamp(min=1)
    bench.note(largest_difference=float(differences.max()))


if __name__ == "__main__":
    main("pruning", measure)
