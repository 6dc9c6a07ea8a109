"""Checkpoints as files: checks that need no weights loaded, and the taking over of the experiment's reference models.

Files of a user's own checkpoint are linked, because a 14 GB model must not be stored twice; the bundled checkpoints of
the testbed are small and copied, so that `results/` stands by itself.
"""

import json
import re
import shutil
from pathlib import Path

from resurface.artifacts import publish_folder, read_json
from resurface.errors import ResurfaceError

BUNDLED = Path(__file__).parent / "testbed" / "checkpoints"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
BLOCK_PART = re.compile(r"(?:^|\.)layers\.(\d+)\.(\w+)\.")


def take_over(source: Path, output: Path) -> None:
    """Check a checkpoint folder and make it `output`.

    Args:
        source: the folder, or `testbed:original` and `testbed:never_learned` for the bundled ones.
        output: the model's folder in the results.

    Raises:
        ResurfaceError: the checkpoint is missing, incomplete, truncated or no decoder.
    """
    bundled = str(source).startswith("testbed:")
    folder = BUNDLED / str(source).removeprefix("testbed:") if bundled else source.absolute()
    check_checkpoint(folder)
    with publish_folder(output) as temporary:
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            if bundled:
                shutil.copyfile(path, temporary / path.name)
            else:
                (temporary / path.name).symlink_to(path.resolve())


def check_checkpoint(path: Path) -> None:
    """Check that a folder holds the whole checkpoint of a decoder and its tokenizer, without loading its weights.

    Raises:
        ResurfaceError: the folder or a part of it is missing or truncated, or the architecture is none that can be handled.
    """
    if not path.is_dir():
        raise ResurfaceError(f"{path}: no such checkpoint folder; expected config.json, *.safetensors and a tokenizer")
    if not (path / "config.json").is_file():
        raise ResurfaceError(f"{path}: config.json is missing; this is no Hugging Face checkpoint")
    architectures = read_json(path / "config.json").get("architectures") or []
    if not any(name.endswith("ForCausalLM") for name in architectures):
        raise ResurfaceError(
            f"{path}/config.json: found architectures {architectures}; allowed are decoders for causal language modelling "
            "(…ForCausalLM)"
        )
    if not any((path / name).is_file() for name in VOCABULARIES):
        raise ResurfaceError(
            f"{path}: no tokenizer; expected one of {', '.join(VOCABULARIES)}: save the model's tokenizer into this folder"
        )
    tensors = [name for file in weight_files(path) for name in check_weights(file)]
    check_decoder_blocks(tensors, path, architectures)


def weight_files(path: Path) -> list[Path]:
    """The safetensors files that hold a checkpoint's weights: `model.safetensors`, or the shards that its index names.

    Raises:
        ResurfaceError: there is neither, or a shard is missing.
    """
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise ResurfaceError(
            f"{path}: neither {whole.name} nor {index.name} (with its shards) is there; weights in other formats (pickles) "
            "are not read"
        )
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    missing = [name for name in shards if not (path / name).is_file()]
    if missing:
        raise ResurfaceError(
            f"{path}: {len(missing)} of the {len(shards)} shards that {index.name} names are missing, first {missing[0]}; "
            "fetch or build the checkpoint anew"
        )
    return [path / name for name in shards]


def check_decoder_blocks(tensors: list[str], path: Path, architectures: list[str]) -> None:
    """Check by the names of a checkpoint's tensors that its decoder is a list `layers` of blocks with `self_attn` and `mlp`.

    Raises:
        ResurfaceError: there are no such blocks, or one lacks a part (GPT-2, GPT-NeoX, OPT, state space models).
    """
    blocks: dict[str, set[str]] = {}
    for match in filter(None, map(BLOCK_PART.search, tensors)):
        blocks.setdefault(match[1], set()).add(match[2])
    # Mixtures of experts of Mixtral's kind are stored under another name than transformers gives their `mlp`.
    for number, parts in sorted(blocks.items(), key=lambda item: int(item[0])) or [("0", set())]:
        if "self_attn" not in parts or not parts & {"mlp", "block_sparse_moe"}:
            raise ResurfaceError(
                f"{path}: architecture {', '.join(architectures)} cannot be handled: every block must be layers.<number> with "
                f"self_attn and mlp, as in Llama, Mistral or Qwen; block {number} has {', '.join(sorted(parts)) or 'neither'}"
            )


def check_weights(path: Path) -> list[str]:
    """Check that a safetensors file is as long as its header says (https://github.com/huggingface/safetensors#format).

    Returns:
        the names of its tensors.

    Raises:
        ResurfaceError: it is truncated or is no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise ResurfaceError(f"{path}: this is no whole safetensors file ({size} bytes); fetch or build it anew")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ResurfaceError(f"{path}: this is no safetensors file: its header is no JSON") from error
    needed = (
        8
        + length
        + max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
    )
    if size != needed:
        raise ResurfaceError(
            f"{path}: the file is truncated or padded: found {size} bytes, its header needs {needed}; fetch or build it anew"
        )
    return [key for key in header if key != "__metadata__"]
