"""Fingerprints: closures are exactly what a module needs, and an edit changes those that hold it and no other."""

import pytest

from resurface.registry import ATTACKS, METHODS
from resurface.reproducibility import fingerprint as fingerprints
from resurface.reproducibility.fingerprint import closure

COMMON = {"resurface", "resurface.artifacts", "resurface.errors"}
ATTACK = COMMON | {"resurface.attacks", "resurface.attacks.target", "resurface.interventions", "resurface.settings"}
MODEL = {
    "resurface.models",
    "resurface.decoder",
    "resurface.checkpoints",
    "resurface.fused_norms",
    "resurface.gpus",
    "resurface.prompts",
    "resurface.spreading",
}
DATA = {"resurface.data", "resurface.data.tables", "resurface.prompts"}
RESUMED = {"resurface.preemption", "resurface.trainer_runs"}
METHOD = (
    COMMON
    | MODEL
    | DATA
    | RESUMED
    | {
        "resurface.unlearning",
        "resurface.unlearning.training",
        "resurface.settings",
        "resurface.settings.base",
        "resurface.settings.training",
    }
)


def settings_of(name):
    return {f"resurface.settings.{name}", "resurface.settings.base"}


@pytest.mark.parametrize("name", METHODS)
def test_closure_of_a_method(name):
    assert set(closure(METHODS[name].module)) == METHOD | settings_of(name) | {f"resurface.unlearning.{name}"}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("none", set()),
        ("logit_lens", set()),
        ("finetuning", MODEL | DATA | RESUMED | {"resurface.recorded_steps"}),
        ("orthogonalization", MODEL | DATA | {"resurface.attacks.questions"}),
        ("perturbation", MODEL | DATA),
        ("pruning", MODEL | DATA | {"resurface.generation"}),
        ("random_prefix", MODEL | DATA | {"resurface.attacks.prefix"}),
        (
            "enhanced_gcg",
            MODEL
            | DATA
            | {f"resurface.{name}" for name in ("attacks.prefix", "attacks.questions", "generation", "preemption")},
        ),
    ],
)
def test_closure_of_an_attack(name, more):
    expected = ATTACK | settings_of(name) | {f"resurface.attacks.{name}"} | more
    assert set(closure(ATTACKS[name].module)) == expected


def test_closure_of_preferences():
    """A change of the testbed, or of a method, must not send anybody back to a server."""
    own = {f"resurface.data.{name}" for name in ("preferences", "chat_client", "replies", "written_questions")}
    more = {"resurface.generation", "resurface.preemption", "resurface.settings"} | settings_of("preferences")
    assert set(closure("resurface.data.preferences")) == COMMON | MODEL | DATA | own | more


def test_closure_of_public_data():
    expected = COMMON | DATA | settings_of("sources") | {"resurface.checkpoints", "resurface.hub", "resurface.settings"}
    assert set(closure("resurface.data.public")) == expected | {"resurface.data.public"}


def test_scoring_knows_no_attack_and_no_method():
    strangers = (
        "resurface.attacks",
        "resurface.unlearning",
        "resurface.registry",
        "resurface.hub",
        "resurface.data.public",
    )
    for module in closure("resurface.scoring.score"):
        assert not module.startswith(strangers)


def test_an_edit_changes_what_needs_the_module_and_nothing_else(tmp_path, monkeypatch):
    package = tmp_path / "resurface"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text("x = 1\n")
    (package / "user.py").write_text("def f():\n    from resurface.base import x\n    return x\n")
    (package / "other.py").write_text("import os\n")
    (package / "page.jinja").write_text("one")
    monkeypatch.setattr(fingerprints, "SOURCE", package)

    def forget():
        for function in ("module_path", "direct_imports", "closure", "fingerprint"):
            getattr(fingerprints, function).cache_clear()

    def prints():
        forget()
        found = {name: fingerprints.fingerprint(f"resurface.{name}") for name in ("base", "user", "other")}
        return found | {"page": fingerprints.fingerprint("resurface.other", "*.jinja")}

    before = prints()
    (package / "base.py").write_text("x = 2\n")
    after = prints()
    assert {name for name in before if before[name] != after[name]} == {"base", "user"}
    (package / "page.jinja").write_text("two")
    last = prints()
    assert {name for name in after if after[name] != last[name]} == {"page"}
    with pytest.raises(AssertionError, match="no file absent"):
        fingerprints.fingerprint("resurface.other", "absent.jinja")
    forget()
