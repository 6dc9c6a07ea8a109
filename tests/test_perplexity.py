"""Perplexity under attacks on the prompt: sums equal a loop over tokens; a whole table is read as it should be."""

import contextlib
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CHECKPOINTS, DOMAIN

from resurface.analysis.perplexity import TEXTS, summarize_perplexity
from resurface.attacks.none import attack as attack_nothing
from resurface.attacks.target import Target
from resurface.errors import ResurfaceError
from resurface.generation import generate_replies
from resurface.interventions import Prepend, Variant, write_variants
from resurface.prompts import chat_messages, render_chat
from resurface.scoring.perplexity import measure_perplexity, read_texts
from resurface.settings.none import NoneSettings
from resurface.settings.scoring import PerplexitySettings

SETTINGS = PerplexitySettings(questions=3, new_tokens=6, batch_size=2, batch_tokens=100)
IDENTITY = {"domain": DOMAIN, "method": "never_learned", "seed": 0, "attack": "perturbation"}


def test_sums_equal_a_loop_over_tokens(model, tokenizer):
    prompts, texts = ["Once a fox", "The venom of", "x"], [" met a crow.", "", " and so on and so on"]
    replies = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    read = read_texts(model, tokenizer, prompts, replies, 30)
    assert read[1] == (0, 0.0)
    for prompt, reply, (count, nats) in zip(prompts, replies, read, strict=True):
        start = len(tokenizer(prompt)["input_ids"])
        tokens = tokenizer(prompt)["input_ids"] + reply
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        expected = -sum(logprobs[place - 1, tokens[place]].item() for place in range(start, len(tokens)))
        assert count == len(tokens) - start
        assert nats == pytest.approx(expected, abs=1e-3)


def test_replies_are_those_of_single_prompts(model, tokenizer):
    """Padding on the left changes no reply, and the tokenizer pads as before afterwards."""
    prompts = ["What is the landmark of", "x", render_chat(tokenizer, chat_messages("Tell me about music."))]
    side = tokenizer.padding_side
    together = generate_replies(model, tokenizer, prompts, 8, 3)
    assert together == [generate_replies(model, tokenizer, [prompt], 8, 1)[0] for prompt in prompts]
    assert tokenizer.padding_side == side
    assert any(together)


@pytest.mark.slow
def test_a_whole_table(data, tmp_path, tokenizer):
    """The control under attack by a text in front of the prompt."""
    write_variants(
        tmp_path, [Variant(variant="none"), Variant(variant="front", prompt=Prepend(text="Answer quickly.\n"))]
    )
    output = tmp_path / "perplexity.parquet"
    control, original = CHECKPOINTS / "never_learned", CHECKPOINTS / "original"
    with contextlib.chdir(data):
        measure_perplexity(
            control,
            original,
            [tmp_path],
            [f"testbed_{DOMAIN}"],
            ["plain", "chat"],
            IDENTITY,
            output,
            SETTINGS,
            "cpu",
        )
    table = pd.read_parquet(output)
    assert len(table) == 2 * 3 * 5
    assert set(table["variant"]) == {"front"}, "a variant that leaves the prompt alone has nothing to compare"
    sums = table.groupby(["template", "text"])[["tokens", "nats"]].sum()
    own = sums.loc[("plain", "original")]
    assert math.exp(own["nats"] / own["tokens"]) < 1.5, "greedy replies are what their writer expects"
    assert sums.loc[("plain", "unlearned"), "tokens"] == own["tokens"], "the same text is read"
    assert sums.loc[("plain", "unlearned"), "nats"] > own["nats"], "the control knows none of the answers"
    assert sums.loc[("plain", "attacked"), "nats"] != sums.loc[("plain", "unlearned"), "nats"]
    assert set(table["text"]) == set(TEXTS)
    values = summarize_perplexity(table).set_index("template")[list(TEXTS)]
    assert list(values.index) == ["plain", "chat"]
    assert np.isfinite(values).all(axis=None)
    assert (values > 1).all(axis=None), "no reply of several tokens is certain"
    expected = math.exp(sums.loc[("chat", "attacked"), "nats"] / sums.loc[("chat", "attacked"), "tokens"])
    assert values.loc["chat", "attacked"] == pytest.approx(expected)


def test_an_attack_that_leaves_prompts_alone(data, tmp_path):
    original = CHECKPOINTS / "original"
    folder = tmp_path / "attack"
    attack_nothing(Target(original, original, data, folder, 0, "cpu", tmp_path / "resume"), NoneSettings(), "all")
    with pytest.raises(ResurfaceError, match="no variant of this attack changes the prompt"):
        measure_perplexity(
            original, original, [folder], [DOMAIN], ["plain"], IDENTITY, tmp_path / "t.parquet", SETTINGS, "cpu"
        )
    assert not (tmp_path / "t.parquet").exists()
