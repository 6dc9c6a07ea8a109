"""Settings of plain GCG. Names and defaults are nanogcg's; source: Zou et al. 2023 (arXiv 2307.15043)."""

from pydantic import Field

from resurface.settings.base import Count, PositiveInt, Settings


class GCGSettings(Settings):
    """How prefixes are searched for, one question at a time."""

    questions: PositiveInt = Field(
        1, description="first train questions that only the original answers; each is a search and a variant"
    )
    target_tokens: PositiveInt = Field(10, description="tokens of the original's answer that are forced")
    num_steps: PositiveInt = Field(250, description="steps of a search")
    optim_str_init: str = Field("x " * 19 + "x", min_length=1, description="the prefix that a search starts from")
    search_width: PositiveInt = Field(512, description="candidates of a step")
    topk: PositiveInt = Field(256, description="tokens per place among which a swap by gradient draws")
    n_replace: PositiveInt = Field(1, description="places that a candidate changes")
    buffer_size: Count = Field(0, description="prefixes that are kept; 0 keeps the latest only")
    allow_non_ascii: bool = Field(False, description="whether prefixes may hold more than printable ASCII")
