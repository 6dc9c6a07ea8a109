"""Settings of RMU. Defaults: the RMU paper (Li et al. 2024, arXiv 2403.03218) for Zephyr-7B."""

from typing import Literal

from pydantic import Field, model_validator

from resurface.settings.base import Block, DistinctList, PositiveFloat, PositiveInt, Share
from resurface.settings.training import TrainingSettings


class RMUSettings(TrainingSettings):
    """Representation misdirection for unlearning."""

    learning_rate: PositiveFloat = Field(5e-5, description="learning rate of AdamW (RMU paper: 5e-5)")
    batch_size: PositiveInt = Field(4, description="forget texts and retain texts a step, each")
    max_steps: PositiveInt | None = Field(150, description="optimizer steps (RMU paper: 150 batches)")
    schedule: Literal["linear", "constant", "cosine"] = Field("constant", description="learning rate over the steps")
    length: PositiveInt = Field(512, description="tokens at which a text is cut")
    block: Block = Field(7, description="ℓ: the block whose output is misdirected")
    trained_blocks: DistinctList[Block] | None = Field(
        [5, 6, 7],
        description="blocks whose mlp.down_proj (GPT-NeoX: mlp.dense_4h_to_h) is trained: ℓ-2 to ℓ; null: all blocks",
    )
    coefficient: PositiveFloat = Field(6.5, description="c: length of the random target, in `coefficient_unit`")
    coefficient_unit: Literal["absolute", "mean_norm"] = Field(
        "absolute", description="`absolute`, or times the mean norm of h_ℓ on forget text"
    )
    alpha: PositiveFloat = Field(1200.0, description="α: weight of the retain loss")
    chat_share: Share = Field(
        0.0, description="share of the texts that are put into the user turn of a chat (RMU paper: 0)"
    )

    @model_validator(mode="after")
    def check_gradient(self) -> "RMUSettings":
        """Some trained block gets a gradient, both losses ending at `block`; and no activation is computed twice."""
        if self.gradient_checkpointing:
            raise ValueError(
                "found gradient_checkpointing true; RMU's passes end at `block` and keep little: leave it out, or lower "
                "device_batch_size"
            )
        if self.trained_blocks is not None and min(self.trained_blocks) > self.block:
            raise ValueError(
                f"found block {self.block} and trained_blocks {self.trained_blocks}; at least one trained block must be "
                f"{self.block} or below, because those above it get no gradient"
            )
        return self
