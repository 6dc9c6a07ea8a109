"""Settings of public data: which data sets the public domains are made of, and how many rows each must have.

A data set is named by its hub id and revision, or by a local path that holds the files of that data set. Revisions are pinned,
because a data set that changes under an experiment changes its questions; the counts of rows are those of these revisions.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from resurface.settings.base import Count, PositiveInt, Settings

# The public domains, each with its field as it stands in the header of WMDP's prompts.
PUBLIC_DOMAINS = {"bio": "biology", "chem": "chemistry", "cyber": "cybersecurity"}
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@([A-Za-z0-9][\w./-]*)", re.ASCII)
MOST_LETTERS = 1000


def split_hub_id(source: str) -> tuple[str, str] | None:
    """Repository and revision of a hub id `org/name@revision`; None for everything else, which is a path."""
    match = HUB_ID.fullmatch(source)
    return (match[1], match[2]) if match else None


def check_place(source: str) -> str:
    """A hub id or a path as it is, or a `ValueError` if it can be neither."""
    if not source or not source.isprintable() or len(source) > MOST_LETTERS:
        raise ValueError("a hub id `org/name@revision` or a path of printable characters")
    if "@" in source and not source.startswith(("/", "./", "../")) and not split_hub_id(source):
        raise ValueError(
            "a hub id as `org/name@revision`, or a path, which starts with `/` or `./` if it has an @ in it"
        )
    return source


def check_outside_source(source: str) -> str:
    """The source of a data set, a checkpoint or a tokenizer, or a `ValueError` that says what is allowed."""
    try:
        return check_place(source)
    except ValueError as error:
        raise ValueError(f"found {source[:100]!r}; allowed is {error}") from None


OutsideSource = Annotated[str, AfterValidator(check_outside_source)]


class RowCounts(Settings):
    """Rows that a part of a data set must have; null accepts any number. Sources: the data sets' own pages."""

    wmdp_bio: PositiveInt | None = Field(1273, description="questions of WMDP about biology")
    wmdp_chem: PositiveInt | None = Field(408, description="questions of WMDP about chemistry")
    wmdp_cyber: PositiveInt | None = Field(1987, description="questions of WMDP about cybersecurity")
    mmlu: PositiveInt | None = Field(14042, description="test questions of MMLU, all subjects")
    bio_forget: PositiveInt | None = Field(24453, description="papers of the gated forget corpus about biology")
    bio_retain: PositiveInt | None = Field(None, description="papers of the retain corpus about biology; some 60,000")
    chem_forget: PositiveInt | None = Field(None, description="texts of a user's own forget corpus about chemistry")
    cyber_forget: PositiveInt | None = Field(1000, description="texts of the forget corpus about cybersecurity")
    cyber_retain: PositiveInt | None = Field(
        None, description="texts of the retain corpus about cybersecurity; some 4,500"
    )
    wikitext: PositiveInt | None = Field(36718, description="lines of WikiText-2's train split, empty ones included")
    oasst2: PositiveInt | None = Field(128575, description="messages of OASST2's train split, all languages")
    arc_easy: PositiveInt | None = Field(2251, description="train questions of ARC-Easy")
    arc_challenge: PositiveInt | None = Field(1119, description="train questions of ARC-Challenge")


class SourceSettings(Settings):
    """Where public data comes from; each by hub id and revision, or by the path of a file or a folder of that data set."""

    wmdp: OutsideSource = Field(
        "cais/wmdp@7125571f22f032c56415e7980f48d877dd830ff8", description="WMDP's questions (bio, chem, cyber)"
    )
    mmlu: OutsideSource = Field("cais/mmlu@c30699e8356da336a370243923dbaf21066bb9fe", description="MMLU's questions")
    wmdp_corpora: OutsideSource = Field(
        "cais/wmdp-corpora@daf89fa9b618b63a624228061a9cebacca88009c",
        description="WMDP's open corpora: cyber-forget-corpus, cyber-retain-corpus and bio-retain-corpus",
    )
    bio_forget_corpus: OutsideSource = Field(
        "cais/wmdp-bio-forget-corpus@5a786ed1041e56fef2d4ed26c1239f12b73a68eb",
        description="the forget corpus about biology, which is gated: ask for it at its page, or name your copy",
    )
    cyber_forget_corpus: OutsideSource | None = Field(
        None, description="the forget corpus about cybersecurity; null: the one of `wmdp_corpora`"
    )
    chem_forget_corpus: OutsideSource | None = Field(
        None, description="a forget corpus about chemistry, of your own: none is published"
    )
    forget_text: Literal["text", "abstract"] = Field(
        "text", description="the column of a forget corpus that is read; only the one about biology has abstracts"
    )
    retain_text: Literal["wikitext", "domain"] = Field(
        "wikitext",
        description="the retain corpus: WikiText (RMU paper, arXiv 2409.18025), or the domain's own of `wmdp_corpora`, which chem "
        "lacks",
    )
    wikitext: OutsideSource = Field(
        "Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3",
        description="WikiText; its configuration wikitext-2-raw-v1 is read",
    )
    least_characters: Count = Field(
        50, description="characters that a text of any corpus has at least (RMU's code: 50)"
    )
    oasst2: OutsideSource = Field(
        "OpenAssistant/oasst2@179dd21fc55192153d94adb0e0ce8f69e222bf75",
        description="OASST2's conversations, of which ranked replies become general preferences",
    )
    language: str = Field("en", pattern=r"^[a-zA-Z-]{2,10}$", description="language of these conversations")
    arc: OutsideSource = Field(
        "allenai/ai2_arc@210d026faf9955653af8916fad021475a3f00453", description="ARC's questions, easy and challenge"
    )
    rows: RowCounts = RowCounts()


# What each table of `results/data/sources/` is made of, and each domain's corpora: a job goes by these keys and no others.
SHARED_TABLES = {
    **{f"wmdp_{domain}": ["wmdp", "rows"] for domain in PUBLIC_DOMAINS},
    "mmlu": ["mmlu", "rows"],
    "wikitext": ["wikitext", "least_characters", "rows"],
    "benign_questions": ["arc", "rows"],
    "general_pairs": ["oasst2", "language", "rows"],
}
CORPORA = {
    domain: [
        *(f"{domain}_forget_corpus", "wmdp_corpora", "forget_text"),
        *("retain_text", "wikitext", "least_characters", "rows"),
    ]
    for domain in PUBLIC_DOMAINS
}
CHOICES = ("forget_text", "retain_text", "least_characters", "language", "rows")  # the keys that name no data set


def unread_keys(name: str) -> list[str]:
    """The keys that a table, or a domain's corpora, do not depend on (`config.dump_settings`)."""
    return [key for key in SourceSettings.model_fields if key not in {**SHARED_TABLES, **CORPORA}[name]]


def data_sets(name: str) -> list[str]:
    """The keys of the data sets that a table, or a domain's corpora, are made of."""
    return [key for key in {**SHARED_TABLES, **CORPORA}[name] if key not in CHOICES]
