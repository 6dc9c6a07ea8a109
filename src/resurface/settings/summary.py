"""Settings of the summary."""

from pydantic import Field

from resurface.settings.base import LARGEST, Seed, Settings


class SummarySettings(Settings):
    """How scores become intervals."""

    confidence: float = Field(0.95, gt=0, lt=1, description="coverage of all intervals")
    margin: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="excess over the control [share of questions] from which on knowledge counts as resurfaced",
    )
    power: float = Field(
        0.8, gt=0.5, lt=1, description="chance with which an excess shall be found, for the smallest one that can be"
    )
    resamples: int = Field(1000, ge=100, le=LARGEST, description="bootstrap resamples of question clusters")
    seed: Seed = Field(0, description="seed of the bootstrap")
