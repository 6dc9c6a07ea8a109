"""Logit lens: read the answer from inside the model (nostalgebraist 2020; Patil et al. 2024, arXiv 2309.17410).

Four streams of every block are unembedded (final norm, then lm_head) at the last position: attention output, residual
after attention, MLP output and block output. The answer is the letter with the largest logit. Nothing is computed here:
the scorer reads all places from one pass.
"""

from resurface.artifacts import publish_folder, read_json_object
from resurface.attacks.target import Target
from resurface.errors import ResurfaceError
from resurface.interventions import Prepend, Read, Variant, write_variants
from resurface.settings.logit_lens import LogitLensSettings

MOST_BLOCKS = 10_000


def attack(target: Target, settings: LogitLensSettings, part: str) -> None:
    """Leave one variant per stream and block.

    Raises:
        ResurfaceError: a block that the model does not have, or a broken `config.json`.
    """
    path = target.model_folder / "config.json"
    count = read_json_object(path).get("num_hidden_layers")
    if type(count) is not int or not 1 <= count <= MOST_BLOCKS:
        raise ResurfaceError(f"{path}: found num_hidden_layers {count!r}; expected the number of the model's blocks")
    blocks = list(range(count)) if settings.blocks is None else settings.blocks
    for block in blocks:
        if not 0 <= block < count:
            raise ResurfaceError(f"logit_lens.blocks: found block {block}; this model has blocks 0 to {count - 1}")
    prompt = Prepend(text=settings.prepend) if settings.prepend else None
    with publish_folder(target.output) as folder:
        write_variants(
            folder,
            [
                Variant(variant=f"{stream}-block{block}", prompt=prompt, read=Read(stream=stream, block=block))
                for stream in settings.streams
                for block in blocks
            ],
        )
