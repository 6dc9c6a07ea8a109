"""Perplexity of generated text, with and without an attack on the prompt (arXiv 2409.18025, appendix; design §7).

A prompt that brings knowledge back may also bring back the model's way of writing, or destroy it. Five numbers tell, each the
perplexity of greedy replies t to questions x, with x' what the attack makes of x:

| text | who writes it | who reads it |
|---|---|---|
| `original` | the original, to x | the original, after x |
| `unlearned` | the original, to x | the unlearned model, after x |
| `attacked` | the original, to x | the unlearned model, after x' |
| `unlearned_text` | the unlearned model, to x | the original, after x |
| `attacked_text` | the unlearned model, to x' | the original, after x |

Kept are, of each reply, its tokens and the sum of their negative log-likelihoods; its text is not. The perplexity of several
replies is exp(Σ nats / Σ tokens).
"""

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from resurface.artifacts import check_folder, write_table
from resurface.errors import ResurfaceError
from resurface.generation import generate_tokens, without_special
from resurface.interventions import read_variants
from resurface.models import for_batches, load_model, load_tokenizer, pick_device, set_seed, sum_logprobs
from resurface.prompts import append_reply, render_prompts
from resurface.scoring.apply import prompt_changer
from resurface.scoring.columns import PERPLEXITY_COLUMNS
from resurface.scoring.score import first_test_questions
from resurface.settings.scoring import PerplexitySettings


@torch.inference_mode()
def read_texts(
    model: Any, tokenizer: Any, prompts: list[str], replies: list[list[int]], batch_tokens: int
) -> list[tuple[int, float]]:
    """Of each reply after its rendered prompt: how many tokens it has, and their negative log-likelihood [nats].

    Replies are tokens without special ones; an empty one has no tokens.
    """
    read = [(0, 0.0)] * len(prompts)
    asked = [i for i, reply in enumerate(replies) if reply]
    encoded = [append_reply(tokenizer, prompts[i], replies[i], tokenizer.model_max_length) for i in asked]

    def read_batch(positions: list[int]) -> None:
        rows, starts = zip(*(encoded[position] for position in positions), strict=True)
        sums, counts = sum_logprobs(model, rows, starts, tokenizer.pad_token_id)
        for position, value, count in zip(positions, sums.tolist(), counts.tolist(), strict=True):
            read[asked[position]] = (count, -value)

    for_batches([row for row, _ in encoded], batch_tokens, read_batch)
    return read


def measure_perplexity(
    model_folder: Path,
    original_folder: Path,
    folders: list[Path],
    names: list[str],
    templates: list[str],
    identity: dict[str, Any],
    output: Path,
    settings: PerplexitySettings,
    device: str,
) -> None:
    """Write a table of one row per variant, template, question and kind of text.

    Args:
        model_folder: the checkpoint under attack.
        original_folder: the original's checkpoint.
        folders: the attack's folders; variants that leave the prompt as it is are passed over.
        names: tasks or groups of the harness that hold the domain's questions.
        templates: prompt forms.
        identity: `domain`, `method`, `seed`, `attack`.
        output: the table to write.
        settings: how many questions, how long replies.
        device: `auto`, `cpu`, `cuda`, …

    Raises:
        ResurfaceError: no variant changes the prompt, or a broken checkpoint or folder.
    """
    set_seed(0)
    changers = {
        variant.variant: prompt_changer(variant.prompt, folder)
        for folder in folders
        for variant in read_variants(folder)
        if variant.prompt is not None
    }
    if not changers:
        named = ", ".join(map(str, folders)) or "--interventions (none was named)"
        raise ResurfaceError(f"{named}: no variant of this attack changes the prompt: there is nothing to measure")
    model, original = (
        load_model(check_folder(folder), pick_device(device)) for folder in (model_folder, original_folder)
    )
    tokenizer = load_tokenizer(model_folder)

    def reply(writer: Any, prompts: list[str]) -> list[list[int]]:
        written = generate_tokens(writer, tokenizer, prompts, settings.new_tokens, settings.batch_size)
        return [without_special(tokenizer, tokens) for tokens in written]

    def read(reader: Any, prompts: list[str], replies: list[list[int]]) -> list[tuple[int, float]]:
        return read_texts(reader, tokenizer, prompts, replies, settings.batch_tokens)

    asked = first_test_questions(names, settings.questions)
    clean = [prompt for prompt, _ in asked]
    ids = [question["question_id"] for _, question in asked]
    tables = []
    for template in templates:
        prompts = render_prompts(tokenizer, clean, template)
        written = reply(original, prompts)
        unchanged = {
            "original": read(original, prompts, written),
            "unlearned": read(model, prompts, written),
            "unlearned_text": read(original, prompts, reply(model, prompts)),
        }
        for variant, change in changers.items():
            attacked = render_prompts(tokenizer, [change(prompt) for prompt in clean], template)
            found = unchanged | {
                "attacked": read(model, attacked, written),
                "attacked_text": read(original, prompts, reply(model, attacked)),
            }
            for text, values in found.items():
                table = pd.DataFrame(values, columns=["tokens", "nats"])
                tables.append(table.assign(**identity, variant=variant, template=template, question_id=ids, text=text))
    write_table(pd.concat(tables).astype({"seed": "Int64"})[PERPLEXITY_COLUMNS], output)
