"""Many variants of an attack, scored by one job: `python -m benchmarks.variants`.

The plain way loads the model anew for each variant, as a command line per setting does. What no way can do without are the passes over
the questions, which are measured alone. Few variants show how the time of a job grows with them.
"""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from benchmarks.measure import Bench, main
from benchmarks.questions import even_lengths, make_prompts, make_requests
from resurface.attacks.pruning import SCHEMA, first_share, open_masks, prunings, write_masks
from resurface.interventions import Adapter, Directions, Prepend, Variant
from resurface.models import linear_names
from resurface.scoring.language_model import ResurfaceLM, answer_variants
from resurface.settings.pruning import PruningSettings

TOKENS = 112
RANK = 128


def make_masks(model: Any, path: Path) -> None:
    """Masks of the whole grid for all layers; those of the first block's random scores stand for every block."""
    settings = PruningSettings()
    layers = linear_names(model, [0], "all-linear")
    weights = {name: model.get_submodule(name).weight for name in layers}
    forget, utility = (
        {
            name: first_share(torch.rand_like(weight, dtype=torch.float32), sorted(shares)).cpu()
            for name, weight in weights.items()
        }
        for shares in (settings.q, settings.p)
    )
    first = path.with_suffix(".first")
    write_masks(first, forget, utility, settings)
    rows = pq.read_table(first)
    with open_masks(path) as writer:
        for block in range(model.config.num_hidden_layers):
            for place, name in enumerate(rows["layer"].to_pylist()):
                column = [[name.replace(".0.", f".{block}.", 1)]]
                writer.write_table(rows.slice(place, 1).set_column(0, SCHEMA.field("layer"), column))


def make_adapter(model: Any, folder: Path) -> None:
    """A LoRA adapter of random weights on all linear layers of the blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name in linear_names(model, None, "all-linear"):
        rows, columns = model.get_submodule(name).weight.shape
        for part, shape in (("lora_A", (RANK, columns)), ("lora_B", (rows, RANK))):
            tensors[f"base_model.model.{name}.{part}.weight"] = torch.randn(shape, device=model.device) * 1e-3
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def make_variants(ours: ResurfaceLM, count: int) -> dict[str, list[Variant]]:
    """Of each kind, variants whose files lie in the model's folder of interventions."""
    shutil.rmtree(ours.folder, ignore_errors=True)
    ours.folder.mkdir(parents=True)
    blocks = list(range(ours.model.config.num_hidden_layers))
    make_masks(ours.model, ours.folder / "masks.parquet")
    make_adapter(ours.model, ours.folder / "adapter-0")
    for place in range(1, count):
        shutil.copytree(ours.folder / "adapter-0", ours.folder / f"adapter-{place}", copy_function=os.link)
    directions = torch.randn(len(blocks), ours.model.config.hidden_size)
    save_file({"directions": directions}, ours.folder / "directions.safetensors")
    changes: dict[str, list[dict[str, Any]]] = {
        "mask": [{"model": pair} for pair in prunings("masks.parquet", PruningSettings())],
        "direction": [
            {"model": Directions(file="directions.safetensors", blocks=blocks[place:])} for place in range(count)
        ],
        "adapter": [{"model": Adapter(folder=f"adapter-{place}")} for place in range(count)],
        "prefix": [
            {"prompt": Prepend(text="never under the river " * 25 + "north " * place)} for place in range(count)
        ],
    }
    return {
        kind: [Variant(variant=f"{kind}-{place}", **change) for place, change in enumerate(found[:count])]
        for kind, found in changes.items()
    }


def measure(bench: Bench) -> None:
    """For each kind: loaded anew, the passes alone, and ours at growing numbers of variants."""
    questions = bench.choose(8, 1273)
    sizes = {kind: bench.choose([1, 2, 4], [2, 4, 8]) for kind in ("direction", "adapter", "prefix")}
    sizes["mask"] = bench.choose([1, 2, 4], [4, 8, 16])  # they share a file that is read once, and an attack has 45
    ours = ResurfaceLM(str(bench.folder), device=str(bench.device))
    ours.folder = bench.folder.parent / "interventions"
    prompts = make_prompts(ours.tokenizer, even_lengths(questions, bench.choose(80, TOKENS)))
    requests = make_requests(prompts)
    lengths = sum(len(row) for row in ours.tokenizer(prompts)["input_ids"])
    kinds = make_variants(ours, max(map(max, sizes.values())))

    def load_and_score(variant: Variant) -> list[Any]:
        alone = ResurfaceLM(str(bench.folder), device=str(bench.device))
        alone.folder = ours.folder
        return answer_variants(alone, {"plain": requests}, [variant], print)[variant.variant, "plain"]

    for kind, variants in kinds.items():
        unit = f"variant ({kind})"
        ours.answer(ours.plan_rows(requests, variants[0]), [variants[0]], True)
        theirs = bench.take_time("loaded anew", unit, 1, partial(load_and_score, variants[0]), lengths, is_plain=True)
        rows, unchanged = ours.plan_rows(requests, variants[0]), variants[0].model_copy(update={"model": None})
        bench.take_time(
            "the passes alone",
            unit,
            1,
            partial(ours.answer, rows, [unchanged], True),
            lengths,
        )
        for size in sizes[kind]:
            answers = bench.take_time(
                "resurface",
                unit,
                size,
                partial(answer_variants, ours, {"plain": requests}, variants[:size], print),
                size * lengths,
            )
            found = answers[variants[0].variant, "plain"]
            bench.note(largest_difference=max(abs(a[0] - b[0]) for a, b in zip(found, theirs, strict=True)))


if __name__ == "__main__":
    main("variants", measure)
