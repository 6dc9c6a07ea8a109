"""Interventions: what an attack leaves behind. `resurface.scoring.apply` puts them into effect.

An attack's folder holds `variants.json`, a list of variants in a fixed order, and the small tensors they refer to. A
variant changes up to three things, each optional: the loaded *model*, the *prompt* (before templating), and where the
answer is *read*. The scorer knows these three and never which attack wrote them. Names of files are relative to the folder
and cannot lead out of it.

    {"variant": "forget-n20", "model": {"kind": "adapter", "folder": "forget-n20"}}
    {"variant": "original-block2", "model": {"kind": "directions", "file": "original.safetensors", "blocks": [2]}}
    {"variant": "mlp-block3", "prompt": {"kind": "prepend", "text": "…"}, "read": {"stream": "mlp", "block": 3}}
"""

import json
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from resurface.artifacts import read_json
from resurface.errors import ResurfaceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

Stream = Literal["attention", "middle", "mlp", "block"]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=120)]
Block = Annotated[int, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
STEP = 16  # of a mask's bytes, between the four bits that tell q and the four that tell p


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Adapter(_Part):
    """A LoRA adapter in peft's layout, in `folder` below the attack's folder."""

    kind: Literal["adapter"] = "adapter"
    folder: FileName


class Directions(_Part):
    """Directions `[blocks, hidden]` (tensor `directions` of `file`); each of `blocks` has its own row removed."""

    kind: Literal["directions"] = "directions"
    file: FileName
    blocks: list[Block]


class Pruning(_Part):
    """Weights set to zero: of those in `file` (`attacks.pruning.write_masks`) the ones that the pair (p, q) removes [percent]."""

    kind: Literal["pruning"] = "pruning"
    file: FileName
    p: Percent
    q: Percent

    def removed_steps(self, q: "Sequence[float]", p: "Sequence[float]") -> "np.ndarray":
        """Of each byte that `file` may say of a weight, whether the pair removes such a weight `[256]`.

        Args:
            q: the percents that the upper four bits count, rising: the weight is removed from there on.
            p: the percents that the lower four bits count, rising: the weight is kept from there on. What is beyond the last is
                never reached.
        """
        import numpy as np

        removed, kept = (np.full(STEP, np.inf) for _ in range(2))
        removed[: len(q)], kept[: len(p)] = q, p
        return ((removed <= self.q)[:, None] & (kept > self.p)[None]).reshape(-1)


class Prepend(_Part):
    """Text put in front of the user's prompt."""

    kind: Literal["prepend"] = "prepend"
    text: str


class Rewrite(_Part):
    """Prompts looked up in a table: rows of `file` whose `variant` is `name`, from `prompt` to `rewritten`; others stay."""

    kind: Literal["rewrite"] = "rewrite"
    file: FileName
    name: str


class Read(_Part):
    """Read the answer by unembedding one stream of a block (final norm, then lm_head) instead of the model's output.

    Streams: `attention` output, residual after attention (`middle`), `mlp` output, `block` output.
    """

    stream: Stream
    block: Block


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
        ResurfaceError: it is missing, does not hold variants, holds none, or names two alike.
    """
    path = folder / "variants.json"
    content = read_json(path)
    try:
        variants = TypeAdapter(Annotated[list[Variant], Field(min_length=1)]).validate_python(content)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise ResurfaceError(
            f"{path}: this is no list of variants: {f'at {place}: ' if place else ''}found {reprlib.repr(fault['input'])}; "
            f"{fault['msg'].lower()}"
        ) from error
    names = [variant.variant for variant in variants]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ResurfaceError(f"{path}: two variants are named {repeated!r}; each name may stand there once")
    return variants
