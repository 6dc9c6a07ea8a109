"""Loading of models and tokenizers, choice of device, seeds, and passes over a decoder that record or read what it computes.

Layers are 0-based blocks everywhere, and `h_ℓ` is the *output* of block ℓ (design §7).
"""

import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from resurface.artifacts import naming_unreadable, read_json_object
from resurface.checkpoints import check_checkpoint
from resurface.decoder import block_output, cap_logits, check_places, decoder_blocks
from resurface.errors import ResurfaceError
from resurface.fused_norms import fuse_norms
from resurface.gpus import VISIBLE, claim_gpus, count_taken
from resurface.prompts import encode_letters
from resurface.spreading import spread_blocks

log = logging.getLogger("resurface")


def pick_device(name: str, count: int = 1) -> torch.device:
    """The device to compute on: `auto` is a CUDA device if there is one, else the CPU.

    Of several GPUs, `auto` and `cuda` take some that no other job computes on (`resurface.gpus`); `cuda:1` is the second, whoever
    uses it. Either way the process sees no others.

    Args:
        name: `auto`, `cpu`, `cuda` or `cuda:<number>`.
        count: GPUs that the job computes on.

    Raises:
        ResurfaceError: a device was asked for that this machine does not have, or this process sees GPUs that are not its own.
    """
    claim_gpus(name, count)
    if name != "cpu" and "LOCAL_RANK" not in os.environ and torch.cuda.device_count() > count_taken():
        # A Trainer would spread over all that it sees, and another job computes there.
        raise ResurfaceError(
            f"device: found {name!r}; this process is to compute on {count_taken()} of this machine's GPUs and sees "
            f"{torch.cuda.device_count()}, because CUDA was in use before they could be hidden. Name the GPU in the environment, as in "
            f"{VISIBLE}=0"
        )
    # cuDNN's attention plans anew for each shape of a batch, which takes 0.15 s, and most batches have a shape of their own.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ResurfaceError(f"device: found {name!r}, but this machine has no CUDA device; allowed here: auto, cpu")
    return torch.device(name.partition(":")[0])


def set_seed(seed: int) -> None:
    """Seed every source of randomness and ask for deterministic kernels: same machine, same bytes."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # By default every uninitialized tensor is then filled with NaN: a third of DPO's time, and no part of determinism.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer; without a padding token it pads with EOS. No code that comes with it is run.

    Raises:
        ResurfaceError: there is no tokenizer in the folder, it cannot be read, it has no EOS token, it has tokens that the
            model beside it does not know, or it does not tell the letters of answers apart by one token.
    """
    if not path.is_dir():
        raise ResurfaceError(f"{path}: no such checkpoint folder; expected a tokenizer in it")
    with naming_unreadable(path, "tokenizer (tokenizer.json, tokenizer_config.json)"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
        added = tokenizer.added_tokens_decoder
        known = [token for token in tokenizer.get_vocab().values() if token not in added]
        last = max([*known, *(token for token in special if token is not None)], default=-1)
    if tokenizer.eos_token_id is None:
        raise ResurfaceError(
            f"{path}: this tokenizer has no EOS token; name one as `eos_token` in tokenizer_config.json"
        )
    if (path / "config.json").is_file():
        size = read_json_object(path / "config.json").get("vocab_size")
        if type(size) is int and last >= size:
            raise ResurfaceError(
                f"{path}: the tokenizer has a token {last}, but config.json has vocab_size {size}; the tokenizer is another "
                "model's or damaged"
            )
    encode_letters(tokenizer, "Answer:")
    return tokenizer


def load_model(path: Path, device: torch.device, dtype: str = "auto") -> PreTrainedModel:
    """Load a decoder for inference. No code that comes with it is run, and no other model that it names is loaded.

    Args:
        path: a checkpoint folder in Hugging Face's layout, weights in safetensors.
        device: where to put it; a CUDA device is all GPUs that this job took, and the model's blocks are spread over them.
        dtype: `auto` is float32 on a CPU and bfloat16 on a GPU; else a torch dtype's name.

    Raises:
        ResurfaceError: the folder, its config or its weights are missing, truncated or of another architecture, or the model's
            blocks, final norm or head cannot be found.
    """
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    check_checkpoint(path)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors, transformers and json each raise their own kinds for a broken file
        raise ResurfaceError(
            f"{path}: this checkpoint cannot be loaded: {error}. Fetch or build it anew; weights must be whole safetensors"
        ) from error
    wrong = sorted(loading["missing_keys"]) + [str(key) for key in loading["mismatched_keys"]]
    if wrong:
        raise ResurfaceError(
            f"{path}: the weights do not fit the architecture in config.json ({model.config.model_type}): "
            f"{len(wrong)} tensors are missing or of another shape, first {wrong[0]}"
        )
    if device.type == "cuda":
        fuse_norms(model)
    taken = count_taken() if device.type == "cuda" else 1
    if taken > 1:
        spread_blocks(model, [torch.device("cuda", number) for number in range(taken)])
    else:
        model.to(device)
    check_places(model.eval())
    return model


def check_blocks(blocks: list[int], model: PreTrainedModel, setting: str) -> None:
    """Check that a setting names blocks that the model has.

    Raises:
        ResurfaceError: a block is negative or beyond the last one.
    """
    count = len(decoder_blocks(model))
    wrong = [block for block in blocks if not 0 <= block < count]
    if wrong:
        raise ResurfaceError(f"{setting}: found block {wrong[0]}; this model has blocks 0 to {count - 1}")


def linear_names(model: PreTrainedModel, blocks: list[int] | None, modules: str) -> list[str]:
    """Full names of the linear modules in a decoder's blocks, without the head.

    Args:
        model: the model to train.
        blocks: which blocks, or None for all.
        modules: the name of one module within each block, or `all-linear`.
    """
    inside = {
        module
        for number, block in enumerate(decoder_blocks(model))
        if blocks is None or number in blocks
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and modules in ("all-linear", name)
    }
    return [name for name, module in model.named_modules() if module in inside]


class _Reached(Exception):  # noqa: N818 - it is no error
    """Thrown by a hook to end a forward pass early."""


@contextmanager
def recording(model: PreTrainedModel, blocks: list[int], stop: bool = True) -> Iterator[dict[int, torch.Tensor]]:
    """Record `h_ℓ` of the given blocks during the forward passes inside the context, gradients and all.

    Args:
        model: the decoder.
        blocks: which blocks' outputs to keep.
        stop: end each forward pass at the deepest of them (`run_decoder` hides the early end).

    Yields:
        block → hidden states `[batch, seq, hidden]` of the latest forward pass.
    """
    layers = decoder_blocks(model)
    states: dict[int, torch.Tensor] = {}
    deepest = max(blocks)

    def keep(block: int, output: Any) -> None:
        states[block] = block_output(output)
        if stop and block == deepest:
            raise _Reached

    handles = [
        layers[block].register_forward_hook(lambda _module, _inputs, output, block=block: keep(block, output))
        for block in blocks
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def run_decoder(
    model: PreTrainedModel,
    input_ids: torch.Tensor | None = None,
    weights: dict[str, torch.Tensor] | None = None,
    **inputs: Any,
) -> Any:
    """Run the decoder (without its head).

    Args:
        model: the decoder.
        input_ids: `[batch, seq]`; right-padded batches of a causal model need no mask.
        weights: what to put in the place of some of its parameters, by name.
        inputs: what else the decoder takes; keys and values are not kept unless `use_cache` says so.

    Returns:
        the decoder's output, or None after an early end by `recording`, which is no error.
    """
    try:
        decoder = model.get_decoder()
        inputs = {"input_ids": input_ids, "use_cache": False, **inputs}
        return decoder(**inputs) if weights is None else functional_call(decoder, weights, kwargs=inputs)
    except _Reached:
        return None


def keep_cache(model: PreTrainedModel, tokens: Sequence[int]) -> tuple[Cache | None, torch.Tensor]:
    """What many rows that begin with the same tokens share.

    Returns:
        keys and values, or None if this model keeps something else or more (shared, compressed or indexed keys, recurrent
        states), so that its rows cannot go on from them; and the last hidden states `[seq, hidden]`.
    """
    output = run_decoder(model, torch.tensor([tokens], device=model.device), use_cache=True)
    cache = output.past_key_values
    is_plain = all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in getattr(cache, "layers", [None])
    )
    return cache if is_plain else None, output.last_hidden_state[0]


def continue_cache(cache: Cache, rows: torch.Tensor) -> dict[str, Any]:
    """What `run_decoder` takes to go on from kept tokens; the cache itself stays as it is.

    Args:
        cache: keys and values of one or several beginnings.
        rows: which of these each row goes on from `[rows]`.
    """
    past = copy(cache)
    past.layers = [
        copy(layer) for layer in cache.layers
    ]  # they put new tensors in the place of old ones, and change none
    for layer in past.layers:
        if layer.get_seq_length():  # an early end leaves some empty
            layer.batch_select_indices(rows.to(layer.keys.device))  # blocks may be on several GPUs
    return {"past_key_values": past, "use_cache": True}


def batch_rows(rows: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Positions of rows in batches of at most `batch_tokens` padded tokens (one row at least), longest rows first."""
    order = sorted(range(len(rows)), key=lambda position: len(rows[position]), reverse=True)
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // max(1, len(rows[order[start]])))
        yield order[start : start + count]
        start += count


def for_batches(rows: Sequence[Sequence[int]], batch_tokens: int, run: Callable[[list[int]], None]) -> None:
    """Run over rows in the batches of `batch_rows`, or in smaller ones where memory runs out.

    Args:
        rows: token ids.
        batch_tokens: padded tokens in a batch at most; one row at least.
        run: does the work for the rows at the given positions; it may be called again for rows that it has begun.

    Raises:
        torch.OutOfMemoryError: there is no room for a single row.
    """
    order = [position for batch in batch_rows(rows, batch_tokens) for position in batch]
    run_within_memory(
        len(order), lambda start: batch_tokens // max(1, len(rows[order[start]])), lambda part: run(order[part])
    )


def run_within_memory(
    count: int, size_from: Callable[[int], int], run: Callable[[slice], None], halvings: int = 0
) -> int:
    """Run over items in batches. One that memory has no room for is halved, with all after it, and the log says so.

    Args:
        count: how many items there are.
        size_from: how many to take at once from a place on; one at least is taken.
        run: does the work for a part of the items; it may be called again for items that it has begun.
        halvings: how often to halve each batch from the beginning.

    Returns:
        how often batches are halved at the end.

    Raises:
        torch.OutOfMemoryError: there is no room for a single item.
    """
    start = 0
    while start < count:
        size = min(max(1, size_from(start) >> halvings), count - start)
        if _has_room(run, slice(start, start + size), size == 1):
            start += size
        else:
            # More than once where fewer items were left than a batch may have.
            while size_from(start) >> halvings >= size:
                halvings += 1
            torch.cuda.empty_cache()
            log.warning("out of memory with %d at once; going on with fewer", size)
    return halvings


def _has_room(run: Callable[[slice], None], part: slice, is_last: bool) -> bool:
    """Run a part; once this is over, no exception keeps its tensors alive."""
    try:
        run(part)
    except torch.OutOfMemoryError:
        if is_last:
            raise
        return False
    return True


def sum_logprobs(
    model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each row's tokens from its start on, summed, and how many these are.

    Only positions that count for some row are unembedded.

    Args:
        model: the decoder.
        rows: token ids.
        starts: of each row, the place of the first token that counts; at least 1.
        pad: the token to pad with.

    Returns:
        two tensors `[rows]`; the first in nats, with its gradient.
    """
    device = next(model.parameters()).device
    multiple = width_multiple(device)
    tokens = pad_right(rows, pad, multiple)
    counted = [[int(place >= start) for place in range(len(row))] for row, start in zip(rows, starts, strict=True)]
    mask = pad_right(counted, 0, multiple)[:, 1:]
    kept = mask.any(0).nonzero()[:, 0]
    # Whoever copies to a GPU waits for it, unless told not to, and it would then wait for the launch of the next pass.
    inputs, targets, mask, places = (
        values.to(device, non_blocking=True) for values in (tokens, tokens[:, kept + 1], mask[:, kept], kept)
    )
    logits = model(input_ids=inputs, use_cache=False, logits_to_keep=places).logits.float()
    logprobs = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return (logprobs * mask).sum(-1), mask.sum(-1)


def width_multiple(device: torch.device) -> int:
    """Of how many tokens the width of rows is best a multiple where each pass has a width of its own.

    On GPUs 8, so that shapes come again: the first product of each shape takes their library up to 3 ms, thousands of others 20 µs each.
    """
    return 8 if device.type == "cuda" else 1


def round_up(count: int, multiple: int) -> int:
    """The least multiple that is no smaller than a count."""
    return -(-count // multiple) * multiple


def pad_right(rows: Sequence[Sequence[int]], value: int, multiple: int = 1) -> torch.Tensor:
    """Rows of token ids as one tensor, padded on the right, where causal models need no mask.

    Returns:
        `[rows, width]`, the width being that of the longest row, rounded up to a multiple.
    """
    width = round_up(max(map(len, rows)), multiple)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


@torch.inference_mode()
def predict_letters(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    letters: list[str],
    batch_tokens: int,
) -> list[str]:
    """The most probable letter after each plain prompt, the letters tokenized with their context as the harness does.

    Logits are computed in float32: in bfloat16 close letters tie, and ties go to the first.
    """
    rows = [row[:-1] for row in tokenizer([f"{prompt} {letters[0]}" for prompt in prompts])["input_ids"]]
    finals = encode_letters(tokenizer, prompts[0], letters)
    head = model.get_output_embeddings()
    weight = head.weight[finals].float()
    bias = None if head.bias is None else head.bias[finals].float()
    answers = [""] * len(rows)

    def answer(positions: list[int]) -> None:
        batch = [rows[position] for position in positions]
        hidden = model.get_decoder()(pad_right(batch, 0).to(model.device), use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(batch)), torch.tensor([len(row) - 1 for row in batch])]
        best = cap_logits(model, nn.functional.linear(last.float(), weight, bias)).argmax(-1).tolist()
        for position, choice in zip(positions, best, strict=True):
            answers[position] = letters[choice]

    for_batches(rows, batch_tokens, answer)
    return answers
