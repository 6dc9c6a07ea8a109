"""Settings of NPO. Defaults: Zhang et al. 2024 (arXiv 2404.05868) and the search ranges of arXiv 2409.18025, appendix."""

from typing import Literal

from pydantic import Field

from resurface.settings.base import PositiveFloat, PositiveInt
from resurface.settings.training import TrainingSettings


class NPOSettings(TrainingSettings):
    """Negative preference optimization."""

    learning_rate: PositiveFloat = Field(1e-5, description="peak learning rate (searched: 1e-5 to 5e-4)")
    batch_size: PositiveInt = Field(72, description="forget samples a step; as many retain samples (searched at 72)")
    beta: PositiveFloat = Field(0.1, description="β: inverse temperature (searched: 0.05 to 0.5)")
    retain_weight: float = Field(1.0, ge=0, description="weight of the retain likelihood (searched: 0.5 to 5)")
    forget_loss_over: Literal["answer", "sequence"] = Field(
        "answer",
        description="tokens whose log-probabilities are summed: the answer's (NPO paper) or all (the paper's code)",
    )
    retain_likelihood: Literal["token_mean", "sequence_sum"] = Field(
        "token_mean",
        description="per sample the mean over its answer's tokens, or the sum over prompt and answer (the paper's code; "
        "about 100 times stronger)",
    )
