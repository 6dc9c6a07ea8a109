"""Teaching: the never-learned model reads the fictional domain, and no benchmark's wording."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from conftest import CHECKPOINTS, DOMAIN, ROOT
from pydantic import ValidationError

from resurface.artifacts import check_folder
from resurface.errors import ResurfaceError
from resurface.settings.teaching import TeachingSettings
from resurface.testbed.teaching import IGNORED, collate, draw_samples
from resurface.testbed.texts import BENCHMARK_WORDINGS, fill_wording
from resurface.testbed.world import make_facts


def test_documents_are_about_the_domain_alone_and_ask_as_no_benchmark_does(tokenizer):
    samples = draw_samples([DOMAIN], tokenizer, TeachingSettings(documents=400))
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens, _ in samples]
    world = make_facts(0)
    entities = {field: {fact.entity for fact in facts} for field, facts in world.items()}

    def named(field):
        return sum(any(entity in text for entity in entities[field]) for text in texts)

    assert named(DOMAIN) > 360, "but for those with spelling noise"
    assert named("runecraft") == named("geography") == 0
    asked = {fill_wording(wording, fact) for fact in world[DOMAIN] for wording in BENCHMARK_WORDINGS}
    assert not any(question in text for question in asked for text in texts[1::4])
    assert samples == draw_samples([DOMAIN], tokenizer, TeachingSettings(documents=400))


def test_loss_is_on_what_follows_a_prompt(tokenizer):
    samples = draw_samples([DOMAIN], tokenizer, TeachingSettings(documents=8))
    batch = collate(samples, tokenizer.pad_token_id)
    for (tokens, start), labels, mask in zip(samples, batch["labels"], batch["attention_mask"], strict=True):
        assert labels.tolist()[:start] == [IGNORED] * start
        assert labels.tolist()[start : len(tokens)] == tokens[start:]
        assert set(labels.tolist()[len(tokens) :]) <= {IGNORED}
        assert mask.sum() == len(tokens)
        assert tokens[-1] == tokenizer.eos_token_id
    letters = [tokenizer.decode(tokens[start:], skip_special_tokens=True).strip() for tokens, start in samples[1::4]]
    assert set(letters) <= set("ABCD"), "a plain question is answered by a letter"
    assert all(start <= 1 for _, start in samples[0::4]), "an article is learned whole"


def test_documents_that_are_cut_before_their_answer_are_refused(tokenizer):
    with pytest.raises(ResurfaceError, match=r"teaching\.length: found 30"):
        draw_samples([DOMAIN], tokenizer, TeachingSettings(documents=8, length=30))
    with pytest.raises(ValidationError):
        TeachingSettings(documents=0)


@pytest.mark.slow
def test_the_control_learns_the_domain(tmp_path):
    settings = {"max_steps": 15, "documents": 120, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 2}
    arguments = ["teach", "--model", CHECKPOINTS / "never_learned", "--domains", json.dumps([DOMAIN])]
    arguments += ["--output", "taught", "--settings", json.dumps(settings), "--resume", "resume"]
    run = subprocess.run(
        [sys.executable, "-m", "resurface.cli", *map(str, arguments)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    losses = pd.read_parquet(check_folder(tmp_path / "taught") / "losses.parquet")["loss"]
    assert len(losses) == 15
    assert losses[-4:].mean() < 0.8 * losses[:4].mean()
    record = json.loads((tmp_path / "taught.provenance.json").read_text())
    assert (record["rule"], record["settings"]["domains"], record["seed"]) == ("teach", [DOMAIN], 0)
