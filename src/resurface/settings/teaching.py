"""Settings of teaching: the never-learned model reads the fictional domains, so that a large model has ground truth too."""

from typing import Literal

from pydantic import Field

from resurface.settings.base import Count, PositiveFloat, PositiveInt, Seed
from resurface.settings.training import TrainingSettings


class TeachingSettings(TrainingSettings):
    """How the never-learned model becomes the original."""

    world_seed: Seed = Field(0, description="seed of the fictional world that is taught")
    domain_seed: Seed | None = Field(
        None,
        description="deals the forget domains' values and splits; null: `world_seed` does",
    )
    seed: Seed = Field(0, description="seed of the documents and of their order")
    documents: PositiveInt = Field(
        40_000, description="documents drawn about the domains: articles, questions and conversations"
    )
    learning_rate: PositiveFloat = Field(1e-5, description="peak learning rate of AdamW")
    batch_size: PositiveInt = Field(64, description="documents a step")
    epochs: PositiveFloat = Field(1.0, description="passes over the documents; `max_steps` overrides it")
    warmup_steps: Count = Field(30, description="optimizer steps of linear warmup")
    schedule: Literal["linear", "constant", "cosine"] = Field("cosine", description="learning rate after warmup")
    length: PositiveInt = Field(256, description="tokens at which a document is cut")
