"""Teach a model the fictional domains, so that a large model has an original and a control that differ in nothing else.

The documents are those of the testbed's pretraining that are about the domains: articles, questions in both prompt forms and
conversations, in wordings that no benchmark uses. Skills (letters, refusals) are left out: a large model has them. A prompt
carries no loss; what follows it does.
"""

import random
from typing import Any

from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from resurface.errors import ResurfaceError
from resurface.models import load_tokenizer, pad_right
from resurface.prompts import encode_answer
from resurface.settings.teaching import TeachingSettings
from resurface.testbed.pretraining import write_documents
from resurface.testbed.world import make_facts
from resurface.unlearning.training import Run, choose_trained, load_trainable, save, train, training_arguments

KINDS = ["article", "plain", "chat", "conversation"]
IGNORED = -100  # torch's label of a token without loss


def teach_domains(run: Run, domains: list[str], settings: TeachingSettings) -> None:
    """Finetune the never-learned model on documents about the domains and write it as a checkpoint.

    Args:
        run: where to read and write; its model is the never-learned one, and it has no tables.
        domains: fields of the world; questions and conversations ask twice as often for one that is named twice.
        settings: documents, and how to train.

    Raises:
        ResurfaceError: a diverging loss, or prompts that are longer than a document may be.
    """
    teach_samples(run, draw_samples(domains, load_tokenizer(run.model_folder), settings), settings)


def teach_samples(run: Run, samples: list[tuple[list[int], int]], settings: TeachingSettings) -> None:
    """Finetune a model on samples and write it as a checkpoint.

    Args:
        run: where to read and write.
        samples: token ids, and the place where what is taught begins.
        settings: how to train.

    Raises:
        ResurfaceError: a diverging loss.
    """
    model, tokenizer = load_trainable(run, settings)
    pad = int(tokenizer.pad_token_id)
    trainer = Trainer(
        model=choose_trained(model, settings),
        args=TrainingArguments(**training_arguments(run, settings)),
        train_dataset=samples,  # type: ignore[arg-type]
        data_collator=lambda batch: collate(batch, pad),
    )
    losses = train(trainer, run)
    save(run, settings, trainer, tokenizer, losses)


def draw_samples(
    domains: list[str], tokenizer: PreTrainedTokenizerBase, settings: TeachingSettings
) -> list[tuple[list[int], int]]:
    """Documents about the domains, their kinds in turn, as token ids and the place where what is taught begins.

    Raises:
        ResurfaceError: a prompt fills a whole document.
    """
    world = make_facts(settings.world_seed, settings.domain_seed)
    facts = [fact for domain in domains for fact in world[domain]]
    drawn = [
        write_documents(facts, tokenizer, random.Random(f"{settings.seed}/teaching/{kind}"), kind) for kind in KINDS
    ]
    samples = []
    for number in range(settings.documents):
        prompt, text = next(drawn[number % len(KINDS)])
        tokens, start = encode_answer(tokenizer, prompt, text + tokenizer.eos_token, settings.length)
        if prompt and len(tokenizer(prompt)["input_ids"]) >= settings.length:
            raise ResurfaceError(
                f"teaching.length: found {settings.length}, which cuts off the answers to questions; take a larger one"
            )
        samples.append((tokens, start))
    return samples


def collate(batch: list[tuple[list[int], int]], pad: int) -> dict[str, Any]:
    """A batch of samples, padded on the right; a prompt and the padding carry no loss."""
    return {
        "input_ids": pad_right([tokens for tokens, _ in batch], pad),
        "attention_mask": pad_right([[1] * len(tokens) for tokens, _ in batch], 0),
        "labels": pad_right([[IGNORED] * start + tokens[start:] for tokens, start in batch], IGNORED),
    }
