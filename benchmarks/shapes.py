"""Checkpoints with random weights in the shape of real models: true sizes and speeds, and no knowledge."""

import json
import string
from collections import deque
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

SHAPES = {
    "mistral-7b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    "small": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 2000,
        "initializer_range": 0.16,  # so that a block changes its input as much as one of the large shape does
    },
}


def make_checkpoint(folder: Path, shape: str, device: str, seed: int = 0) -> None:
    """Write a checkpoint of random weights in bfloat16, with the testbed's tokenizer and as many tokens as the shape has.

    Args:
        folder: where it goes.
        shape: one of `SHAPES`.
        device: where the weights are drawn: seconds on a GPU, minutes on a CPU.
        seed: of the weights.
    """
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = make_tokenizer(SHAPES[shape]["vocab_size"])
    config = MistralConfig(
        **SHAPES[shape],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        sliding_window=None,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model = MistralForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="1GB")
    del model
    if device != "cpu":
        torch.cuda.empty_cache()  # what is measured afterwards runs in other processes on the same GPU
    tokenizer.save_pretrained(folder)


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """The testbed's tokenizer, filled up with words of capital letters that no text of the testbed holds.

    A model of random weights writes any of its tokens, and prefixes are drawn from all of them.
    """
    from resurface.checkpoints import BUNDLED
    from resurface.models import load_tokenizer

    tokenizer: PreTrainedTokenizerFast = load_tokenizer(BUNDLED / "original")
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, merges = written["model"]["vocab"], written["model"]["merges"]
    words = deque(["\u0120"])  # a space, as this tokenizer writes it
    while len(vocabulary) < size:
        word = words.popleft()
        for letter in string.ascii_uppercase[: size - len(vocabulary)]:
            words.append(word + letter)
            if word + letter not in vocabulary:
                vocabulary[word + letter] = len(vocabulary)
                merges.append([word, letter])  # a merge joins two tokens, so words grow by one letter at a time
    wider = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(written)), **tokenizer.special_tokens_map
    )
    wider.chat_template = tokenizer.chat_template
    return wider
