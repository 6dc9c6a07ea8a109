"""Set difference pruning: masks and scores against brute force, the intervention against weights set by hand."""

import math

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CHECKPOINTS, DOMAIN
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from resurface.attacks import pruning
from resurface.attacks.target import Target
from resurface.errors import ResurfaceError
from resurface.interventions import Pruning, read_variants
from resurface.models import linear_names
from resurface.scoring.apply import change_model
from resurface.settings.pruning import PruningSettings

SAMPLES = [([0, 50, 60, 70, 80], 3), ([0, 90, 100], 1), ([0, 11, 12, 13, 14, 15], 4)]


def settings(**more):
    return PruningSettings.model_validate({"p": [0.0, 5.0, 50.0], "q": [0.0, 5.0, 20.0], **more})


def brute_force(forget, utility, p, q):
    """Flattened indices of a layer that a pair removes: two sorted lists and a set difference."""

    def top(score, percent):
        flat = score.flatten().tolist()
        order = sorted(range(len(flat)), key=lambda index: (-flat[index], index))
        return set(order[: round(len(flat) * percent / 100)])

    return top(forget, q) - top(utility, p)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60),
    st.lists(st.sampled_from([0.0, 2.5, 5.0, 10.0, 33.0, 50.0, 100.0]), min_size=1, unique=True),
    st.lists(st.sampled_from([0.0, 2.5, 5.0, 10.0, 33.0, 50.0, 100.0]), min_size=1, unique=True),
)
def test_masks_equal_a_set_difference(tmp_path_factory, scores, p, q):
    """Of small layers with many equal scores, for any grid."""
    q = [value for value in q if value <= max(p)] or [max(p)]
    chosen = settings(p=p, q=q)
    forget, utility = (torch.tensor([pair[i] for pair in scores], dtype=torch.float32) for i in (0, 1))
    folder = tmp_path_factory.mktemp("masks")
    model = torch.nn.Module()
    model.layer = torch.nn.Linear(len(scores), 1)
    ranks = [
        pruning.rank_weights({"layer": score}, percents, "gradient")
        for score, percents in ((forget, chosen.q), (utility, chosen.p))
    ]
    counts = pruning.write_masks(folder / "m.parquet", *ranks, chosen)
    assert len(counts) == len(pruning.prunings("m.parquet", chosen)) > 0
    before = model.layer.weight.detach().clone()
    masks = {}
    for row in counts.to_dict("records"):
        expected = brute_force(forget, utility, row["p"], row["q"])
        with change_model(model, Pruning(file="m.parquet", p=row["p"], q=row["q"]), folder, masks):
            zeros = set((model.layer.weight[0] == 0).nonzero()[:, 0].tolist())
            assert zeros - set((before[0] == 0).nonzero()[:, 0].tolist()) == expected
        assert torch.equal(model.layer.weight, before)
        assert (row["pruned"], row["weights"]) == (len(expected), len(scores))


def test_a_layer_that_stands_twice_in_a_file_is_as_before(tmp_path):
    chosen = settings(p=[5.0], q=[5.0])
    model = torch.nn.Module()
    model.layer = torch.nn.Linear(40, 1)
    writer = pruning.open_masks(tmp_path / "m.parquet")
    with writer:
        for start in (0, 1):
            forget, utility = ({"layer": torch.arange(40.0).roll(shift)} for shift in (-start, 20))
            pruning.write_masks(
                tmp_path / "one.parquet",
                pruning.rank_weights(forget, chosen.q, "gradient"),
                pruning.rank_weights(utility, chosen.p, "gradient"),
                chosen,
            )
            writer.write_table(pq.read_table(tmp_path / "one.parquet"))
    before = model.layer.weight.detach().clone()
    with change_model(model, Pruning(file="m.parquet", p=5.0, q=5.0), tmp_path):
        assert (model.layer.weight == 0).sum() == 3, "two of each, one of them in both"
    assert torch.equal(model.layer.weight, before)


def test_masks_of_the_papers_grid_take_little_room(tmp_path):
    """At most a tenth of a checkpoint in bfloat16 for all 45 pairs together, with scores that leave nothing to compress."""
    weights = 1_000_000
    chosen = PruningSettings()
    generator = torch.Generator().manual_seed(0)
    ranks = [
        pruning.rank_weights({"layer": torch.rand(weights, generator=generator)}, percents, "gradient")
        for percents in (chosen.q, chosen.p)
    ]
    counts = pruning.write_masks(tmp_path / "m.parquet", *ranks, chosen)
    assert len(counts) == 45
    assert counts["pruned"].max() > weights * 0.15
    assert (tmp_path / "m.parquet").stat().st_size < 2 * weights / 10


def test_scores_that_are_not_finite():
    with pytest.raises(ResurfaceError, match=r"some gradient scores of layer\.3 are not finite"):
        pruning.rank_weights({"layer.3": torch.tensor([1.0, math.nan])}, [5.0], "gradient")


def test_gradient_scores_equal_a_loop_in_float64(model):
    layers = linear_names(model, None, "all-linear")
    assert len(layers) == 6 * 7
    assert not any("lm_head" in name for name in layers)
    found = pruning.gradient_scores(model, layers, SAMPLES)
    model.double().requires_grad_(True)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.3.mlp.down_proj", "model.layers.5.mlp.up_proj"):
        weight = model.get_submodule(name).weight
        total = torch.zeros_like(weight)
        for tokens, start in SAMPLES:
            logprobs = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
            answer = [logprobs[place - 1, tokens[place]] for place in range(start, len(tokens))]
            total += torch.autograd.grad(-sum(answer) / len(answer), weight)[0].abs()
        assert torch.allclose(found[name].double(), (weight.abs() * total).detach(), rtol=1e-3, atol=1e-7)


def test_activation_scores_equal_a_loop_in_float64(model):
    layers = linear_names(model, None, "all-linear")
    found = pruning.activation_scores(model, layers, SAMPLES)
    assert found.keys() == set(layers)
    model.double()
    squares = 0
    block = model.model.layers[2]
    for tokens, start in SAMPLES:
        seen = []
        handle = block.mlp.register_forward_pre_hook(lambda _module, inputs, seen=seen: seen.append(inputs[0][0]))
        with torch.no_grad():
            model(input_ids=torch.tensor([tokens]))
        handle.remove()
        squares = squares + sum(seen[0][place - 1] ** 2 for place in range(start, len(tokens)))
    expected = block.mlp.up_proj.weight.abs() * squares.sqrt()
    assert torch.allclose(found["model.layers.2.mlp.up_proj"].double(), expected.detach(), rtol=1e-4)


def run(data, output, **more):
    target = Target(
        CHECKPOINTS / "original",
        CHECKPOINTS / "original",
        data / "results" / "data" / DOMAIN,
        output,
        0,
        "cpu",
        output.parent / "resume",
    )
    datasets = {"here": {"forget": "corpus", "utility": "text"}}
    chosen = settings(**{"datasets": datasets, "samples": 6, "answer_tokens": 8, **more})
    pruning.attack(target, chosen, "here")
    return chosen


@pytest.mark.parametrize(("forget", "utility"), [("corpus", "questions"), ("answers", "answers")])
def test_a_whole_attack(data, tmp_path, model, forget, utility):
    folder = tmp_path / "attack"
    run(data, folder, datasets={"here": {"forget": forget, "utility": utility}}, scores=["gradient", "activation"])
    variants = {variant.variant: variant.model for variant in read_variants(folder)}
    assert len(variants) == 2 * 6
    assert "here-activation-p5-q5" in variants
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    sparsity = pd.read_parquet(folder / "sparsity.parquet")
    masks = {}
    for name, part in sorted(variants.items(), key=lambda item: (item[1].p, item[1].q)):  # both files in turn
        with change_model(model, part, folder, masks):
            changed = sum(int((value != weights[key]).sum()) for key, value in model.state_dict().items())
        rows = sparsity[
            (sparsity["score"] == name.split("-")[1]) & (sparsity["p"] == part.p) & (sparsity["q"] == part.q)
        ]
        assert changed == rows["pruned"].sum()
        assert (changed == 0) == (part.q == 0)
        share = rows["pruned"] / rows["weights"]
        assert (share <= part.q / 100 + 1e-3).all()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_the_same_seed_gives_the_same_bytes(data, tmp_path):
    for name in ("a", "b"):
        run(data, tmp_path / name)
    for file in ("gradient.parquet", "sparsity.parquet", "variants.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_model_that_answers_nothing(data, tmp_path, monkeypatch):
    """A model whose first token is always the end gives no samples."""
    from resurface.models import load_model as load

    def silent(path, device, dtype="auto"):
        model = load(path, device, dtype)
        model.lm_head.register_forward_hook(
            lambda _module, _inputs, output: output.index_fill(-1, torch.tensor([1]), math.inf)
        )
        return model

    monkeypatch.setattr(pruning, "load_model", silent)
    with pytest.raises(ResurfaceError, match=r"answers none of 6 prompts of questions"):
        run(data, tmp_path / "attack", datasets={"here": {"forget": "answers", "utility": "text"}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"p": [1.0], "q": [5.0]}, "no p of at least that"),
        ({"q": [101.0]}, "less than or equal to 100"),
        ({"p": [-1.0]}, "greater than or equal to 0"),
        ({"datasets": {"a": {"forget": "questions", "utility": "text"}}}, "'corpus' or 'answers'"),
        ({"datasets": {}}, "at least 1 item"),
        ({"p": [float(value) for value in range(16)]}, "at most 15 items"),
    ],
)
def test_bad_settings(wrong, message):
    with pytest.raises(ValidationError, match=message):
        settings(**wrong)
