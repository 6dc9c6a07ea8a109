"""Set difference pruning: remove the weights that do the unlearning (arXiv 2409.18025, section 4; Wei et al. 2402.05162).

A weight's score on a data set says how much the loss there depends on it. With the gradient score (Lee et al. 2019, SNIP)

    S(W) = |W| ⊙ Σ_s |∂L_s/∂W|,    L_s: mean over the answer's tokens of sample s,

and with the activation score (Sun et al. 2024, Wanda) S(W)_ij = |W_ij| · ‖X_j‖₂, X_j the layer's j-th input at the positions
that predict the answers' tokens. In every linear layer of the blocks those weights are set to zero that are

    among the top q % by the score on forget data, and not among the top p % by the score on utility data.

One pass over each data set gives the scores of all layers, and these the whole grid of p and q. What is kept is not a mask
for each pair but, of each weight that any pair removes, from which q on and up to which p it is removed.
"""

import math
import random
from collections.abc import Iterable
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
from resurface.interventions import Pruning, Variant, write_variants
from resurface.models import linear_names, load_model, load_tokenizer, pick_device, set_seed, sum_logprobs
from resurface.prompts import LETTERS, append_reply, chat_messages, encode_answer, list_options, render_chat
from resurface.settings.pruning import PruningSettings

Sample = tuple[list[int], int]  # token ids, and the place where the answer starts
Scores = dict[str, torch.Tensor]  # name of a layer → score of each weight, of the weight's shape

SCHEMA = pa.schema(
    [
        ("layer", pa.dictionary(pa.int32(), pa.string())),
        ("index", pa.int32()),
        ("forget_percent", pa.float32()),
        ("utility_percent", pa.float32()),
    ]
)


def answer_loss(model: PreTrainedModel, sample: Sample) -> torch.Tensor:
    """L_s: mean negative log-likelihood of a sample's answer tokens [nats]."""
    tokens, start = sample
    total, count = sum_logprobs(model, [tokens], [start], pad=0)
    return -(total / count)[0]


def gradient_scores(model: PreTrainedModel, layers: list[str], samples: list[Sample]) -> Scores:
    """|W| ⊙ Σ_s |∂L_s/∂W| of all layers, from one backward pass a sample."""
    weights = {name: model.get_submodule(name).weight for name in layers}
    model.requires_grad_(False)
    sums, handles = {}, []
    for name, weight in weights.items():
        sums[name] = torch.zeros_like(weight, dtype=torch.float32)

        def add(weight: torch.Tensor, total: torch.Tensor = sums[name]) -> None:
            assert weight.grad is not None
            total += weight.grad.abs()
            weight.grad = None

        handles.append(weight.requires_grad_(True).register_post_accumulate_grad_hook(add))
    try:
        for sample in tqdm(samples, desc="gradient scores", disable=None):
            answer_loss(model, sample).backward()
    finally:
        for handle in handles:
            handle.remove()
    return {name: weight.detach().abs().float() * sums[name] for name, weight in weights.items()}


@torch.no_grad()
def activation_scores(model: PreTrainedModel, layers: list[str], samples: list[Sample]) -> Scores:
    """|W_ij| · ‖X_j‖₂ of all layers, from one forward pass a sample."""
    modules = {name: model.get_submodule(name) for name in layers}
    sums = {name: torch.zeros(module.weight.shape[1], device=model.device) for name, module in modules.items()}
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


def first_percent(score: torch.Tensor, percents: Iterable[float]) -> np.ndarray:
    """Of each weight, the smallest of `percents` such that it is among that top share of the layer; infinite if none.

    Args:
        score: of each weight, any shape; equal scores rank in the order of the weights.
        percents: shares of the layer in percent, rounded to whole weights.

    Returns:
        `[weights]`, float32.
    """
    order = score.flatten().argsort(descending=True, stable=True).cpu().numpy()
    first = np.full(len(order), np.inf, dtype=np.float32)
    for percent in sorted(percents, reverse=True):
        first[order[: round(len(order) * percent / 100)]] = percent
    return first


def prunings(file: str, settings: PruningSettings) -> list[Pruning]:
    """The pairs (p, q) of the grid, p ≥ q, as changes of the model by the masks of `file`."""
    return [Pruning(file=file, p=p, q=q) for p in settings.p for q in settings.q if p >= q]


def write_masks(path: Path, forget: Scores, utility: Scores, settings: PruningSettings) -> pd.DataFrame:
    """Write which weights are removed, a row group per layer, and count them.

    Columns: `layer`, `index` in the flattened weight (sorted), `forget_percent` and `utility_percent` (`first_percent`). The
    pair (p, q) removes a weight if forget_percent ≤ q and utility_percent > p.

    Returns:
        one row per pair and layer: `p`, `q`, `layer`, `weights`, `pruned`.
    """
    counts = []
    with pq.ParquetWriter(
        path,
        SCHEMA,
        compression="zstd",
        use_dictionary=["layer", "forget_percent", "utility_percent"],
        column_encoding={"index": "DELTA_BINARY_PACKED"},
        write_page_checksum=True,
    ) as writer:
        for layer in forget:
            forget_percent = first_percent(forget[layer], settings.q)
            utility_percent = first_percent(utility[layer], settings.p)
            is_removed = np.zeros(len(forget_percent), dtype=bool)
            for pair in prunings(path.name, settings):
                removed = pair.removes(forget_percent, utility_percent)
                counts.append((pair.p, pair.q, layer, len(removed), int(removed.sum())))
                is_removed |= removed
            index = is_removed.nonzero()[0].astype(np.int32)
            names = pa.DictionaryArray.from_arrays(np.zeros(len(index), np.int32), [layer])
            columns = [names, index, forget_percent[index], utility_percent[index]]
            if len(index):
                writer.write_table(pa.table([pa.array(column) for column in columns], schema=SCHEMA))
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
            # The first scores wait on the CPU: on the device there is room for one set besides the model and its gradients.
            on_forget = {name: values.cpu() for name, values in SCORES[score](model, layers, forget).items()}
            on_utility = {name: values.cpu() for name, values in SCORES[score](model, layers, utility).items()}
            if not all(math.isfinite(values.sum()) for values in [*on_forget.values(), *on_utility.values()]):
                raise ResurfaceError(f"pruning: some {score} scores of {target.model_folder} are not finite")
            count = write_masks(folder / f"{score}.parquet", on_forget, on_utility, settings)
            counts.append(count.assign(score=score))
            variants += [
                Variant(variant=f"{part.replace('_', '-')}-{score}-p{pair.p:g}-q{pair.q:g}", model=pair)
                for pair in prunings(f"{score}.parquet", settings)
            ]
        pd.concat(counts).to_parquet(folder / "sparsity.parquet", index=False)
        write_variants(folder, variants)
