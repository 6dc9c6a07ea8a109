"""Orthogonalization: remove the direction that unlearning added to the residual stream (arXiv 2409.18025, section 4).

On train questions that the original answers and the unlearned model misses, the direction of each block is

    d_ℓ = mean h_ℓ(unlearned) − mean h_ℓ(reference)

over question tokens, the header skipped. The reference is the original on the same questions (`original`), the unlearned
model on benign questions (`benign`) or on plain text (`text`); `principal` is instead the first principal component of
standardized tokens of both models. Tokens with outlying activations are left out of the means. The intervention is
directional ablation (Arditi et al. 2024, arXiv 2406.11717): h_ℓ ← h_ℓ − (h_ℓ · d̂_ℓ) d̂_ℓ at chosen blocks, each its own.

One pass over the data serves all blocks and all references. Sums stay where the model computes, those of tokens that may be left
out apart, so that memory grows neither with the number of questions nor with the vocabulary.
"""

from dataclasses import dataclass
from itertools import accumulate, islice

import torch
from safetensors.torch import save_file
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import one_hot
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
        apart: token ids that are summed by themselves, in ascending order.
        sums: sums of activations, `[blocks, len(apart) + 1, hidden]`, float32 on the CPU: of each such id, and last of all other tokens.
        counts: how many tokens these are, `[len(apart) + 1]`.
    """

    first: torch.Tensor
    first_ids: torch.Tensor
    apart: list[int]
    sums: torch.Tensor
    counts: torch.Tensor

    def mean_without(self, outliers: list[set[int]]) -> torch.Tensor:
        """Mean activation of each block `[blocks, hidden]` over all tokens but the block's outlying ids, each of them one of `apart`."""
        means = []
        for sums, left_out in zip(self.sums, outliers, strict=True):
            assert left_out <= set(self.apart), "what is summed with others cannot be left out"
            kept = torch.tensor([token not in left_out for token in self.apart] + [True])
            if not self.counts[kept].any():
                kept[:] = True
            means.append(sums[kept].sum(0) / self.counts[kept].sum())
        return torch.stack(means)

    def first_without(self, outliers: list[set[int]], tokens: int) -> list[torch.Tensor]:
        """Of each block the first `tokens` activations that are not outlying, `[≤ tokens, hidden]`."""
        return [
            states[torch.tensor([token not in left_out for token in self.first_ids.tolist()])][:tokens]
            for states, left_out in zip(self.first, outliers, strict=True)
        ]


def find_first_ids(rows: list[list[int]], skip: int, count: int) -> list[int]:
    """Ids of the first `count` tokens that are not skipped, over all rows in turn."""
    return list(islice((token for row in rows for token in row[skip:]), count))


@torch.inference_mode()
def collect(
    model: PreTrainedModel, rows: list[list[int]], skip: int, keep: int, batch_tokens: int, apart: set[int]
) -> Activations:
    """Run a model over token rows and collect `h_ℓ` of all blocks.

    Args:
        model: the decoder.
        rows: token ids.
        skip: first tokens of each row to leave out.
        keep: how many tokens to keep one by one, in the order of `rows`.
        batch_tokens: padded tokens per forward pass.
        apart: token ids to sum by themselves.
    """
    rows = [row for row in rows if len(row) > skip]
    blocks = list(range(len(decoder_blocks(model))))
    ids = sorted(apart)
    group_of = {token: group for group, token in enumerate(ids)}
    sums = torch.zeros(len(blocks), len(ids) + 1, model.config.hidden_size, device=model.device)
    counts = torch.zeros(len(ids) + 1, dtype=torch.long)
    kept: dict[int, torch.Tensor] = {}
    starts = list(accumulate((len(row) - skip for row in rows), initial=0))
    with recording(model, blocks) as states, tqdm(total=len(rows), desc="activations", disable=None) as progress:

        def add(positions: list[int]) -> None:
            batch = [rows[position] for position in positions]
            run_decoder(model, pad_right(batch, 0).to(model.device))
            for i, position in enumerate(positions):
                row = rows[position]
                if starts[position] < keep:
                    kept[position] = torch.stack([states[block][i, skip : len(row)] for block in blocks]).cpu().float()
            is_read = pad_right([[0] * skip + [1] * (len(row) - skip) for row in batch], 0)
            # On the model's first device, where all states are, however blocks are spread.
            places = is_read.flatten().nonzero()[:, 0].to(model.device)
            groups = torch.tensor([group_of.get(token, len(ids)) for row in batch for token in row[skip:]])
            present, member_of = groups.unique(return_inverse=True)
            # A product with zeros and ones adds in the same order each time, which adding at indices on a GPU does not.
            membership = one_hot(member_of, len(present)).T.float().to(model.device)
            totals = torch.stack([membership @ states[block].flatten(0, 1)[places].float() for block in blocks])
            # All at once and last: a batch that memory has no room for comes again in parts.
            sums.index_add_(1, present.to(model.device), totals)
            counts.index_add_(0, present, member_of.bincount())
            progress.update(len(batch))

        for_batches(rows, batch_tokens, add)
    first = torch.cat([kept[position] for position in sorted(kept)], dim=1)[:, :keep]
    return Activations(first, torch.tensor(find_first_ids(rows, skip, keep)), ids, sums.cpu(), counts)


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
    retained = read_questions(target.data_folder, "retain_questions")[: len(forget)]
    benign = tokenizer([prompt for prompt, _ in retained])["input_ids"]
    texts = tokenizer(
        read_domain_table(target.data_folder, "retain_corpus")["text"].tolist()[: len(forget)],
        truncation=True,
        max_length=settings.text_length,
    )["input_ids"]

    skip, keep = settings.skip_tokens, max(settings.principal_tokens, settings.outlier_tokens)
    longest = max(map(len, forget))
    if skip >= longest:
        raise ResurfaceError(
            f"orthogonalization.skip_tokens: found {skip}, but the longest question has {longest} tokens; leave some of them"
        )
    # Only these can be outlying.
    apart = {
        *find_first_ids(forget, skip, settings.outlier_tokens),
        *find_first_ids(benign, 0, settings.outlier_tokens),
    }
    unlearned_forget = collect(unlearned, forget, skip, keep, batch_tokens, apart)
    original_forget = collect(original, forget, skip, keep, batch_tokens, apart)
    unlearned_benign = collect(unlearned, benign, 0, keep, batch_tokens, apart)
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
            on_text = collect(unlearned, texts, 0, 1, batch_tokens, apart)
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
