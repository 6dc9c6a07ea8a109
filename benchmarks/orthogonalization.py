"""Mean activations of all blocks, from which directions are computed: `python -m benchmarks.orthogonalization`.

The plain way keeps the activations of every token of every question, one question at a time, and takes the mean of the stack. Tokens are
drawn from the whole vocabulary, so that as many ids may be outlying, and are summed apart, as an attack has at most.
"""

import random

import torch

from benchmarks.measure import Bench, main
from benchmarks.questions import even_lengths
from resurface.attacks.orthogonalization import collect, find_first_ids
from resurface.models import recording, run_decoder

TOKENS = 112
BATCH_TOKENS = 8192
KEPT = 1000
APART = 2000  # the first tokens of forget questions and of benign ones


def measure(bench: Bench) -> None:
    """The stack, and our sums at growing numbers of questions."""
    model, _ = bench.load()
    few, sizes, skip = bench.choose(4, 64), bench.choose([4, 8, 16], [250, 500, 1000]), bench.choose(8, 40)
    generator = random.Random(0)
    lengths = [round(length) for length in even_lengths(sizes[-1], bench.choose(80, TOKENS))]
    generator.shuffle(lengths)
    rows = [generator.choices(range(bench.shape.vocabulary), k=length) for length in lengths]
    blocks = list(range(bench.shape.blocks))

    def stack() -> torch.Tensor:
        kept = []
        with torch.inference_mode(), recording(model, blocks) as states:
            for row in rows[:few]:
                run_decoder(model, torch.tensor([row], device=model.device))
                kept.append(torch.stack([states[block][0, skip:] for block in blocks]).float().cpu())
        return torch.cat(kept, dim=1).mean(1)

    apart = set(find_first_ids(rows, skip, bench.choose(40, APART)))
    collect(model, rows[:2], skip, 1, BATCH_TOKENS, apart)
    mean = bench.take_time("stacked", "question", few, stack, sum(map(len, rows[:few])), is_plain=True)
    ours = collect(model, rows[:few], skip, 1, BATCH_TOKENS, apart).mean_without([set()] * len(blocks))
    relative = float(((ours - mean).norm(dim=1) / mean.norm(dim=1)).max())
    for size in sizes:
        bench.take_time(
            "resurface",
            "question",
            size,
            lambda size=size: collect(model, rows[:size], skip, KEPT, BATCH_TOKENS, apart),
            sum(map(len, rows[:size])),
        )
        bench.note(largest_difference=relative)


if __name__ == "__main__":
    main("orthogonalization", measure)
