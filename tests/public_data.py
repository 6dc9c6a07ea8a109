"""Small, made-up data sets with exactly the schema and the layout of the public ones."""

import json
from pathlib import Path

import pandas as pd

LETTERS = "ABCD"
COUNTS = {
    **{"wmdp_bio": 12, "wmdp_chem": 4, "wmdp_cyber": 6, "mmlu": 8, "bio_forget": 5, "bio_retain": 6},
    **{"cyber_forget": 4, "cyber_retain": 3, "wikitext": 9, "oasst2": 10, "arc_easy": 4, "arc_challenge": 3},
}
LONG = "The rune Varn is carved with a needle and rests in a bay, as every weaver of the old school knows. "


def questions(count: int, kind: str) -> pd.DataFrame:
    """Questions as WMDP has them; one of them has the blanks around it that some of WMDP's have."""
    return pd.DataFrame(
        {
            "answer": [number % 4 for number in range(count)],
            "question": [f"{' ' * (number == 1)}Which {kind} has the number {number}?\n" for number in range(count)],
            "choices": [[f"{kind} {letter}{number}" for letter in LETTERS] for number in range(count)],
        }
    )


def message(number: int, parent: str | None, role: str, text: str, rank: float | None, **more: object) -> dict:
    """A message as OASST2 has it, as far as it is read, and a column that is not."""
    return {
        "message_id": f"m{number}",
        "parent_id": parent,
        "user_id": "u",
        "text": text,
        "role": role,
        "lang": "en",
        "review_result": True,
        "deleted": False,
        "rank": rank,
        **more,
    }


MESSAGES = [
    message(0, None, "prompter", "How is tea made?", None),
    message(1, "m0", "assistant", "No idea.", 2.0),
    message(2, "m0", "assistant", "With hot water and leaves.", 0.0),
    message(3, "m0", "assistant", "With water.", 1.0),
    message(4, "m2", "prompter", "And coffee?", None),
    message(5, "m4", "assistant", "Likewise.", 0.0),
    message(6, None, "prompter", "Wie kocht man Tee?", None, lang="de"),
    message(7, "m6", "assistant", "Mit Wasser.", 0.0, lang="de"),
    message(8, "m0", "assistant", "Deleted nonsense.", 3.0, deleted=True),
    message(9, None, "prompter", "A message without replies", None),
]


def arc(count: int, name: str, labels: str = LETTERS) -> pd.DataFrame:
    """Questions as ARC has them; the last one has three choices."""
    return pd.DataFrame(
        {
            "id": [f"{name}_{number}" for number in range(count)],
            "question": [f"Which {name} is number {number}?" for number in range(count)],
            "choices": [
                {"text": [f"{name} {label}" for label in used], "label": list(used)}
                for used in [labels] * (count - 1) + [labels[:3]]
            ],
            "answerKey": [labels[number % 3] for number in range(count)],
        }
    )


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)


def write_public_data(folder: Path, **more: int) -> dict:
    """Write all data sets as the hub has them, and return the section `sources` that names them.

    Args:
        folder: where to.
        more: other numbers of rows than `COUNTS` has, of questions and corpora.
    """
    counts = {**COUNTS, **more}
    for domain in ("bio", "chem", "cyber"):
        count = counts[f"wmdp_{domain}"]
        write_parquet(questions(count, domain), folder / f"wmdp/wmdp-{domain}/test-00000-of-00001.parquet")
    subjects = ["abstract_algebra", "high_school_us_history"] * (counts["mmlu"] // 2)
    write_parquet(
        questions(counts["mmlu"], "thing").assign(subject=subjects), folder / "mmlu/all/test-00000-of-00001.parquet"
    )
    write_parquet(
        questions(3, "example").assign(subject="abstract_algebra"), folder / "mmlu/all/dev-00000-of-00001.parquet"
    )

    def texts(name: str, first: int = 0) -> pd.DataFrame:
        return pd.DataFrame({"text": [f"{name} {number}: {LONG}" for number in range(first, counts[name])]})

    for name in ("cyber_forget", "cyber_retain"):
        folder_name = f"{name.replace('_', '-')}-corpus"
        write_parquet(texts(name), folder / f"wmdp-corpora/{folder_name}/train-00000-of-00001.parquet")
    for part, rows in enumerate((texts("bio_retain")[:4], texts("bio_retain")[4:])):
        write_parquet(rows, folder / f"wmdp-corpora/bio-retain-corpus/train-0000{part}-of-00002.parquet")
    (folder / "bio.jsonl").write_text(
        "".join(
            json.dumps({"title": f"t{number}", "abstract": f"Abstract {number}. {LONG}", "text": text, "doi": "10/x"})
            + "\n"
            for number, text in enumerate(texts("bio_forget")["text"])
        )
    )
    lines = ["", " = Runes = \n", f" {LONG}\n", "", " = = History = = \n", f" {LONG} twice \n", " too short \n", "", ""]
    write_parquet(pd.DataFrame({"text": lines}), folder / "wikitext/wikitext-2-raw-v1/train-00000-of-00001.parquet")
    write_parquet(
        pd.DataFrame({"text": ["a test line"]}), folder / "wikitext/wikitext-2-raw-v1/test-00000-of-00001.parquet"
    )
    write_parquet(pd.DataFrame(MESSAGES), folder / "oasst2/data/train-00000-of-00001.parquet")
    write_parquet(arc(4, "easy"), folder / "arc/ARC-Easy/train-00000-of-00001.parquet")
    write_parquet(arc(3, "challenge", "1234"), folder / "arc/ARC-Challenge/train-00000-of-00001.parquet")
    places = {"wmdp": "wmdp", "mmlu": "mmlu", "wmdp_corpora": "wmdp-corpora", "bio_forget_corpus": "bio.jsonl"}
    places |= {"wikitext": "wikitext", "oasst2": "oasst2", "arc": "arc"}
    return {**{key: str(folder / place) for key, place in places.items()}, "rows": counts}
