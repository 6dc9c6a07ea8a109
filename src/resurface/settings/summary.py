"""Settings of the summary."""

from pydantic import Field

from resurface.settings.base import PositiveInt, Seed, Settings


class SummarySettings(Settings):
    """How scores become intervals."""

    confidence: float = Field(0.95, gt=0, lt=1, description="coverage of all intervals")
    resamples: PositiveInt = Field(1000, description="bootstrap resamples of question clusters")
    seed: Seed = Field(0, description="seed of the bootstrap")
