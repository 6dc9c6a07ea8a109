"""Settings of the data stages."""

from pydantic import Field

from resurface.settings.base import PositiveInt, Seed, Settings


class TestbedSettings(Settings):
    """How much data the testbed writes."""

    __test__ = False

    world_seed: Seed = Field(0, description="seed of the fictional world; the bundled checkpoints know world 0")
    domain_seed: Seed | None = Field(
        None,
        description="deals the forget domains' values and splits; null: `world_seed` does",
    )
    wordings: int = Field(
        3, ge=2, le=3, description="wordings in which the benchmark asks for each validation and test fact"
    )
    articles: PositiveInt = Field(1024, description="articles in each of the forget and retain corpora")
    preference_draws: PositiveInt = Field(
        8,
        description="preference pairs per train fact, and per benign fact in general chat, each with wording and options drawn anew",
    )
    general_questions: PositiveInt = Field(
        40, description="general questions per subject, validation and test together"
    )
