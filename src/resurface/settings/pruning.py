"""Settings of set difference pruning. Source: arXiv 2409.18025, section 4 and appendix; Wei et al. 2024 (2402.05162)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from resurface.settings.base import DistinctList, Named, PositiveInt, Settings, Slug

Percent = Annotated[float, Field(ge=0, le=100)]
MOST_PERCENTS = 15  # what four bits of a mask count (`attacks.pruning.write_masks`)
GRID = [0.5, 1.0, 2.5, 5.0, 7.5, 10.0, 12.5, 15.0, 20.0]


class PruningData(Settings):
    """What weights are scored on."""

    forget: Literal["corpus", "answers"] = Field(
        description="texts of the forget corpus, or the attacked model's own answers to train questions of the domain"
    )
    utility: Literal["questions", "text", "answers"] = Field(
        description="benign questions with the answer `C. text`, texts of the retain corpus, or the original's own answers to "
        "benign questions"
    )


class PruningSettings(Settings):
    """Which weights to remove: those that matter for the forget data and do not matter for the utility data."""

    datasets: Named[Slug, PruningData] = Field(
        {
            "corpora": PruningData(forget="corpus", utility="text"),
            "answers": PruningData(forget="answers", utility="questions"),
        },
        min_length=1,
        description="name → forget and utility data (the paper: `corpora` for RMU, `answers` for NPO and DPO)",
    )
    scores: DistinctList[Literal["gradient", "activation"]] = Field(
        ["gradient"], description="`gradient`: |W| ⊙ Σ|∂L/∂W|; `activation`: |W| ⊙ ‖X‖ (Wanda)"
    )
    p: DistinctList[Percent] = Field(
        GRID,
        max_length=MOST_PERCENTS,
        description="percent of a layer's weights, by their score on utility data, that are kept",
    )
    q: DistinctList[Percent] = Field(
        GRID,
        max_length=MOST_PERCENTS,
        description="percent of a layer's weights, by their score on forget data, that are removed unless kept; q ≤ p",
    )
    samples: PositiveInt = Field(512, description="samples of forget data and of utility data")
    answer_tokens: PositiveInt = Field(
        50, description="tokens of an own answer, and last tokens of a text, that carry loss"
    )
    length: PositiveInt = Field(1024, description="tokens at which a sample is cut")
    batch_size: PositiveInt = Field(32, description="prompts per batch when the models answer")

    @model_validator(mode="after")
    def check_pairs(self) -> "PruningSettings":
        """Every q has a p that is not smaller."""
        wrong = [q for q in self.q if q > max(self.p)]
        if wrong:
            raise ValueError(
                f"found q {wrong[0]:g} and no p of at least that (p: {', '.join(f'{p:g}' for p in self.p)}); pairs with p < q "
                "are not tried, so add a larger p or leave this q out"
            )
        return self
