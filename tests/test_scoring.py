"""Scoring: equal to the harness's own `hf` model, plain and chat, and to brute force under interventions."""

import contextlib

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CHECKPOINTS, DOMAIN
from safetensors.torch import save_file

from resurface.errors import ResurfaceError
from resurface.interventions import Directions, Prepend, Read, Variant, write_variants
from resurface.prompts import LETTERS, chat_messages, plain_prompt, render_chat
from resurface.scoring.language_model import ResurfaceLM
from resurface.scoring.score import TASK_FOLDER, load_tasks, score

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
        [folder],
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
        return found["results"][TASK]["acc,none"], np.array([[r[0] for r in s["filtered_resps"]] for s in samples])

    theirs = HFLM(pretrained=str(CHECKPOINTS / "original"), device="cpu", dtype="float32", batch_size=32)
    their_accuracy, their_logprobs = evaluate(theirs)
    our_accuracy, our_logprobs = evaluate(ours)
    assert our_accuracy == their_accuracy
    np.testing.assert_allclose(our_logprobs, their_logprobs, rtol=1e-5, atol=1e-4)


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
    requests = [
        Instance("loglikelihood", {}, (prompt, choice), i, metadata=("t", 0, 1)) for i, choice in enumerate(choices)
    ]
    for (value, _), choice in zip(ours.loglikelihood(requests, disable_tqdm=True), choices, strict=True):
        ids = ours.tokenizer(prompt + choice)["input_ids"]
        start = len(ours.tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logprobs = ours.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        assert value == pytest.approx(sum(logprobs[i - 1, ids[i]].item() for i in range(start, len(ids))), abs=2e-4)
    assert len(ours.plan_rows(requests, Variant(variant="none"))) == 2


def test_unknown_and_unfit_tasks_are_named(here):
    with pytest.raises(ResurfaceError, match="no task 'testbed_alchemy'"):
        load_tasks(["testbed_alchemy"])


def test_an_unknown_variant_is_named(tmp_path):
    write_variants(tmp_path, [Variant(variant="none")])
    with pytest.raises(ResurfaceError, match="no variant 'nine'; allowed are none"):
        ResurfaceLM(str(CHECKPOINTS / "original"), interventions=str(tmp_path), variant="nine", device="cpu")
