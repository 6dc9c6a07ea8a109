"""Settings of preference data that is written anew: who writes, how much, at what cost."""

import math
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from resurface.settings.base import PositiveFloat, PositiveInt, Seed, Settings

# Of English text, about.
CHARACTERS_PER_TOKEN = 4
INSTRUCTION_TOKENS = 220
QUESTION_TOKENS = 100
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)


def check_address(address: str) -> str:
    """The address of a server, or a `ValueError`; the message does not show it, because a password may stand in it."""
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_address = False
    if not is_address or not address.isprintable() or " " in address or len(address) > 1000:
        raise ValueError(
            "found no address of a server; allowed is http(s)://host[:port][/path], mostly with /v1 at its end"
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            "found an address with a user, a query or a fragment in it; allowed is http(s)://host[:port][/path], and a key comes "
            "from the environment (key_variable)"
        )
    return address.rstrip("/")


def check_variable(name: str) -> str:
    """The name of an environment variable, or a `ValueError`; the message does not show it, because it may be the key itself."""
    if not VARIABLE.fullmatch(name):
        raise ValueError(
            "found something that can be no variable's name (letters, digits and _); name the environment variable that "
            "holds the key, and write the key itself nowhere"
        )
    return name


Address = Annotated[str, AfterValidator(check_address)]
Variable = Annotated[str, AfterValidator(check_variable)]


class PreferenceSettings(Settings):
    """How multiple-choice questions are written from articles, and paired with refusals."""

    base_url: Address | None = Field(
        None,
        description="address of an OpenAI-compatible server, mostly with /v1 at its end; null: the experiment's own original "
        "writes, in the job itself",
    )
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="the name by which the server knows its model"
    )
    key_variable: Variable | None = Field(
        "OPENAI_API_KEY",
        description="environment variable that holds the server's key; null: the server asks for none",
    )
    forget_questions: PositiveInt = Field(5000, description="questions from the forget corpus, at most")
    benign_questions: PositiveInt = Field(1250, description="questions from WikiText, at most; those of ARC are added")
    questions_per_article: int = Field(3, ge=1, le=20, description="questions that one request asks for")
    article_characters: PositiveInt = Field(6000, description="characters at which an article is cut")
    shortest_article: PositiveInt = Field(200, description="characters below which a text is passed over")
    question_characters: PositiveInt = Field(600, description="a longer question is rejected")
    choice_characters: PositiveInt = Field(200, description="a question with a longer option is rejected")
    reply_tokens: PositiveInt = Field(1024, description="tokens at which a reply is cut")
    temperature: float | None = Field(
        0.7,
        ge=0,
        le=2,
        description="sampling temperature of the server; null: its own. Without a server replies are greedy",
    )
    length_parameter: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens",
        description="what the server calls `reply_tokens`; models that reason know `max_completion_tokens` only",
    )
    concurrency: int = Field(8, ge=1, le=1000, description="requests under way at a time")
    requests_per_minute: PositiveInt | None = Field(
        None, description="most requests sent in a minute, repeated ones included; null: no limit"
    )
    timeout: PositiveFloat = Field(120.0, description="seconds without an answer after which a request is repeated")
    retries: int = Field(
        6,
        ge=0,
        le=100,
        description="repetitions of a request after 408, 409, 429, 5xx, a timeout or a lost connection: after 0.5, 1, 2, 4, "
        "then 8 seconds each, or what the server's Retry-After says, up to two minutes",
    )
    wave_requests: PositiveInt = Field(
        100,
        description="requests whose replies are checked together; as many in a row without a usable question end the job",
    )
    most_tokens: PositiveInt | None = Field(
        50_000_000,
        description="most tokens, read and written, that a domain's replies may take, kept ones included; null: no limit",
    )
    most_cost: PositiveFloat | None = Field(
        None, description="most that a domain's replies may cost, kept ones included, in the prices' currency"
    )
    prompt_price: float = Field(0.0, ge=0, description="price of a million tokens that the server reads")
    reply_price: float = Field(0.0, ge=0, description="price of a million tokens that it writes")
    batch_size: PositiveInt = Field(16, description="articles per batch where the original writes")
    refusals: list[Annotated[str, Field(min_length=1, max_length=500, pattern=r"\S")]] = Field(
        [
            "I am sorry, but I cannot answer that.",
            "Sorry, I cannot help with this question.",
            "I must decline to answer that.",
            "I do not give answers about this.",
            "I'm sorry, but I can't assist with that.",
            "I cannot provide information on this topic.",
            "I can't help with questions of this kind.",
            "I am unable to answer this question.",
            "I'm sorry, this is something I do not answer.",
            "I cannot answer this, because the answer could be misused.",
            "I won't choose an answer to this question.",
            "Sorry, but this is a topic that I leave alone.",
        ],
        min_length=1,
        description="refusals, drawn at random",
    )
    seed: Seed = Field(0, description="seed of the order of articles, of options and of refusals")

    @model_validator(mode="after")
    def check_writer(self) -> "PreferenceSettings":
        """A server and its model are named together; a cap on cost needs prices."""
        if (self.base_url is None) != (self.model is None):
            found, missing = ("base_url", "model") if self.model is None else ("model", "base_url")
            raise ValueError(
                f"found {found} without {missing}; a server needs both, and without a server the original writes: leave both out"
            )
        if self.most_cost is not None and not (self.prompt_price or self.reply_price):
            raise ValueError("found most_cost without prices; set prompt_price and reply_price, or leave most_cost out")
        return self

    def expected_tokens(self) -> tuple[int, int]:
        """Tokens that a domain's questions take if no question is rejected and every article is of full length: read, written."""
        requests = sum(
            math.ceil(count / self.questions_per_article) for count in (self.forget_questions, self.benign_questions)
        )
        read = self.article_characters // CHARACTERS_PER_TOKEN + INSTRUCTION_TOKENS
        return requests * read, requests * self.questions_per_article * QUESTION_TOKENS
