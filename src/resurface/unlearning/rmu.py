"""RMU: representation misdirection for unlearning (Li et al. 2024, arXiv 2403.03218, section 4).

On forget text the output of block ℓ is pushed towards a fixed random direction, on retain text it is held where the
frozen model has it:

    L = ‖h_ℓ(x_forget) − c·u‖² + α ‖h_ℓ(x_retain) − h_ℓ^frozen(x_retain)‖²

Squares are means over tokens and dimensions. u has entries drawn from U[0, 1), then normalized: all positive, not
isotropic; each domain has its own. Only the layer by which the MLP writes (`mlp.down_proj`) of the blocks ℓ−2 … ℓ is trained,
and both passes end at block ℓ.
"""

import random
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainingArguments

from resurface.data.tables import read_domain_table
from resurface.decoder import name_mlp_output
from resurface.models import batch_rows, check_blocks, pad_right, recording, run_decoder
from resurface.prompts import chat_messages, render_chat
from resurface.settings.rmu import RMUSettings
from resurface.unlearning.training import (
    PartsTrainer,
    Run,
    choose_trained,
    load_trainable,
    save,
    train,
    training_arguments,
)


def draw_direction(hidden: int, domain: str, seed: int) -> torch.Tensor:
    """U `[hidden]` of a domain: entries from U[0, 1), normalized."""
    generator = torch.Generator().manual_seed(random.Random(f"{seed}/{domain}").getrandbits(63))
    direction = torch.rand(hidden, generator=generator)
    return direction / direction.norm()


def mean_square(difference: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of squares over real tokens and dimensions; `difference` `[batch, seq, hidden]`, `mask` `[batch, seq]`."""
    return (difference.square().mean(-1) * mask).sum() / mask.sum()


class RMUTrainer(PartsTrainer):
    """A `Trainer` whose loss is RMU's. Batches hold `forget` and `retain` token ids with their masks."""

    def __init__(self, *args: Any, settings: RMUSettings, target: torch.Tensor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings, self.target = settings, target
        # The frozen model differs from the trained one in these weights only: no second model is held.
        self.frozen = {
            name: weights.detach().clone()
            for name, weights in self.model.get_decoder().named_parameters()
            if weights.requires_grad
        }

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> torch.Tensor:
        """L of the module's docstring."""
        block = self.settings.block
        with self.accelerator.autocast(), recording(model, [block]) as states:
            run_decoder(model, inputs["forget"])
            forget_loss = mean_square(states[block].float() - self.target, inputs["forget_mask"])
            run_decoder(model, inputs["retain"])
            retained = states[block].float()
            with torch.no_grad():
                run_decoder(model, inputs["retain"], weights=self.frozen)
        retain_loss = mean_square(retained - states[block].float(), inputs["retain_mask"])
        self.note_parts(forget_loss=forget_loss, retain_loss=retain_loss)
        return forget_loss + self.settings.alpha * retain_loss


def read_texts(run: Run, settings: RMUSettings, tokenizer: PreTrainedTokenizerBase, name: str) -> list[str]:
    """The texts of a corpus in a seeded order, `chat_share` of them in the user turn of a chat."""
    texts = read_domain_table(run.data_folder, name)["text"].tolist()
    generator = random.Random(f"{run.seed}/{name}")
    generator.shuffle(texts)
    return [
        render_chat(tokenizer, chat_messages(text)) if generator.random() < settings.chat_share else text
        for text in texts
    ]


def collate(samples: list[dict[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Batches of `forget` and `retain` ids `[batch, seq]` and their masks."""
    batch = {}
    for name in ("forget", "retain"):
        rows = [sample[name] for sample in samples]
        batch[name] = pad_right(rows, pad)
        batch[f"{name}_mask"] = pad_right([[1] * len(row) for row in rows], 0).float()
    return batch


@torch.no_grad()
def mean_norm(model: Any, texts: list[list[int]], block: int, pad: int) -> float:
    """Mean norm of h_ℓ over the tokens of some forget texts (the first token, which sinks attention, left out)."""
    device = next(model.parameters()).device
    norms = []
    with recording(model, [block]) as states:
        for positions in batch_rows(texts, 2048):
            rows = [texts[position] for position in positions]
            run_decoder(model, pad_right(rows, pad).to(device))
            norms += [states[block][i, 1 : len(row)].norm(dim=-1) for i, row in enumerate(rows)]
    return torch.cat(norms).mean().item()


def unlearn(run: Run, settings: RMUSettings) -> None:
    """Unlearn a domain with RMU and save the checkpoint.

    Raises:
        ResurfaceError: a block that the model does not have, MLPs of several parts, a broken table or checkpoint, a diverging loss.
    """
    model, tokenizer = load_trainable(run, settings)
    check_blocks([settings.block], model, "rmu.block")
    pad = tokenizer.pad_token_id
    corpora = {
        name: tokenizer(
            read_texts(run, settings, tokenizer, f"{name}_corpus"),
            truncation=True,
            max_length=settings.length,
        )["input_ids"]
        for name in ("forget", "retain")
    }
    retain = corpora["retain"]
    samples = [{"forget": row, "retain": retain[i % len(retain)]} for i, row in enumerate(corpora["forget"])]

    coefficient = settings.coefficient
    if settings.coefficient_unit == "mean_norm":
        coefficient *= mean_norm(model, corpora["forget"][:64], settings.block, pad)
    target = coefficient * draw_direction(model.config.hidden_size, run.data_folder.name, run.seed).to(run.device)

    trainer = RMUTrainer(
        model=choose_trained(model, settings, name_mlp_output(model)),
        args=TrainingArguments(**training_arguments(run, settings)),
        train_dataset=samples,  # type: ignore[arg-type]
        data_collator=lambda batch: collate(batch, pad),
        settings=settings,
        target=target,
    )
    losses = train(trainer, run)
    save(run, settings, trainer, tokenizer, losses)
