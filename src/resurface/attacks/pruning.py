"""Set difference pruning: remove the weights that do the unlearning (arXiv 2409.18025, section 4; Wei et al. 2402.05162).

A weight's score on a data set says how much the loss there depends on it. With the gradient score (Lee et al. 2019, SNIP)

    S(W) = |W| ⊙ Σ_s |∂L_s/∂W|,    L_s: mean over the answer's tokens of sample s,

and with the activation score (Sun et al. 2024, Wanda) S(W)_ij = |W_ij| · ‖X_j‖₂, X_j the layer's j-th input at the positions
that predict the answers' tokens. In every linear layer of the blocks those weights are set to zero that are

    among the top q % by the score on forget data, and not among the top p % by the score on utility data.

One pass over each data set gives the scores of all layers, and one sort of a layer's scores the whole grid of p and q. What is
kept is not a mask for each pair but a bitmap of the weights that any pair removes and, in a byte for each of these, from which q on
and up to which p it is removed: for the paper's 45 pairs at most 0.17 bytes per weight, a twelfth of the checkpoint in bfloat16.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from resurface.artifacts import publish_folder
from resurface.attacks.target import Target
from resurface.data.tables import read_domain_table, read_questions
from resurface.errors import ResurfaceError
from resurface.generation import generate_tokens, without_special
from resurface.interventions import STEP, Pruning, Variant, write_variants
from resurface.models import linear_names, load_model, load_tokenizer, pick_device, set_seed, sum_logprobs
from resurface.prompts import LETTERS, append_reply, chat_messages, encode_answer, list_options, render_chat
from resurface.settings.pruning import PruningSettings

Sample = tuple[list[int], int]  # token ids, and the place where the answer starts
Scores = dict[str, torch.Tensor]  # name of a layer → score of each weight, of the weight's shape

Ranks = dict[str, torch.Tensor]  # name of a layer → `first_share` of each weight

PERCENTS = pa.list_(pa.float64())
SCHEMA = pa.schema(
    [("layer", pa.string()), ("q", PERCENTS), ("p", PERCENTS), ("removed", pa.binary()), ("steps", pa.binary())]
)


def answer_loss(model: PreTrainedModel, sample: Sample) -> torch.Tensor:
    """L_s: mean negative log-likelihood of a sample's answer tokens [nats]."""
    tokens, start = sample
    total, count = sum_logprobs(model, [tokens], [start], pad=0)
    return -(total / count)[0]


def gradient_scores(model: PreTrainedModel, layers: list[str], samples: list[Sample]) -> Scores:
    """|W| ⊙ Σ_s |∂L_s/∂W| of all layers, float32, from one backward pass a sample."""
    weights = {name: model.get_submodule(name).weight for name in layers}
    model.requires_grad_(False)
    sums, handles = {}, []
    for name, weight in weights.items():
        sums[name] = torch.zeros_like(weight, dtype=torch.float32)

        def add(weight: torch.Tensor, total: torch.Tensor = sums[name]) -> None:
            assert weight.grad is not None
            total += weight.grad.abs_()
            weight.grad = None

        handles.append(weight.requires_grad_(True).register_post_accumulate_grad_hook(add))
    try:
        for sample in tqdm(samples, desc="gradient scores", disable=None):
            answer_loss(model, sample).backward()
    finally:
        for handle in handles:
            handle.remove()
    return {name: sums[name].mul_(weight.detach().abs()) for name, weight in weights.items()}


@torch.no_grad()
def activation_scores(model: PreTrainedModel, layers: list[str], samples: list[Sample]) -> Scores:
    """|W_ij| · ‖X_j‖₂ of all layers, from one forward pass a sample."""
    modules = {name: model.get_submodule(name) for name in layers}
    sums = {name: torch.zeros_like(module.weight[0], dtype=torch.float32) for name, module in modules.items()}
    seen: Scores = {}
    handles = [
        module.register_forward_pre_hook(lambda _module, inputs, name=name: seen.__setitem__(name, inputs[0][0]))
        for name, module in modules.items()
    ]
    try:
        for tokens, start in tqdm(samples, desc="activation scores", disable=None):
            model.get_decoder()(input_ids=torch.tensor([tokens], device=model.device), use_cache=False)
            for name, inputs in seen.items():
                sums[name] += inputs[start - 1 : -1].float().square().sum(0)
    finally:
        for handle in handles:
            handle.remove()
    return {name: module.weight.abs().float() * sums[name].sqrt() for name, module in modules.items()}


SCORES = {"gradient": gradient_scores, "activation": activation_scores}


def first_share(score: torch.Tensor, percents: Sequence[float]) -> torch.Tensor:
    """Of each weight, the first of `percents` such that it is among that top share of the layer.

    Args:
        score: of each weight, any shape; equal scores rank in the order of the weights.
        percents: shares of the layer in percent, rising, rounded to whole weights; at most 15.

    Returns:
        the place in `percents` `[weights]`, uint8 on the score's device; their number, if the weight is in none of these shares.
    """
    ends = [round(score.numel() * percent / 100) for percent in percents]
    shares = torch.full((score.numel(),), len(percents), dtype=torch.uint8, device=score.device)
    order = score.flatten().argsort(descending=True, stable=True)[: ends[-1]]
    lengths = torch.tensor(ends, device=score.device).diff(
        prepend=torch.zeros(1, dtype=torch.int64, device=score.device)
    )
    places = torch.arange(len(ends), dtype=torch.uint8, device=score.device).repeat_interleave(lengths)
    return shares.scatter_(0, order, places)


def rank_weights(scores: Scores, percents: Sequence[float], kind: str) -> Ranks:
    """`first_share` of all layers, on the CPU: a byte per weight, where a score takes four. Each score is dropped after its use.

    Raises:
        ResurfaceError: a score is not finite.
    """
    ranks = {}
    for name in list(scores):
        score = scores.pop(name)
        if not score.isfinite().all():
            raise ResurfaceError(f"pruning: some {kind} scores of {name} are not finite")
        ranks[name] = first_share(score, sorted(percents)).cpu()
    return ranks


def prunings(file: str, settings: PruningSettings) -> list[Pruning]:
    """The pairs (p, q) of the grid, p ≥ q, as changes of the model by the masks of `file`."""
    return [Pruning(file=file, p=p, q=q) for p in settings.p for q in settings.q if p >= q]


def open_masks(path: Path) -> pq.ParquetWriter:
    """A file of masks, to which rows of `SCHEMA` are written; each call of `write_table` makes a row group."""
    return pq.ParquetWriter(
        path, SCHEMA, compression="zstd", use_dictionary=False, write_statistics=False, write_page_checksum=True
    )


def write_masks(path: Path, forget: Ranks, utility: Ranks, settings: PruningSettings) -> pd.DataFrame:
    """Write which weights are removed, a row group of one row per layer, and count them.

    Columns: `layer`; `q` and `p`, the percents of the grid, rising; `removed`, of each weight of the flattened layer a bit that
    says whether any pair removes it (the first in the highest bit of a byte); `steps`, a byte for each of these weights in their
    order. Its upper four bits are the place in `q` from which on the weight is removed; its lower four are the place in `p` from
    which on it is kept, or the number of these if it never is.

    Returns:
        one row per pair and layer: `p`, `q`, `layer`, `weights`, `pruned`.
    """
    q, p = sorted(settings.q), sorted(settings.p)
    pairs = prunings(path.name, settings)
    removed_by = [pair.removed_steps(q, p) for pair in pairs]
    removed_by_any = np.any(removed_by, axis=0)
    counts = []
    with open_masks(path) as writer:
        for layer in forget:
            steps = (forget[layer] * STEP + utility[layer]).numpy()
            is_removed = removed_by_any[steps]
            steps = steps[is_removed]
            found = np.bincount(steps, minlength=len(removed_by_any))
            counts += [
                (pair.p, pair.q, layer, len(is_removed), int(found[removed].sum()))
                for pair, removed in zip(pairs, removed_by, strict=True)
            ]
            row = [layer, q, p, np.packbits(is_removed).tobytes(), steps.tobytes()]
            writer.write_table(pa.table([[value] for value in row], schema=SCHEMA))
    return pd.DataFrame(counts, columns=["p", "q", "layer", "weights", "pruned"])


def render(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[str]:
    """Every second prompt in chat form."""
    return [
        render_chat(tokenizer, chat_messages(prompt)) if place % 2 else prompt for place, prompt in enumerate(prompts)
    ]


def read_texts(
    target: Target, settings: PruningSettings, tokenizer: PreTrainedTokenizerBase, name: str
) -> list[Sample]:
    """Texts of a corpus in a seeded order, with loss on their last tokens."""
    texts = read_domain_table(target.data_folder, name)["text"].tolist()
    random.Random(f"{target.seed}/{name}").shuffle(texts)
    rows = tokenizer(texts[: settings.samples], truncation=True, max_length=settings.length)["input_ids"]
    return [(row, max(1, len(row) - settings.answer_tokens)) for row in rows if len(row) > 1]


def answer_questions(
    target: Target,
    settings: PruningSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> list[Sample]:
    """A model's own answers to the train questions of a table.

    Raises:
        ResurfaceError: the model answers none of them with any text.
    """
    prompts = [prompt for prompt, _ in read_questions(target.data_folder, name)]
    random.Random(f"{target.seed}/{name}").shuffle(prompts)
    texts = render(tokenizer, prompts[: settings.samples])
    written = generate_tokens(model, tokenizer, texts, settings.answer_tokens, settings.batch_size)
    replies = [without_special(tokenizer, tokens) for tokens in written]
    samples = [
        append_reply(tokenizer, text, reply, settings.length)
        for text, reply in zip(texts, replies, strict=True)
        if tokenizer.decode(reply).strip()
    ]
    if not samples:
        raise ResurfaceError(
            f"pruning: {model.config.name_or_path} answers none of {len(texts)} prompts of {name} with any text; score on "
            "`corpus` or on `questions` instead"
        )
    return samples


def solve_questions(target: Target, settings: PruningSettings, tokenizer: PreTrainedTokenizerBase) -> list[Sample]:
    """Benign train questions without header, answered by `C. text`."""
    table = read_domain_table(target.data_folder, "retain_questions")
    rows = table[table["split"] == "train"].to_dict("records")
    random.Random(f"{target.seed}/solved").shuffle(rows)
    rows = rows[: settings.samples]
    texts = render(tokenizer, [list_options(row["question"], list(row["choices"])) for row in rows])
    answers = [f"{LETTERS[row['answer']]}. {row['choices'][row['answer']]}" for row in rows]
    return [
        encode_answer(tokenizer, text, answer if place % 2 else f" {answer}", settings.length)
        for place, (text, answer) in enumerate(zip(texts, answers, strict=True))
    ]


def attack(target: Target, settings: PruningSettings, part: str) -> None:
    """Score all weights on the data set pair `part` and leave one variant per score and pair (p, q).

    Raises:
        ResurfaceError: a model that answers nothing, scores that are not finite, or a broken checkpoint or table.
    """
    set_seed(target.seed)
    data = settings.datasets[part]
    tokenizer = load_tokenizer(target.model_folder)
    device = pick_device(target.device)
    model = load_model(target.model_folder, device)

    if data.forget == "corpus":
        forget = read_texts(target, settings, tokenizer, "forget_corpus")
    else:
        forget = answer_questions(target, settings, model, tokenizer, "questions")
    if data.utility == "text":
        utility = read_texts(target, settings, tokenizer, "retain_corpus")
    elif data.utility == "questions":
        utility = solve_questions(target, settings, tokenizer)
    else:
        original = load_model(target.original_folder, device)
        utility = answer_questions(target, settings, original, tokenizer, "retain_questions")
        del original

    layers = linear_names(model, None, "all-linear")
    variants, counts = [], []
    with publish_folder(target.output) as folder:
        for score in settings.scores:
            # One set of scores after the other: on the device there is room for one besides the model and its gradients.
            on_forget = rank_weights(SCORES[score](model, layers, forget), settings.q, score)
            on_utility = rank_weights(SCORES[score](model, layers, utility), settings.p, score)
            count = write_masks(folder / f"{score}.parquet", on_forget, on_utility, settings)
            counts.append(count.assign(score=score))
            variants += [
                Variant(variant=f"{part.replace('_', '-')}-{score}-p{pair.p:g}-q{pair.q:g}", model=pair)
                for pair in prunings(f"{score}.parquet", settings)
            ]
        pd.concat(counts).to_parquet(folder / "sparsity.parquet", index=False)
        write_variants(folder, variants)
