"""Score a model under every variant of an attack, on the harness's tasks, into one score table (design §4).

The harness's task objects load the questions and build the requests, once per template; `ResurfaceLM` answers them. The
table is written from log-probabilities. It holds no question text: a question is known by the hash of its text.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import lm_eval.tasks
import lm_eval.utils
import pandas as pd
import pyarrow as pa
from lm_eval.api.task import Task

from resurface.artifacts import check_folder, write_table
from resurface.data.tables import SPLITS, draw_split, hash_question
from resurface.errors import ResurfaceError
from resurface.interventions import read_variants
from resurface.scoring.language_model import Known, LogLikelihood, ResurfaceLM, answer_variants

# The harness compiles a task's templates anew for every question: more work than answering it takes so small a model.
lm_eval.utils.env.from_string = cache(lm_eval.utils.env.from_string)  # type: ignore[method-assign]

Template = Literal["plain", "chat"]

TASK_FOLDER = Path(__file__).parents[1] / "testbed" / "tasks"
PUBLIC_TASK_FOLDER = Path(__file__).parents[1] / "data" / "tasks"

SCORE_SCHEMA = pa.schema(
    [
        ("domain", pa.string()),
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("attack", pa.string()),
        ("variant", pa.string()),
        ("template", pa.string()),
        ("benchmark", pa.string()),
        ("task", pa.string()),
        ("split", pa.string()),
        ("question_id", pa.string()),
        ("cluster", pa.string()),
        ("answer", pa.int8()),
        ("prediction", pa.int8()),
        ("correct", pa.bool_()),
        ("logprobs", pa.list_(pa.float32())),
    ]
)


@cache
def local_tasks() -> frozenset[str]:
    """Names of the workflow's own tasks and groups: the testbed's, and WMDP and MMLU from local tables."""
    texts = [path.read_text() for folder in (TASK_FOLDER, PUBLIC_TASK_FOLDER) for path in folder.glob("*.yaml")]
    return frozenset(name for text in texts for name in re.findall(r"^(?:task|group): *(\w+)$", text, re.MULTILINE))


def task_folders(names: list[str]) -> list[str]:
    """The folders of the workflow's own tasks among these; MMLU's 57 files are only read if they are needed."""
    is_public = any(name.startswith("resurface_") for name in names)
    return [str(TASK_FOLDER), *([str(PUBLIC_TASK_FOLDER)] if is_public else [])]


def load_tasks(names: list[str]) -> dict[str, Task]:
    """The leaf tasks of the named tasks and groups, by name, all zero-shot.

    Local tasks load without the harness's own thousands; those are indexed only if a name is not local.

    Raises:
        ResurfaceError: the harness knows no such task, or it is not multiple choice.
    """
    is_local = local_tasks().issuperset(names)
    manager = lm_eval.tasks.TaskManager(include_path=task_folders(names), include_defaults=not is_local)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise ResurfaceError(
            f"benchmarks: the harness has no task {unknown[0]!r}; `lm_eval ls tasks` lists those that it has"
        )
    leaves: dict[str, Task] = dict(manager.load(names)["tasks"])
    for name, task in leaves.items():
        if task.OUTPUT_TYPE != "multiple_choice":
            raise ResurfaceError(
                f"benchmarks: the task {name!r} has output type {task.OUTPUT_TYPE}; only multiple_choice tasks can be scored, "
                "because an answer is read from the log-probabilities of its choices"
            )
        task.set_config(key="num_fewshot", value=0)
    return leaves


def describe_question(task: Task, doc: dict[str, Any]) -> dict[str, Any]:
    """What a score table says of a question: id, cluster, split and the index of the right choice.

    The id hashes the question's own text and choices. `split` and `cluster` (questions that ask for the same thing) are
    the document's own in local tasks; in others these names may mean anything, so there every fifth id is
    `validation`, and a question is its own cluster.

    Raises:
        ResurfaceError: the task's right answer is not one of its choices.
    """
    choices = task.doc_to_choice(doc)
    # The harness's choices may be mere letters, and a document's may be anything: a list of texts, or ARC's dictionary.
    own = doc.get("choices")
    texts = own if isinstance(own, list) and own and all(isinstance(text, str) for text in own) else choices
    text = str(doc.get("question") or task.doc_to_text(doc))
    question_id = hash_question(text, texts)
    answer = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ResurfaceError(f"benchmarks: question {question_id} of {task.task_name} has no single right choice")
    is_local = task.task_name in local_tasks()
    split, cluster = (doc.get("split"), doc.get("cluster")) if is_local else (None, None)
    if split not in SPLITS:
        split = draw_split(question_id)
    return {
        "question_id": question_id,
        "cluster": hashlib.sha256(str(cluster).encode()).hexdigest()[:16] if cluster else question_id,
        "split": split,
        "answer": answer,
        "choices": len(choices),
    }


def describe_questions(tasks: dict[str, Task]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """All questions of a benchmark: the harness's document, and what tables say of it.

    Besides what `describe_question` says that is `task` and `doc_id`, the document's number in its task. A question that
    the benchmark asks again, in the same task or in another, gets a number behind its id.
    """
    asked: Counter[str] = Counter()
    for name, task in tasks.items():
        for doc_id, doc in task.doc_iterator(rank=0, limit=None, world_size=1):
            question = describe_question(task, doc)
            question_id = question["question_id"]
            if asked[question_id]:
                question["question_id"] = f"{question_id}-{asked[question_id]}"
            asked[question_id] += 1
            yield doc, {"task": name, "doc_id": doc_id, **question}


def first_test_questions(names: list[str], count: int) -> list[tuple[str, dict[str, Any]]]:
    """The plain prompts of a benchmark's first `count` test questions, and what tables say of each (`describe_questions`)."""
    tasks = load_tasks(names)
    asked = [(doc, question) for doc, question in describe_questions(tasks) if question["split"] == "test"]
    return [(tasks[question["task"]].doc_to_text(doc), question) for doc, question in asked[:count]]


def build_requests(task: Task, template: Template, model: ResurfaceLM) -> list[Any]:
    """Let the harness build a task's requests, zero-shot, in a template."""
    chat = {"apply_chat_template": True, "chat_template": model.apply_chat_template} if template == "chat" else {}
    task.build_all_requests(tokenizer_name=model.tokenizer_name, **chat)
    return list(task.instances)


def check_requests(questions: list[dict[str, Any]], requests: list[Any]) -> None:
    """Check that the harness asks for one log-probability per choice.

    Raises:
        ResurfaceError: a task asks for more or fewer.
    """
    asked = Counter((request.task_name, request.doc_id) for request in requests)
    for question in questions:
        count = asked[question["task"], question["doc_id"]]
        if count != question["choices"]:
            raise ResurfaceError(
                f"benchmarks: the task {question['task']!r} asks for {count} log-probabilities about question "
                f"{question['question_id']}, which has {question['choices']} choices; only tasks that ask for one per "
                "choice can be scored (one with the metric acc_mutual_info asks for more): name another task"
            )


def tabulate(
    questions: list[dict[str, Any]], requests: list[Any], answers: list[LogLikelihood]
) -> list[dict[str, Any]]:
    """One row per question: its log-probabilities, the choice they prefer (the first of equals) and whether it is right.

    Args:
        questions: the questions of all benchmarks; several benchmarks may hold the same question of a task.
        requests: the requests of each task, once.
        answers: one per request.
    """
    logprobs: dict[tuple[str, int], list[float]] = {}
    for request, (logprob, _) in zip(requests, answers, strict=True):
        logprobs.setdefault((request.task_name, request.doc_id), []).append(logprob)
    rows = []
    for question in questions:
        values = logprobs[question["task"], question["doc_id"]]
        prediction = max(range(len(values)), key=values.__getitem__)
        rows.append(
            {
                **question,
                "prediction": prediction,
                "correct": prediction == question["answer"],
                "logprobs": values,
            }
        )
    return rows


def score(
    model_folder: Path,
    attack_folders: list[tuple[str, Path]],
    benchmarks: dict[str, list[str]],
    templates: list[Template],
    identity: dict[str, Any],
    output: Path,
    batch_tokens: int,
    device: str,
    report: Callable[[str], Any],
) -> None:
    """Score one model under all variants of one attack.

    Args:
        model_folder: the checkpoint.
        attack_folders: what to put in front of the variants' names, and an attack's folder: several where variants were made by
            several jobs, or on other models (`from-{method}-seed{n}-`). Of the latter, blind variants are passed over: they
            are the same on every model.
        benchmarks: name → tasks or groups of the harness; a task that several of them hold is asked once.
        templates: prompt forms.
        identity: `domain`, `method`, `seed` (None for a reference model without attack) and `attack`.
        output: the score table to write.
        batch_tokens: padded tokens per forward pass.
        device: `auto`, `cpu`, `cuda`, …
        report: called with a line before each pass.

    Raises:
        ResurfaceError: a folder is not as its job left it, a task cannot be scored, or the model has diverged.
    """
    check_folder(model_folder)
    model = ResurfaceLM(str(model_folder), batch_tokens=batch_tokens, device=device)
    leaves: dict[str, Task] = {}
    questions: list[dict[str, Any]] = []
    for benchmark, names in benchmarks.items():
        tasks = load_tasks(names)
        leaves |= tasks
        questions += [{"benchmark": benchmark, **question} for _, question in describe_questions(tasks)]
    requests: dict[str, list[Any]] = {}
    for template in templates:
        requests[template] = [one for task in leaves.values() for one in build_requests(task, template, model)]
        check_requests(questions, requests[template])

    rows: list[dict[str, Any]] = []
    known = Known()
    for name, folder in attack_folders:
        model.folder = check_folder(folder)
        variants = [variant for variant in read_variants(folder) if not (name and variant.blind)]
        answers = answer_variants(model, requests, variants, report, known)
        for (variant, form), values in answers.items():
            rows += [
                {**identity, "variant": f"{name}{variant}", "template": form, **row}
                for row in tabulate(questions, requests[form], values)
            ]
    table = pd.DataFrame(rows)[SCORE_SCHEMA.names].astype({"seed": "Int64"})
    write_table(pa.Table.from_pandas(table, schema=SCORE_SCHEMA, preserve_index=False), output)
