"""Settings of perturbations. Source: arXiv 2409.18025, appendix (Algorithms 1 and 2)."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from resurface.settings.base import Block, DistinctList, DistinctOrEmptyList, PositiveInt, Settings

Character = Literal["!", "_", " ", ")", ";", "?", "5", "~", "^", ".", "-", "Q", "random"]
Probability = Annotated[float, Field(gt=0, le=1)]
Threshold = Annotated[float, Field(ge=-1, le=1)]


class PerturbationSettings(Settings):
    """How prompts are rewritten; each combination is a variant."""

    characters: DistinctList[Character] = Field(
        list(get_args(Character)),
        description="naive: what is inserted; `random` draws one of the others each time",
    )
    every: DistinctOrEmptyList[PositiveInt] = Field(
        [1, 3, 5, 7, 11, 15],
        description="naive: insert after every so many characters of the question and of each choice",
    )
    probabilities: DistinctOrEmptyList[Probability] = Field(
        [0.1, 0.2, 0.3], description="naive: insert after each character with this probability"
    )
    block: Block = Field(7, description="ℓ: the block whose output is watched (RMU's)")
    text_thresholds: DistinctOrEmptyList[Threshold] = Field(
        [0.3], description="informed: largest cosine to the noise direction in the question and in each choice alone"
    )
    prompt_thresholds: DistinctOrEmptyList[Threshold] = Field(
        [0.3], description="informed: the same in the whole prompt"
    )
    rounds: PositiveInt = Field(500, description="informed: perturbations of one text at most")
    batch_tokens: PositiveInt = Field(8192, description="padded tokens per forward pass")

    @model_validator(mode="after")
    def check_ways(self) -> "PerturbationSettings":
        """There is something to do, and thresholds come in pairs."""
        if bool(self.text_thresholds) != bool(self.prompt_thresholds):
            raise ValueError(
                "text_thresholds and prompt_thresholds belong together: name at least one of each, or none of either"
            )
        if not (self.every or self.probabilities or self.text_thresholds):
            raise ValueError("found no way to perturb: every, probabilities and both thresholds are empty")
        return self
