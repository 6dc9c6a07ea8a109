"""Reading all streams of all blocks by the logit lens: `python -m benchmarks.logit_lens`.

The plain way passes one question at a time and unembeds every position of every stream.
"""

from typing import Any, get_args

import torch

from benchmarks.measure import Bench, main
from benchmarks.questions import even_lengths, make_prompts, make_requests
from resurface.decoder import final_norm
from resurface.interventions import Read, Stream, Variant
from resurface.prompts import LETTERS, encode_letters
from resurface.scoring.apply import record_streams
from resurface.scoring.language_model import ResurfaceLM

TOKENS = 163


def unembed_everything(model: Any, tokenizer: Any, prompts: list[str], reads: list[Read]) -> list[list[list[float]]]:
    """Per question and place to read, the logits of the four letters."""
    letters = encode_letters(tokenizer, prompts[0])
    found = []
    with torch.inference_mode(), record_streams(model, reads) as streams:
        for prompt in prompts:
            model(torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device))
            logits = [model.lm_head(final_norm(model)(streams[read])) for read in reads]
            found.append([values[0, -1].float()[letters].tolist() for values in logits])
    return found


def measure(bench: Bench) -> None:
    """All unembedded, ours, and a plain pass of ours that reads the output alone."""
    few, sizes = bench.choose(4, 64), bench.choose([4, 8, 16], [320, 640, 1280])
    ours = ResurfaceLM(str(bench.folder), device=str(bench.device))
    prompts = make_prompts(ours.tokenizer, even_lengths(sizes[-1], bench.choose(80, TOKENS)))
    lengths = [len(row) for row in ours.tokenizer(prompts)["input_ids"]]
    reads = [Read(stream=stream, block=block) for stream in get_args(Stream) for block in range(bench.shape.blocks)]
    variants = [Variant(variant=f"{read.stream}-{read.block}", read=read) for read in reads]
    rows = ours.plan_rows(make_requests(prompts), variants[0])

    unembed_everything(ours.model, ours.tokenizer, prompts[:2], reads)
    plain = bench.take_time(
        "one at a time, everything unembedded",
        "question",
        few,
        lambda: unembed_everything(ours.model, ours.tokenizer, prompts[:few], reads),
        sum(lengths[:few]),
        is_plain=True,
    )
    ours.answer(rows[:2], variants, True)
    for size in sizes:
        answers = bench.take_time(
            "resurface",
            "question",
            size,
            lambda size=size: ours.answer(rows[:size], variants, True),
            sum(lengths[:size]),
        )
        values = torch.tensor([[answer[place][0] for answer in answers] for place in range(few * len(LETTERS))])
        values = values.reshape(few, len(LETTERS), len(reads)).transpose(1, 2)
        theirs = torch.tensor(plain)
        # Logits and log-probabilities differ by a constant per place to read.
        differences = (values - values.mean(-1, keepdim=True)) - (theirs - theirs.mean(-1, keepdim=True))
        bench.note(largest_difference=float(differences.abs().max()))
    bench.take_time(
        "resurface, the output alone",
        "question",
        sizes[-1],
        lambda: ours.answer(rows, [Variant(variant="none")], True),
        sum(lengths),
    )


if __name__ == "__main__":
    main("logit_lens", measure)
