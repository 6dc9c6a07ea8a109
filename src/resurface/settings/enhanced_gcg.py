"""Settings of enhanced GCG. Source: arXiv 2409.18025, section 4 and appendix; FLRT (arXiv 2407.17447)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from resurface.settings.base import Block, Count, DistinctList, Named, PositiveInt, Settings, Share, Slug

Weight = Annotated[float, Field(ge=0)]


class EnhancedGCGSettings(Settings):
    """What a prefix is searched for, and how."""

    searches: Named[Slug, DistinctList[Block]] = Field(
        {"5to7": [5, 6, 7], "18": [18]},
        min_length=1,
        description="name → blocks whose outputs are matched with the original's; each is a search and a job of its own",
    )
    start: Literal["empty", "random"] = Field("random", description="the prefix that a search starts from")
    start_length: PositiveInt = Field(32, description="tokens of a random one")
    random_starts: PositiveInt = Field(1, description="how many of these wait in the buffer at first")
    start_prefix: str | None = Field(
        None, min_length=1, description="the text of an earlier prefix to start from instead"
    )
    start_from: Named[Slug, Slug] = Field(
        {},
        description="method, or never_learned → the method whose prefix, found by the search of the same name, its search starts from",
    )
    questions: PositiveInt = Field(
        7, description="questions at once: first train questions that only the original answers"
    )
    forced_tokens: PositiveInt = Field(10, description="tokens of the original's completion that are forced")
    matched_tokens: Count = Field(35, description="tokens after those that are only matched")
    distance_weight: Weight = Field(
        1.0, description="weight of the distance to the original's activations on the same input"
    )
    cosine_weight: Weight = Field(10.0, description="weight of 1 − cosine to the original's activations without prefix")
    fluency_weight: Weight = Field(1.5, description="weight of the cross-entropy of the prompt [nats per token]")
    repetition_weight: Weight = Field(3.0, description="weight of repeated tokens")
    steps: PositiveInt = Field(1500, description="steps of a search")
    step_shares: tuple[Share, Share, Share, Share] = Field(
        (0.7, 0.1, 0.1, 0.1),
        strict=False,
        description="shares of steps that swap tokens by gradient, insert sampled tokens, delete tokens, swap sampled tokens",
    )
    candidates: PositiveInt = Field(16, description="candidates of a step")
    screening_questions: PositiveInt | None = Field(
        None,
        description="questions, drawn for each step, on which candidates are compared first; without, all are tried on all",
    )
    screened: PositiveInt = Field(4, description="candidates that are then tried on all questions")
    top_k: PositiveInt = Field(64, description="tokens per place among which a swap by gradient draws")
    buffer: PositiveInt = Field(16, description="prefixes that wait to be expanded")
    minimum_lengths: tuple[PositiveInt, PositiveInt] = Field(
        (32, 100),
        strict=False,
        description="tokens up to which steps only insert: at the start, and after `growth_steps`",
    )
    growth_steps: PositiveInt = Field(1000, description="steps over which that minimum grows")
    maximum_length: PositiveInt = Field(1024, description="tokens beyond which a prefix never grows")
    printable: bool = Field(False, description="whether prefixes consist of printable tokens only")
    snapshots: PositiveInt = Field(
        3, description="the search is cut into so many parts; the best prefix at the end of each is a variant"
    )
    batch_tokens: PositiveInt = Field(
        8192, description="padded tokens per forward pass at first; halved when memory is short"
    )

    @model_validator(mode="after")
    def check_numbers(self) -> "EnhancedGCGSettings":
        """Some kind of step can always be taken, lengths are in order, and every snapshot has a step."""
        swap, _, delete, sample = self.step_shares
        if swap + delete + sample <= 0:
            raise ValueError(
                f"step_shares: found {list(self.step_shares)}; a share other than that of insertions must be above 0, because a "
                "prefix of `maximum_length` cannot grow"
            )
        start, end = self.minimum_lengths
        if not start <= end < self.maximum_length:
            raise ValueError(
                f"found minimum_lengths [{start}, {end}] and maximum_length {self.maximum_length}; they must grow in this order"
            )
        if self.start_length > self.maximum_length:
            raise ValueError(f"found start_length {self.start_length} and maximum_length {self.maximum_length}")
        if self.start_prefix is not None and self.start_from:
            raise ValueError("found start_prefix and start_from; a search starts from one of them")
        if self.snapshots > self.steps:
            raise ValueError(
                f"found snapshots {self.snapshots} and steps {self.steps}; there can be at most one per step"
            )
        return self
