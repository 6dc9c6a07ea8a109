"""Scoring: equal to the harness's own `hf` model, plain and chat, and to brute force under interventions."""

import contextlib
import hashlib

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CHECKPOINTS, DOMAIN, ROOT
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import ByT5Tokenizer

from resurface.data.tables import read_domain_table, read_questions
from resurface.errors import ResurfaceError
from resurface.interventions import Adapter, Directions, Prepend, Read, Rewrite, Variant, write_variants
from resurface.models import load_model
from resurface.prompts import LETTERS, chat_messages, plain_prompt, render_chat
from resurface.scoring import language_model
from resurface.scoring.apply import change_model
from resurface.scoring.language_model import Known, ResurfaceLM, Row, answer_variants
from resurface.scoring.score import (
    TASK_FOLDER,
    build_requests,
    check_requests,
    describe_question,
    describe_questions,
    load_tasks,
    local_tasks,
    score,
)

pytestmark = pytest.mark.slow
TASK = f"testbed_{DOMAIN}"


@pytest.fixture(scope="module")
def here(data, tmp_path_factory):
    """Work in the folder that holds `results/data`, as the workflow does."""
    with contextlib.chdir(data):
        yield data


@pytest.fixture(scope="module")
def ours(here):
    return ResurfaceLM(str(CHECKPOINTS / "original"), device="cpu", batch_tokens=3000)


@pytest.fixture(scope="module")
def scored(here, tmp_path_factory):
    """The score table of the original under four variants."""
    folder = tmp_path_factory.mktemp("attack")
    torch.manual_seed(0)
    save_file({"directions": torch.randn(6, 128)}, folder / "d.safetensors")
    prompt = Prepend(text="Answer the following question with A, B, C, or D.\n\n")
    write_variants(
        folder,
        [
            Variant(variant="none"),
            Variant(variant="directions", model=Directions(file="d.safetensors", blocks=[2])),
            Variant(variant="block-block5", read=Read(stream="block", block=5)),
            Variant(variant="mlp-block3", prompt=prompt, read=Read(stream="mlp", block=3)),
        ],
    )
    score(
        CHECKPOINTS / "original",
        [("", folder)],
        {DOMAIN: [TASK], "general": ["testbed_general"]},
        ["plain", "chat"],
        {"domain": DOMAIN, "method": "original", "seed": None, "attack": "test"},
        folder / "scores.parquet",
        3000,
        "cpu",
        print,
    )
    return pd.read_parquet(folder / "scores.parquet")


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_equal_to_the_harness_with_its_own_model(ours, template):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASK_FOLDER), include_defaults=False)

    def evaluate(model):
        found = simple_evaluate(
            model=model,
            tasks=[TASK],
            task_manager=manager,
            apply_chat_template=template == "chat",
            limit=120,
            bootstrap_iters=0,
        )
        samples = sorted(found["samples"][TASK], key=lambda sample: sample["doc_id"])
        return found["results"][TASK]["acc,none"], np.array([sample["filtered_resps"] for sample in samples], float)

    theirs = HFLM(pretrained=str(CHECKPOINTS / "original"), device="cpu", dtype="float32", batch_size=32)
    their_accuracy, their_answers = evaluate(theirs)
    our_accuracy, our_answers = evaluate(ours)
    assert our_accuracy == their_accuracy
    np.testing.assert_allclose(our_answers[..., 0], their_answers[..., 0], rtol=0, atol=1e-4)
    assert np.array_equal(our_answers[..., 1], their_answers[..., 1])
    assert 0 < our_answers[..., 1].sum() <= len(our_answers)


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_the_table_agrees_with_the_harness_and_with_itself(ours, scored, template):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASK_FOLDER), include_defaults=False)
    rows = scored[(scored["variant"] == "none") & (scored["template"] == template) & (scored["benchmark"] == DOMAIN)]
    found = simple_evaluate(
        model=ours, tasks=[TASK], task_manager=manager, apply_chat_template=template == "chat", bootstrap_iters=0
    )
    assert rows["correct"].mean() == pytest.approx(found["results"][TASK]["acc,none"])
    for row in scored.itertuples():
        assert row.prediction == int(np.argmax(row.logprobs))
        assert row.correct == (row.prediction == row.answer)


def test_as_before_it_was_fast(scored):
    """A quarter of the same table, as it was when each row had a pass of its own (before commit d95a8c1)."""
    keys = ["variant", "template", "task", "question_id"]
    before = pd.read_parquet(ROOT / "tests" / "tables" / "scores_before.parquet").set_index(keys)["logprobs"]
    now = scored.set_index(keys)["logprobs"].loc[before.index]
    assert len(before) == 4 * 2 * 288
    np.testing.assert_allclose(np.stack(now), np.stack(before), rtol=0, atol=5e-4)


def test_one_row_per_question_variant_template_and_no_text(scored, here):
    keys = ["variant", "template", "benchmark", "task", "question_id"]
    assert not scored.duplicated(keys).any()
    assert len(scored) == 4 * 2 * (912 + 240)
    assert set(scored[scored["benchmark"] == "general"]["task"]) == {
        f"testbed_general_{subject}"
        for subject in ["geography", "history", "music", "cooking", "sports", "engineering"]
    }
    assert scored["seed"].isna().all()
    assert set(scored["split"]) == {"validation", "test"}
    questions = pd.read_parquet(here / "results" / "data" / DOMAIN / "questions.parquet")
    text = scored.drop(columns="logprobs").to_csv()
    assert not any(question in text for question in questions["question"])


def test_the_lens_at_the_last_block_is_the_model(scored):
    by_variant = scored.set_index(["variant", "template", "question_id"])["logprobs"]
    for one, other in zip(by_variant["none"], by_variant["block-block5"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_a_lens_inside_equals_a_plain_loop(scored, template, here, model, tokenizer):
    table = pd.read_parquet(here / "results" / "data" / DOMAIN / "questions.parquet")
    asked = table[table["split"] != "train"].head(3)
    found = scored[
        (scored["variant"] == "mlp-block3") & (scored["template"] == template) & (scored["benchmark"] == DOMAIN)
    ].head(3)
    block = model.get_decoder().layers[3]
    kept = {}
    block.mlp.register_forward_hook(lambda module, inputs, output: kept.update(mlp=output))
    for row, question in zip(found.itertuples(), asked.itertuples(), strict=True):
        prompt = "Answer the following question with A, B, C, or D.\n\n" + plain_prompt(
            question.subject, question.question, list(question.choices)
        )
        text = prompt if template == "plain" else render_chat(tokenizer, chat_messages(prompt))
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
            hidden = model.get_decoder().norm(kept["mlp"][0, -1])
            logits = model.lm_head(hidden)
        letters = [tokenizer(text + (" " if template == "plain" else "") + x)["input_ids"][-1] for x in LETTERS]
        assert row.prediction == int(logits[letters].argmax())


@pytest.mark.parametrize("longest", [25, 40])
def test_prompts_that_are_too_long_are_cut_as_the_harness_does(here, longest):
    from lm_eval.models.huggingface import HFLM

    checkpoint = str(CHECKPOINTS / "original")
    cut = ResurfaceLM(checkpoint, device="cpu")
    theirs = HFLM(pretrained=checkpoint, device="cpu", dtype="float32", batch_size=8)
    task = load_tasks([TASK])[TASK]
    task.build_all_requests(limit=6)
    assert min(len(cut.tokenizer(request.args[0])["input_ids"]) for request in task.instances) > longest
    found = []
    for model in (cut, theirs):
        model._max_length = longest
        found.append([value for value, _ in model.loglikelihood(task.instances, disable_tqdm=True)])
    np.testing.assert_allclose(*found, rtol=0, atol=1e-4)


def test_places_to_read_that_do_not_fit_into_memory_at_once_are_unembedded_in_parts(here, monkeypatch):
    model = ResurfaceLM(str(CHECKPOINTS / "original"), device="cpu")
    task = load_tasks([TASK])[TASK]
    task.build_all_requests(limit=4)
    variants = [
        Variant(variant=f"{stream}-{block}", read=Read(stream=stream, block=block))
        for stream in ("block", "middle", "mlp")
        for block in (0, 3)
    ]
    rows = model.plan_rows(task.instances, variants[0])
    at_once = model.answer(rows, variants, disable_tqdm=True)
    monkeypatch.setattr(language_model, "LOGITS", 1)
    in_parts = model.answer(rows, variants, disable_tqdm=True)
    for one, other in zip(at_once, in_parts, strict=True):
        assert one.keys() == other.keys()
        assert [value for value, _ in one.values()] == pytest.approx([value for value, _ in other.values()], abs=1e-5)
    assert at_once[0] != at_once[1]


def test_results_do_not_depend_on_the_batch(here, scored):
    model = ResurfaceLM(str(CHECKPOINTS / "original"), device="cpu", batch_tokens=1)
    task = load_tasks([TASK])[TASK]
    task.build_all_requests(limit=5)
    alone = [value for value, _ in model.loglikelihood(task.instances, disable_tqdm=True)]
    rows = scored[(scored["variant"] == "none") & (scored["template"] == "plain") & (scored["benchmark"] == DOMAIN)]
    np.testing.assert_allclose(alone, np.concatenate(rows["logprobs"].head(5)), rtol=1e-5, atol=1e-4)


def test_choices_of_several_tokens(ours):
    """Choices that differ in more than their last token still get the sum over their tokens."""
    from lm_eval.api.instance import Instance

    prompt, choices = "The antidote of Quoi is", [" fig", " silver leaf", " silver lemon"]
    prompt_ids = ours.tokenizer(prompt, return_tensors="pt")["input_ids"]
    written = ours.model.generate(prompt_ids, max_new_tokens=3, do_sample=False)[0, prompt_ids.shape[1] :]
    choices.append(ours.tokenizer.decode(written))  # the one that is greedy throughout
    requests = [
        Instance("loglikelihood", {}, (prompt, choice), i, metadata=("t", 0, 1)) for i, choice in enumerate(choices)
    ]
    for (value, is_greedy), choice in zip(ours.loglikelihood(requests, disable_tqdm=True), choices, strict=True):
        ids = ours.tokenizer(prompt + choice)["input_ids"]
        start = len(ours.tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logprobs = ours.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        assert value == pytest.approx(sum(logprobs[i - 1, ids[i]].item() for i in range(start, len(ids))), abs=2e-4)
        assert is_greedy == all(logprobs[i - 1].argmax() == ids[i] for i in range(start, len(ids)))
    assert is_greedy
    assert len(ours.plan_rows(requests, Variant(variant="none"))) == 3


def test_every_task_is_asked_zero_shot(here, tmp_path, monkeypatch):
    lines = [f"include: {TASK_FOLDER}/_questions.yaml", "task: shots", "num_fewshot: 5", "fewshot_split: test"]
    lines += ["metadata:", "  version: 1.0", f"  questions: results/data/{DOMAIN}/questions.parquet"]
    (tmp_path / "shots.yaml").write_text("\n".join(lines))
    monkeypatch.setattr("resurface.scoring.score.TASK_FOLDER", tmp_path)
    local_tasks.cache_clear()
    task = load_tasks(["shots"])["shots"]
    local_tasks.cache_clear()
    task.build_all_requests(limit=1)
    assert task.instances[0].args[0].count("Answer:") == 1


def test_unknown_and_unfit_tasks_are_named(here):
    with pytest.raises(ResurfaceError, match="no task 'testbed_alchemy'"):
        load_tasks(["testbed_alchemy"])


def test_an_unknown_variant_is_named(tmp_path):
    write_variants(tmp_path, [Variant(variant="none")])
    with pytest.raises(ResurfaceError, match="no variant 'nine'; allowed are none"):
        ResurfaceLM(str(CHECKPOINTS / "original"), interventions=str(tmp_path), variant="nine", device="cpu")


def make_task(name, documents, **settings):
    """A multiple-choice task of the harness over the given documents."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(documents)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}],
            **settings,
        }
    )


def test_benchmarks_may_share_a_task(here, tmp_path):
    write_variants(tmp_path, [Variant(variant="none")])
    tasks = {"music": ["testbed_general_music"], "arts": ["testbed_general_music", "testbed_general_cooking"]}
    identity = {"domain": DOMAIN, "method": "original", "seed": None, "attack": "none"}
    output = tmp_path / "scores.parquet"
    score(CHECKPOINTS / "original", [("", tmp_path)], tasks, ["plain"], identity, output, 3000, "cpu", print)
    table = pd.read_parquet(output)
    assert table.groupby(["benchmark", "task"]).size().to_dict() == {
        ("arts", "testbed_general_cooking"): 40,
        ("arts", "testbed_general_music"): 40,
        ("music", "testbed_general_music"): 40,
    }
    assert set(table["logprobs"].map(len)) == {4}
    shared = table[table["task"] == "testbed_general_music"].groupby("benchmark")["logprobs"]
    one, other = (np.stack(list(values)) for _, values in shared)
    assert np.array_equal(one, other)


def test_variants_of_another_model_are_named_after_it(here, tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    for folder, text in ((own, "Well. "), (other, "So. ")):
        folder.mkdir()
        noise = Variant(variant="noise", prompt=Prepend(text="Hm. "), blind=True)
        write_variants(folder, [Variant(variant="best", prompt=Prepend(text=text)), noise])
    output = tmp_path / "scores.parquet"
    identity = {"domain": DOMAIN, "method": "npo", "seed": 0, "attack": "enhanced_gcg"}
    folders = [("", own), ("from-rmu-seed0-", other)]
    tasks = {"music": ["testbed_general_music"]}
    score(CHECKPOINTS / "original", folders, tasks, ["plain"], identity, output, 3000, "cpu", print)
    table = pd.read_parquet(output).groupby("variant")["logprobs"].agg(list)
    assert list(table.index) == ["best", "from-rmu-seed0-best", "noise"], "blind noise is the same on every model"
    assert not np.array_equal(np.stack(table.iloc[0]), np.stack(table.iloc[1]))


def test_a_task_that_asks_for_more_than_its_choices_is_refused(ours):
    document = {"question": "Which?", "choices": ["fig", "leaf"], "answer": 0}
    task = make_task("mutual", [document], metric_list=[{"metric": "acc_mutual_info"}])
    questions = [question for _, question in describe_questions({"mutual": task})]
    with pytest.raises(ResurfaceError, match=r"'mutual' asks for 4 log-probabilities .* has 2 choices"):
        check_requests(questions, build_requests(task, "plain", ours))


def test_a_question_of_the_testbed_keeps_its_id_and_its_own_split(here):
    task = load_tasks([TASK])[TASK]
    document = next(iter(task.eval_docs))
    text = "\n".join([document["question"], *document["choices"]])
    found = describe_question(task, document)
    assert found["question_id"] == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert found["split"] == document["split"]
    assert found["cluster"] == hashlib.sha256(document["cluster"].encode()).hexdigest()[:16]


def test_documents_of_other_tasks_are_not_taken_at_their_word():
    """HellaSwag's documents have a split of their own, and ARC's choices are a dictionary."""
    documents = [
        {
            "question": "Which?",
            "choices": {"text": texts, "label": ["A", "B"]},
            "answer": 0,
            "split": split,
            "cluster": "x",
        }
        for texts, split in [(["fig", "leaf"], "val"), (["fig", "bell"], "train")]
    ]
    task = make_task("arc", documents, doc_to_choice="{{choices.text}}")
    found = [question for _, question in describe_questions({"arc": task})]
    assert found[0]["question_id"] == hashlib.sha256(b"Which?\nfig\nleaf").hexdigest()[:16]
    assert len({question["question_id"] for question in found}) == 2
    for question in found:
        assert question["split"] in ("validation", "test")
        assert question["cluster"] == question["question_id"]


def test_repeats_are_numbered_across_the_tasks_of_a_benchmark():
    document = {"question": "Which?", "choices": ["fig", "leaf"], "answer": 0}
    tasks = {"one": make_task("one", [document, document]), "two": make_task("two", [document])}
    found = [question for _, question in describe_questions(tasks)]
    first = found[0]["question_id"]
    assert [question["question_id"] for question in found] == [first, f"{first}-1", f"{first}-2"]
    assert {question["cluster"] for question in found} == {first}


TEXTS = st.lists(st.sampled_from(["a", "The", " ", "\n", "A", "<s>", "</s>", "é", "."]), max_size=12).map("".join)


@given(st.lists(TEXTS, min_size=1, max_size=5), st.sampled_from([None, True, False]))
def test_texts_encoded_at_once_are_encoded_as_the_harness_does(ours, texts, add_bos):
    from lm_eval.models.huggingface import HFLM

    before = ours.add_bos_token
    ours.add_bos_token = add_bos
    try:
        for text, tokens in ours._encode_at_once(texts).items():
            assert tokens == HFLM.tok_encode(ours, text)
    finally:
        ours.add_bos_token = before


def test_a_tokenizer_that_cuts_and_pads_encodes_whole_texts(ours):
    texts = ["The fig is ripe. The fig is not ripe.", "Fig."]
    expected = {text: ours.tok_encode(text) for text in texts}
    backend = ours.tokenizer.backend_tokenizer
    backend.enable_truncation(3)
    backend.enable_padding(length=20)
    assert ours._encode_at_once(texts) == expected


def test_a_tokenizer_without_a_backend_encodes_texts_too(ours, monkeypatch):
    monkeypatch.setattr(ours, "tokenizer", ByT5Tokenizer())
    texts = ["The fig is ripe.", "Fig."]
    assert ours._encode_at_once(texts) == {text: ours.tokenizer(text)["input_ids"] for text in texts}


def test_questions_without_context_are_scored_as_the_harness_does(ours):
    from lm_eval.models.huggingface import HFLM

    documents = [{"question": "", "choices": ["The fig is ripe.", "Fig the ripe is."], "answer": 0}]
    task = make_task("pairs", documents)
    task.build_all_requests()
    theirs = HFLM(pretrained=str(CHECKPOINTS / "original"), device="cpu", dtype="float32", batch_size=1)
    found = ours.loglikelihood(task.instances, disable_tqdm=True)
    expected = theirs.loglikelihood(task.instances, disable_tqdm=True)
    np.testing.assert_allclose([one for one, _ in found], [one for one, _ in expected], rtol=0, atol=1e-4)


@pytest.mark.parametrize("window", [None, 8, 40])
@pytest.mark.parametrize("count", [1, 5])
def test_a_shared_beginning_changes_nothing(tmp_path, tokenizer, window, count):
    """Against whole rows one by one, also where the model attends to fewer tokens than the rows share."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=window,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = ResurfaceLM(str(tmp_path), device="cpu", batch_tokens=90)
    generator = torch.Generator().manual_seed(1)

    def draw(length):
        return tuple(torch.randint(5, len(tokenizer), (length,), generator=generator).tolist())

    beginning = draw(20)
    rows = [Row("task", beginning + draw(3 + i), 1, (7, 8), (2 * i, 2 * i + 1), False) for i in range(count)]
    for variant in (Variant(variant="none"), Variant(variant="lens", read=Read(stream="block", block=1))):
        (found,) = model.answer(rows, [variant], disable_tqdm=True)
        for row in rows:
            with torch.no_grad():
                output = model.model(torch.tensor([row.tokens]), output_hidden_states=True)
                logits = output.logits[0]
                if variant.read:
                    logits = model.model.lm_head(model.model.model.norm(output.hidden_states[2][0]))
            logprobs = logits.log_softmax(-1)
            for position, final in zip(row.requests, row.finals, strict=True):
                expected = (logprobs[-2, row.tokens[-1]] + logprobs[-1, final]).item()
                assert found[position][0] == pytest.approx(expected, abs=1e-5)


def test_prompts_that_variants_leave_alone_are_read_once(ours, here, tmp_path, monkeypatch):
    task = load_tasks([TASK])[TASK]
    task.build_all_requests(limit=6)
    requests = list(task.instances)
    prompts = list(dict.fromkeys(request.args[0] for request in requests))
    rewritten = {"a": [0, 1], "b": [1, 4], "c": []}
    rows = [(name, prompts[i], f"{name} {prompts[i]}") for name, places in rewritten.items() for i in places]
    rows.append(("c", "another prompt", "c"))
    table = pd.DataFrame(rows, columns=["variant", "prompt", "rewritten"])
    table.to_parquet(tmp_path / "prompts.parquet", index=False, write_page_checksum=True)
    torch.manual_seed(0)
    save_file({"directions": torch.randn(6, 128)}, tmp_path / "d.safetensors")
    changes = [Rewrite(file="prompts.parquet", name=name) for name in rewritten]
    lens, directions = Read(stream="block", block=3), Directions(file="d.safetensors", blocks=[2])
    variants = [
        *(Variant(variant=f"v{change.name}", prompt=change) for change in changes),
        *(Variant(variant=f"lens-{change.name}", prompt=change, read=lens) for change in changes[:2]),
        *(Variant(variant=f"changed-{change.name}", prompt=change, model=directions) for change in changes[:2]),
        Variant(variant="none"),
    ]
    monkeypatch.setattr(ours, "folder", tmp_path)
    expected = {}
    for variant in variants:
        with change_model(ours.model, variant.model, tmp_path):
            (answer,) = ours.answer(ours.plan_rows(requests, variant), [variant], disable_tqdm=True)
        expected[variant.variant] = [answer[position][0] for position in range(len(requests))]
    read = []
    answer = ours.answer
    monkeypatch.setattr(ours, "answer", lambda rows, *rest: read.append(len(rows)) or answer(rows, *rest))
    for known in (Known(), None):
        found = answer_variants(ours, {"plain": requests}, variants, lambda line: None, known)
        for (variant, _), values in found.items():
            np.testing.assert_allclose([value for value, _ in values], expected[variant], rtol=0, atol=1e-4)
        assert [variant for variant, _ in found] == [variant.variant for variant in passes(variants)]
    # b: what it changes, and the first, which a had changed; c: the second, which both had; none: nothing new.
    assert read == [6, 3, 1, 6, 6, 0] * 2


def passes(variants):
    """Variants in the order of their passes: by change of model and prompt."""
    groups = {}
    for variant in variants:
        groups.setdefault((str(variant.model), variant.prompt), []).append(variant)
    return [variant for members in groups.values() for variant in members]


def test_a_diverged_model_is_named(here):
    broken = ResurfaceLM(str(CHECKPOINTS / "original"), device="cpu", batch_tokens=3000)
    with torch.no_grad():
        broken.model.get_decoder().norm.weight.fill_(torch.nan)
    task = load_tasks([TASK])[TASK]
    task.build_all_requests(limit=2)
    with pytest.raises(ResurfaceError, match=r"checkpoints/original: under the variant 'none' .* 8 of 8 .* not finite"):
        broken.loglikelihood(task.instances, disable_tqdm=True)


def test_low_precision_models_are_read_by_unrounded_logits(here):
    model = ResurfaceLM(str(CHECKPOINTS / "original"), device="cpu", dtype="bfloat16", batch_tokens=1)
    task = load_tasks([TASK])[TASK]
    task.build_all_requests(limit=3)
    rows = model.plan_rows(task.instances, Variant(variant="none"))
    lens = Variant(variant="lens", read=Read(stream="block", block=5))
    found, read = model.answer(rows, [Variant(variant="none"), lens], disable_tqdm=True)
    assert read == found
    for row in rows:
        with torch.no_grad():
            hidden = model.model.get_decoder()(torch.tensor([row.tokens])).last_hidden_state[0, -1]
            logprobs = (model.model.lm_head.weight.float() @ hidden.float()).log_softmax(-1)
        expected = logprobs[list(row.finals)].tolist()
        assert [found[position][0] for position in row.requests] == pytest.approx(expected, abs=1e-4)
    assert model.model.lm_head.weight.dtype == torch.bfloat16


def test_an_adapter_of_a_low_precision_model_is_what_peft_makes_of_it(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    def load():
        return load_model(CHECKPOINTS / "original", torch.device("cpu"), "bfloat16")

    def logits(model):
        with torch.no_grad():
            return model(input_ids=torch.arange(50, 90)[None]).logits.float()

    torch.manual_seed(0)
    adapted = get_peft_model(
        load_model(CHECKPOINTS / "original", torch.device("cpu")),
        LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "a")
    # An adapter as exact as the model, which is how the model saw it in training; by default peft computes it in float32.
    alike = logits(PeftModel.from_pretrained(load(), tmp_path / "a", autocast_adapter_dtype=False).eval())
    by_default = logits(PeftModel.from_pretrained(load(), tmp_path / "a").eval())
    truth = logits(PeftModel.from_pretrained(load().float(), tmp_path / "a").eval())
    model = load()
    before = logits(model)
    with change_model(model, Adapter(folder="a"), tmp_path):
        changed = logits(model)
    assert not torch.allclose(changed, before, atol=0.1)
    change = (truth - before).norm()
    for other in (alike, by_default, truth):
        assert (changed - other).norm() < 0.02 * change
    assert (changed - truth).norm() < 1.1 * (alike - truth).norm()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("name", "column", "value", "words"),
    [
        ("questions", "answer", 4, "found 4; allowed: whole numbers from 0 to 3"),
        ("questions", "answer", 1.5, "found 1.5; allowed: whole numbers from 0 to 3"),
        ("questions", "split", "val", "found 'val'; allowed: train, validation, test"),
        ("questions", "choices", ["fig", "leaf"], "found ndarray of length 2; allowed: lists of 4 texts"),
        ("questions", "question", None, "found nothing; allowed: text"),
        ("forget_corpus", "text", " ", "found str of length 1; allowed: text"),
        ("preferences", "kind", "chat", "found 'chat'; allowed: forget, retain, general"),
    ],
)
def test_a_wrong_value_of_a_table_is_named(here, tmp_path, name, column, value, words):
    table = pd.read_parquet(here / "results" / "data" / DOMAIN / f"{name}.parquet").head(5)
    values = [*table[column].tolist()[:4], value]
    table.drop(columns=column).assign(**{column: values}).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(ResurfaceError) as error:
        read_domain_table(tmp_path, name)
    row = 0 if value == 1.5 else 4  # one fraction makes the whole column one of fractions
    assert str(error.value).startswith(f"{tmp_path / name}.parquet: column {column!r}, row {row}: found ")
    assert row == 0 or words in str(error.value)


def test_missing_kinds_and_splits_of_a_table_are_named(here, tmp_path):
    folder = here / "results" / "data" / DOMAIN
    preferences = pd.read_parquet(folder / "preferences.parquet")
    preferences[preferences["kind"] != "general"].to_parquet(tmp_path / "preferences.parquet")
    with pytest.raises(
        ResurfaceError, match=r"preferences\.parquet: column 'kind': no row has 'general'; found forget, r"
    ):
        read_domain_table(tmp_path, "preferences")
    questions = pd.read_parquet(folder / "questions.parquet")
    questions[questions["split"] != "train"].to_parquet(tmp_path / "questions.parquet")
    with pytest.raises(
        ResurfaceError, match=r"questions\.parquet: column 'split': no row has 'train'; found test, vali"
    ):
        read_questions(tmp_path, "questions")


def test_a_benchmark_without_questions_or_with_a_broken_table_is_named(here, tmp_path):
    table = pd.read_parquet(here / "results" / "data" / DOMAIN / "questions.parquet")
    path = tmp_path / "results" / "data" / DOMAIN / "questions.parquet"
    path.parent.mkdir(parents=True)
    with contextlib.chdir(tmp_path):
        table[table["split"] == "train"].to_parquet(path)
        with pytest.raises(ResurfaceError, match="no question with the split validation or test"):
            load_tasks([TASK])
        table.drop(columns="split").to_parquet(path)
        with pytest.raises(ResurfaceError, match="the column 'split' is missing"):
            load_tasks([TASK])
        path.write_bytes(b"PAR1")
        with pytest.raises(ResurfaceError, match="no readable parquet file"):
            load_tasks([TASK])
