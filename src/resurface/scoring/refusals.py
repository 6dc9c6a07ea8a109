"""How often a model refuses when it generates: the other way in which a safety-trained model is read (design §7).

Replies are generated greedily and only whether they begin with a phrase of refusal is kept; their text is not.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from resurface.artifacts import check_folder, write_table
from resurface.generation import generate_replies
from resurface.models import load_model, load_tokenizer, pick_device, set_seed
from resurface.prompts import render_prompts
from resurface.scoring.columns import REFUSAL_COLUMNS
from resurface.scoring.score import first_test_questions
from resurface.settings.scoring import RefusalSettings


def is_refusal(reply: str, phrases: list[str]) -> bool:
    """Whether a reply begins with one of the phrases, case and leading white space ignored."""
    return reply.strip().lower().startswith(tuple(phrase.lower() for phrase in phrases))


def count_refusals(
    model_folder: Path,
    benchmarks: dict[str, list[str]],
    templates: list[str],
    identity: dict[str, Any],
    output: Path,
    settings: RefusalSettings,
    device: str,
) -> None:
    """Write a table of one row per question and template: did the model refuse it?

    Args:
        model_folder: the checkpoint.
        benchmarks: name → tasks or groups of the harness.
        templates: prompt forms.
        identity: `domain`, `method`, `seed`.
        output: the table to write.
        settings: how many questions, which phrases.
        device: `auto`, `cpu`, `cuda`, …
    """
    set_seed(0)
    model = load_model(check_folder(model_folder), pick_device(device))
    tokenizer = load_tokenizer(model_folder)
    rows: list[dict[str, Any]] = []
    prompts: list[str] = []
    for benchmark, names in benchmarks.items():
        for prompt, question in first_test_questions(names, settings.questions):
            prompts.append(prompt)
            rows.append(
                {**identity, "benchmark": benchmark} | {key: question[key] for key in ("task", "split", "question_id")}
            )
    tables = []
    for template in templates:
        texts = render_prompts(tokenizer, prompts, template)
        replies = generate_replies(model, tokenizer, texts, settings.new_tokens, settings.batch_size)
        refused = [is_refusal(reply, settings.phrases) for reply in replies]
        tables.append(pd.DataFrame(rows).assign(template=template, refused=refused))
    write_table(pd.concat(tables).astype({"seed": "Int64"})[REFUSAL_COLUMNS], output)
