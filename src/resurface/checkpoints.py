"""Checkpoints as files: checks that need no weights loaded, and the taking over of the experiment's reference models.

Files of a user's own checkpoint, and of the hub's cache, are linked, because a 14 GB model must not be stored twice; the bundled
checkpoints of the testbed are small and copied, so that `results/` stands by itself.

A checkpoint may be a stranger's. Libraries build the model that `config.json` describes before they look at the weights, and
follow what else it names: so sizes are held against the weights first, and what would load code, pickles or another model
is refused.
"""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from resurface.artifacts import naming_unreadable, publish_folder, read_json_object
from resurface.errors import ResurfaceError

BUNDLED = Path(__file__).parent / "testbed" / "checkpoints"
# What a model is taken over with. Pickles, code and other formats of weights beside it stay behind.
TAKEN = (".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken")
HEADER_BYTES = 100_000_000  # the most that the safetensors library reads
# Sizes in config.json that cannot be larger than every dimension of every weight.
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "num_hidden_layers"),
    *("num_local_experts", "num_experts", "n_routed_experts"),
)
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
# What the parts of a block are called. Mixtures of experts of Mixtral's kind are stored under another name than transformers
# gives their `mlp`.
ATTENTION = ("self_attn", "attention")
MLP = ("mlp", "block_sparse_moe")
# What belongs to a tokenizer: another model's replaces all of it.
TOKENIZER_FILES = (
    *VOCABULARIES,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
)
BLOCK_PART = re.compile(r"^(|.*\.)layers\.([0-9]{1,6})\.(\w+)\.")


def take_over(source: Path, output: Path, tokenizer: Path | None = None) -> None:
    """Check a checkpoint folder and make it `output`.

    Args:
        source: the folder, or `testbed:original` and `testbed:never_learned` for the bundled ones.
        output: the model's folder in the results.
        tokenizer: a folder with the tokenizer to use instead of the checkpoint's own.

    Raises:
        ResurfaceError: the checkpoint is missing, incomplete, truncated or no decoder.
    """
    name = str(source).removeprefix("testbed:")
    bundled = name != str(source)
    if bundled and name not in ("original", "never_learned"):
        raise ResurfaceError(f"found the model {str(source)!r}; bundled are testbed:original and testbed:never_learned")
    folder = BUNDLED / name if bundled else source.absolute()
    check_checkpoint(folder, tokenizer)
    # What the workflow has made stays whole when `results/` is moved; what is only linked there is others'.
    is_ours = source.parts[0] == "results"
    is_here = folder.resolve().is_relative_to(Path("results").resolve())
    taken = {path.name: path for path in folder.iterdir() if path.is_file() and path.suffix in TAKEN}
    if tokenizer is not None:
        others = {name: path for name, path in taken.items() if name not in TOKENIZER_FILES}
        taken = others | {name: tokenizer / name for name in TOKENIZER_FILES if (tokenizer / name).is_file()}
    with publish_folder(output) as temporary:
        for name, path in sorted(taken.items()):
            if bundled or (is_ours and not is_here):
                shutil.copyfile(path, temporary / name)
            elif is_ours:
                _link_or_copy(path, temporary / name)
            else:
                (temporary / name).symlink_to(path.resolve())


def _link_or_copy(path: Path, place: Path) -> None:
    """Give a file a second name, so that a large model takes its room once; where that is impossible, copy it."""
    try:
        place.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, place)


def check_checkpoint(path: Path, tokenizer: Path | None = None) -> None:
    """Check that a folder holds the whole checkpoint of a decoder and its tokenizer, without loading its weights.

    Args:
        path: the folder.
        tokenizer: the folder that holds the tokenizer, if it is another.

    Raises:
        ResurfaceError: the folder or a part of it is missing, truncated or damaged, the architecture is none that can be
            handled, or loading would follow names to another model or to code.
    """
    if not path.is_dir():
        raise ResurfaceError(
            f"{path}: no such checkpoint folder; expected config.json, *.safetensors and a tokenizer. A model of the hub is named "
            "with its revision: org/name@main"
        )
    if not (path / "config.json").is_file():
        raise ResurfaceError(f"{path}: config.json is missing; this is no Hugging Face checkpoint")
    if (path / "adapter_config.json").exists():
        raise ResurfaceError(
            f"{path}: adapter_config.json is there, so this is an adapter of another model or holds one; merge it into the "
            "model (`merge_and_unload` of peft) and save the result"
        )
    config = read_json_object(path / "config.json")
    architectures = config.get("architectures") or []
    is_list = isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    if not is_list or not any(name.endswith("ForCausalLM") for name in architectures):
        raise ResurfaceError(
            f"{path}/config.json: found architectures {architectures}; allowed are decoders for causal language modelling "
            "(…ForCausalLM)"
        )
    if not any(((tokenizer or path) / name).is_file() for name in VOCABULARIES):
        raise ResurfaceError(
            f"{tokenizer or path}: no tokenizer; expected one of {', '.join(VOCABULARIES)}: save the model's tokenizer into this "
            "folder, or name another model's by `tokenizer` (published checkpoints)"
        )
    shapes = {name: shape for file in weight_files(path) for name, shape in check_weights(file).items()}
    counts = check_decoder_blocks(shapes, path, architectures)
    check_sizes(config, shapes, counts, path / "config.json")


def check_sizes(config: dict[str, Any], shapes: dict[str, list[int]], counts: set[int], path: Path) -> None:
    """Check that what `config.json` describes has no part that the weights lack, before a library begins to build it.

    Args:
        config: its content.
        shapes: of each tensor of the checkpoint.
        counts: numbers of decoder blocks among them.
        path: the file, for the message.

    Raises:
        ResurfaceError: a size is no whole number, is larger than any weight, or the number of blocks is another; or the
            attention is to be computed by code from elsewhere.
    """
    largest = max([*counts, *(size for shape in shapes.values() for size in shape)])
    for key in SIZES:
        size = config.get(key)
        if size is not None and (type(size) is not int or not 1 <= size <= largest):
            raise ResurfaceError(
                f"{path}: found {key} {size!r}; allowed are whole numbers from 1 to {largest}, the largest dimension of any "
                "weight beside it"
            )
    described = config.get("num_hidden_layers")
    extra = config.get(
        "num_nextn_predict_layers"
    )  # blocks that predict further tokens; transformers does not load them
    if described is not None and not counts & {described, described + (extra if type(extra) is int else 0)}:
        raise ResurfaceError(
            f"{path}: found num_hidden_layers {described}, but the weights beside it have {max(counts)} blocks"
        )
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"):
        if "/" in str(config.get(key, "")):
            raise ResurfaceError(
                f"{path}: found {key} {config[key]!r}, which names code from elsewhere; delete this key from the file"
            )


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that hold a checkpoint's weights: `model.safetensors`, or the shards that its index names.

    Raises:
        ResurfaceError: there is neither, the index is damaged, or a shard is missing or lies elsewhere.
    """
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise ResurfaceError(
            f"{path}: neither {whole.name} nor {index.name} (with its shards) is there; weights in other formats (pickles) "
            "are not read"
        )
    places = read_json_object(index).get("weight_map")
    is_map = isinstance(places, dict) and all(isinstance(name, str) for name in places.values())
    if not is_map or not places or any(name == "" or Path(name).name != name for name in places.values()):
        raise ResurfaceError(f"{index}: `weight_map` must name, for each tensor, a file in the same folder")
    shards = sorted(set(places.values()))
    missing = [name for name in shards if not (path / name).is_file()]
    if missing:
        raise ResurfaceError(
            f"{path}: {len(missing)} of the {len(shards)} shards that {index.name} names are missing, first {missing[0]}; "
            "fetch or build the checkpoint anew"
        )
    return [path / name for name in shards]


def check_decoder_blocks(tensors: Iterable[str], path: Path, architectures: list[str]) -> set[int]:
    """Check by the names of a checkpoint's tensors that its decoder is a list `layers` of blocks with attention and MLP.

    Returns:
        the number of blocks; several, if there are several such lists.

    Raises:
        ResurfaceError: there are no such blocks, or one lacks a part (GPT-2, OPT, state space models).
    """
    blocks: dict[str, set[str]] = {}
    lists: dict[str, set[str]] = {}
    for match in filter(None, map(BLOCK_PART.search, tensors)):
        blocks.setdefault(match[2], set()).add(match[3])
        lists.setdefault(match[1], set()).add(match[2])
    for number, parts in sorted(blocks.items(), key=lambda item: int(item[0])) or [("0", set())]:
        if parts.isdisjoint(ATTENTION) or parts.isdisjoint(MLP):
            raise ResurfaceError(
                f"{path}: architecture {', '.join(architectures)} cannot be handled: every block must be layers.<number> with "
                f"{' or '.join(ATTENTION)} and with mlp, as in Llama, Gemma or GPT-NeoX; block {number} has "
                f"{', '.join(sorted(parts)) or 'neither'} (docs/models.md lists what can be handled)"
            )
    return set(map(len, lists.values()))


def check_weights(path: Path) -> dict[str, list[int]]:
    """Check that a safetensors file is as long as its header says (https://github.com/huggingface/safetensors#format).

    Returns:
        the shapes of its tensors.

    Raises:
        ResurfaceError: it is truncated or is no safetensors file.
    """
    if not path.is_file():
        raise ResurfaceError(f"{path}: no such file; expected tensors in safetensors format")
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_BYTES):
            raise ResurfaceError(f"{path}: this is no whole safetensors file ({size} bytes); fetch or build it anew")
        with naming_unreadable(path, "safetensors"):
            header = json.loads(stream.read(length))
    entries = {key: entry for key, entry in header.items() if key != "__metadata__"} if type(header) is dict else {}
    if not entries or not all(map(_is_entry, entries.values())):
        raise ResurfaceError(f"{path}: this is no safetensors file: its header describes no tensors, or not as it must")
    needed = 8 + length + max(entry["data_offsets"][1] for entry in entries.values())
    if size != needed:
        raise ResurfaceError(
            f"{path}: the file is truncated or padded: found {size} bytes, its header needs {needed}; fetch or build it anew"
        )
    return {key: entry["shape"] for key, entry in entries.items()}


def _is_entry(entry: Any) -> bool:
    """Whether this describes a tensor: a shape, and two offsets in order, no number negative."""
    if type(entry) is not dict or not all(map(_is_counts, (entry.get("shape"), entry.get("data_offsets")))):
        return False
    offsets = entry["data_offsets"]
    return len(offsets) == 2 and offsets[0] <= offsets[1]


def _is_counts(numbers: Any) -> bool:
    return type(numbers) is list and all(type(number) is int and number >= 0 for number in numbers)
