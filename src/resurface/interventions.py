"""Interventions: what an attack leaves behind. `resurface.scoring.apply` puts them into effect.

An attack's folder holds `variants.json`, a list of variants in a fixed order, and the small tensors they refer to. A
variant changes up to three things, each optional: the loaded *model*, the *prompt* (before templating), and where the
answer is *read*. The scorer knows these three and never which attack wrote them.

    {"variant": "forget-n20", "model": {"kind": "adapter", "folder": "forget-n20"}}
    {"variant": "original-block2", "model": {"kind": "directions", "file": "original.safetensors", "blocks": [2]}}
    {"variant": "mlp-block3", "prompt": {"kind": "prepend", "text": "…"}, "read": {"stream": "mlp", "block": 3}}
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from resurface.errors import ResurfaceError

if TYPE_CHECKING:
    import numpy as np

Stream = Literal["attention", "middle", "mlp", "block"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Adapter(_Part):
    """A LoRA adapter in peft's layout, in `folder` below the attack's folder."""

    kind: Literal["adapter"] = "adapter"
    folder: str


class Directions(_Part):
    """Directions `[blocks, hidden]` (tensor `directions` of `file`); each of `blocks` has its own row removed."""

    kind: Literal["directions"] = "directions"
    file: str
    blocks: list[int]


class Pruning(_Part):
    """Weights set to zero: those rows of `file` (`attacks.pruning.write_masks`) with forget ≤ q and utility > p [percent]."""

    kind: Literal["pruning"] = "pruning"
    file: str
    p: float
    q: float

    def removes(self, forget_percent: "np.ndarray", utility_percent: "np.ndarray") -> "np.ndarray":
        """Of each weight `[weights]`, whether the pair removes it. The percents are float32, as `file` keeps them."""
        return (forget_percent <= forget_percent.dtype.type(self.q)) & (
            utility_percent > utility_percent.dtype.type(self.p)
        )


class Prepend(_Part):
    """Text put in front of the user's prompt."""

    kind: Literal["prepend"] = "prepend"
    text: str


class Rewrite(_Part):
    """Prompts looked up in a table: rows of `file` whose `variant` is `name`, from `prompt` to `rewritten`; others stay."""

    kind: Literal["rewrite"] = "rewrite"
    file: str
    name: str


class Read(_Part):
    """Read the answer by unembedding one stream of a block (final norm, then lm_head) instead of the model's output.

    Streams: `attention` output, residual after attention (`middle`), `mlp` output, `block` output.
    """

    stream: Stream
    block: int


class Variant(_Part):
    """One setting of an attack, named by a readable slug.

    `blind` says that it was made without a look at the model, so that it is the same on every model.
    """

    variant: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]
    model: Annotated[Adapter | Directions | Pruning, Field(discriminator="kind")] | None = None
    prompt: Annotated[Prepend | Rewrite, Field(discriminator="kind")] | None = None
    read: Read | None = None
    blind: Literal[True] | None = None


def write_variants(folder: Path, variants: list[Variant]) -> None:
    """Write `variants.json`. Names must be unique."""
    names = [variant.variant for variant in variants]
    assert len(set(names)) == len(names), f"variant names repeat: {names}"
    rows = [variant.model_dump(exclude_none=True) for variant in variants]
    (folder / "variants.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def read_variants(folder: Path) -> list[Variant]:
    """Read `variants.json`.

    Raises:
        ResurfaceError: it is missing or does not hold variants.
    """
    path = folder / "variants.json"
    try:
        return [Variant.model_validate(row) for row in json.loads(path.read_text())]
    except (OSError, ValueError, ValidationError) as error:
        raise ResurfaceError(f"{path}: no readable list of variants: {error}") from error
