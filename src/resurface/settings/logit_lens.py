"""Settings of the logit lens."""

from typing import Literal

from pydantic import Field

from resurface.settings.base import Settings


class LogitLensSettings(Settings):
    """Where to read."""

    streams: list[Literal["attention", "middle", "mlp", "block"]] = Field(
        ["attention", "middle", "mlp", "block"],
        min_length=1,
        description="attention output, residual after attention, MLP output, block output (arXiv 2409.18025, section 4)",
    )
    blocks: list[int] | None = Field(None, description="blocks to read; null: all")
    prepend: str = Field(
        "Answer the following question with A, B, C, or D.\n\n",
        description="text in front of the prompt (arXiv 2409.18025, appendix)",
    )
