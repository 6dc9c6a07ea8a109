"""Greedy replies of a model to rendered prompts."""

from typing import Any

import torch
from tqdm import tqdm

from resurface.models import run_within_memory


@torch.inference_mode()
def generate_tokens(model: Any, tokenizer: Any, texts: list[str], new_tokens: int, batch_size: int) -> list[list[int]]:
    """Continue texts greedily, in batches padded on the left.

    Args:
        model: the decoder.
        tokenizer: its tokenizer.
        texts: rendered prompts, without BOS.
        new_tokens: tokens at which a reply is cut.
        batch_size: prompts per batch.

    Returns:
        the tokens of each reply, up to and including the one that ends it: one at least.
    """
    # Chat models end a turn by a token of its own, which their generation settings name beside EOS; padding follows it.
    named = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    replies: list[list[int]] = []

    def reply(part: slice) -> None:
        inputs = tokenizer(texts[part], return_tensors="pt", padding=True, padding_side="left").to(model.device)
        tokens = model.generate(
            **inputs, max_new_tokens=new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        for row in tokens[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((place for place, token in enumerate(row, 1) if token in ends), len(row))
            replies.append(row[:end])
        progress.update(len(texts[part]))

    with tqdm(total=len(texts), desc="generate", disable=None) as progress:
        run_within_memory(len(texts), lambda _start: batch_size, reply)
    return replies


def without_special(tokenizer: Any, tokens: list[int]) -> list[int]:
    """A reply's tokens without EOS and other special ones."""
    special = set(tokenizer.all_special_ids)
    return [token for token in tokens if token not in special]


def generate_replies(model: Any, tokenizer: Any, texts: list[str], new_tokens: int, batch_size: int) -> list[str]:
    """The replies of `generate_tokens` as text, special tokens left out; a model that ends at once replies with an empty one."""
    replies = generate_tokens(model, tokenizer, texts, new_tokens, batch_size)
    return list(tokenizer.batch_decode(replies, skip_special_tokens=True))
