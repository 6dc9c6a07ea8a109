"""Decoders of every family that docs/models.md names, tiny and random: their places are found, and all that works on them does.

What is found is held against computations that are written out here for each order of parts, and against the harness.
"""

import contextlib
import gc
import re
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CHECKPOINTS, DOMAIN
from safetensors.torch import load_file

from resurface.attacks.gcg import use_plain_embeddings
from resurface.attacks.target import Target
from resurface.checkpoints import check_checkpoint
from resurface.decoder import check_places, decoder_blocks, find_additions, name_mlp_output, unembed
from resurface.errors import ResurfaceError
from resurface.generation import generate_tokens
from resurface.interventions import Read, Variant, read_variants
from resurface.models import (
    continue_cache,
    keep_cache,
    linear_names,
    load_model,
    load_tokenizer,
    predict_letters,
    run_decoder,
    sum_logprobs,
)
from resurface.prompts import LETTERS
from resurface.registry import ATTACKS, METHODS
from resurface.scoring.apply import record_streams
from resurface.unlearning.training import Run

CPU = torch.device("cpu")
STREAMS = ("attention", "middle", "mlp", "block")

TURNS = (
    "{% for message in turns %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
TEMPLATES = {
    "refusing": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% set turns = messages %}" + TURNS,
    "folding": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set turns = [{'role': 'user', 'content': "
    "messages[0]['content'] + '\n\n' + messages[1]['content']}] + messages[2:] %}{% else %}{% set turns = messages %}"
    "{% endif %}" + TURNS,
    # An empty system turn is added where there is none, so that the harness renders the same.
    "with BOS": "{{ bos_token }}{% set turns = messages if messages[0]['role'] == 'system' else "
    "[{'role': 'system', 'content': ''}] + messages %}" + TURNS,
}


# Each kind of block, written out: what attention adds to its input x, the stream after that, and what the MLP adds.


def norms_before(block, x, attend):
    attention = attend(block.self_attn, block.input_layernorm(x))
    return attention, x + attention, block.mlp(block.post_attention_layernorm(x + attention))


def norms_around(block, x, attend):
    attention = block.post_attention_layernorm(attend(block.self_attn, block.input_layernorm(x)))
    mlp = block.mlp(block.pre_feedforward_layernorm(x + attention))
    return attention, x + attention, block.post_feedforward_layernorm(mlp)


def norms_after(block, x, attend):
    attention = block.post_attention_layernorm(attend(block.self_attn, x))
    return attention, x + attention, block.post_feedforward_layernorm(block.mlp(x + attention))


def parallel(block, x, attend):
    attention = attend(block.attention, block.input_layernorm(x))
    return attention, x + attention, block.mlp(block.post_attention_layernorm(x))


def serial(block, x, attend):
    attention = attend(block.attention, block.input_layernorm(x))
    return attention, x + attention, block.mlp(block.post_attention_layernorm(x + attention))


class Family(NamedTuple):
    kind: str
    settings: dict
    order: object
    template: str | None = None


SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
FAMILIES = {
    "mistral": Family("mistral", {"sliding_window": 48}, norms_before),
    "llama": Family("llama", {"tie_word_embeddings": True}, norms_before),
    # transformers gives every tokenizer of a Qwen 2 a token for unknown ones, here one more than the testbed's has.
    "qwen2": Family("qwen2", {"use_sliding_window": True, "vocab_size": 1537, **SLIDING}, norms_before),
    "qwen3": Family("qwen3", {"tie_word_embeddings": True}, norms_before),
    "gemma2": Family(
        "gemma2",
        {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 8, **SLIDING},
        norms_around,
        "refusing",
    ),
    "gemma3": Family("gemma3_text", {"query_pre_attn_scalar": 8, **SLIDING}, norms_around, "folding"),
    "phi3": Family("phi3", {"sliding_window": 48}, norms_before),
    "phi4": Family("phi3", {"partial_rotary_factor": 0.5, "tie_word_embeddings": True}, norms_before),
    "olmo2": Family("olmo2", {}, norms_after, "with BOS"),
    "gpt_neox": Family("gpt_neox", {}, parallel),
    "gpt_neox-serial": Family("gpt_neox", {"use_parallel_residual": False}, serial),
}
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}


def make_checkpoint(folder: Path, kind: str, settings: dict, seed: int = 0, template: str | None = None) -> Path:
    """Save a random model with the testbed's tokenizer."""
    from tokenizers import processors
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = load_tokenizer(CHECKPOINTS / "original")
    if template is not None:
        tokenizer.chat_template = TEMPLATES[template]
    if template == "with BOS":  # the template alone writes BOS, as OLMo's does
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**TINY, "vocab_size": len(tokenizer), **tokens, **settings})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:  # norms and biases, which begin all alike
                weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    chosen = FAMILIES[family]
    return make_checkpoint(tmp_path_factory.mktemp(family), chosen.kind, chosen.settings, 0, chosen.template)


@pytest.fixture(scope="module")
def tiny(folder):
    """A family's model, not to be changed."""
    return load_model(folder, CPU).requires_grad_(False)


def draw(model, *shape):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randint(5, model.config.vocab_size, shape, generator=generator)


def test_streams_are_what_the_parts_written_out_compute(family, tiny):
    tokens = draw(tiny, 2, 20)
    blocks = decoder_blocks(tiny)
    with record_streams(tiny, [Read(stream=stream, block=i) for stream in STREAMS for i in range(3)]) as streams:
        logits = tiny(tokens).logits
    expected = {}

    def compute(number, block, inputs, named, output):
        def attend(module, x):
            return module(x, **named)[0]

        expected[number] = (*FAMILIES[family].order(block, inputs[0], attend), output)

    handles = [
        block.register_forward_hook(lambda *values, number=number: compute(number, *values), with_kwargs=True)
        for number, block in enumerate(blocks)
    ]
    tiny(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    for number in range(3):
        for stream, values in zip(STREAMS, expected[number], strict=True):
            found = streams[Read(stream=stream, block=number)]
            torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-5, msg=f"{stream} of block {number}")
    decoder = tiny.get_decoder()
    norm = decoder.final_layer_norm if "neox" in family else decoder.norm
    last = unembed(tiny, norm(streams[Read(stream="block", block=2)]))
    torch.testing.assert_close(last, logits, rtol=1e-5, atol=1e-5)
    assert logits.std() > 0.3, "a logit's scale or cap would be seen"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_is_no_fault_and_a_norm_that_is_missed_is_one(family, folder, dtype, monkeypatch):
    model = load_model(folder, CPU, dtype)
    assert len(find_additions(model)) == 3
    monkeypatch.setattr("resurface.decoder._follow", lambda part, passed: part)
    if FAMILIES[family].order in (norms_around, norms_after):
        with pytest.raises(ResurfaceError, match="block 0 puts out something else than its input and what"):
            find_additions(model)
    else:
        find_additions(model)


def test_rows_go_on_from_kept_keys_and_values(tiny):
    """Also where the beginning is longer than a sliding window."""
    beginning = draw(tiny, 60)
    rows = torch.cat([beginning.expand(3, -1), draw(tiny, 3, 6)], 1)
    cache, hidden = keep_cache(tiny, beginning.tolist())
    assert cache is not None
    whole = run_decoder(tiny, rows).last_hidden_state
    torch.testing.assert_close(hidden, whole[0, :60], rtol=1e-4, atol=1e-5)
    for _ in range(2):
        found = run_decoder(tiny, rows[:, 60:], **continue_cache(cache, torch.tensor([0, 0, 0]))).last_hidden_state
        torch.testing.assert_close(found, whole[:, 60:], rtol=1e-4, atol=1e-5)


def test_letters_and_log_probabilities_are_the_models_own(tiny, folder):
    tokenizer = load_tokenizer(folder)
    prompts = [f"Which {word}?\nA. fig\nB. leaf\nC. bell\nD. rain\nAnswer:" for word in ("one", "of these is it", "")]
    found = predict_letters(tiny, tokenizer, prompts, LETTERS, 100)
    rows, starts, expected = [], [], []
    for prompt, answer in zip(prompts, found, strict=True):
        row = tokenizer(f"{prompt} {answer}")["input_ids"]
        logits = tiny(torch.tensor([row[:-1]])).logits[0, -1]
        finals = [tokenizer(f"{prompt} {letter}")["input_ids"][-1] for letter in LETTERS]
        assert LETTERS[logits[finals].argmax()] == answer
        rows.append(row)
        starts.append(len(row) - 1)
        expected.append(logits.log_softmax(-1)[row[-1]])
    torch.testing.assert_close(sum_logprobs(tiny, rows, starts, 0)[0], torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_nanogcg_is_given_embeddings_that_are_weights(folder):
    model = load_model(folder, CPU)
    tokens = draw(model, 1, 9)
    with torch.no_grad():
        logits, vectors = model(tokens).logits, model.get_input_embeddings()(tokens)
        use_plain_embeddings(model)
        assert torch.equal(model.get_input_embeddings().weight[tokens], vectors)
        assert torch.equal(model(tokens).logits, logits)


# The harness -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(data, tmp_path_factory):
    """The testbed's tables, a few rows of each; work beside them, as the workflow does."""
    here = tmp_path_factory.mktemp("small")
    folder = here / "results" / "data" / DOMAIN
    folder.mkdir(parents=True)
    for path in (data / "results" / "data" / DOMAIN).glob("*.parquet"):
        table = pd.read_parquet(path)
        kinds = [name for name in ("kind", "split") if name in table.columns]
        if kinds:
            counts = {"train": 24, "validation": 1, "test": 2}
            table = pd.concat([rows.head(counts.get(kind, 8)) for kind, rows in table.groupby(kinds[0])])
        else:
            table = table.head(6)
        table.to_parquet(folder / path.name)
    with contextlib.chdir(here):
        yield folder


def make_requests(model, template):
    from resurface.scoring.score import load_tasks

    task = load_tasks([f"testbed_{DOMAIN}"])[f"testbed_{DOMAIN}"]
    chat = {"apply_chat_template": True, "chat_template": model.apply_chat_template} if template == "chat" else {}
    task.build_all_requests(tokenizer_name=model.tokenizer_name, **chat)
    return list(task.instances)


@pytest.mark.slow
def test_scores_equal_the_harness_and_the_last_block(family, folder, small):
    from lm_eval.models.huggingface import HFLM

    from resurface.scoring.language_model import ResurfaceLM

    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)
    ours = ResurfaceLM(str(folder), device="cpu")
    lens = Variant(variant="lens", read=Read(stream="block", block=2))
    for template in ("plain", "chat"):
        requests = make_requests(ours, template)
        found, read = ours.answer(ours.plan_rows(requests, lens), [Variant(variant="none"), lens], disable_tqdm=True)
        expected = theirs.loglikelihood(make_requests(theirs, template), disable_tqdm=True)
        others = np.array([value for value, _ in expected])
        values, lenses = (np.array([one[place][0] for place in range(len(others))]) for one in (found, read))
        np.testing.assert_allclose(values, others, rtol=0, atol=1e-4)
        np.testing.assert_allclose(lenses, values, rtol=0, atol=1e-4)
        assert np.ptp(values) > 0.5


# Methods ---------------------------------------------------------------------------------------------------------------

STEPS = {"batch_size": 2, "max_steps": 2, "learning_rate": 0.01}
RUNS = {
    "rmu": {"block": 1, "trained_blocks": [0, 1], "coefficient_unit": "mean_norm", **STEPS},
    "npo": STEPS,
    "npo with LoRA": {**STEPS, "adapter": "lora", "lora_rank": 2},
    "dpo": {**STEPS, "warmup_steps": 0, "held_out": 0.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_method_trains_what_it_should_and_saves_what_it_trained(
    name, family, folder, tiny, small, tmp_path, monkeypatch
):
    entry = METHODS[name.split()[0]]
    module, tokens, trained = import_module(entry.module), draw(tiny, 1, 12), []
    save = module.save

    def look(run, settings, trainer, *rest):
        with torch.no_grad():
            trained.append(trainer.model(input_ids=tokens).logits)
        save(run, settings, trainer, *rest)

    monkeypatch.setattr(module, "save", look)
    run = Run(folder, small, tmp_path / "model", tmp_path / "resume", 0, CPU)
    module.unlearn(run, entry.settings_class().model_validate(RUNS[name]))
    saved = load_model(run.output, CPU)
    with torch.no_grad():
        logits, before = saved(input_ids=tokens).logits, tiny(input_ids=tokens).logits
    torch.testing.assert_close(logits, trained[0], rtol=1e-4, atol=1e-4)
    assert (logits - before).abs().max() > 1e-3

    is_tied = saved.get_input_embeddings().weight is saved.get_output_embeddings().weight
    assert is_tied == tiny.config.tie_word_embeddings
    old, new = (load_file(path / "model.safetensors") for path in (folder, run.output))
    assert set(old) == set(new)
    changed = {weight for weight in old if not torch.equal(old[weight], new[weight])}
    if name == "rmu":
        layer = "mlp.dense_4h_to_h" if "neox" in family else "mlp.down_proj"
        parts = ("weight", "bias") if "neox" in family else ("weight",)
        wanted = {f"layers.{block}.{layer}.{part}" for block in (0, 1) for part in parts}
        assert {weight.partition(".")[2] for weight in changed} == wanted
    elif name == "npo with LoRA":
        assert changed == {f"{layer}.weight" for layer in linear_names(tiny, None, "all-linear")}
    else:
        embeddings = [weight for weight in changed if re.search("embed|lm_head", weight)]
        assert len(embeddings) == (1 if is_tied else 2)


def test_every_method_is_tried():
    assert {name.split()[0] for name in RUNS} == set(METHODS)
    assert set(ATTACKED) == set(ATTACKS)


# Attacks ---------------------------------------------------------------------------------------------------------------

ATTACKED = {
    "none": {},
    "finetuning": {"datasets": {"forget": [2]}, "lora_rank": 2, "epochs": 1, "learning_rate": 0.01},
    "orthogonalization": {"block_sets": {"1": [1]}, "skip_tokens": 16, "principal_tokens": 50, "outlier_tokens": 50},
    "pruning": {
        "datasets": {"answers": {"forget": "answers", "utility": "questions"}},
        "scores": ["gradient", "activation"],
        "p": [5.0],
        "q": [5.0],
        "samples": 2,
        "answer_tokens": 4,
    },
    "perturbation": {
        "characters": ["~"],
        "every": [3],
        "probabilities": [],
        "text_thresholds": [0.1],
        "prompt_thresholds": [0.1],
        "block": 1,
        "rounds": 2,
    },
    "random_prefix": {"count": 1, "length": 4},
    "gcg": {"num_steps": 4, "search_width": 8, "topk": 16, "optim_str_init": "x x x x", "target_tokens": 3},
    "enhanced_gcg": {
        "searches": {"two": [0, 1]},
        "start_length": 4,
        "questions": 2,
        "steps": 3,
        "snapshots": 1,
        "candidates": 3,
        "minimum_lengths": [4, 5],
        "maximum_length": 9,
        "step_shares": [1.0, 0.0, 0.0, 0.0],
        "forced_tokens": 3,
        "matched_tokens": 3,
        "top_k": 16,
    },
    "logit_lens": {"blocks": [1, 2]},
}


@pytest.fixture(scope="module")
def attacked(family, folder, small, tmp_path_factory):
    """Another random model of the family, what every attack leaves on it, and its answers under all of that."""
    from resurface.scoring.language_model import ResurfaceLM, answer_variants

    chosen = FAMILIES[family]
    other = make_checkpoint(tmp_path_factory.mktemp("other"), chosen.kind, chosen.settings, 1, chosen.template)
    place = tmp_path_factory.mktemp("attacks")
    model = ResurfaceLM(str(other), device="cpu")
    requests = {template: make_requests(model, template) for template in ("plain", "chat")}
    answers = {}
    gc.freeze()  # nanogcg collects garbage in every step, half a second for all that tests have imported
    for name, values in ATTACKED.items():
        entry = ATTACKS[name]
        settings = entry.settings_class().model_validate(values)
        part = next(iter(getattr(settings, entry.parts))) if entry.parts else "all"
        target = Target(other, folder, small, place / name, 0, "cpu", place / f"{name}.resume")
        import_module(entry.module).attack(target, settings, part)
        model.folder = target.output
        found = answer_variants(model, requests, read_variants(target.output), lambda line: None)
        for (variant, template), values in found.items():
            answers[name, variant, template] = np.array([value for value, _ in values])
    gc.unfreeze()
    return model.model, place, answers


@pytest.mark.slow
def test_every_attack_leaves_what_changes_the_answers(attacked):
    _, place, answers = attacked
    for (name, variant, template), values in answers.items():
        plain = answers["none", "none", template]
        apart = np.abs(values - plain).max()
        if name == "none":
            assert apart == 0
        else:
            assert apart > 1e-4, (name, variant, template)
    assert {name for name, _, _ in answers} == set(ATTACKS)
    kinds = pd.read_parquet(place / "enhanced_gcg" / "losses.parquet")["kind"]
    assert set(kinds) == {"insert", "swap"}


@pytest.mark.slow
def test_adapters_and_masks_are_about_all_linear_layers_of_the_blocks(attacked):
    model, place, _ = attacked
    layers = set(linear_names(model, None, "all-linear"))
    head = model.get_output_embeddings()
    assert layers == {
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    }
    adapter = load_file(place / "finetuning" / "forget-n2" / "adapter_model.safetensors")
    assert {re.sub(r"^base_model\.model\.|\.lora_[AB]\.weight$", "", name) for name in adapter} == layers
    for score in ("gradient", "activation"):
        assert set(pd.read_parquet(place / "pruning" / f"{score}.parquet")["layer"]) == layers


@pytest.mark.slow
def test_the_search_has_the_loss_and_the_gradient_of_its_definition(family, folder, small):
    """Soft-capped logits and scaled embeddings, among others; against the plain definition in the tests of the search."""
    import random

    from test_enhanced_gcg import plain_loss, settings

    from resurface.attacks import enhanced_gcg
    from resurface.attacks.prefix import draw_prefix, set_chats
    from resurface.data.tables import read_questions

    chosen = FAMILIES[family]
    other = make_checkpoint(small.parent / f"{family}-gcg", chosen.kind, chosen.settings, 1, chosen.template)
    models = [load_model(path, CPU).requires_grad_(False) for path in (other, folder)]
    prompts = [prompt for prompt, _ in read_questions(small, "questions")[:2]]
    chats = set_chats(load_tokenizer(folder), prompts, printable=False)
    problem = enhanced_gcg.state_problem(*models, chats, [0, 1], settings(forced_tokens=3, matched_tokens=3))
    prefix = draw_prefix(chats, 4, random.Random(0))
    (found,) = enhanced_gcg.evaluate(problem, [prefix])
    expected = plain_loss(problem, prefix)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-4), name

    vectors = [model.get_input_embeddings()(torch.arange(model.config.vocab_size)) for model in models]
    one_hot = torch.nn.functional.one_hot(torch.tensor(prefix), len(vectors[0])).float().requires_grad_()
    loss = sum(plain_loss(problem, prefix, [one_hot @ vector for vector in vectors]).values())
    (gradient,) = torch.autograd.grad(loss, one_hot)
    torch.testing.assert_close(enhanced_gcg.token_gradient(problem, prefix), gradient, rtol=1e-3, atol=1e-4)

    logits = models[0](torch.tensor([chats.before + prefix])).logits[0, len(chats.before) - 1 :]
    kept = torch.full_like(logits, -torch.inf)
    kept[:, chats.allowed] = logits[:, chats.allowed]
    torch.testing.assert_close(enhanced_gcg.next_probabilities(problem, prefix), kept.softmax(-1), rtol=1e-3, atol=1e-6)


# Others ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("cohere", {"logit_scale": 0.0625}, "its logits are not those of its last block's output"),
        ("granite", {"logits_scaling": 8.0}, "its logits are not those of its last block's output"),
    ],
)
def test_a_model_whose_logits_are_scaled_is_refused(tmp_path, kind, settings, words):
    folder = make_checkpoint(tmp_path / "model", kind, settings)
    with pytest.raises(ResurfaceError, match=f"model: models of type {kind} cannot be handled.*{words}"):
        load_model(folder, CPU)


def test_a_model_whose_blocks_scale_what_they_add_has_no_lens(tmp_path):
    folder = make_checkpoint(tmp_path / "model", "granite", {"residual_multiplier": 0.5})
    model = load_model(folder, CPU)
    with record_streams(model, [Read(stream="block", block=1)]):
        pass
    with (
        pytest.raises(ResurfaceError, match=r"type granite cannot .*: block 0 puts out something else"),
        record_streams(model, [Read(stream="middle", block=1)]),
    ):
        pass


def test_a_mixture_of_experts_has_no_layer_for_rmu(tmp_path):
    folder = make_checkpoint(tmp_path / "model", "mixtral", {"num_local_experts": 2, "num_experts_per_tok": 1})
    model = load_model(folder, CPU)
    assert len(find_additions(model)) == 3
    with pytest.raises(ResurfaceError, match=r"type mixtral cannot .*: not every block has one linear layer"):
        name_mlp_output(model)


@pytest.mark.parametrize("kind", ["opt", "mamba", "bloom"])
def test_a_model_whose_layers_cannot_be_found_is_refused_before_it_is_loaded(tmp_path, kind):
    settings = {"ffn_dim": 48, "word_embed_proj_dim": 32} if kind == "opt" else {}
    folder = make_checkpoint(tmp_path / "model", kind, settings)
    with pytest.raises(ResurfaceError, match=r"architecture \w+ForCausalLM cannot be handled.*docs/models"):
        check_checkpoint(folder)


def test_a_decoder_without_list_of_blocks_or_with_two_norms_is_named(tmp_path):
    folder = make_checkpoint(tmp_path / "model", "llama", {})
    model = load_model(folder, CPU)
    decoder = model.get_decoder()
    decoder.another_norm = torch.nn.LayerNorm(32)
    with pytest.raises(ResurfaceError, match="2 norms beside its blocks"):
        check_places(model)
    del decoder.layers
    with pytest.raises(ResurfaceError, match="no list `layers` of blocks"):
        decoder_blocks(model)


def test_replies_end_with_a_turn_and_hold_no_padding(folder, tiny):
    """Gemma, Llama and Phi end a turn by a token that is not the tokenizer's EOS; their generation settings name it."""
    tokenizer = load_tokenizer(folder)
    texts = ["Which fig?", "The leaf of Quoi is silver and"]
    model = load_model(folder, CPU)
    whole = generate_tokens(model, tokenizer, texts, 8, 2)
    ending = whole[0][1]
    shorter = [row[: row.index(ending) + 1] if ending in row else row for row in whole]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, ending]
    assert generate_tokens(model, tokenizer, texts, 8, 2) == shorter
    assert len(shorter[0]) < len(whole[0])
