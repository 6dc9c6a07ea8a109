"""Settings of published checkpoints, which are methods too (design: words)."""

from typing import Annotated

from pydantic import AfterValidator, Field

from resurface.settings.base import DistinctList, Settings, Slug
from resurface.settings.sources import check_place


def check_checkpoint_source(source: str) -> str:
    """The source of a checkpoint or a tokenizer, or a `ValueError` that says what is allowed."""
    try:
        return check_place(source)
    except ValueError as error:
        raise ValueError(f"found {source[:100]!r}; allowed is {error}") from None


CheckpointSource = Annotated[str, AfterValidator(check_checkpoint_source)]


class PublishedSettings(Settings):
    """A checkpoint that somebody else has unlearned. It is linked once, whatever the number of domains and seeds."""

    checkpoint: CheckpointSource = Field(
        description="hub id with revision (`org/name@revision`), or the path of a folder; weights in safetensors"
    )
    tokenizer: CheckpointSource | None = Field(
        None, description="where its tokenizer comes from, likewise, if not from the checkpoint itself"
    )
    domains: DistinctList[Slug] | None = Field(
        None, description="domains that it has unlearned; null: all of the experiment"
    )
