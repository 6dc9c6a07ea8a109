"""Greedy replies of a model to rendered prompts."""

from typing import Any

import torch
from tqdm import tqdm


@torch.inference_mode()
def generate_replies(model: Any, tokenizer: Any, texts: list[str], new_tokens: int, batch_size: int) -> list[str]:
    """Continue texts greedily, in batches padded on the left.

    Args:
        model: the decoder.
        tokenizer: its tokenizer.
        texts: rendered prompts, without BOS.
        new_tokens: tokens at which a reply is cut.
        batch_size: prompts per batch.

    Returns:
        the replies as text, special tokens left out; a model that ends at once replies with an empty text.
    """
    replies: list[str] = []
    for start in tqdm(range(0, len(texts), batch_size), desc="generate", disable=None):
        batch = texts[start : start + batch_size]
        inputs = tokenizer(batch, return_tensors="pt", padding=True, padding_side="left").to(model.device)
        tokens = model.generate(
            **inputs, max_new_tokens=new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        replies += tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return replies
