"""Score a model under every variant of an attack, on the harness's tasks, into one score table (design §4).

The harness's task objects load the questions and build the requests, once per template; `ResurfaceLM` answers them. The
table is written from log-probabilities. It holds no question text: a question is known by the hash of its text.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lm_eval.tasks
import pandas as pd
import pyarrow as pa
from lm_eval.api.task import Task

from resurface.artifacts import check_folder, write_table
from resurface.errors import ResurfaceError
from resurface.interventions import read_variants
from resurface.scoring.language_model import LogLikelihood, ResurfaceLM, answer_variants

Template = Literal["plain", "chat"]

TASK_FOLDER = Path(__file__).parents[1] / "testbed" / "tasks"

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


def load_tasks(names: list[str]) -> dict[str, Task]:
    """The leaf tasks of the named tasks and groups, by name.

    Local tasks load without the harness's own thousands; those are indexed only if a name is not local.

    Raises:
        ResurfaceError: the harness knows no such task, or it is not multiple choice.
    """
    manager = lm_eval.tasks.TaskManager(include_path=str(TASK_FOLDER), include_defaults=False)
    if not all(name in manager.all_tasks for name in names):
        manager = lm_eval.tasks.TaskManager(include_path=str(TASK_FOLDER))
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
    return leaves


def describe_question(task: Task, doc: dict[str, Any]) -> dict[str, Any]:
    """What a score table says of a question: id, cluster, split and the index of the right choice.

    The id hashes the question's own text and choices. `split` and `cluster` (questions that ask for the same thing) are
    the document's own where it has them; else every fifth id is `validation`, and a question is its own cluster.

    Raises:
        ResurfaceError: the task's right answer is not one of its choices.
    """
    choices = [str(choice) for choice in doc.get("choices") or task.doc_to_choice(doc)]
    text = str(doc.get("question") or task.doc_to_text(doc))
    question_id = hashlib.sha256("\n".join([text, *choices]).encode()).hexdigest()[:16]
    answer = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(answer, str) and answer in task.doc_to_choice(doc):
        answer = task.doc_to_choice(doc).index(answer)
    if not isinstance(answer, int) or not 0 <= answer < len(task.doc_to_choice(doc)):
        raise ResurfaceError(f"benchmarks: question {question_id} of {task.task_name} has no single right choice")
    split = doc.get("split") or ("validation" if int(question_id, 16) % 5 == 0 else "test")
    cluster = doc.get("cluster")
    return {
        "question_id": question_id,
        "cluster": hashlib.sha256(str(cluster).encode()).hexdigest()[:16] if cluster else question_id,
        "split": split,
        "answer": answer,
    }


def build_requests(task: Task, template: Template, model: ResurfaceLM) -> list[Any]:
    """Let the harness build a task's requests, zero-shot, in a template."""
    chat = {"apply_chat_template": True, "chat_template": model.apply_chat_template} if template == "chat" else {}
    task.build_all_requests(tokenizer_name=model.tokenizer_name, **chat)
    return list(task.instances)


def tabulate(
    questions: dict[tuple[str, int], dict[str, Any]], requests: list[Any], answers: list[LogLikelihood]
) -> list[dict[str, Any]]:
    """One row per question: its log-probabilities, the choice they prefer (the first of equals) and whether it is right."""
    logprobs: dict[tuple[str, int], list[float]] = {}
    for request, (logprob, _) in zip(requests, answers, strict=True):
        logprobs.setdefault((request.task_name, request.doc_id), []).append(logprob)
    rows = []
    for key, values in logprobs.items():
        prediction = max(range(len(values)), key=values.__getitem__)
        rows.append(
            {
                **questions[key],
                "prediction": prediction,
                "correct": prediction == questions[key]["answer"],
                "logprobs": values,
            }
        )
    return rows


def score(
    model_folder: Path,
    attack_folders: list[Path],
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
        attack_folders: the attack's folders; several where its variants were made by several jobs.
        benchmarks: name → tasks or groups of the harness.
        templates: prompt forms.
        identity: `domain`, `method`, `seed` (None for a reference model without attack) and `attack`.
        output: the score table to write.
        batch_tokens: padded tokens per forward pass.
        device: `auto`, `cpu`, `cuda`, …
        report: called with a line before each pass.

    Raises:
        ResurfaceError: a folder is not as its job left it, or a task cannot be scored.
    """
    check_folder(model_folder)
    model = ResurfaceLM(str(model_folder), batch_tokens=batch_tokens, device=device)
    requests: dict[str, list[Any]] = {template: [] for template in templates}
    questions: dict[tuple[str, int], dict[str, Any]] = {}
    for benchmark, names in benchmarks.items():
        for name, task in load_tasks(names).items():
            for template in templates:
                requests[template] += build_requests(task, template, model)
            seen: dict[str, int] = {}
            for doc_id, doc in task.doc_iterator(rank=0, limit=None, world_size=1):
                question = describe_question(task, doc)
                repeat = seen[question["question_id"]] = seen.get(question["question_id"], -1) + 1
                if repeat:
                    question["question_id"] += f"-{repeat}"
                questions[name, doc_id] = {"benchmark": benchmark, "task": name, **question}

    rows: list[dict[str, Any]] = []
    for folder in attack_folders:
        model.folder = check_folder(folder)
        answers = answer_variants(model, requests, read_variants(folder), report)
        for (variant, form), values in answers.items():
            rows += [
                {**identity, "variant": variant, "template": form, **row}
                for row in tabulate(questions, requests[form], values)
            ]
    table = pd.DataFrame(rows).astype({"seed": "Int64"})
    write_table(pa.Table.from_pandas(table, schema=SCORE_SCHEMA, preserve_index=False), output)
