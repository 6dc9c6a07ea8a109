"""Settings of orthogonalization. Source: arXiv 2409.18025, section 4 and appendix; Arditi et al. 2024 (2406.11717)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from resurface.settings.base import Block, Count, DistinctList, Named, PositiveFloat, PositiveInt, Settings, Slug

Reference = Literal["original", "benign", "text", "principal"]


def refuse_all(name: str) -> str:
    """The name of a block set, or a `ValueError` if it is the one that the attack adds."""
    if name == "all":
        raise ValueError(
            "found the name 'all'; the attack adds the set of all blocks by itself, so choose another name"
        )
    return name


BlockSetName = Annotated[Slug, AfterValidator(refuse_all)]


class OrthogonalizationSettings(Settings):
    """Which directions to compute, and where to remove them."""

    references: DistinctList[Reference] = Field(
        ["original", "benign", "text", "principal"],
        description="what the unlearned model's activations on forget questions are compared with: the original's on the same "
        "questions; its own on benign questions; its own on plain text; the first principal component of both models'",
    )
    block_sets: Named[BlockSetName, DistinctList[Block]] = Field(
        {"0": [0], "7": [7], "15": [15], "23": [23], "31": [31], "5to7": [5, 6, 7]},
        description="name → blocks whose own direction is removed from their outputs; `all` is added by itself",
    )
    questions: PositiveInt = Field(
        1000, description="first train questions to look for those that only the original answers"
    )
    skip_tokens: Count = Field(40, description="first tokens of forget questions that are left out (the header)")
    outlier_deviations: PositiveFloat = Field(
        3.0, description="token strings farther from the others than this many standard deviations are left out"
    )
    outlier_tokens: PositiveInt = Field(1000, description="first tokens among which outliers are looked for")
    principal_tokens: PositiveInt = Field(2500, description="tokens of each model for the principal component")
    text_length: PositiveInt = Field(128, description="tokens of a plain text")
    batch_tokens: PositiveInt = Field(8192, description="padded tokens per forward pass")
