"""Compare two results folders: question by question, and which settings, source or versions explain what differs.

McNemar's exact test asks of each model, variant, template and benchmark whether the questions that only one folder answers
rightly fall to both sides alike (a binomial test with p = 1/2; Agresti, *Categorical Data Analysis*, section 11.1).
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from resurface.analysis.statistics import mcnemar
from resurface.errors import ResurfaceError
from resurface.reproducibility.manifest import Manifest, place
from resurface.reproducibility.reproduce import differences, read_scored
from resurface.reproducibility.verify import find_changed, require_verified, show_plainly

KEY = ["domain", "method", "seed", "attack", "variant", "template", "benchmark", "split"]
MOST_ROWS = 20
COMPARISON_COLUMNS = [
    *KEY,
    "questions",
    "accuracy_a",
    "accuracy_b",
    "only_a",
    "only_b",
    "largest_gap",
    "p_value",
]


def read_verified(results: Path, follow_links: bool) -> tuple[Manifest, pd.DataFrame]:
    """The manifest and the scores of a results folder, whose files must be as recorded.

    Raises:
        ResurfaceError: they are not, or the folder holds no scores.
    """
    manifest = require_verified(results, follow_links, apart_from=("source", "settings"))
    tables = [name for record in manifest.records.values() if record.rule == "score" for name in record.outputs]
    scores = pd.concat([read_scored(place(results, name)) for name in tables], ignore_index=True)
    if scores.duplicated([*KEY, "question_id"]).any():
        raise ResurfaceError(f"{results}: a question is answered twice in its score tables")
    return manifest, scores


def compare_scores(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Compare two score tables question by question.

    Returns:
        a row per model, variant, template, benchmark and split that both have (`COMPARISON_COLUMNS`): common questions, both
        accuracies, how many only one answers rightly, the largest difference of a log-probability [nats] and McNemar's p.
    """
    joined = a.merge(b, on=[*KEY, "question_id"], suffixes=("_a", "_b"))
    joined["gap"] = [
        max((abs(x - y) for x, y in zip(one, other, strict=True)), default=0.0)
        if len(one) == len(other)
        else float("inf")
        for one, other in zip(joined["logprobs_a"], joined["logprobs_b"], strict=True)
    ]
    rows = []
    for key, pairs in joined.groupby(KEY, dropna=False, sort=True):
        only_a = int((pairs["correct_a"] & ~pairs["correct_b"]).sum())
        only_b = int((pairs["correct_b"] & ~pairs["correct_a"]).sum())
        rows.append(
            {
                **dict(zip(KEY, key, strict=True)),
                "questions": len(pairs),
                "accuracy_a": pairs["correct_a"].mean(),
                "accuracy_b": pairs["correct_b"].mean(),
                "only_a": only_a,
                "only_b": only_b,
                "largest_gap": pairs["gap"].max(),
                "p_value": mcnemar(only_a, only_b),
            }
        )
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def list_unshared(a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    """What only one of two score tables has: models, attacks and variants, without seeds."""
    parts = ["domain", "method", "attack", "variant"]
    have = [set(map(tuple, table[parts].drop_duplicates().to_numpy())) for table in (a, b)]
    return [
        f"only in {side}: {' '.join(map(str, row))}"
        for side, row in sorted([("A", row) for row in have[0] - have[1]] + [("B", row) for row in have[1] - have[0]])
    ]


def explain(a: Manifest, b: Manifest) -> list[str]:
    """What differs between how two results were made: settings by key, then device, source and versions by rule."""
    lines = [
        f"setting {key}: {one!r} in A, {other!r} in B" for key, one, other in find_changed(a.experiment, b.experiment)
    ]
    rules: dict[str, list[str]] = {}
    for path in sorted(a.records.keys() & b.records.keys()):
        for text in differences(a.records[path], b.records[path]):
            record = a.records[path]
            name = record.rule if record.name is None else f"{record.rule} {record.name}"
            rules.setdefault(text, []).append(name)
    return lines + [f"{text}: {', '.join(dict.fromkeys(names))}" for text, names in rules.items()]


def describe_comparison(compared: pd.DataFrame, unshared: list[str], reasons: list[str]) -> Iterator[Table | Text]:
    """A comparison for the terminal: what differs most clearly first, what only one has, and what explains it."""
    changed = compared[compared["largest_gap"] > 0].sort_values("p_value", kind="stable")
    yield Text(
        f"{len(compared) - len(changed)} of {len(compared)} comparisons are the same to the last bit "
        f"({compared['questions'].sum()} answers)"
    )
    if len(changed):
        table = Table(
            *("model", "attack", "variant", "template", "benchmark", "split", "A", "B", "only A", "only B", "p"),
            box=SIMPLE_HEAD,
        )
        for row in changed.head(MOST_ROWS).to_dict("records"):
            seed = "" if pd.isna(row["seed"]) else f" seed {row['seed']}"
            words = [
                f"{row['method']}{seed}",
                *(row[key] for key in ("attack", "variant", "template", "benchmark", "split")),
            ]
            numbers = [f"{row['accuracy_a']:.1%}", f"{row['accuracy_b']:.1%}", f"{row['only_a']}", f"{row['only_b']}"]
            table.add_row(*(Text(show_plainly(word)) for word in words), *numbers, f"{row['p_value']:.2g}")
        yield table
        if len(changed) > MOST_ROWS:
            yield Text(f"… and {len(changed) - MOST_ROWS} more, with larger p (--output keeps all)")
    for title, lines in (("Not in both", unshared), ("What explains it", reasons)):
        for line in (title, *(f"  {line}" for line in lines)) if lines else ():
            yield Text(show_plainly(line))
