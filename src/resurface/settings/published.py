"""Settings of published checkpoints, which are methods too (design: words)."""

from pydantic import Field

from resurface.settings.base import DistinctList, Settings, Slug
from resurface.settings.sources import OutsideSource


class PublishedSettings(Settings):
    """A checkpoint that somebody else has unlearned. It is linked once, whatever the number of domains and seeds."""

    checkpoint: OutsideSource = Field(
        description="hub id with revision (`org/name@revision`), or the path of a folder; weights in safetensors"
    )
    tokenizer: OutsideSource | None = Field(
        None, description="where its tokenizer comes from, likewise, if not from the checkpoint itself"
    )
    domains: DistinctList[Slug] | None = Field(
        None, description="domains that it has unlearned; null: all of the experiment"
    )
