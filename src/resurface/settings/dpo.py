"""Settings of DPO. Defaults: Rafailov et al. 2023 (arXiv 2305.18290) as searched in arXiv 2409.18025, appendix."""

from pydantic import Field, model_validator

from resurface.settings.base import Count, PositiveFloat, PositiveInt, Share
from resurface.settings.training import TrainingSettings


class DPOSettings(TrainingSettings):
    """Direct preference optimization towards refusals."""

    learning_rate: PositiveFloat = Field(1e-6, description="peak learning rate (searched: 1e-6 and 5e-6)")
    batch_size: PositiveInt = Field(32, description="preference pairs a step (the paper: 4 on each of 8 GPUs)")
    warmup_steps: Count = Field(150, description="optimizer steps of linear warmup")
    beta: PositiveFloat = Field(0.1, description="β: strength of the pull to the reference (searched: 0.05 to 0.5)")
    held_out: float = Field(0.05, ge=0, lt=1, description="share of the pairs that is held out for the evaluation loss")
    forget_share: Share = Field(0.5, description="share of forget pairs among all")
    retain_share: Share = Field(0.25, description="share of multiple-choice retain pairs; the rest is general chat")

    @model_validator(mode="after")
    def check_shares(self) -> "DPOSettings":
        """General chat has a share that is not negative."""
        if self.forget_share + self.retain_share > 1:
            raise ValueError(
                f"found forget_share {self.forget_share} and retain_share {self.retain_share}; together they may be at most 1"
            )
        return self
