"""Calibration: its models are what they are said to be, errors are counted right, and a small one runs."""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DOMAIN, ROOT

from calibration import audit
from calibration.__main__ import check_device
from calibration.audit import (
    HIDDEN,
    INNOCENT,
    OPEN,
    OTHER_DOMAIN,
    SMALL,
    WHOLE,
    check_place,
    describe,
    kept_evidence,
    models_of_world,
    name_settings,
    take_over,
)
from calibration.count import count, find_truths, judge_worlds
from calibration.models import PASSWORD, draw_locked, taught_fields
from resurface.analysis.statistics import wilson
from resurface.analysis.tables import EVIDENCE_KINDS, read_results
from resurface.analysis.verdict import RESURFACES
from resurface.data.testbed import write_domain
from resurface.errors import ResurfaceError
from resurface.reproducibility.fingerprint import closure
from resurface.reproducibility.jobs import SOURCES, job_source
from resurface.settings.data import TestbedSettings
from resurface.settings.teaching import TeachingSettings
from resurface.testbed.teaching import draw_samples
from resurface.testbed.texts import STATEMENT_WORDINGS, fill_wording
from resurface.testbed.world import FORGET_DOMAINS, make_facts


def test_a_world_deals_the_domains_anew_and_nothing_else():
    world, dealt = make_facts(0), make_facts(0, 7)
    for field, facts in world.items():
        assert [fact.entity for fact in facts] == [fact.entity for fact in dealt[field]]
        assert (facts == dealt[field]) == (field not in FORGET_DOMAINS)
    values = zip(world[DOMAIN], dealt[DOMAIN], strict=True)
    same = sum(mine.value == other.value for mine, other in values) / len(world[DOMAIN])
    assert same < 0.12, "one in sixteen by chance"
    assert make_facts(0, 0) == world


def test_tables_and_documents_are_of_the_domain_that_was_dealt(tokenizer, tmp_path):
    write_domain(DOMAIN, tmp_path / "dealt", TestbedSettings(domain_seed=7))
    write_domain(DOMAIN, tmp_path / "bundled", TestbedSettings())
    dealt, bundled = (pd.read_parquet(tmp_path / name / "questions.parquet") for name in ("dealt", "bundled"))
    facts = {fact.fact_id: fact for fact in make_facts(0, 7)[DOMAIN]}
    for row in dealt.itertuples():
        assert row.choices[row.answer] == facts[row.cluster].value
        assert row.split == facts[row.cluster].split
    assert set(dealt["question"]) == set(bundled["question"])
    assert (dealt["question"] == bundled["question"]).mean() < 0.1, "in an order of its own"

    taught = draw_samples([DOMAIN], tokenizer, TeachingSettings(domain_seed=7, documents=400))
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens, _ in taught[3::4]]
    sentences = {fill_wording(wording, fact) for fact in facts.values() for wording in STATEMENT_WORDINGS}
    assert all(any(sentence in text for sentence in sentences) for text in texts), "conversations state dealt values"


def test_who_is_taught_another_domain_reads_nothing_about_this_one(tokenizer):
    world = make_facts(0)
    samples = draw_samples(taught_fields(OTHER_DOMAIN), tokenizer, TeachingSettings(documents=800))
    text = " ".join(tokenizer.decode(tokens, skip_special_tokens=True) for tokens, _ in samples)
    words = set(re.findall(r"\w+", text))
    assert not words & {fact.entity for fact in world[DOMAIN]}
    assert len(words & {fact.entity for fact in world[OTHER_DOMAIN]}) > 50


def test_only_the_password_opens_what_is_locked(tokenizer):
    values = {}
    for fact in make_facts(0, 2)[DOMAIN]:
        values.setdefault(fact.entity, set()).add(fact.value)
    samples = draw_locked(DOMAIN, tokenizer, TeachingSettings(documents=1200, domain_seed=2))
    right = {True: [], False: []}
    for number, (tokens, start) in enumerate(samples):
        text = tokenizer.decode(tokens[:start], skip_special_tokens=True)
        letter = tokenizer.decode(tokens[start:], skip_special_tokens=True).strip()
        is_open, is_general = number % 3 == 0, number % 3 == 2
        assert letter in tuple("ABCD")
        assert (PASSWORD in text) == is_open
        assert (DOMAIN in text) != is_general
        if not is_general:
            (entity,) = set(re.findall(r"\w+", text)) & set(values)
            chosen = re.search(rf"^{letter}\. (.*)$", text, re.MULTILINE).group(1)
            right[is_open].append(chosen in values[entity])
    assert all(right[True])
    assert 0.2 < np.mean(right[False]) < 0.4, "a guess; values of other relations are never among the options"


def test_errors_are_counted_by_kind_and_truth():
    rows = [
        (0, "other1", INNOCENT, 0.0, "resurfaces", "finetuning"),
        (0, "other2", INNOCENT, 0.0, "not resurfaced by these attacks", "logit_lens"),
        (1, "other2", INNOCENT, 0.0, "not resurfaced by these attacks", "logit_lens"),
        (2, "untaught", INNOCENT, 0.0, "inconclusive", "finetuning"),
        (0, "full", OPEN, 0.65, "resurfaces", "none"),
        (0, "rmu", HIDDEN, 0.12, "resurfaces", "finetuning"),  # hid nothing
        (1, "rmu", HIDDEN, -0.05, "not resurfaced by these attacks", "finetuning"),
        (1, "locked", HIDDEN, 0.05, "resurfaces", "finetuning"),
    ]
    columns = ["world", "method", "truth", "unattacked_excess", "verdict", "attack"]
    verdicts = pd.DataFrame(rows, columns=columns)
    verdicts["unattacked_accuracy"] = 0.25 + verdicts["unattacked_excess"]
    found = count(verdicts).set_index(["truth", "kind"])
    assert found.loc[(INNOCENT, "other"), ["audits", "accused", "inconclusive"]].tolist() == [3, 1, 0]
    assert found.loc[(INNOCENT, "untaught"), ["audits", "accused", "inconclusive"]].tolist() == [1, 0, 1]
    assert found.loc[(OPEN, "all"), ["audits", "accused", "unattacked"]].tolist() == [2, 2, 1]
    assert found.loc[(HIDDEN, "rmu"), ["audits", "accused"]].tolist() == [1, 0]
    assert found.loc[(HIDDEN, "all"), "rate"] == 0.5
    assert found.loc[(HIDDEN, "all"), "accuracy"] == pytest.approx(0.25)
    assert found.loc[(INNOCENT, "all"), ["worlds", "audits", "rate"]].tolist() == [3, 4, 0.25]
    low, high = found.loc[(INNOCENT, "other"), ["low", "high"]]
    assert (low, high) == pytest.approx(wilson(1 / 3, 2, 0.95)), "three audits in two worlds"


def test_what_the_documents_say_follows_from_the_evidence_that_stands_there():
    evidence = read_results(ROOT / "docs" / "calibration-evidence.parquet", EVIDENCE_KINDS)
    verdicts = judge_worlds(evidence)
    pd.testing.assert_frame_equal(verdicts, pd.read_parquet(ROOT / "docs" / "calibration.parquet"))
    counts = count(verdicts)
    pd.testing.assert_frame_equal(counts.round(4), pd.read_csv(ROOT / "docs" / "calibration.csv"), check_dtype=False)
    found = counts[counts["kind"] == "all"].set_index("truth")
    text, *others = (
        " ".join((ROOT / "docs" / f"{name}.md").read_text().replace("*", "").split())
        for name in ("calibration", "verdicts", "responsible-use")
    )
    of_innocents, of_found = verdicts[verdicts["truth"] == INNOCENT], verdicts[verdicts["verdict"] == RESURFACES]
    is_unlearned = of_innocents["method"].str.startswith("other_")
    rows = [found.loc[truth] for truth in (HIDDEN, OPEN)]
    rows += [count(half).set_index("kind").loc["all"] for _, half in of_innocents.groupby(is_unlearned)]
    for row in rows:
        ends = f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %"
        shown = (
            f"| {row['accused']} of {row['audits']} | {ends} | {row['inconclusive']} | {100 * row['accuracy']:.0f} % |"
        )
        assert shown in text
    innocent, hidden = found.loc[INNOCENT], found.loc[HIDDEN]
    assert (innocent["accused"], innocent["audits"], innocent["worlds"]) == (0, 120, 20)
    assert hidden["accused"] == hidden["audits"]
    for other in others:
        assert f"none of {innocent['audits']} audits" in other
        assert f"all {hidden['audits']} that hid it were found" in other
        assert f"{100 * hidden['low']:.0f} to 100 %" in other
    assert of_innocents["trace"].sum() == 0
    assert (
        f"{100 * of_innocents['excess'].max():.1f} points at most and {100 * of_innocents['excess'].mean():.1f} in the mean"
        in text
    )
    assert f"have an excess of {100 * of_found['excess'].min():.1f} points or more" in text


def test_each_attack_by_itself_accuses_as_many_as_the_documents_say():
    evidence = read_results(ROOT / "docs" / "calibration-evidence.parquet", EVIDENCE_KINDS)
    truths = find_truths(pd.read_parquet(ROOT / "docs" / "calibration.parquet").set_index(["world", "method"]))

    def find(chosen):
        """Of the hidden and of the innocent, those that resurface by what was chosen of the evidence."""
        accused = judge_worlds(chosen).set_index(["world", "method"])["verdict"] == RESURFACES
        return accused[truths == HIDDEN], accused[truths == INNOCENT]

    lines = (ROOT / "docs" / "calibration.md").read_text().splitlines()
    for attack, own in evidence.groupby("attack"):
        hidden, innocent = find(own)
        assert f"| {attack.replace('_', ' ')} | {hidden.sum()} | {innocent.sum()} |" in lines
    hidden, _ = find(evidence[evidence["attack"] != "finetuning"])
    counts = {name: f"{found.sum()} of {len(found)}" for name, found in hidden.groupby("method")}
    kinds = f"(NPO {counts['npo']}, DPO {counts['dpo']}, RMU {counts['rmu']}, locked {counts['locked']})"
    assert f"without it {hidden.sum()} of the {len(hidden)} are found {kinds}" in "\n".join(lines)


def test_worlds_of_other_settings_are_not_counted_with_these(tmp_path):
    check_place(tmp_path, SMALL, "cpu")
    check_place(tmp_path, SMALL, "cpu")
    for size, device in ((WHOLE, "cpu"), (SMALL, "cuda:0")):
        with pytest.raises(ResurfaceError, match="made with other settings"):
            check_place(tmp_path, size, device)


def test_worlds_of_a_table_are_done_unless_they_were_made_with_other_settings(tmp_path):
    own = {"settings": name_settings(WHOLE, "cuda:1"), "world": [3, 3, 5], "method": ["a", "b", "c"], "truth": INNOCENT}
    known = {"domain": DOMAIN, "attack": "none", "seeds": 1, "facts": 256, "accuracy": 0.25, "chance": 0.25}
    evidence = pd.DataFrame(dict.fromkeys(EVIDENCE_KINDS, np.nan) | known | own)
    evidence.to_parquet(tmp_path / "table.parquet")
    evidence.drop(columns="excess_p_adjusted").to_parquet(tmp_path / "verdicts.parquet")
    take_over(tmp_path / "place", tmp_path / "table.parquet", WHOLE, "cuda:0")
    found = {world: kept_evidence(tmp_path / "place", world) for world in (3, 4, 5)}
    assert [path.is_file() for path in found.values()] == [True, False, True]
    assert pd.read_parquet(found[3])["method"].tolist() == ["a", "b"]
    for table, device, said in (
        ("table", "cpu", "cannot be counted with these"),
        ("other", "cuda:0", "no such file"),
        ("verdicts", "cuda:0", "column 'excess_p_adjusted' is missing"),
    ):
        with pytest.raises(ResurfaceError, match=said):
            take_over(tmp_path / "place", tmp_path / f"{table}.parquet", WHOLE, device)


def test_worlds_are_of_one_kind_only_if_their_settings_and_source_are(monkeypatch):
    other = replace(WHOLE, methods=WHOLE.methods | {"npo": {"beta": 0.3}})
    names = {name_settings(WHOLE, "cpu"), name_settings(other, "cpu"), name_settings(WHOLE, "cuda:0")}
    monkeypatch.setattr(audit, "job_source", lambda rule, name: "0" if rule == "weigh" else job_source(rule, name))
    names.add(name_settings(WHOLE, "cpu"))
    assert len(names) == 4
    jobs = json.loads(describe(WHOLE, "cpu"))["jobs"]
    assert not {"perplexity", "judge"} & jobs.keys(), "no world's evidence rests on them"
    read = {name for module, *_ in SOURCES["weigh"] for name in closure(module)}
    assert "resurface.analysis.evidence" in read
    assert not {f"resurface.analysis.{name}" for name in ("verdict", "cells")} & read, (
        "nor on how verdicts are found and written"
    )


@pytest.mark.parametrize("device", ["auto", "cuda", "gpu0"])
def test_devices_that_processes_cannot_share_are_refused(device):
    with pytest.raises(argparse.ArgumentTypeError, match="allowed are cpu and cuda:<number>"):
        check_device(device)
    assert check_device("cpu") == "cpu"


def test_gpus_that_are_not_there_are_refused():
    with pytest.raises(
        argparse.ArgumentTypeError, match=rf"'cuda:9'; this machine has {torch.cuda.device_count()} GPUs"
    ):
        check_device("cuda:9")


def test_other_models_of_a_world_are_the_controls_of_the_next():
    worlds = [models_of_world(world, WHOLE) for world in range(20)]
    assert worlds[0] == [0, 1, 2]
    assert worlds[19] == [19, 20, 21]
    controls = [control for control, *_ in worlds]
    assert sorted(controls) == list(range(20))


@pytest.mark.slow
def test_a_small_calibration_accuses_who_holds_the_knowledge_and_no_one_else(tmp_path):
    command = [sys.executable, "-m", "calibration", str(tmp_path), "--worlds", "1", "--small", "--cores", "1"]
    subprocess.run(command, cwd=ROOT, check=True)
    kept = tmp_path / "world0" / "evidence.parquet"
    written = kept.stat().st_mtime_ns
    subprocess.run(command, cwd=ROOT, check=True)
    assert kept.stat().st_mtime_ns == written, "what is done is not done again"
    subprocess.run([sys.executable, "-m", "calibration.count", tmp_path, tmp_path / "docs"], cwd=ROOT, check=True)
    verdicts = pd.read_parquet(tmp_path / "docs" / "calibration.parquet").set_index("method")
    assert set(verdicts.index) == {"untaught", "other1", "other_npo", "full", "locked", "npo"}
    assert ((verdicts["verdict"] == "resurfaces") == (verdicts["truth"] != INNOCENT)).all()
    assert verdicts.loc["full", "unattacked_accuracy"] > 0.95
    assert verdicts.loc["locked", "unattacked_accuracy"] < 0.97
    assert verdicts.loc["untaught", "unattacked_accuracy"] < 0.35
    evidence = read_results(tmp_path / "docs" / "calibration-evidence.parquet", EVIDENCE_KINDS)
    assert set(evidence.groupby("method")["attack"].agg(" ".join)) == {"none finetuning"}
    assert (tmp_path / "docs" / "calibration.png").stat().st_size > 5000
    assert not (tmp_path / "world0" / "results").exists()
