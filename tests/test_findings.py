"""What attacks left is read for the models of the summary, and shown as it is."""

import json

import pandas as pd
import pytest

from resurface.analysis.findings import LOSSES, read_findings
from resurface.analysis.perplexity import PERPLEXITY_SUMMARY_COLUMNS, summarize_perplexity
from resurface.analysis.searches import prefix_rows, visible_text
from resurface.artifacts import publish_folder
from resurface.errors import ResurfaceError
from resurface.interventions import Prepend, Pruning, Rewrite, Variant, write_variants


def scored(attack, *variants, method="rmu", seed=0):
    rows = [{"domain": "runes", "method": method, "seed": seed, "attack": attack, "variant": one} for one in variants]
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def leave(root, attack, part, variants, method="rmu", **tables):
    with publish_folder(root / "runes" / method / "seed0" / attack / part) as folder:
        write_variants(folder, variants)
        for name, table in tables.items():
            pd.DataFrame(table).to_parquet(folder / f"{name}.parquet", index=False)


@pytest.fixture
def root(tmp_path):
    """What the attacks of one model left, and a search of an earlier configuration."""
    for attack, part in (("enhanced_gcg", "block2"), ("enhanced_gcg", "old")):
        curve = {"step": [1, 2], "loss": [3.0, None], "best_loss": [3.0, 3.0], "prefix": ["a", None]}
        leave(tmp_path, attack, part, [Variant(variant=f"{part}-step2", prompt=Prepend(text="a\n"))], losses=curve)
    curve = {"step": [1, 1], "loss": [5.0, 4.0], "best_loss": [5.0, 4.0], "search": ["question0", "question1"]}
    variants = [Variant(variant=f"question{i}", prompt=Prepend(text=f"x{i}")) for i in (0, 1)]
    leave(tmp_path, "gcg", "all", variants, losses=curve)
    grid = [(1.0, 1.0), (5.0, 1.0)]
    variants = [Variant(variant=f"own-p{p:g}", model=Pruning(file="gradient.parquet", p=p, q=q)) for p, q in grid]
    counts = [
        {"p": p, "q": q, "layer": f"layers.{i}.mlp.up_proj", "weights": 100, "pruned": int(10 * p + i), "score": score}
        for p, q in grid
        for i in (0, 1)
        for score in ("gradient", "activation")
    ]
    leave(tmp_path, "pruning", "own", variants, sparsity=counts)
    prompts = {
        "variant": ["naive"] * 2 + ["informed"] * 4,
        "prompt": ["p", "q", "p", "q", "r", "s"],
        "rewritten": ["p!", "q!", "p", "q~", "r~", "s~~"],
        "text_rounds": pd.array([None, None, 0, 1, 0, 3], dtype="Int64"),
        "text_exceeds": pd.array([None, None, False, False, False, True], dtype="boolean"),
        "rounds": pd.array([None, None, 0, 0, 2, 4], dtype="Int64"),
        "exceeds": pd.array([None, None, False, False, False, True], dtype="boolean"),
    }
    variants = [Variant(variant=one, prompt=Rewrite(file="prompts.parquet", name=one)) for one in ("naive", "informed")]
    leave(tmp_path, "perturbation", "all", variants, prompts=prompts)
    return tmp_path


SUMMARY = pd.concat(
    [
        scored("enhanced_gcg", "block2-step2", "from-npo-seed0-block2-step2"),
        scored("gcg", "question0", "question1"),
        scored("pruning", "own-p1", "own-p5"),
        scored("perturbation", "naive", "informed"),
        scored("finetuning", "forget-n5"),
    ]
)


def test_what_the_attacks_of_the_summary_left(root):
    found = read_findings(root, SUMMARY)
    assert found.losses.groupby(["attack", "search"])["best_loss"].apply(list).to_dict() == {
        ("enhanced_gcg", "block2"): [3.0, 3.0],
        ("gcg", "question0"): [5.0],
        ("gcg", "question1"): [4.0],
    }, "a search of an earlier configuration is not this experiment's"
    assert found.prefixes.set_index("variant")["prefix"].to_dict() == {
        "block2-step2": "a\n",
        "question0": "x0",
        "question1": "x1",
    }
    assert found.sparsity.groupby("variant")["pruned"].apply(list).to_dict() == {"own-p1": [10, 11], "own-p5": [50, 51]}
    (row,) = found.rewrites.to_dict("records")
    assert row["variant"] == "informed", "naive noise has no threshold"
    assert (row["prompts"], row["changed"], row["exceeds"], row["text_exceeds"]) == (4, 0.75, 0.25, 0.25)
    assert (row["rounds"], row["text_rounds"]) == (1.5, 1.0)
    assert prefix_rows(found, "runes")[0] == ("RMU", "enhanced GCG, block2-step2", r"a\n")


def test_an_experiment_without_such_attacks_has_none(tmp_path):
    for found in (read_findings(None, SUMMARY), read_findings(tmp_path, scored("finetuning", "forget-n5"))):
        assert list(found.losses) == LOSSES
        for table in (found.losses, found.prefixes, found.sparsity, found.rewrites):
            assert table.empty


def test_a_changed_folder_is_named(root):
    path = root / "runes" / "rmu" / "seed0" / "gcg" / "all" / "variants.json"
    variants = json.loads(path.read_text())
    variants[0]["prompt"]["text"] = "another"
    path.write_text(json.dumps(variants))
    with pytest.raises(ResurfaceError, match=r"gcg/all/variants\.json: this file was changed"):
        read_findings(root, SUMMARY)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a\nb", r" a\nb"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\u202eb\u00a0", r"a\u202eb\xa0"),
        (r"a\nb", r"a\\nb"),
        ("naïve – 好", "naïve – 好"),
    ],
)
def test_characters_that_cannot_be_seen_are_shown(text, shown):
    assert visible_text(text) == shown


def test_perplexity_pools_tokens():
    replies = [
        {"template": template, "variant": "v", "text": text, "tokens": tokens, "nats": nats, "question_id": "a"}
        for template, drift in (("plain", 0.0), ("chat", 9.0))
        for text in ("original", "unlearned", "attacked", "unlearned_text", "attacked_text")
        for tokens, nats in ([(0, 0.0)] if text == "attacked_text" else [(10, 5.0 + drift), (30, 30.0)])
    ]
    table = pd.DataFrame(replies).assign(domain="runes", method="npo", seed=0, attack="gcg")
    found = summarize_perplexity(table.astype({"seed": "Int64"})).set_index("template")
    assert found.loc["plain", "original"] == pytest.approx(2.718281828 ** (35 / 40))
    assert found.loc["chat", "attacked"] == pytest.approx(2.718281828 ** (44 / 40))
    assert found["attacked_text"].isna().all(), "no text at all"
    assert list(summarize_perplexity(None)) == PERPLEXITY_SUMMARY_COLUMNS
