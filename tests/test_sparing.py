"""The variant that spares general ability, by hand."""

import pandas as pd
import pytest

from resurface.analysis.sparing import choose_sparing

DOMAIN = "runes"


def rows(method, attack, variant, seed, template="plain", **accuracies):
    """Rows of a summary: the domain and `general`, validation and test; `recovery` is the domain's accuracy minus 0.2."""
    return [
        {
            **{"domain": DOMAIN, "method": method, "seed": seed, "attack": attack, "variant": variant},
            **{"template": template, "benchmark": benchmark, "split": split, "accuracy": accuracies[f"{kind}_{split}"]},
            "recovery": accuracies[f"{kind}_{split}"] - 0.2 if kind == "own" else None,
        }
        for kind, benchmark in (("own", DOMAIN), ("general", "music"))
        for split in ("validation", "test")
    ]


def summary(*parts):
    return pd.DataFrame([row for part in parts for row in part]).astype({"seed": "Int64"})


def of(own, general, drift=0.0):
    """Accuracies on validation, and on test a little above."""
    return {
        **{"own_validation": own, "own_test": own + drift},
        **{"general_validation": general, "general_test": general + drift},
    }


def test_what_is_best_among_those_that_keep_general_ability():
    table = summary(
        rows("npo", "none", "none", 0, **of(0.2, 0.8)),
        rows("npo", "none", "none", 0, "chat", **of(0.2, 0.9)),
        rows("npo", "pruning", "strong", 0, **of(0.9, 0.84)),
        rows("npo", "pruning", "mild", 0, **of(0.6, 0.86, 0.05)),
        rows("npo", "pruning", "weak", 0, **of(0.4, 0.9)),
        rows("npo", "pruning", "from-rmu-seed0-mild", 0, **of(0.8, 0.9)),
        rows("dpo", "none", "none", 0, **of(0.2, 0.9)),
        rows("dpo", "pruning", "strong", 0, **of(0.9, 0.5)),
    )
    found = choose_sparing(table, DOMAIN)
    (chosen,) = found[found["attack"] == "pruning"].to_dict("records")
    assert (chosen["method"], chosen["variant"]) == ("npo", "mild"), "0.95 · 0.9 is kept by mild and weak only"
    assert chosen["accuracy"] == pytest.approx(0.65), "on test questions"
    assert chosen["recovery"] == pytest.approx(0.45)
    assert chosen["general"] == pytest.approx(0.91)
    stricter = choose_sparing(table, DOMAIN, kept=0.98)
    assert stricter.set_index(["method", "attack"]).loc[("npo", "pruning"), "variant"] == "weak"


def test_the_control_has_no_seed_without_attack():
    table = summary(
        rows("never_learned", "none", "none", None, **of(0.25, 1.0)),
        rows("never_learned", "pruning", "strong", 0, **of(0.5, 0.9)),
        rows("never_learned", "pruning", "mild", 0, **of(0.3, 0.96)),
        rows("never_learned", "pruning", "strong", 1, **of(0.5, 0.99)),
    )
    found = choose_sparing(table, DOMAIN)
    chosen = found[found["attack"] == "pruning"].set_index("seed")["variant"]
    assert chosen.to_dict() == {0: "mild", 1: "strong"}


def test_without_a_benchmark_of_general_ability_there_is_nothing_to_spare():
    table = summary(rows("npo", "none", "none", 0, **of(0.2, 0.8)), rows("npo", "pruning", "strong", 0, **of(0.9, 0.8)))
    assert choose_sparing(table[table["benchmark"] == DOMAIN], DOMAIN).empty
