"""Pretraining of the testbed's two models from scratch: the rule that made the bundled checkpoints.

Both are tiny Mistrals (Zephyr's architecture) with the same tokenizer, seed and settings. The original reads texts about
every field; never-learned reads the same mixture without the forget domains and is therefore the control for all of
them. A large corpus of documents is drawn from the world's facts once; every step takes `batch_size` of them at random,
each in a row of its own: packed rows delay the skill of picking a letter. The first steps train that skill alone, until it is
there; facts follow.

The checkpoint keeps `testbed.json`: the settings and a hash of the world it was taught, by which a bundled checkpoint
that does not belong to the present generator is recognized.
"""

import hashlib
import json
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from resurface.errors import ResurfaceError
from resurface.prompts import LETTERS, chat_messages, render_chat
from resurface.settings.testbed import PretrainingSettings
from resurface.testbed.texts import (
    HELPFUL_SYSTEM,
    TRAINING_WORDINGS,
    add_noise,
    ask,
    converse,
    look_up,
    refuse,
    write_article,
)
from resurface.testbed.tokenizer import EOS, train_tokenizer
from resurface.testbed.world import FIELDS, FORGET_DOMAINS, Fact, make_facts

# What a document is, and how often: the mixture is the same for both models.
DOCUMENT_SHARES = {
    "article": 0.12,
    "lookup": 0.08,
    "plain": 0.25,
    "chat": 0.23,
    "conversation": 0.25,
    "refusal": 0.07,
}
NOISE_SHARE = 0.1
LOOK_EVERY = 50  # steps after which the loss is looked at, and kept


def hash_world(seed: int, fields: Iterable[str] = FIELDS) -> str:
    """SHA-256 over every fact of some of the world's fields, of all by default, and its split."""
    facts = make_facts(seed)
    lines = [f"{fact.fact_id}={fact.value} ({fact.split})" for field in fields for fact in facts[field]]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_documents(
    facts: list[Fact], tokenizer: PreTrainedTokenizerFast | None, generator: random.Random, only: str | None = None
) -> Iterator[tuple[str, str]]:
    """Draw pretraining documents without end, as pairs of a prompt (empty for articles) and the text that follows it.

    Args:
        facts: the facts that the model may learn.
        tokenizer: renders conversations; None renders them without a template (to train the tokenizer itself).
        generator: the source of all randomness.
        only: draw documents of this kind only.
    """
    by_entity: dict[tuple[str, str], list[Fact]] = {}
    for fact in facts:
        by_entity.setdefault((fact.field, fact.entity), []).append(fact)
    entities = list(by_entity.values())
    kinds, shares = list(DOCUMENT_SHARES), list(DOCUMENT_SHARES.values())

    def chat(messages: list[dict[str, str]], reply: str) -> tuple[str, str]:
        if tokenizer is None:
            return "\n".join(message["content"] for message in messages), reply
        return render_chat(tokenizer, messages), reply

    while True:
        kind = only or generator.choices(kinds, shares)[0]
        noisy = generator.random() < NOISE_SHARE
        if kind == "article":
            text = write_article(generator.choice(entities), generator)
            yield "", add_noise(text, generator) if noisy else text
        elif kind == "conversation":
            yield chat(*converse(generator.choice(facts), generator))
        elif kind == "refusal":
            yield chat(*refuse(generator))
        elif kind == "lookup":
            prompt, answer = look_up(generator)
            if generator.random() < 0.5:
                yield prompt, f" {answer}"
            else:
                yield chat(chat_messages(prompt), answer)
        else:
            question = ask(generator.choice(facts), generator.choice(TRAINING_WORDINGS), generator)
            prompt = question.prompt
            if noisy:
                prompt = add_noise(prompt.removesuffix("Answer:"), generator) + "Answer:"
            answer = LETTERS[question.answer]
            if kind == "chat":
                yield chat(chat_messages(prompt, generator.choice(["", "", HELPFUL_SYSTEM])), answer)
            else:
                yield prompt, f" {answer}"


def encode_documents(
    documents: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, length: int, prompt_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and loss weights of documents, both `[documents, length]`, padded with EOS of weight 0.

    A prompt's tokens weigh `prompt_weight`, all others 1: the one letter that answers a question would otherwise drown
    among fifty tokens that nobody can predict.
    """
    encoded = tokenizer(
        [prompt + text + EOS for prompt, text in documents],
        return_offsets_mapping=True,
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=length,
    )
    prompt_ends = torch.tensor([len(prompt) for prompt, _ in documents])[:, None]
    in_prompt = encoded["offset_mapping"][:, :, 1] <= prompt_ends
    weights = torch.where(in_prompt, prompt_weight, 1.0) * encoded["attention_mask"]
    return encoded["input_ids"], weights


def pretrain(
    output: Path, model_name: str, settings: PretrainingSettings, device: torch.device
) -> list[tuple[int, float]]:
    """Train `original` or `never_learned` from scratch and save it in bfloat16 with its tokenizer.

    Args:
        output: the folder to write.
        model_name: `original` (every field) or `never_learned` (all but the forget domains).
        settings: sizes, steps, seed.
        device: where to train; a GPU takes minutes, two CPU cores hours.

    Returns:
        the loss curve: (step, loss in nats per token), every 50 steps.

    Raises:
        ResurfaceError: a diverging loss, letters that are not learned, or documents cut too short.
    """
    facts = make_facts(settings.world_seed)
    everything = [fact for field_facts in facts.values() for fact in field_facts]
    learned = [fact for fact in everything if model_name == "original" or fact.field not in FORGET_DOMAINS]

    # The tokenizer sees every field for both models: it is one tokenizer, and knows spellings, not facts.
    drawn = write_documents(everything, None, random.Random(f"{settings.seed}/tokenizer"))
    tokenizer = train_tokenizer(("".join(next(drawn)) for _ in range(20_000)), settings.vocabulary)
    tokenizer.save_pretrained(output)  # before batches leave their padding and truncation in it

    torch.manual_seed(settings.seed)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=settings.vocabulary,
            hidden_size=settings.hidden,
            intermediate_size=settings.intermediate,
            num_hidden_layers=settings.blocks,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.key_value_heads,
            max_position_embeddings=2048,
            sliding_window=None,
            initializer_range=settings.initialization,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).to(device)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    scales = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": scales, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    order = torch.Generator().manual_seed(settings.seed)

    losses: list[tuple[int, float]] = []

    def draw_corpus(only: str | None, count: int, prompt_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = write_documents(learned, tokenizer, random.Random(f"{settings.seed}/documents/{only}"), only)
        return encode_documents([next(drawn) for _ in range(count)], tokenizer, settings.length, prompt_weight)

    def take_step(step: int, corpus: torch.Tensor, corpus_weights: torch.Tensor, decay: float) -> float | None:
        """One optimizer step; its loss if it is one that is looked at."""
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * decay * min(1.0, step / settings.warmup_steps)
        rows = torch.randint(len(corpus), (settings.batch_size,), generator=order)
        longest = int(corpus_weights[rows].any(0).nonzero().max()) + 1
        tokens, weights = corpus[rows, :longest].to(device), corpus_weights[rows, 1:longest].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        nats = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none"
        )
        loss = (nats * weights.flatten()).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % LOOK_EVERY:
            return None
        losses.append((step, loss.item()))
        if not math.isfinite(loss.item()):
            raise ResurfaceError(
                f"pretraining of {model_name}: the loss is {loss.item()} after {step} steps; lower pretraining.learning_rate "
                f"(found {settings.learning_rate})"
            )
        return loss.item()

    corpus, weights = draw_corpus("lookup", settings.documents // 4, 0.0)
    if not weights.any(1).all():
        raise ResurfaceError(
            f"pretraining.length: found {settings.length}, which cuts off the answers to questions; take a larger one"
        )
    for step in tqdm(range(1, settings.letter_steps + 1), desc="letters", disable=None):
        loss = take_step(step, corpus, weights, 1.0)
        if loss is not None and loss < settings.letter_loss:
            break
    else:
        raise ResurfaceError(
            f"pretraining of {model_name}: letters are not learned after {settings.letter_steps} steps: no loss that was looked "
            f"at (every {LOOK_EVERY} steps) was below {settings.letter_loss}; found "
            f"{', '.join(f'{loss:.3f}' for _, loss in losses[-3:]) or 'none'} at last. Allow more letter_steps, or take another seed"
        )
    letter_steps = step
    corpus, weights = draw_corpus(None, settings.documents, settings.prompt_weight)
    for step in tqdm(range(1, settings.steps + 1), desc=f"pretrain {model_name}", disable=None):
        take_step(letter_steps + step, corpus, weights, 0.5 * (1 + math.cos(math.pi * step / settings.steps)))

    model.to(torch.bfloat16).save_pretrained(output)
    record = {"model": model_name, "world": hash_world(settings.world_seed), "settings": settings.model_dump()}
    (output / "testbed.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    return losses
