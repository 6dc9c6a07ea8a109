"""Public data sets as sources: WMDP and its corpora, MMLU, WikiText-2, ARC and OASST2.

Each is read from the hub's cache or from a local copy, in any of the formats that people keep such data in, checked against the
schema and the number of rows that its publisher gives, and written as the tables that the testbed writes too
(`resurface.data.tables`). Texts never stand in a message: of a wrong value its place and its type are shown.

The questions of WMDP and MMLU are benchmarks and only scored; those that methods and attacks may train on are written anew from
the forget corpus (arXiv 2409.18025, appendix).
"""

import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from resurface.artifacts import write_table
from resurface.data.tables import (
    QUESTION_COLUMNS,
    SPLITS,
    draw_split,
    hash_question,
    is_list_of_choices,
    is_text,
    read_question_table,
    type_of,
)
from resurface.errors import ResurfaceError
from resurface.hub import find_files
from resurface.prompts import LETTERS
from resurface.settings.sources import PUBLIC_DOMAINS, SourceSettings

# Formats that are read, each with its reader's name in the `datasets` library.
READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
PART = re.compile(r"-(\d+)-of-(\d+)$")  # of a file of several, as the hub names them
SPLIT_NAMES = ("train", "validation", "test", "dev", "auxiliary_train")
ARC_LABELS = [["A", "B", "C", "D"], ["1", "2", "3", "4"]]

Column = tuple[str, Callable[[Any], bool]]  # what is allowed, in words, and the check
TEXT: Column = ("a text", lambda value: isinstance(value, str))
CHOICES: Column = (f"a list of {len(LETTERS)} texts that are not empty", is_list_of_choices)
ANSWER: Column = ("a whole number from 0 to 3", lambda value: type(value) is int and 0 <= value < len(LETTERS))
FULL_TEXT: Column = ("a text that is not empty", is_text)


def read_rows(
    source: str, names: list[str], split: str, columns: dict[str, Column], key: str, count: int | None
) -> pd.DataFrame:
    """Read one split of a data set and check it.

    Args:
        source: hub id with revision, or the path of a file or a folder.
        names: what its files, or the folder that holds them, are called: the configuration's name on the hub first.
        split: the split.
        columns: name → what its values must be.
        key: the setting that holds `count`, for the message.
        count: rows that there must be; None: any number.

    Raises:
        ResurfaceError: the data set cannot be had, or has another schema or another number of rows.
    """
    place = find_files(source, "dataset", [f"{names[0]}/{split}*", f"{names[0]}.*", f"data/{split}*"])
    files = pick_files(place, names, split, source)
    rows = load_files(files, source)
    where = f"{source} ({', '.join(file.name for file in files[:3])}{', …' if len(files) > 3 else ''})"
    if count is not None and len(rows) != count:
        raise ResurfaceError(
            f"{where}: found {len(rows):,} rows; {names[0]} has {count:,}. If you mean another revision or a part of it, say so in "
            f"sources.rows.{key} (null accepts any number); else fetch it anew"
        )
    missing = [name for name in columns if name not in rows.columns]
    if missing:
        raise ResurfaceError(
            f"{where}: the column {missing[0]!r} is missing; found {', '.join(map(str, rows.columns)) or 'none'}; {names[0]} has "
            f"{', '.join(columns)}: name that data set"
        )
    for name, (allowed, is_allowed) in columns.items():
        for number, value in enumerate(rows[name]):
            if not is_allowed(value):
                raise ResurfaceError(
                    f"{where}: column {name!r}, row {number}: found {type_of(value)}; {names[0]} has {allowed} there"
                )
    return rows


def pick_files(place: Path, names: list[str], split: str, source: str) -> list[Path]:
    """The files of one split of a data set, all of one format.

    Args:
        place: a file, or a folder as the hub has it or as somebody has put it together.
        names: see `read_rows`.
        split: the split; files that name no split at all hold everything.
        source: the place as the configuration names it, for the message.

    Raises:
        ResurfaceError: there is no such file.
    """
    if not place.exists():
        raise ResurfaceError(
            f"{source}: no such file or folder; a data set of the hub is named with its revision: org/name@main"
        )
    if place.is_file() and place.suffix in READERS:
        return [place]
    found = [path for path in sorted(place.rglob("*")) if path.suffix in READERS and path.is_file()]
    named = [
        path for path in found if any(part.startswith(tuple(names)) for part in path.relative_to(place).parts)
    ] or [path for path in found if path.parent in (place, place / "data")]
    whole = [path for path in named if not _splits_of(path)]
    chosen = [path for path in named if split in _splits_of(path)] or whole
    if not chosen:
        raise ResurfaceError(
            f"{source}: found no file of {' or '.join(names)}, split {split}; expected {names[0]}/{split}-*.parquet, or a file of "
            f"this name, as {', '.join(READERS)}; there are {len(found)} files of these formats"
        )
    first = min((path.suffix for path in chosen), key=list(READERS).index)
    files = [path for path in chosen if path.suffix == first]
    parts = [match for path in files if (match := PART.search(path.stem))]
    wanted = {int(match[2]) for match in parts}
    if parts and (len(wanted) > 1 or {int(match[1]) for match in parts} != set(range(min(wanted)))):
        raise ResurfaceError(
            f"{source}: found {', '.join(path.name for path in files)}, which by their names are not all of {max(wanted)} files; fetch "
            "the whole data set"
        )
    return files


def _splits_of(path: Path) -> list[str]:
    """The splits that a file's name mentions."""
    words = path.stem.replace("_", "-").replace(".", "-").split("-")
    return [split for split in SPLIT_NAMES if words[: split.count("_") + 1] == split.split("_")]


def load_files(files: list[Path], source: str) -> pd.DataFrame:
    """Read files of one format into a table, past the `datasets` library's cache: that goes by a file's time, not its content.

    Raises:
        ResurfaceError: they cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    reader = READERS[files[0].suffix]
    with tempfile.TemporaryDirectory(prefix="resurface-") as cache:
        try:
            rows = datasets.load_dataset(
                reader, data_files=[str(file) for file in files], split="train", cache_dir=cache
            )
            return rows.to_pandas()
        except Exception as error:  # what readers say of a broken file may show its text
            raise ResurfaceError(
                f"{source}: {files[0].name} is no readable {files[0].suffix[1:]} file, or those beside it have other columns "
                f"({type(error.__cause__ or error).__name__}); fetch it anew"
            ) from None


def tabulate_questions(rows: pd.DataFrame, subjects: list[str]) -> pd.DataFrame:
    """Questions of a benchmark as the table that local tasks read; each is a cluster of its own.

    Args:
        rows: `question`, `choices` and `answer`.
        subjects: the field of each as it stands in the prompt's header.
    """
    choices = [list(found) for found in rows["choices"]]
    ids = [hash_question(question, found) for question, found in zip(rows["question"], choices, strict=True)]
    return pd.DataFrame(
        {
            "subject": subjects,
            "question": rows["question"],
            "choices": choices,
            "answer": rows["answer"],
            "split": [draw_split(question_id) for question_id in ids],
            "cluster": ids,
        }
    )


def read_wmdp(domain: str, settings: SourceSettings) -> pd.DataFrame:
    """The questions of WMDP about a domain."""
    rows = read_rows(
        settings.wmdp,
        [f"wmdp-{domain}", f"{domain}_questions"],
        "test",
        {"question": FULL_TEXT, "choices": CHOICES, "answer": ANSWER},
        f"wmdp_{domain}",
        getattr(settings.rows, f"wmdp_{domain}"),
    )
    return tabulate_questions(rows, [PUBLIC_DOMAINS[domain]] * len(rows))


def read_mmlu(settings: SourceSettings) -> pd.DataFrame:
    """The test questions of MMLU, all subjects."""
    columns = {"question": FULL_TEXT, "choices": CHOICES, "answer": ANSWER, "subject": FULL_TEXT}
    rows = read_rows(settings.mmlu, ["all"], "test", columns, "mmlu", settings.rows.mmlu)
    return tabulate_questions(rows, [subject.replace("_", " ") for subject in rows["subject"]])


def read_wikitext(settings: SourceSettings) -> pd.DataFrame:
    """The paragraphs of WikiText-2, without its headings."""
    rows = read_rows(
        settings.wikitext, ["wikitext-2-raw-v1"], "train", {"text": TEXT}, "wikitext", settings.rows.wikitext
    )
    return keep_texts([text for text in rows["text"] if not text.startswith(" = ")], settings)


def keep_texts(texts: list[str], settings: SourceSettings) -> pd.DataFrame:
    """The texts that are long enough, as a corpus."""
    return pd.DataFrame(
        {"text": [text.strip() for text in texts if len(text.strip()) >= max(1, settings.least_characters)]}
    )


def read_forget_corpus(domain: str, settings: SourceSettings) -> pd.DataFrame:
    """The texts about a domain that a method unlearns.

    Raises:
        ResurfaceError: none is named; see `read_rows`.
    """
    source = getattr(settings, f"{domain}_forget_corpus") or settings.wmdp_corpora
    rows = read_rows(
        source,
        [f"{domain}-forget-corpus"],
        "train",
        {settings.forget_text: TEXT},
        f"{domain}_forget",
        getattr(settings.rows, f"{domain}_forget"),
    )
    return keep_texts(list(rows[settings.forget_text]), settings)


def read_retain_corpus(domain: str, settings: SourceSettings) -> pd.DataFrame:
    """The texts that a model shall keep: WikiText, or the domain's own."""
    if settings.retain_text == "wikitext":
        return read_wikitext(settings)
    rows = read_rows(
        settings.wmdp_corpora,
        [f"{domain}-retain-corpus"],
        "train",
        {"text": TEXT},
        f"{domain}_retain",
        getattr(settings.rows, f"{domain}_retain"),
    )
    return keep_texts(list(rows["text"]), settings)


def read_benign_questions(settings: SourceSettings) -> pd.DataFrame:
    """The train questions of ARC, easy and challenge, that have four choices."""
    columns = {
        "id": FULL_TEXT,
        "question": FULL_TEXT,
        "choices": ("texts and their labels", _is_labelled),
        "answerKey": FULL_TEXT,
    }
    parts = [
        read_rows(settings.arc, [name], "train", columns, key, getattr(settings.rows, key))
        for name, key in (("ARC-Easy", "arc_easy"), ("ARC-Challenge", "arc_challenge"))
    ]
    found = [row for part in parts for row in part.to_dict("records") if list(row["choices"]["label"]) in ARC_LABELS]
    return pd.DataFrame(
        {
            "subject": "science",
            "question": row["question"],
            "choices": list(row["choices"]["text"]),
            "answer": list(row["choices"]["label"]).index(row["answerKey"]),
            "split": "train",
            "cluster": row["id"],
        }
        for row in found
    )


def _is_labelled(value: Any) -> bool:
    """Whether this is ARC's structure of choices: as many texts as labels."""
    return isinstance(value, dict) and value.keys() >= {"text", "label"} and len(value["text"]) == len(value["label"])


def read_general_pairs(settings: SourceSettings) -> pd.DataFrame:
    """Preferences of OASST2: of the ranked replies to a first message, the best one over the worst one."""
    columns = {
        "message_id": FULL_TEXT,
        "text": TEXT,
        "role": ("prompter or assistant", lambda value: value in ("prompter", "assistant")),
        "lang": FULL_TEXT,
        "deleted": ("true or false", lambda value: isinstance(value, bool)),
    }
    rows = read_rows(settings.oasst2, ["oasst2"], "train", columns, "oasst2", settings.rows.oasst2)
    missing = {"parent_id", "rank"} - set(rows.columns)
    if missing:
        raise ResurfaceError(
            f"{settings.oasst2}: the column {sorted(missing)[0]!r} is missing; OASST2 has the parent of each message and the "
            "rank of each reply"
        )
    spoken = rows[(rows["lang"] == settings.language) & ~rows["deleted"].astype(bool)]
    first = spoken[(spoken["role"] == "prompter") & spoken["parent_id"].isna()].set_index("message_id")["text"]
    replies = spoken[(spoken["role"] == "assistant") & spoken["rank"].notna() & spoken["parent_id"].isin(first.index)]
    pairs = []
    for parent, ranked in replies.sort_values("rank", kind="stable").groupby("parent_id", sort=False):
        texts = list(ranked["text"])
        if texts[0].strip() != texts[-1].strip():
            pairs.append((first[parent].strip(), texts[0].strip(), texts[-1].strip()))
    return pd.DataFrame(sorted(pairs), columns=["prompt", "chosen", "rejected"])


TABLES: dict[str, Callable[[SourceSettings], pd.DataFrame]] = {
    **{f"wmdp_{domain}": partial(read_wmdp, domain) for domain in PUBLIC_DOMAINS},
    "mmlu": read_mmlu,
    "wikitext": read_wikitext,
    "benign_questions": read_benign_questions,
    "general_pairs": read_general_pairs,
}


def write_source(name: str, output: Path, settings: SourceSettings) -> None:
    """Write one of the tables that several domains share (`TABLES`).

    Raises:
        ResurfaceError: the data set cannot be had or is none; or nothing is left of it.
    """
    table = TABLES[name](settings)
    _check_presence(table, name)
    write_table(table, output)


def write_corpora(domain: str, output: Path, settings: SourceSettings) -> None:
    """Write the forget and the retain corpus of a public domain into its data folder.

    Raises:
        ResurfaceError: a data set cannot be had or is none; or nothing is left of it.
    """
    corpora = {
        "forget_corpus": read_forget_corpus(domain, settings),
        "retain_corpus": read_retain_corpus(domain, settings),
    }
    for name, table in corpora.items():
        _check_presence(table, f"{domain}: {name}")
        write_table(table, output / f"{name}.parquet")


def _check_presence(table: pd.DataFrame, name: str) -> None:
    if table.empty:
        raise ResurfaceError(
            f"{name}: no row of this data set is left after filtering; look at `least_characters` and `language` in `sources`"
        )


def join_questions(written: Path, benchmark: Path, output: Path) -> None:
    """Write the questions of a public domain: `train` ones written from its corpus, the others of the benchmark.

    Args:
        written: the table of questions that were written; those of other splits are left.
        benchmark: the benchmark's table.
        output: the domain's table `questions`.

    Raises:
        ResurfaceError: a table is missing or broken.
    """
    tables = [read_question_table(path) for path in (written, benchmark)]
    parts = [table[table["split"].isin(splits)] for table, splits in zip(tables, (SPLITS[:1], SPLITS[1:]), strict=True)]
    write_table(pd.concat(parts, ignore_index=True)[QUESTION_COLUMNS], output)
