"""Plain GCG (Zou et al. 2023, arXiv 2307.15043) by nanogcg: what enhanced GCG is compared with.

For one question that only the original answers, a prefix is searched that makes the attacked model begin its chat reply
as the original does. Nothing but these tokens is in the loss, and nothing but one question: each question is a search
and a variant of its own, and scoring shows how far its prefix carries to other questions. A job that is interrupted goes on
after the last search that was done.
"""

import logging

import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedModel

from resurface.artifacts import publish_folder, remove, write_table
from resurface.attacks.prefix import set_chats
from resurface.attacks.questions import read_hidden_questions
from resurface.attacks.target import Target
from resurface.errors import ResurfaceError
from resurface.generation import generate_replies
from resurface.interventions import Prepend, Variant, write_variants
from resurface.models import load_model, load_tokenizer, pick_device
from resurface.prompts import chat_messages, render_prompts, takes_system
from resurface.settings.gcg import GCGSettings

BATCH_TOKENS = 8192  # padded tokens per forward pass when both models answer the questions
PLACE = "{optim_str}"  # where nanogcg puts the prefix


def attack(target: Target, settings: GCGSettings, part: str) -> None:
    """Search a prefix for each question, and leave the best of each search as a variant.

    Raises:
        ResurfaceError: nanogcg is not installed, no question that only the original answers or one that it answers with nothing,
            too few tokens to draw from or to replace, no prefix that the tokenizer reads as it was written, or a broken
            checkpoint or table.
    """
    try:
        import nanogcg
    except ImportError:
        raise ResurfaceError(
            "attacks.gcg: the package nanogcg is not installed. `pip install --no-deps nanogcg==0.3.0` (it names an old "
            "transformers as its need, and works with a new one), or leave this attack out"
        ) from None

    logging.getLogger("nanogcg").setLevel(logging.ERROR)
    device = pick_device(target.device)
    tokenizer = load_tokenizer(target.model_folder)
    unlearned, original = (
        load_model(folder, device).requires_grad_(False) for folder in (target.model_folder, target.original_folder)
    )
    use_plain_embeddings(unlearned)
    prompts = read_hidden_questions(target, tokenizer, original, unlearned, BATCH_TOKENS)[: settings.questions]
    chats = set_chats(tokenizer, prompts, printable=not settings.allow_non_ascii)
    if settings.topk > len(chats.allowed):
        raise ResurfaceError(
            f"gcg.topk: found {settings.topk}, but of the tokenizer's {len(tokenizer)} tokens a prefix may consist of "
            f"{len(chats.allowed)}; take at most so many"
        )
    length = len(tokenizer(settings.optim_str_init, add_special_tokens=False)["input_ids"])
    if settings.n_replace > length:
        raise ResurfaceError(
            f"gcg.n_replace: found {settings.n_replace}, but gcg.optim_str_init has {length} tokens; take at most so many"
        )
    texts = render_prompts(tokenizer, prompts, "chat")
    answers = generate_replies(original, tokenizer, texts, settings.target_tokens, len(texts))
    if not all(answers):
        raise ResurfaceError(
            f"{target.original_folder}: this model answers a train question of {target.data_folder} with no text (number "
            f"{answers.index('')} of those that the model under attack does not know), so there is nothing to force; leave the attack gcg out"
        )
    options = settings.model_dump(exclude={"questions", "target_tokens"})
    skipped = 0 if takes_system(tokenizer) else 1
    variants, curves = [], []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        config = nanogcg.GCGConfig(
            **options,
            seed=target.seed + number,
            use_prefix_cache=False,  # its cache is of a form that transformers no longer takes
            verbosity="ERROR",
        )
        done = target.resume_folder / f"question{number}.parquet"  # searches that are done wait there for the others
        if not done.is_file():
            try:
                found = nanogcg.run(unlearned, tokenizer, chat_messages(PLACE + prompt)[skipped:], answer, config)
            except RuntimeError as error:
                if "decoding and re-encoding" not in str(error):
                    raise
                raise unreadable(target, settings) from error
            steps = range(1, len(found.losses) + 1)
            write_table(pd.DataFrame({"step": steps, "loss": found.losses, "prefix": found.strings}), done)
        curve = pd.read_parquet(done)
        # nanogcg looks at the prefix alone: in its chat it may be read differently, or hold tokens that end a turn.
        legal = next((text for text in curve.sort_values("loss", kind="stable")["prefix"] if chats.find(text)), None)
        if legal is None:
            raise unreadable(target, settings)
        variants.append(Variant(variant=f"question{number}", prompt=Prepend(text=legal)))
        curves.append(curve.assign(search=f"question{number}", best_loss=curve["loss"].cummin()))
    with publish_folder(target.output) as folder:
        pd.concat(curves).to_parquet(folder / "losses.parquet", index=False)
        write_variants(folder, variants)
    remove(target.resume_folder)


def use_plain_embeddings(model: PreTrainedModel) -> None:
    """Give a model input embeddings that are their weights: nanogcg reads those, and Gemma scales them afterwards."""
    own = model.get_input_embeddings()
    if type(own) is not nn.Embedding:
        vectors = own(torch.arange(own.num_embeddings, device=model.device)).detach()
        model.set_input_embeddings(nn.Embedding.from_pretrained(vectors))


def unreadable(target: Target, settings: GCGSettings) -> ResurfaceError:
    """The fault of a search that finds no prefix which the tokenizer reads as it was written."""
    return ResurfaceError(
        f"gcg: the tokenizer of {target.model_folder} reads none of the prefixes that this search came by as it was written; "
        f"start from another one (gcg.optim_str_init: found {settings.optim_str_init!r}), or search longer"
    )
