"""Takes a checkpoint over as one of the experiment's reference models, checked, and never copied unless it is bundled.

Files of a user's own checkpoint are linked, because a 14 GB model must not be stored twice; the bundled checkpoints of
the testbed are small and copied, so that `results/` stands by itself.
"""

import json
import shutil
from pathlib import Path

from resurface.artifacts import publish_folder
from resurface.errors import ResurfaceError
from resurface.models import check_checkpoint

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
    for weights in sorted(folder.glob("*.safetensors")):
        check_weights(weights)
    with publish_folder(output) as temporary:
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            if bundled:
                shutil.copyfile(path, temporary / path.name)
            else:
                (temporary / path.name).symlink_to(path.resolve())


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
    needed = 8 + length + max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
    if size != needed:
        raise ResurfaceError(
            f"{path}: the file is truncated or padded: found {size} bytes, its header needs {needed}; fetch or build it anew"
        )
