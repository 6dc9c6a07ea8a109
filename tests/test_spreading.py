"""One model over several GPUs computes what it computes on one: every method and every attack where there are two GPUs."""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CHECKPOINTS
from hypothesis import given
from hypothesis import strategies as st
from test_decoder import ATTACKED, FAMILIES, RUNS, make_checkpoint, make_requests, small  # noqa: F401 - a fixture

from resurface.attacks.target import Target
from resurface.decoder import unembed
from resurface.generation import generate_tokens
from resurface.interventions import read_variants
from resurface.models import (
    continue_cache,
    keep_cache,
    linear_names,
    load_model,
    load_tokenizer,
    recording,
    run_decoder,
)
from resurface.registry import ATTACKS, METHODS
from resurface.spreading import block_devices, spread_blocks
from resurface.unlearning.training import Run

CPU = torch.device("cpu")


@given(st.integers(1, 200), st.integers(1, 16))
def test_devices_hold_equal_parts_in_order(blocks, devices):
    chosen = [device.index for device in block_devices(blocks, [torch.device("cuda", n) for n in range(devices)])]
    assert len(chosen) == blocks
    assert chosen == sorted(chosen)
    counts = Counter(chosen)
    parts = [counts[device] for device in range(devices)]
    assert max(parts) - min(parts) <= 1


def test_a_spread_model_computes_the_same():
    """Rows that go on from kept ones, replies, gradients, and other weights in the place of its own."""
    models = [load_model(CHECKPOINTS / "original", CPU) for _ in range(2)]
    spread_blocks(models[1], [CPU, CPU])
    tokenizer = load_tokenizer(CHECKPOINTS / "original")
    tokens = torch.tensor([tokenizer("Which plant is used against fever?")["input_ids"]])
    found = []
    for model in models:
        name = linear_names(model, [3], "all-linear")[0]
        weight = model.get_submodule(name).weight
        unembed(model, run_decoder(model, tokens).last_hidden_state).square().mean().backward()
        with torch.no_grad(), recording(model, [1, 4], stop=False) as states:
            cache, _ = keep_cache(model, tokens[0, :4].tolist())
            hidden = run_decoder(model, tokens[:, 4:], **continue_cache(cache, torch.tensor([0]))).last_hidden_state
            kept = [states[1], states[4]]
            inside = f"{name.removeprefix(f'{model.base_model_prefix}.')}.weight"
            other = run_decoder(model, tokens, weights={inside: 2 * weight}).last_hidden_state
        replies = generate_tokens(model, tokenizer, ["Which fig?", "What is"], 6, 2)
        found.append([*kept, hidden, weight.grad, other, torch.tensor(replies[0])])
    for one, spread in zip(*found, strict=True):
        assert torch.equal(one, spread)
    assert not torch.equal(found[0][2], found[0][4][:, 4:])


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt_neox"])
def pair(request, tmp_path_factory):
    """Two random models of a family, as an original and an unlearned one."""
    chosen = FAMILIES[request.param]
    return [
        make_checkpoint(tmp_path_factory.mktemp("pair"), chosen.kind, chosen.settings, seed, chosen.template)
        for seed in range(2)
    ]


SEARCHES = ("gcg", "enhanced_gcg")


def answer_attacked(original, unlearned, data, folder, searched):
    """Every attack's variants, answered: attack, variant, template → log-likelihoods; and each search's losses.

    Where two candidates' losses are close, the last bit decides how a search goes on. So the prefixes that are answered are
    those in `searched`, of another such call.
    """
    from resurface.scoring.language_model import ResurfaceLM, answer_variants

    model = ResurfaceLM(str(unlearned), device="cuda")
    places = {weight.device for weight in model.model.parameters()}
    requests = {template: make_requests(model, template) for template in ("plain", "chat")}
    answers, losses = {}, {}
    for name, chosen in ATTACKED.items():
        entry = ATTACKS[name]
        settings = entry.settings_class().model_validate(chosen)
        part = next(iter(getattr(settings, entry.parts))) if entry.parts else "all"
        place = folder / name
        target = Target(unlearned, original, data, place, 0, "cuda", folder / "resume")
        import_module(entry.module).attack(target, settings, part)
        if name in SEARCHES:
            losses[name] = pd.read_parquet(place / "losses.parquet")["loss"]
        model.folder = searched / name if name in SEARCHES else place
        found = answer_variants(model, requests, read_variants(model.folder), lambda line: None)
        answers |= {(name, *key): [value for value, _ in values] for key, values in found.items()}
    return len(places), answers, losses


def unlearn(name, original, data, folder):
    """A method's losses."""
    entry = METHODS[name.split()[0]]
    run = Run(original, data, folder / "model", folder / "resume", 0, torch.device("cuda"))
    import_module(entry.module).unlearn(run, entry.settings_class().model_validate(RUNS[name]))
    return pd.read_parquet(run.output / "losses.parquet")


def on_gpus(gpus, function, *arguments):
    """What a function gives in a process of its own that has these GPUs: CUDA asks for them once in its life."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("CUDA_VISIBLE_DEVICES", "RESURFACE_GPUS"):
            patch.setenv(variable, gpus)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_attack_and_score_like_one(pair, small, tmp_path):  # noqa: F811
    _, one, one_losses = on_gpus("0", answer_attacked, *pair, small, tmp_path / "one", tmp_path / "one")
    devices, two, two_losses = on_gpus("0,1", answer_attacked, *pair, small, tmp_path / "two", tmp_path / "one")
    assert devices == 2
    for name in SEARCHES:
        np.testing.assert_allclose(one_losses[name].iloc[0], two_losses[name].iloc[0], rtol=1e-4, err_msg=name)
    assert set(one) == set(two)
    for key, values in one.items():
        np.testing.assert_allclose(values, two[key], atol=1e-3, err_msg=str(key))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", RUNS)
def test_two_gpus_unlearn_like_one(name, pair, small, tmp_path):  # noqa: F811
    one = on_gpus("0", unlearn, name, pair[0], small, tmp_path / "one")
    two = on_gpus("0,1", unlearn, name, pair[0], small, tmp_path / "two")
    pd.testing.assert_frame_equal(one, two, rtol=1e-3)
