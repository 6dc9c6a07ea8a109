"""Scoring multiple-choice questions: `python -m benchmarks.scoring`.

The plain way passes one question at a time through the whole model and unembeds every position. The harness's own `hf` model
chooses its batch size by itself. Lengths are those of WMDP's 1,273 biology questions; with 14,042 there are as many as MMLU has. For the
comparison with the harness they have a long tail, as MMLU's have, and its model computes attention as torch chooses, with cuDNN where there
is one (`resurface.models.pick_device` says why ours does not); a part of the questions shows what it takes without.
"""

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from benchmarks.measure import Bench, main
from benchmarks.questions import even_lengths, make_prompts, make_requests, tailed_lengths
from resurface.prompts import LETTERS, encode_letters
from resurface.scoring.language_model import ResurfaceLM

TOKENS = 112


def one_at_a_time(model: Any, tokenizer: Any, prompts: list[str]) -> list[list[float]]:
    """Log-probabilities of the four letters after each prompt."""
    letters = encode_letters(tokenizer, prompts[0])
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            tokens = torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device)
            found.append(model(tokens).logits[0, -1].float().log_softmax(-1)[letters].tolist())
    return found


def compare(answers: list[tuple[float, bool]], others: list[list[float]]) -> dict[str, float]:
    """How the first questions' answers differ from others [nats], and how many choose the same letter."""
    ours = torch.tensor([value for value, _ in answers]).reshape(-1, len(LETTERS))[: len(others)]
    theirs = torch.tensor(others)
    same = (ours.argmax(1) == theirs.argmax(1)).float().mean()
    return {"largest_difference": float((ours - theirs).abs().max()), "same_choice": float(same)}


def measure(bench: Bench) -> None:
    """One question at a time, the harness's model, and ours at growing numbers of questions."""
    few, sizes = bench.choose(8, 256), bench.choose([8, 16, 32], [1273, 4000, 14042])
    ours = ResurfaceLM(str(bench.folder), device=str(bench.device))
    prompts = make_prompts(ours.tokenizer, even_lengths(sizes[-1], bench.choose(80, TOKENS)))
    lengths = [len(row) for row in ours.tokenizer(prompts)["input_ids"]]
    requests = make_requests(prompts)
    choices = len(LETTERS)

    one_at_a_time(ours.model, ours.tokenizer, prompts[:4])
    plain = bench.take_time(
        "one at a time",
        "question",
        few,
        lambda: one_at_a_time(ours.model, ours.tokenizer, prompts[:few]),
        sum(lengths[:few]),
        is_plain=True,
    )
    ours.loglikelihood(requests[: 4 * choices], disable_tqdm=True)
    for size in sizes:
        answers = bench.take_time(
            "resurface",
            "question",
            size,
            lambda size=size: ours.loglikelihood(requests[: size * choices], disable_tqdm=True),
            sum(lengths[:size]),
        )
        bench.note(**compare(answers, plain))
    size, part = sizes[-1], sizes[0]
    prompts = make_prompts(ours.tokenizer, tailed_lengths(size, bench.choose(60, 90)))
    lengths = [len(row) for row in ours.tokenizer(prompts)["input_ids"]]
    tokens, requests = sum(lengths), make_requests(prompts)
    harness = HFLM(pretrained=ours.model, tokenizer=ours.tokenizer, batch_size=bench.choose(4, "auto"))
    unit = "question (long tail)"
    harness.loglikelihood(requests[: 4 * choices], disable_tqdm=True)
    bench.take_time(
        "lm-eval hf, automatic batch, without cuDNN",
        unit,
        part,
        lambda: harness.loglikelihood(requests[: part * choices], disable_tqdm=True),
        sum(lengths[:part]),
    )
    torch.backends.cuda.enable_cudnn_sdp(True)
    others = bench.take_time(
        "lm-eval hf, automatic batch",
        unit,
        size,
        lambda: harness.loglikelihood(requests, disable_tqdm=True),
        tokens,
        is_plain=True,
    )
    torch.backends.cuda.enable_cudnn_sdp(False)
    answers = bench.take_time("resurface", unit, size, lambda: ours.loglikelihood(requests, disable_tqdm=True), tokens)
    bench.note(**compare(answers, torch.tensor([value for value, _ in others]).reshape(-1, choices).tolist()))


if __name__ == "__main__":
    main("scoring", measure)
