"""Checkpoints as files: checks that need no weights loaded, and the taking over of the experiment's reference models.

Files of a user's own checkpoint are linked, because a 14 GB model must not be stored twice; the bundled checkpoints of
the testbed are small and copied, so that `results/` stands by itself.
"""

import json
import shutil
from pathlib import Path

from resurface.artifacts import publish_folder, read_json
from resurface.errors import ResurfaceError

BUNDLED = Path(__file__).parent / "testbed" / "checkpoints"


def take_over(source: Path, output: Path) -> None:
    """Check a checkpoint folder and make it `output`.

    Args:
        source: the folder, or `testbed/original` and `testbed/never_learned` for the bundled ones.
        output: the model's folder in the results.

    Raises:
        ResurfaceError: the checkpoint is missing, incomplete, truncated or no decoder.
    """
    bundled = source.parts[:1] == ("testbed",)
    folder = BUNDLED / source.name if bundled else source.absolute()
    check_checkpoint(folder)
    with publish_folder(output) as temporary:
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            if bundled:
                shutil.copyfile(path, temporary / path.name)
            else:
                (temporary / path.name).symlink_to(path.resolve())


def check_checkpoint(path: Path) -> None:
    """Check that a folder holds the whole checkpoint of a decoder, without loading its weights.

    Raises:
        ResurfaceError: the folder or a part of it is missing or truncated, or the architecture is no decoder's.
    """
    if not path.is_dir():
        raise ResurfaceError(f"{path}: no such checkpoint folder; expected config.json, *.safetensors and a tokenizer")
    if not (path / "config.json").is_file():
        raise ResurfaceError(f"{path}: config.json is missing; this is no Hugging Face checkpoint")
    architectures = read_json(path / "config.json").get("architectures") or []
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise ResurfaceError(
            f"{path}/config.json: found architectures {architectures}; allowed are decoders for causal language modelling "
            "(…ForCausalLM)"
        )
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise ResurfaceError(f"{path}: no *.safetensors file; weights in other formats (pickles) are not read")
    for file in weights:
        check_weights(file)


def check_weights(path: Path) -> None:
    """Check that a safetensors file is as long as its header says (https://github.com/huggingface/safetensors#format).

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
