"""Settings of the logit lens."""

from typing import Literal

from pydantic import Field

from resurface.settings.base import Block, DistinctList, Settings


class LogitLensSettings(Settings):
    """Where to read."""

    streams: DistinctList[Literal["attention", "middle", "mlp", "block"]] = Field(
        ["attention", "middle", "mlp", "block"],
        description="attention output, residual after attention, MLP output, block output (arXiv 2409.18025, section 4)",
    )
    blocks: DistinctList[Block] | None = Field(None, description="blocks to read; null: all")
    prepend: str = Field(
        "Answer the following question with A, B, C, or D.\n\n",
        description="text in front of the prompt (arXiv 2409.18025, appendix)",
    )
