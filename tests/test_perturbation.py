"""Perturbations: what is inserted where, that informed ones end as they say, and that the scorer looks prompts up."""

import random
import string

import pandas as pd
import pytest
import torch
from conftest import CHECKPOINTS, DOMAIN
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from resurface.attacks import perturbation
from resurface.attacks.target import Target
from resurface.data.tables import read_domain_table
from resurface.errors import ResurfaceError
from resurface.interventions import Rewrite, read_variants
from resurface.prompts import plain_prompt
from resurface.scoring.apply import prompt_changer
from resurface.settings.perturbation import PerturbationSettings

NOTHING = {"every": [], "probabilities": [], "text_thresholds": [], "prompt_thresholds": []}


def settings(**more):
    return PerturbationSettings.model_validate({**NOTHING, "block": 2, "rounds": 4, **more})


@given(st.text(max_size=40), st.integers(1, 9), st.sampled_from("!_~Q"))
def test_insertion_after_every_nth_character(text, count, character):
    found = perturbation.insert_every(text, count, character, random.Random(0))
    expected = [text[start : start + count] for start in range(0, len(text), count)]
    assert found == "".join(part + character if len(part) == count else part for part in expected)


@given(st.text(max_size=40))
def test_insertion_by_chance_at_the_ends(text):
    generator = random.Random(0)
    assert perturbation.insert_randomly(text, 0.0, "!", generator) == text
    assert perturbation.insert_randomly(text, 1.0, "!", generator) == "".join(f"{one}!" for one in text)


def test_insertion_by_chance_has_that_chance():
    text = "a" * 20_000
    inserted = perturbation.insert_randomly(text, 0.2, "random", random.Random(0)).replace("a", "")
    assert len(inserted) == pytest.approx(4000, abs=4 * (20_000 * 0.2 * 0.8) ** 0.5)
    assert set(inserted) == set("!_ );?5~^.-Q")


@given(st.text(st.characters(exclude_categories=["Z", "C"]), min_size=2, max_size=12), st.integers(0, 9))
def test_a_long_token_is_split(core, seed):
    found = perturbation.insert_perturbation(f" {core}", random.Random(seed))
    assert found[0] == " "
    assert found[1:].replace(" ", "") == core
    assert found[1:].count(" ") == 1
    assert found.strip() == found[1:]


@pytest.mark.parametrize("seed", range(5))
def test_short_tokens(seed):
    generator = random.Random(seed)
    assert perturbation.insert_perturbation("x", generator) in ("~x", "^x")
    assert perturbation.insert_perturbation(" ~", generator)[1:] in string.punctuation + string.digits
    assert perturbation.insert_perturbation("\n", generator) in ("~\n", "^\n"), "white space alone is a character too"


@given(st.lists(st.text("ab!", max_size=12), max_size=6), st.integers(1, 5))
def test_suppression_ends_as_it_says(texts, rounds):
    """With 'the first `a`' as what is to be perturbed: each is removed, or the rounds ran out."""

    def find(some, _starts):
        return [(text.index("a"), text.index("a") + 1) if "a" in text else None for text in some]

    def perturb(token, generator):
        assert token == "a"
        return generator.choice(["b", "!"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perturbation, "insert_perturbation", perturb)
        generators = [random.Random(i) for i in range(len(texts))]
        found, counts, exceeds = perturbation.suppress(texts, find, rounds, generators)
    for before, after, count, is_left in zip(texts, found, counts, exceeds, strict=True):
        assert count == min(before.count("a"), rounds)
        assert after.count("a") == before.count("a") - count
        assert is_left == (before.count("a") > rounds)


@pytest.fixture
def unlearned(tmp_path):
    """A model whose block 2 adds a fixed vector wherever its MLP sees something: RMU, roughly, without training."""
    import shutil

    folder = tmp_path / "unlearned"
    shutil.copytree(CHECKPOINTS / "original", folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.2.mlp.down_proj.weight"
    weights[name] = weights[name] + 0.2 * torch.randn(128, 1, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def few(data, tmp_path):
    """The domain's tables with a few questions."""
    import shutil

    folder = tmp_path / "data"
    shutil.copytree(data / "results" / "data" / DOMAIN, folder)
    table = pd.read_parquet(folder / "questions.parquet").groupby("split").head(12)
    table.to_parquet(folder / "questions.parquet")
    return folder


@pytest.mark.parametrize("start", [0, 30, 1000])
@pytest.mark.parametrize("threshold", [-1.0, 0.5, 0.9, 1.0])
def test_the_first_token_is_that_of_whole_texts(model, tokenizer, threshold, start):
    """However long the texts are, and although only beginnings of them are read, up to where one is expected."""
    texts = ["x", "", "the venom of " * 40, *("a fox met " * count for count in (1, 7, 13))]
    with torch.no_grad():
        known = tokenizer("the venom of a fox met " * 20, return_tensors="pt")["input_ids"]
        direction = model(known, output_hidden_states=True).hidden_states[3][0, -2]
    chosen = settings(every=[1], batch_tokens=50)
    found = perturbation.find_first(texts, [start] * 6, model, tokenizer, direction, threshold, chosen)
    for text, place in zip(texts, found, strict=True):
        encoded = tokenizer(text, return_offsets_mapping=True)
        with torch.no_grad():
            states = model(torch.tensor([encoded["input_ids"]]), output_hidden_states=True).hidden_states[3][0]
        far = torch.cosine_similarity(states, direction, dim=-1) > threshold
        places = [tuple(one) for one, is_far in zip(encoded["offset_mapping"], far, strict=True) if is_far]
        assert place == next((one for one in places if one[0] < one[1]), None)


def run(model, data, output, **more):
    chosen = settings(**more)
    target = Target(model, CHECKPOINTS / "original", data, output, 0, "cpu", output.parent / "resume")
    perturbation.attack(target, chosen, "all")
    return pd.read_parquet(output / "prompts.parquet")


def test_informed_prompts_are_below_the_threshold_or_ran_out_of_rounds(unlearned, few, tmp_path):
    from resurface.data.tables import read_questions
    from resurface.models import load_model, load_tokenizer

    rows = run(unlearned, few, tmp_path / "attack", text_thresholds=[0.6, 0.97], prompt_thresholds=[0.5, 0.9, 0.98])
    thresholds = {
        f"informed-text{text}-prompt{prompt}": (text, prompt) for text in (0.6, 0.97) for prompt in (0.5, 0.9, 0.98)
    }
    assert set(rows["variant"]) == set(thresholds)
    assert not any(variant.blind for variant in read_variants(tmp_path / "attack")), "these depend on the model"
    models = [load_model(folder, torch.device("cpu")) for folder in (unlearned, CHECKPOINTS / "original")]
    tokenizer = load_tokenizer(unlearned)

    def states(model, text):
        with torch.no_grad():
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            return model(ids, output_hidden_states=True).hidden_states[3][0, 1:]

    known = [prompt for prompt, _ in read_questions(few, "questions")]
    means = [torch.cat([states(model, text) for text in known]).mean(0) for model in models]
    assert set(rows["exceeds"]) == {True, False}

    def exceeds(text, threshold):
        return (torch.cosine_similarity(states(models[0], text), means[0] - means[1], dim=-1) > threshold).any().item()

    asked = read_domain_table(few, "questions")
    texts = {
        plain_prompt(row["subject"], row["question"], list(row["choices"])): [row["question"], *row["choices"]]
        for row in asked.to_dict("records")
    }
    assert set(rows["text_exceeds"]) == {True, False}
    for row in rows[rows["variant"].str.endswith("prompt0.9")].groupby("variant").head(6).to_dict("records"):
        far = sum(exceeds(text, thresholds[row["variant"]][0]) for text in texts[row["prompt"]])
        assert far <= row["text_rounds"] <= 4 * far, "each text that exceeds is perturbed, four times at most"
        assert row["text_rounds"] >= 4 * row["text_exceeds"], "what still exceeds ran out of its rounds"
    for row in rows.groupby(["variant", "exceeds"]).head(4).to_dict("records"):
        threshold = thresholds[row["variant"]][1]
        cosines = torch.cosine_similarity(states(models[0], row["rewritten"]), means[0] - means[1], dim=-1)
        if row["exceeds"]:
            assert row["rounds"] == 4
            assert cosines.max() > threshold - 1e-3
        else:
            assert cosines.max() <= threshold + 1e-3


def test_the_scorer_looks_prompts_up(few, tmp_path):
    output = tmp_path / "attack"
    rows = run(CHECKPOINTS / "original", few, output, every=[3], characters=["~", "random"])
    variants = read_variants(output)
    assert [variant.variant for variant in variants] == ["naive-every3-tilde", "naive-every3-random"]
    assert all(variant.blind for variant in variants)
    table = read_domain_table(few, "questions")
    asked = table[table["split"] != "train"].to_dict("records")
    assert len(rows) == 2 * len(asked)
    change = prompt_changer(variants[0].prompt, output)
    assert isinstance(variants[0].prompt, Rewrite)
    for row in asked:
        prompt = plain_prompt(row["subject"], row["question"], list(row["choices"]))
        changed = change(prompt)
        assert changed != prompt
        header, rest = prompt.split("\n\n", 1)
        assert changed.startswith(f"{header}\n\n{rest[:3]}~")
        assert changed.endswith("\nAnswer:")
        assert changed.replace("~", "") == prompt
    assert change("another prompt") == "another prompt"


def test_the_same_seed_gives_the_same_prompts(unlearned, few, tmp_path):
    more = {"every": [2], "probabilities": [0.3], "text_thresholds": [0.5], "prompt_thresholds": [0.5]}
    tables = [run(unlearned, few, tmp_path / name, characters=["random"], **more) for name in "ab"]
    pd.testing.assert_frame_equal(*tables)


def test_blind_noise_is_the_same_on_every_model(unlearned, few, tmp_path):
    models = {"a": unlearned, "b": CHECKPOINTS / "never_learned"}
    more = {"every": [2], "probabilities": [0.3], "characters": ["random", "~"]}
    pd.testing.assert_frame_equal(*(run(model, few, tmp_path / name, **more) for name, model in models.items()))


def test_a_block_that_the_model_lacks(few, tmp_path):
    with pytest.raises(ResurfaceError, match=r"perturbation\.block: found block 9; this model has blocks 0 to 5"):
        run(
            CHECKPOINTS / "original",
            few,
            tmp_path / "attack",
            block=9,
            text_thresholds=[0.5],
            prompt_thresholds=[0.5],
        )
    assert not (tmp_path / "attack").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "no way to perturb"),
        ({"text_thresholds": [0.5]}, "belong together"),
        ({"every": [3, 3]}, "each may be named once"),
        ({"every": [0]}, "greater than or equal to 1"),
        ({"probabilities": [1.5]}, "less than or equal to 1"),
        ({"every": [3], "characters": ["ab"]}, "Input should be"),
    ],
)
def test_bad_settings(wrong, message):
    with pytest.raises(ValidationError, match=message):
        settings(**wrong)
