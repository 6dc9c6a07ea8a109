"""Plain GCG: it lowers its loss, its prefix forces the original's answer, and its faults are explained.

The control stands in for an unlearned model.
"""

import sys
from dataclasses import replace

import nanogcg
import pandas as pd
import pytest
import torch
from conftest import CHECKPOINTS, DOMAIN

from resurface.artifacts import hash_folder
from resurface.attacks import gcg
from resurface.attacks.questions import read_hidden_questions
from resurface.attacks.target import Target
from resurface.errors import ResurfaceError
from resurface.generation import generate_replies
from resurface.interventions import read_variants
from resurface.models import load_model, load_tokenizer, sum_logprobs
from resurface.prompts import chat_messages, encode_answer, render_chat
from resurface.settings.gcg import GCGSettings

SMALL = GCGSettings(questions=2, num_steps=3, search_width=16, topk=32, optim_str_init="x x x x x x")


@pytest.fixture
def target(data, tmp_path):
    folder = data / "results" / "data" / DOMAIN
    models = (CHECKPOINTS / name for name in ("never_learned", "original"))
    return Target(*models, folder, tmp_path / "attack", 0, "cpu", tmp_path / "resume")


def test_the_prefix_forces_the_answer_as_its_loss_says(target):
    gcg.attack(target, SMALL, "all")
    variants = read_variants(target.output)
    curve = pd.read_parquet(target.output / "losses.parquet")
    assert [variant.variant for variant in variants] == ["question0", "question1"]
    assert curve.groupby("search")["step"].apply(list).tolist() == [[1, 2, 3]] * 2
    best = curve.groupby("search")["best_loss"].agg(["first", "last"])
    assert (best["last"] <= best["first"]).all()
    assert (best["last"] < best["first"]).any()

    tokenizer = load_tokenizer(target.model_folder)
    unlearned, original = (
        load_model(folder, torch.device("cpu")) for folder in (target.model_folder, target.original_folder)
    )
    prompts = read_hidden_questions(target, tokenizer, original, unlearned, 8192)[:2]
    chats = [render_chat(tokenizer, chat_messages(prompt)) for prompt in prompts]
    answers = generate_replies(original, tokenizer, chats, SMALL.target_tokens, 2)
    for variant, prompt, answer, loss in zip(variants, prompts, answers, best["last"], strict=True):
        attacked = render_chat(tokenizer, chat_messages(variant.prompt.text + prompt))
        tokens, start = encode_answer(tokenizer, attacked, answer, 1000)
        total, count = sum_logprobs(unlearned, [tokens], [start], 0)
        assert -(total / count).item() == pytest.approx(loss, abs=1e-3)


def test_a_job_that_was_stopped_goes_on_after_its_last_search(target, tmp_path, monkeypatch):
    whole = replace(target, output=tmp_path / "whole", resume_folder=tmp_path / "other")
    gcg.attack(whole, SMALL, "all")
    run, searched = nanogcg.run, []

    def stop(model, tokenizer, messages, *arguments):
        searched.append(messages)
        if len(searched) == 2:
            raise KeyboardInterrupt
        return run(model, tokenizer, messages, *arguments)

    monkeypatch.setattr(nanogcg, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        gcg.attack(target, SMALL, "all")
    gcg.attack(target, SMALL, "all")
    assert len(searched) == 3
    assert searched[1] == searched[2]
    assert hash_folder(target.output) == hash_folder(whole.output)
    assert not target.resume_folder.exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"topk": 100_000}, ["gcg.topk: found 100000", "at most"]),
        ({"n_replace": 7}, ["gcg.n_replace: found 7", "has 6 tokens"]),
        ({"optim_str_init": "<|user|>" * 3}, ["reads none of the prefixes", "'<|user|><|user|><|user|>'"]),
    ],
)
def test_faults_are_explained(target, more, words):
    settings = GCGSettings.model_validate(
        SMALL.model_dump() | {"questions": 1, "num_steps": 1, "search_width": 2} | more
    )
    with pytest.raises(ResurfaceError) as caught:
        gcg.attack(target, settings, "all")
    for word in words:
        assert word in str(caught.value)
    assert not target.output.exists()


def test_without_the_package(target, monkeypatch):
    monkeypatch.setitem(sys.modules, "nanogcg", None)
    with pytest.raises(ResurfaceError, match="pip install --no-deps nanogcg"):
        gcg.attack(target, SMALL, "all")
    assert not target.output.exists()
