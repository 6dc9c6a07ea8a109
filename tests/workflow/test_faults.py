"""The fault suite: whatever is killed and whenever, the documented command leads to the results of an unbroken run.

`make faults` is the long form, with thirty kills; the short form is one chain over a smaller experiment.
"""

import random
from collections import Counter

import pytest
from conftest import DOMAIN, ROOT
from faults import KINDS, RESUME, differing, leftovers, make_experiment, run_chain, run_unbroken

KILLS = 30
KILLS_A_CHAIN = 10
LONGEST_WAIT = 10.0

# Learning rates are such that a few steps leave models that miss questions: some attacks need those.
SHORT = {
    "domains": [DOMAIN],
    "models": {"never_learned": None},
    "methods": {
        "rmu": {"block": 2, "trained_blocks": [0, 1, 2], "alpha": 0.01, "learning_rate": 0.01}
        | {"coefficient": 25.0, "coefficient_unit": "mean_norm", "max_steps": 18, "batch_size": 2, "save_steps": 3},
    },
    "attacks": {
        "none": None,
        "finetuning": {"datasets": {"forget": [4, 8]}, "save_steps": 3},
        "enhanced_gcg": {
            "searches": {"two": [2]},
            "start_length": 6,
            "questions": 3,
            "steps": 8,
            "snapshots": 1,
            "candidates": 6,
            "buffer": 4,
            "minimum_lengths": [2, 3],
            "growth_steps": 3,
            "maximum_length": 9,
            "batch_tokens": 1536,
        },
    },
    "benchmarks": {"general": ["testbed_general_music"]},
    "data": {"articles": 50, "general_questions": 10},
    "scoring": {"templates": ["plain"], "batch_tokens": 1536},
    "refusals": {"questions": 5, "new_tokens": 4},
    "perplexity": {"questions": 5, "new_tokens": 4},
    "summary": {"resamples": 100},
}
LONG = SHORT | {
    "methods": SHORT["methods"]
    | {
        "npo": {"learning_rate": 0.003, "max_steps": 18, "batch_size": 2, "save_steps": 3},
        "dpo": {"learning_rate": 0.003, "max_steps": 12, "batch_size": 2, "save_steps": 3, "warmup_steps": 2},
    },
    "attacks": SHORT["attacks"]
    | {
        "orthogonalization": {"references": ["original"], "block_sets": {"2": [2]}, "skip_tokens": 16}
        | {"questions": 24},
        "pruning": {"datasets": {"corpus": {"forget": "corpus", "utility": "questions"}}, "p": [5.0], "q": [2.5]}
        | {"samples": 12},
        "logit_lens": {"streams": ["block"], "blocks": [2, 5]},
    },
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The long experiment, run without a kill."""
    project = make_experiment(tmp_path_factory.mktemp("unbroken") / "resurface", LONG)
    run_unbroken(project)
    return project


@pytest.mark.faults
def test_two_cold_runs_are_identical(unbroken, tmp_path):
    again = make_experiment(tmp_path / "resurface", LONG)
    run_unbroken(again)
    assert differing(again, unbroken) == []


@pytest.mark.faults
def test_chains_of_kills_end_like_an_unbroken_run(unbroken, tmp_path):
    hits: Counter[str] = Counter()
    number = 0
    while hits.total() < KILLS:
        project = make_experiment(tmp_path / f"chain{number}" / "resurface", LONG)
        found = run_chain(project, min(KILLS_A_CHAIN, KILLS - hits.total()), LONGEST_WAIT, random.Random(number))
        print(f"chain {number}: {dict(found)}")
        assert differing(project, unbroken) == []
        assert leftovers(project) == []
        hits += found
        number += 1
    assert set(hits) == set(KINDS), "every kind of process was hit"


@pytest.mark.audit
def test_a_short_chain_of_kills_ends_like_an_unbroken_run(tmp_path):
    reference = make_experiment(tmp_path / "unbroken" / "resurface", SHORT)
    run_unbroken(reference)
    assert leftovers(reference) == []
    project = make_experiment(tmp_path / "chain" / "resurface", SHORT)
    hits = run_chain(project, 4, 8.0, random.Random(0))
    assert hits
    assert differing(project, reference) == []
    assert leftovers(project) == []


def test_the_command_is_the_documented_one():
    for page in ("README.md", "docs/crashes.md"):
        assert RESUME in (ROOT / page).read_text()
