"""Greedy replies of 50 tokens, as for perplexity and for a model's own answers: `python -m benchmarks.generation`."""

from benchmarks.measure import Bench, main
from benchmarks.questions import even_lengths, make_prompts
from resurface.generation import generate_tokens

TOKENS = 112
NEW_TOKENS = 50
BATCH_SIZE = 64


def measure(bench: Bench) -> None:
    """One prompt at a time, and batches at growing numbers of prompts."""
    model, tokenizer = bench.load()
    few, sizes = bench.choose(2, 16), bench.choose([4, 8, 16], [128, 256, 512])
    new_tokens = bench.choose(8, NEW_TOKENS)
    prompts = make_prompts(tokenizer, even_lengths(sizes[-1], bench.choose(80, TOKENS)))
    lengths = [len(row) + new_tokens for row in tokenizer(prompts)["input_ids"]]
    generate_tokens(model, tokenizer, prompts[:2], 2, 2)
    bench.take_time(
        "one at a time",
        "reply",
        few,
        lambda: generate_tokens(model, tokenizer, prompts[:few], new_tokens, 1),
        sum(lengths[:few]),
        is_plain=True,
    )
    for size in sizes:
        bench.take_time(
            "resurface",
            "reply",
            size,
            lambda size=size: generate_tokens(model, tokenizer, prompts[:size], new_tokens, BATCH_SIZE),
            sum(lengths[:size]),
        )


if __name__ == "__main__":
    main("generation", measure)
