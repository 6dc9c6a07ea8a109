"""Orthogonalization: remove the direction that unlearning added to the residual stream (arXiv 2409.18025, section 4).

On train questions that the original answers and the unlearned model misses, the direction of each block is

    d_ℓ = mean h_ℓ(unlearned) − mean h_ℓ(reference)

over question tokens, the header skipped. The reference is the original on the same questions (`original`), the unlearned
model on benign questions (`benign`) or on plain text (`text`); `principal` is instead the first principal component of
standardized tokens of both models. Tokens with outlying activations are left out of the means. The intervention is
directional ablation (Arditi et al. 2024, arXiv 2406.11717): h_ℓ ← h_ℓ − (h_ℓ · d̂_ℓ) d̂_ℓ at chosen blocks, each its own.

One pass over the data serves all blocks and all references; memory does not grow with the number of questions.
"""

from dataclasses import dataclass

import torch
from safetensors.torch import save_file
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm
from transformers import PreTrainedModel

from resurface.artifacts import publish_folder
from resurface.attacks.questions import find_hidden_questions
from resurface.attacks.target import Target
from resurface.data.tables import read_domain_table, read_questions
from resurface.decoder import decoder_blocks
from resurface.errors import ResurfaceError
from resurface.interventions import Directions, Variant, write_variants
from resurface.models import (
    check_blocks,
    for_batches,
    load_model,
    load_tokenizer,
    pad_right,
    pick_device,
    recording,
    run_decoder,
    set_seed,
)
from resurface.settings.orthogonalization import OrthogonalizationSettings


@dataclass
class Activations:
    """Activations of one model on one data set.

    Attributes:
        first: activations of the first tokens, `[blocks, tokens, hidden]`, float32 on the CPU.
        first_ids: their token ids, `[tokens]`.
        sums: token id → sum of its activations over all occurrences, `[vocabulary, blocks, hidden]`, as a dictionary.
        counts: token id → occurrences.
    """

    first: torch.Tensor
    first_ids: torch.Tensor
    sums: dict[int, torch.Tensor]
    counts: dict[int, int]

    def mean_without(self, outliers: list[set[int]]) -> torch.Tensor:
        """Mean activation of each block `[blocks, hidden]` over all tokens but the block's outlying token ids."""
        blocks, _, hidden = self.first.shape
        mean = torch.zeros(blocks, hidden)
        for block, left_out in enumerate(outliers):
            kept = [token for token in self.sums if token not in left_out] or list(self.sums)
            total = torch.stack([self.sums[token][block] for token in kept]).sum(0)
            mean[block] = total / sum(self.counts[token] for token in kept)
        return mean

    def first_without(self, outliers: list[set[int]], tokens: int) -> list[torch.Tensor]:
        """Of each block the first `tokens` activations that are not outlying, `[≤ tokens, hidden]`."""
        return [
            states[torch.tensor([token not in left_out for token in self.first_ids.tolist()])][:tokens]
            for states, left_out in zip(self.first, outliers, strict=True)
        ]


@torch.inference_mode()
def collect(model: PreTrainedModel, rows: list[list[int]], skip: int, keep: int, batch_tokens: int) -> Activations:
    """Run a model over token rows and collect `h_ℓ` of all blocks, summed by token id.

    Args:
        model: the decoder.
        rows: token ids.
        skip: first tokens of each row to leave out.
        keep: how many tokens to keep one by one, in the order of `rows`.
        batch_tokens: padded tokens per forward pass.
    """
    blocks = list(range(len(decoder_blocks(model))))
    sums: dict[int, torch.Tensor] = {}
    counts: dict[int, int] = {}
    kept: dict[int, torch.Tensor] = {}
    ends = torch.tensor([max(0, len(row) - skip) for row in rows]).cumsum(0).tolist()
    with recording(model, blocks) as states, tqdm(total=len(rows), desc="activations", disable=None) as progress:

        def add(positions: list[int]) -> None:
            batch = [rows[position] for position in positions]
            run_decoder(model, pad_right(batch, 0).to(model.device))
            hidden = torch.stack([states[block] for block in blocks], dim=2).float()  # [batch, seq, blocks, hidden]
            for i, position in enumerate(positions):
                row = rows[position]
                own = hidden[i, skip : len(row)]
                if ends[position] - len(own) < keep:
                    kept[position] = own.cpu()
            ids = torch.cat([torch.tensor(row[skip:], dtype=torch.long) for row in batch]).to(hidden.device)
            flat = torch.cat([hidden[i, skip : len(row)] for i, row in enumerate(batch)])
            unique, inverse = ids.unique(return_inverse=True)
            total = torch.zeros(len(unique), *flat.shape[1:], device=flat.device).index_add_(0, inverse, flat).cpu()
            for token, value, count in zip(unique.tolist(), total, inverse.bincount().tolist(), strict=True):
                sums[token] = sums[token] + value if token in sums else value
                counts[token] = counts.get(token, 0) + count
            progress.update(len(batch))

        for_batches(rows, batch_tokens, add)
    order = sorted(kept)
    first = torch.cat([kept[position] for position in order])[:keep].transpose(0, 1)
    first_ids = torch.cat([torch.tensor(rows[position][skip:], dtype=torch.long) for position in order])[:keep]
    return Activations(first, first_ids, sums, counts)


def find_outliers(activations: Activations, tokens: int, deviations: float) -> list[set[int]]:
    """Per block, the ids of tokens whose mean L1 distance to the other first tokens is unusually large.

    A token is outlying if its mean distance exceeds the mean of these by `deviations` standard deviations.
    """
    outliers = []
    for states in activations.first[:, :tokens]:
        distance = torch.cdist(states, states, p=1).sum(1) / max(1, len(states) - 1)
        far = distance > distance.mean() + deviations * distance.std()
        outliers.append(set(activations.first_ids[:tokens][far].tolist()))
    return outliers


def principal_directions(original: list[torch.Tensor], unlearned: list[torch.Tensor]) -> torch.Tensor:
    """First principal component of the standardized tokens of both models, per block, in the activations' own units.

    Args:
        original: per block `[tokens, hidden]`.
        unlearned: per block `[tokens, hidden]`.

    Returns:
        directions `[blocks, hidden]`.
    """
    directions = []
    for states in map(torch.cat, zip(original, unlearned, strict=True)):
        scaler = StandardScaler()
        standardized = scaler.fit_transform(states.numpy())
        # Only the first one is looked for: all 4,096 of a 7B model take a minute a block.
        component = PCA(1, svd_solver="arpack", random_state=0).fit(standardized).components_[0]
        directions.append(torch.from_numpy(component * scaler.scale_).float())
    return torch.stack(directions)


def attack(target: Target, settings: OrthogonalizationSettings, part: str) -> None:
    """Compute the directions of every reference and leave one variant per reference and set of blocks.

    Raises:
        ResurfaceError: a block that the model does not have, questions shorter than what is skipped, or a broken
            checkpoint or table.
    """
    set_seed(target.seed)
    tokenizer = load_tokenizer(target.model_folder)
    device = pick_device(target.device)
    unlearned = load_model(target.model_folder, device)
    original = load_model(target.original_folder, device)
    for name, blocks in settings.block_sets.items():
        check_blocks(blocks, unlearned, f"orthogonalization.block_sets.{name}")
    batch_tokens = settings.batch_tokens

    questions = read_questions(target.data_folder, "questions")[: settings.questions]
    hidden_questions = find_hidden_questions(questions, tokenizer, original, unlearned, batch_tokens)
    forget = tokenizer(hidden_questions or [prompt for prompt, _ in questions])["input_ids"]
    benign = tokenizer([prompt for prompt, _ in read_questions(target.data_folder, "retain_questions")[: len(forget)]])
    texts = tokenizer(
        read_domain_table(target.data_folder, "retain_corpus")["text"].tolist()[: len(forget)],
        truncation=True,
        max_length=settings.text_length,
    )

    skip, keep = settings.skip_tokens, max(settings.principal_tokens, settings.outlier_tokens)
    longest = max(map(len, forget))
    if skip >= longest:
        raise ResurfaceError(
            f"orthogonalization.skip_tokens: found {skip}, but the longest question has {longest} tokens; leave some of them"
        )
    unlearned_forget = collect(unlearned, forget, skip, keep, batch_tokens)
    original_forget = collect(original, forget, skip, keep, batch_tokens)
    unlearned_benign = collect(unlearned, benign["input_ids"], 0, keep, batch_tokens)
    outliers = [
        on_forget | on_benign
        for on_forget, on_benign in zip(
            find_outliers(original_forget, settings.outlier_tokens, settings.outlier_deviations),
            find_outliers(unlearned_benign, settings.outlier_tokens, settings.outlier_deviations),
            strict=True,
        )
    ]
    mean_unlearned = unlearned_forget.mean_without(outliers)
    directions: dict[str, torch.Tensor] = {}
    for reference in settings.references:
        if reference == "original":
            directions[reference] = mean_unlearned - original_forget.mean_without(outliers)
        elif reference == "benign":
            directions[reference] = mean_unlearned - unlearned_benign.mean_without(outliers)
        elif reference == "text":
            on_text = collect(unlearned, texts["input_ids"], 0, 1, batch_tokens)
            directions[reference] = mean_unlearned - on_text.mean_without(outliers)
        else:
            first = settings.principal_tokens
            directions[reference] = principal_directions(
                original_forget.first_without(outliers, first), unlearned_forget.first_without(outliers, first)
            )

    block_sets = {**settings.block_sets, "all": list(range(len(decoder_blocks(unlearned))))}
    with publish_folder(target.output) as folder:
        for name, rows in directions.items():
            save_file({"directions": rows.contiguous()}, folder / f"{name}.safetensors")
        write_variants(
            folder,
            [
                Variant(
                    variant=f"{name}-blocks-{block_set}",
                    model=Directions(file=f"{name}.safetensors", blocks=blocks),
                )
                for name in directions
                for block_set, blocks in block_sets.items()
            ],
        )
