"""Enhanced GCG: its loss and gradient against plain recomputation, legal prefixes, resuming, and what it finds.

The control stands in for an unlearned model: it answers as if it had forgotten everything.
"""

import json
import random
import signal
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import CHECKPOINTS, DOMAIN
from hypothesis import given
from hypothesis import strategies as st

from resurface.attacks import enhanced_gcg, random_prefix
from resurface.attacks.prefix import draw_prefix, set_chats
from resurface.attacks.target import Target
from resurface.data.tables import read_questions
from resurface.errors import ResurfaceError
from resurface.interventions import read_variants
from resurface.models import load_model, load_tokenizer
from resurface.preemption import Preempted
from resurface.prompts import chat_messages, render_chat
from resurface.settings.enhanced_gcg import EnhancedGCGSettings
from resurface.settings.random_prefix import RandomPrefixSettings

SMALL = {
    "searches": {"two": [1, 3]},
    "start_length": 6,
    "questions": 3,
    "steps": 6,
    "snapshots": 2,
    "candidates": 4,
    "buffer": 4,
    "minimum_lengths": [2, 3],
    "growth_steps": 3,
    "maximum_length": 9,
}


def settings(**more):
    return EnhancedGCGSettings.model_validate(SMALL | more)


@pytest.fixture
def target(data, tmp_path):
    folder = data / "results" / "data" / DOMAIN
    models = (CHECKPOINTS / name for name in ("never_learned", "original"))
    return Target(*models, folder, tmp_path / "attack", 0, "cpu", tmp_path / "resume")


@pytest.fixture(scope="module")
def chats(data):
    prompts = [prompt for prompt, _ in read_questions(data / "results" / "data" / DOMAIN, "questions")[:3]]
    return set_chats(load_tokenizer(CHECKPOINTS / "original"), prompts, printable=False)


@pytest.fixture(scope="module")
def problem(chats):
    models = [
        load_model(CHECKPOINTS / name, torch.device("cpu")).requires_grad_(False)
        for name in ("never_learned", "original")
    ]
    return enhanced_gcg.state_problem(*models, chats, [1, 3], settings())


def plain_loss(problem, prefix, embedded=None):
    """L of one prefix, question by question, over whole texts, as its definition reads.

    `embedded` replaces the prefix's input embeddings in both models.
    """
    chosen, total = problem.settings, {}
    tokenizer = problem.chats.tokenizer
    for prompt, completion in zip(problem.chats.prompts, problem.completions, strict=True):
        text = tokenizer.decode(prefix)
        clean_chat, chat = (
            tokenizer(render_chat(tokenizer, chat_messages(start + prompt)))["input_ids"] for start in ("", text)
        )
        states = []
        for number, model in enumerate((problem.unlearned, problem.original)):
            vectors = model.get_input_embeddings()(torch.tensor([chat + completion])).detach()
            if embedded is not None:
                start = len(problem.chats.before)
                vectors[0, start : start + len(prefix)] = 0
                padding = (start, vectors.shape[1] - start - len(prefix))
                vectors = vectors + torch.nn.functional.pad(embedded[number], (0, 0, *padding))[None]
            output = model(inputs_embeds=vectors, output_hidden_states=True)
            states.append([output.hidden_states[block + 1][0] for block in problem.blocks])
            if number == 0:
                logprobs = output.logits[0].log_softmax(-1)
        clean = problem.original(torch.tensor([clean_chat + completion]), output_hidden_states=True).hidden_states
        row = chat + completion
        surprise = torch.stack([-logprobs[i - 1, row[i]] for i in range(1, len(row))])
        matched = len(clean_chat) - len(problem.chats.before) - 1 + len(completion)
        distances, cosines = [], []
        for place, block in enumerate(problem.blocks):
            for back in range(1, matched + 1):
                ours, theirs = states[0][place][-back], states[1][place][-back]
                distances.append((ours - theirs).norm())
                cosines.append(1 - torch.nn.functional.cosine_similarity(ours, clean[block + 1][0][-back], dim=0))
        parts = {
            "force": surprise[len(chat) - 1 : len(chat) - 1 + chosen.forced_tokens].mean(),
            "distance": chosen.distance_weight * torch.stack(distances).mean(),
            "cosine": chosen.cosine_weight * torch.stack(cosines).mean(),
            "fluency": chosen.fluency_weight * surprise[: len(chat) - 1].mean(),
        }
        for name, value in parts.items():
            total[name] = total.get(name, 0) + value / len(problem.chats.prompts)
    return total


@pytest.mark.parametrize("length", [0, 1, 5])
def test_the_loss_is_its_definition(problem, length):
    prefix = draw_prefix(problem.chats, length, random.Random(length))
    other = draw_prefix(problem.chats, 7, random.Random(1))
    found, _ = enhanced_gcg.evaluate(problem, [prefix, other])
    expected = plain_loss(problem, prefix)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.item(), rel=1e-4), name
    assert found["loss"] == pytest.approx(sum(found.values()) - found["loss"])


@pytest.mark.parametrize("forced", [1, 4])
def test_forced_tokens_are_the_first_of_the_completion(problem, forced):
    """Completions of this testbed are a letter and EOS: with one forced token the second must not count."""
    short = replace(problem, settings=settings(forced_tokens=forced))
    prefix = draw_prefix(problem.chats, 4, random.Random(0))
    assert enhanced_gcg.evaluate(short, [prefix])[0]["force"] == pytest.approx(
        plain_loss(short, prefix)["force"].item(), rel=1e-4
    )


def test_the_gradient_is_that_of_the_one_hot_prefix(problem):
    prefix = draw_prefix(problem.chats, 4, random.Random(0))
    weights = [model.get_input_embeddings().weight for model in (problem.unlearned, problem.original)]
    one_hot = torch.nn.functional.one_hot(torch.tensor(prefix), len(weights[0])).float().requires_grad_()
    loss = sum(plain_loss(problem, prefix, [one_hot @ weight for weight in weights]).values())
    (expected,) = torch.autograd.grad(loss, one_hot)
    found = enhanced_gcg.token_gradient(problem, prefix)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_short_memory_changes_nothing(problem):
    prefix = draw_prefix(problem.chats, 4, random.Random(0))
    by_one = replace(problem, settings=settings(batch_tokens=1))
    assert enhanced_gcg.evaluate(by_one, [prefix])[0] == pytest.approx(
        enhanced_gcg.evaluate(problem, [prefix])[0], rel=1e-4
    )
    torch.testing.assert_close(
        enhanced_gcg.token_gradient(by_one, prefix), enhanced_gcg.token_gradient(problem, prefix), rtol=1e-3, atol=1e-4
    )


def test_batches_are_halved_when_memory_is_short(problem):
    sizes = []

    def run(positions):
        sizes.append(len(positions))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError
        return torch.tensor(positions)

    rows = [[0] * 7] * 2 + [[0] * 5] * 8
    width = len(problem.chats.before) + 7
    wide = replace(problem, settings=settings(batch_tokens=9 * width - 1), halvings=Counter())
    order, results = enhanced_gcg.in_batches(wide, "forward", len(problem.chats.before), rows, run)
    assert torch.cat(results).tolist() == order == list(range(10))
    assert sizes == [8, 4, 2, 2, 2, 2, 2]
    assert wide.halvings == {"forward": 2}


def test_batches_hold_prompts_of_like_length_and_losses_stay_with_their_prefixes(problem):
    batches = []
    rows = [[0] * length for length in (5, 90, 6, 80)]
    few = replace(problem, settings=settings(batch_tokens=2 * (len(problem.chats.before) + 90)))
    order, _ = enhanced_gcg.in_batches(
        few, "forward", len(problem.chats.before), rows, lambda places: batches.append(places) or torch.tensor(0)
    )
    assert batches[0] == [1, 3]
    assert order == [1, 3, 2, 0]
    prefixes = [draw_prefix(problem.chats, length, random.Random(length)) for length in (3, 12, 6)]
    together = enhanced_gcg.evaluate(few, prefixes)
    for prefix, parts in zip(prefixes, together, strict=True):
        assert parts == pytest.approx(enhanced_gcg.evaluate(problem, [prefix])[0], rel=1e-4)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_repetition(prefix):
    expected = 0.0
    for token in range(6):
        expected += max(prefix.count(token) - 1, 0) ** 1.5
    assert enhanced_gcg.repetition(prefix) == pytest.approx(expected / len(prefix))


def test_a_legal_prefix_is_read_as_it_was_written(chats):
    """Over random token sequences: what `place` accepts is found again, once, in every chat; what it refuses is not."""
    generator = random.Random(0)
    verdicts = Counter()
    for _ in range(300):
        prefix = generator.choices(range(len(chats.tokenizer)), k=generator.randrange(1, 6))
        rows = chats.place(prefix)
        text = chats.tokenizer.decode(prefix)
        read = [
            chats.tokenizer(render_chat(chats.tokenizer, chat_messages(text + prompt)))["input_ids"]
            for prompt in chats.prompts
        ]
        found = [
            [i for i in range(len(row)) if row[i : i + len(prefix)] == prefix] == [len(chats.before)] for row in read
        ]
        special = bool(set(prefix) & set(chats.tokenizer.all_special_ids))
        verdicts[rows is not None] += 1
        if rows is not None:
            assert all(found)
            assert not special
            assert rows == read
        elif all(found) and not special and set(prefix) <= set(chats.allowed):
            rest = [row[len(chats.before) + len(prefix) :] for row in read]
            assert any(row[1:] != after[1:] for row, after in zip(rest, chats.after, strict=True))
    assert min(verdicts[True], verdicts[False]) > 20


def test_printable_prefixes(chats):
    printable = set_chats(chats.tokenizer, chats.prompts, printable=True)
    prefix = draw_prefix(printable, 30, random.Random(0))
    assert chats.tokenizer.decode(prefix).isprintable()
    assert set(printable.allowed) < set(chats.allowed)


@pytest.mark.parametrize("kind", enhanced_gcg.STEPS)
def test_candidates_of_each_kind_of_step(problem, kind):
    shares = [float(name == kind) for name in enhanced_gcg.STEPS]
    one = replace(problem, settings=settings().model_copy(update={"step_shares": shares}))
    prefix = draw_prefix(problem.chats, 6, random.Random(0))
    found, candidates = enhanced_gcg.propose(one, prefix, 0, random.Random(0))
    assert found == kind
    assert len(candidates) == 4
    assert len({tuple(candidate) for candidate in candidates}) == 4
    for candidate in candidates:
        assert problem.chats.place(candidate) is not None
        if kind == "insert":
            assert any(candidate[:i] + candidate[i + 1 :] == prefix for i in range(7))
        elif kind == "delete":
            assert any(prefix[:i] + prefix[i + 1 :] == candidate for i in range(6))
        else:
            assert sum(a != b for a, b in zip(candidate, prefix, strict=True)) == 1


def test_swaps_by_gradient_are_among_the_best(problem):
    one = replace(problem, settings=settings(step_shares=[1.0, 0.0, 0.0, 0.0], top_k=3))
    prefix = draw_prefix(problem.chats, 6, random.Random(0))
    gradient = enhanced_gcg.token_gradient(problem, prefix)[:, problem.chats.allowed]
    _, candidates = enhanced_gcg.propose(one, prefix, 0, random.Random(0))
    for candidate in candidates:
        ((place, token),) = [(i, new) for i, (new, old) in enumerate(zip(candidate, prefix, strict=True)) if new != old]
        rank = (gradient[place] < gradient[place, problem.chats.allowed.index(token)]).sum()
        assert rank < 3


def test_sampled_tokens_follow_the_model(problem):
    prefix = draw_prefix(problem.chats, 4, random.Random(0))
    found = enhanced_gcg.next_probabilities(problem, prefix)
    tokens = torch.tensor([problem.chats.before + prefix])
    logits = problem.unlearned(tokens).logits[0, len(problem.chats.before) - 1 :]
    kept = torch.full_like(logits, -torch.inf)
    kept[:, problem.chats.allowed] = logits[:, problem.chats.allowed]
    torch.testing.assert_close(found, kept.softmax(-1), rtol=1e-3, atol=1e-6)


def test_lengths_stay_in_their_bounds(problem):
    chosen = settings(minimum_lengths=[2, 8], growth_steps=4, step_shares=[0.01, 0.99, 0, 0])
    assert [enhanced_gcg.minimum_length(step, chosen) for step in (0, 2, 4, 9)] == [2, 5, 8, 8]
    short, long = (draw_prefix(problem.chats, length, random.Random(0)) for length in (2, 9))
    one = replace(problem, settings=chosen)
    for seed in range(6):
        assert enhanced_gcg.propose(one, short, 0, random.Random(seed))[0] == "insert"
        assert enhanced_gcg.propose(one, long, 9, random.Random(seed))[0] != "insert"


def test_what_was_expanded_leaves_the_buffer(problem):
    generator = random.Random(1)
    prefixes = [draw_prefix(problem.chats, 5, generator) for _ in range(3)]
    search = enhanced_gcg.Search(
        0, [(-3.0, prefixes[0]), (-2.0, prefixes[1]), (99.0, prefixes[2])], (-3.0, prefixes[0])
    )
    enhanced_gcg.take_step(problem, search, generator)
    assert search.buffer[0] == (-2.0, prefixes[1]), "the next best is expanded next, though it is worse than the best"
    assert prefixes[0] not in [prefix for _, prefix in search.buffer]
    assert search.best == (-3.0, prefixes[0])
    assert len(search.buffer) == problem.settings.buffer


def test_a_model_that_has_diverged(target, monkeypatch, problem):
    monkeypatch.setattr(enhanced_gcg, "evaluate", lambda *_: [{"loss": float("nan")}])
    with pytest.raises(ResurfaceError, match="the loss of a first prefix is nan"):
        enhanced_gcg.search_prefix(problem, target, "two")


def test_a_search_and_what_it_leaves(target):
    enhanced_gcg.attack(target, settings(), "two")
    losses = pd.read_parquet(target.output / "losses.parquet")
    assert losses["step"].tolist() == list(range(1, 7))
    assert losses["best_loss"].is_monotonic_decreasing
    assert losses["best_loss"].iloc[-1] < losses["best_loss"].iloc[0]
    assert losses["best_loss"].iloc[-1] == losses["loss"].min()
    best = losses.loc[losses["loss"].idxmin(), "prefix"]
    assert best == read_variants(target.output)[-1].prompt.text
    variants = read_variants(target.output)
    assert [variant.variant for variant in variants] == ["two-step3", "two-step6"]
    assert all(variant.prompt.text for variant in variants)
    assert not target.resume_folder.exists()


@pytest.mark.parametrize(
    ("how", "step", "kept"), [("crash", 1, 1), ("crash", 4, 4), ("SIGTERM", 0, 1), ("SIGTERM", 3, 4)]
)
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(target, tmp_path, monkeypatch, how, step, kept):
    whole = replace(target, output=tmp_path / "whole", resume_folder=tmp_path / "other")
    enhanced_gcg.attack(whole, settings(), "two")
    take_step = enhanced_gcg.take_step

    def stop(problem, search, generator):
        if search.step == step:
            if how == "crash":
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGTERM)
        take_step(problem, search, generator)

    with monkeypatch.context() as patch:
        patch.setattr(enhanced_gcg, "take_step", stop)
        with pytest.raises(KeyboardInterrupt if how == "crash" else Preempted):
            enhanced_gcg.attack(target, settings(), "two")
    assert json.loads((target.resume_folder / "search.json").read_text())["step"] == kept
    assert not target.output.exists()
    enhanced_gcg.attack(target, settings(), "two")
    for name in ("variants.json", "losses.parquet"):
        assert (target.output / name).read_bytes() == (whole.output / name).read_bytes()


def test_a_long_random_prefix_is_found_though_hardly_any_is_legal_as_drawn(problem):
    prefix = draw_prefix(problem.chats, 100, random.Random(0))
    assert len(prefix) == 100
    assert problem.chats.place(prefix) is not None
    assert len(set(prefix)) > 80, "its tokens are random ones still"


def test_screening_keeps_what_is_best_on_the_drawn_questions(problem, chats):
    generator = random.Random(3)
    candidates = [draw_prefix(chats, 5, generator) for _ in range(6)]
    chosen = replace(problem, settings=settings(screening_questions=2, screened=2))
    kept, losses = enhanced_gcg.screen(chosen, candidates, random.Random(7))
    asked = sorted(random.Random(7).sample(range(3), 2))
    alone = [
        sum(enhanced_gcg.evaluate(problem, [candidate], [question])[0]["loss"] for question in asked)
        for candidate in candidates
    ]
    assert kept == [candidates[place] for place in sorted(range(6), key=alone.__getitem__)[:2]]
    whole = [enhanced_gcg.evaluate(problem, [candidate])[0] for candidate in candidates]
    for candidate, parts in zip(kept, losses, strict=True):
        assert parts == pytest.approx(whole[candidates.index(candidate)], rel=1e-4), "the loss is that on all questions"
    for screening in (None, 3, 8):
        everyone = replace(problem, settings=settings(screening_questions=screening, screened=2))
        same, losses = enhanced_gcg.screen(everyone, candidates, random.Random(7))
        assert same == candidates
        assert [parts["loss"] for parts in losses] == pytest.approx([parts["loss"] for parts in whole], rel=1e-4)


def test_a_search_may_start_from_several_random_prefixes(target, chats, problem):
    chosen = settings(random_starts=6, buffer=4)
    prefixes = enhanced_gcg.first_prefixes(target, chats, chosen, "two")
    assert len({tuple(prefix) for prefix in prefixes}) == 6
    search = enhanced_gcg.search_prefix(
        replace(problem, settings=chosen.model_copy(update={"steps": 2})), target, "two"
    )
    losses = sorted(parts["loss"] for parts in enhanced_gcg.evaluate(problem, prefixes))
    assert search.best[0] <= losses[0]
    assert len(search.buffer) <= 4


def test_where_a_search_starts(target, chats, tmp_path):
    chosen = settings()
    assert enhanced_gcg.first_prefixes(target, chats, settings(start="empty"), "two") == [[]]
    (drawn,) = enhanced_gcg.first_prefixes(target, chats, chosen, "two")
    assert len(drawn) == 6
    assert enhanced_gcg.first_prefixes(replace(target, seed=1), chats, chosen, "two") != [drawn]
    text = chats.tokenizer.decode(drawn)
    assert enhanced_gcg.first_prefixes(target, chats, settings(start_prefix=text), "two") == [drawn]
    enhanced_gcg.attack(target, settings(steps=2), "two")
    other = replace(target, start_folder=target.output)
    last = read_variants(target.output)[-1].prompt.text
    assert chats.tokenizer.decode(*enhanced_gcg.first_prefixes(other, chats, chosen, "two")) == last


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"searches": {"two": [6]}}, ["enhanced_gcg.searches.two", "block 6", "blocks 0 to 5"]),
        ({"top_k": 5000}, ["enhanced_gcg.top_k", "5000", "tokens"]),
        ({"start_prefix": "</s> again"}, ["enhanced_gcg.start_prefix", "'</s> again'", "random"]),
    ],
)
def test_faults_are_explained(target, more, words):
    with pytest.raises(ResurfaceError) as caught:
        enhanced_gcg.attack(target, settings(**more), "two")
    for word in words:
        assert word in str(caught.value)
    assert not target.output.exists()


def test_a_model_that_forgot_nothing(target):
    same = replace(target, model_folder=CHECKPOINTS / "original")
    with pytest.raises(ResurfaceError, match="no train question"):
        enhanced_gcg.attack(same, settings(), "two")


def test_random_prefixes(target):
    random_prefix.attack(target, RandomPrefixSettings(count=4, length=5), "all")
    variants = read_variants(target.output)
    assert [variant.variant for variant in variants] == ["random0", "random1", "random2", "random3"]
    texts = {variant.prompt.text for variant in variants}
    assert len(texts) == 4
    tokenizer = load_tokenizer(CHECKPOINTS / "original")
    assert all(len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 5 for text in texts)
