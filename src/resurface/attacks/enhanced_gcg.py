"""Enhanced GCG: a universal adversarial prefix for several questions (arXiv 2409.18025, section 4 and appendix).

GCG (Zou et al. 2023, arXiv 2307.15043) with what FLRT (Thompson & Sklar 2024, arXiv 2407.17447) added to it: a buffer of
candidates, steps that insert and delete, and a loss that asks for more than a few forced tokens. For each question x the
original M, without a prefix, writes a completion y; its first tokens are forced, all of them are matched. With x' the chat
with the prefix p in it, U the unlearned model, h_ℓ the output of a matched block ℓ, and T the tokens of question and
completion, the loss is the mean over questions of

    L = CE_U(first tokens of y | x')                                               force
      + distance_weight   · mean_{ℓ, t ∈ T} ‖h_ℓ^U(x' y)_t − h_ℓ^M(x' y)_t‖₂           distance
      + cosine_weight     · mean_{ℓ, t ∈ T} (1 − cos(h_ℓ^U(x' y)_t, h_ℓ^M(x y)_t))     cosine
      + fluency_weight    · mean CE_U(x')                                            fluency
      + repetition_weight · Σ_v max(count_v(p) − 1, 0)^1.5 / |p|                      repetition

The distance's gradient flows through both models. Every step takes the best prefix out of the buffer for good, makes
candidates of it, and puts those into the buffer: so the loss is not monotone, and the best prefix ever seen is kept beside it.

What chats share is computed once: the keys and values of the tokens before the prefix for all of them, those of a prefix for all
questions. The original runs up to the deepest matched block only. The state is written after every step and holds no random state, because each step draws from a
generator of its own: a search that was stopped goes on as if it had not been.
"""

import json
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from resurface.artifacts import publish, publish_folder, read_json, remove
from resurface.attacks.prefix import Chats, draw_prefix, set_chats
from resurface.attacks.questions import read_hidden_questions
from resurface.attacks.target import Target
from resurface.decoder import unembed
from resurface.errors import ResurfaceError
from resurface.generation import generate_tokens
from resurface.interventions import Prepend, Variant, read_variants, write_variants
from resurface.models import (
    check_blocks,
    continue_cache,
    keep_cache,
    load_model,
    load_tokenizer,
    pad_right,
    pick_device,
    recording,
    run_decoder,
    run_within_memory,
    set_seed,
)
from resurface.preemption import Preempted, postponing_end
from resurface.prompts import render_prompts
from resurface.settings.enhanced_gcg import EnhancedGCGSettings

log = logging.getLogger(__name__)

STEPS = ["swap", "insert", "delete", "sample"]
DRAWS = 20  # draws per candidate that is wanted, after which a step makes do with fewer


@dataclass(frozen=True)
class Problem:
    """What a prefix is searched for.

    Attributes:
        unlearned, original: the models U and M.
        chats: the questions x.
        completions: per question, the tokens y.
        clean: per question, h_ℓ^M(x y) on T `[blocks, tokens, hidden]`, float32.
        caches: per model, keys and values of the tokens before the prefix.
        opening: log-probabilities under U of the token after those `[vocabulary]`.
        opening_loss: CE_U of those tokens, summed, in nats.
        blocks: the matched blocks ℓ.
        settings: weights of the loss, and the rest.
        halvings: how often memory ran out, per kind of pass: each time passes take half as many tokens from then on.
    """

    unlearned: PreTrainedModel
    original: PreTrainedModel
    chats: Chats
    completions: list[list[int]]
    clean: list[Tensor]
    caches: tuple[Cache, Cache]
    opening: Tensor
    opening_loss: float
    blocks: list[int]
    settings: EnhancedGCGSettings
    halvings: Counter[str]


@dataclass(frozen=True)
class Begun:
    """Prefixes of one length that both models have read, for all questions to go on from.

    Attributes:
        length: tokens up to the prefixes' ends, with those before them.
        caches: per model, keys and values of these.
        surprise: CE_U of each prefix, summed over its tokens, in nats `[prefixes]`.
        following: log-probabilities under U of the token after each `[prefixes, vocabulary]`.
    """

    length: int
    caches: tuple[Cache, Cache]
    surprise: Tensor
    following: Tensor


@dataclass
class Search:
    """The state of a search: all that its next step depends on.

    Attributes:
        step: how many steps are done.
        buffer: losses and prefixes, the best first.
        best: the best prefix ever seen, and its loss.
        snapshots: the best prefix at the end of each part of the search.
        curve: a row per step.
    """

    step: int
    buffer: list[tuple[float, list[int]]]
    best: tuple[float, list[int]]
    snapshots: list[list[int]] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)


def repetition(prefix: Sequence[int]) -> float:
    """Σ_v max(count_v − 1, 0)^1.5 / length, over the tokens v of a prefix."""
    return sum((count - 1) ** 1.5 for count in Counter(prefix).values()) / max(1, len(prefix))


def minimum_length(step: int, settings: EnhancedGCGSettings) -> int:
    """The length [tokens] up to which a step only inserts; it grows to its end over the first steps."""
    start, end = settings.minimum_lengths
    return round(start + (end - start) * min(1.0, step / settings.growth_steps))


def run_from(model: PreTrainedModel, cache: Cache, embedded: Tensor, rows: Tensor | None = None) -> Any:
    """The decoder's output on embedded tokens `[rows, seq, hidden]`, padded on the right, that follow kept ones.

    `rows` says which of the kept beginnings each row goes on from; None: all from the first.
    """
    chosen = torch.zeros(len(embedded), dtype=torch.long, device=embedded.device) if rows is None else rows
    return run_decoder(model, inputs_embeds=embedded, **continue_cache(cache, chosen))


def begin(problem: Problem, prefixes: list[list[int]], embedded: tuple[Tensor, Tensor]) -> Begun:
    """Let both models read prefixes of one length, which stand behind the tokens before them.

    Args:
        problem: what is searched for.
        prefixes: some prefixes.
        embedded: these, as each model's input embeddings `[prefixes, length, hidden]`.
    """
    count, length = len(prefixes), len(problem.chats.before) + len(prefixes[0])
    first = torch.zeros(count, dtype=torch.long, device=problem.unlearned.device)
    unlearned, original = (continue_cache(cache, first) for cache in problem.caches)
    caches = (unlearned["past_key_values"], original["past_key_values"])  # which go on while they are read
    opening = problem.opening.expand(count, 1, -1)
    if not prefixes[0]:
        return Begun(length, caches, torch.zeros(count, device=first.device), opening[:, 0])
    with recording(problem.original, problem.blocks):  # which ends at the deepest of them
        run_decoder(problem.original, inputs_embeds=embedded[1], **original)
    hidden = run_decoder(problem.unlearned, inputs_embeds=embedded[0], **unlearned).last_hidden_state
    logprobs = torch.cat([opening, unembed(problem.unlearned, hidden).log_softmax(-1)], 1)
    tokens = torch.tensor(prefixes, device=first.device)
    surprise = -logprobs[:, :-1].gather(2, tokens[:, :, None])[:, :, 0].sum(1)
    return Begun(length, caches, surprise, logprobs[:, -1])


def embed(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Input embeddings of tokens `[rows, seq]`, scaled as the model does, cut off from the weights `[rows, seq, hidden]`."""
    return model.get_input_embeddings()(tokens).detach()


def model_losses(
    problem: Problem, begun: Begun, rows: list[list[int]], numbers: Sequence[int], questions: Sequence[int]
) -> Tensor:
    """What the models say of L, weighed: force, distance, cosine and fluency of several chats `[rows, 4]`.

    Args:
        problem: what is searched for.
        begun: the prefixes that the chats go on from.
        rows: per chat, question and completion as tokens.
        numbers: which of the prefixes each goes on from.
        questions: which question each is.
    """
    settings, device = problem.settings, problem.unlearned.device
    tokens, prefixes = pad_right(rows, 0).to(device), torch.tensor(numbers, device=device)
    place = torch.arange(len(rows), device=device)[:, None]
    ends = torch.tensor([len(row) for row in rows], device=device)[:, None]
    prompt_ends = ends - torch.tensor([len(problem.completions[one]) for one in questions], device=device)[:, None]
    matched = [problem.clean[one].shape[1] for one in questions]
    counts = torch.tensor(matched, device=device)[:, None]
    back = torch.arange(max(matched), device=device)[None]
    is_matched = back < counts
    positions = torch.where(is_matched, ends - counts + back, 0)

    with recording(problem.original, problem.blocks) as states:
        run_from(problem.original, begun.caches[1], embed(problem.original, tokens), prefixes)
        original = torch.stack([states[block][place, positions].float() for block in problem.blocks])
    with recording(problem.unlearned, problem.blocks, stop=False) as states:
        output = run_from(problem.unlearned, begun.caches[0], embed(problem.unlearned, tokens), prefixes)
        unlearned = torch.stack([states[block][place, positions].float() for block in problem.blocks])
    clean = torch.nn.utils.rnn.pad_sequence(
        [problem.clean[one].transpose(0, 1) for one in questions], batch_first=True
    ).permute(2, 0, 1, 3)

    def mean_matched(values: Tensor) -> Tensor:
        """Mean over blocks and T of `[blocks, rows, T]`."""
        return ((values * is_matched).sum(-1) / counts[:, 0]).mean(0)

    distance = mean_matched((unlearned - original).norm(dim=-1))
    cosine = mean_matched(1 - functional.cosine_similarity(unlearned, clean, dim=-1))

    last = int((prompt_ends + settings.forced_tokens).max().clamp(max=int(ends.max())))
    logits = unembed(problem.unlearned, output.last_hidden_state[:, : last - 1])
    # Flat, because with the classes in the middle a GPU takes six times as long.
    surprise = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:last].flatten(), reduction="none")
    surprise = surprise.reshape(len(rows), -1)
    surprise = torch.cat([-begun.following[prefixes].gather(1, tokens[:, :1]), surprise], 1)
    index = torch.arange(last, device=device)[None]
    is_prompt = index < prompt_ends
    is_forced = ~is_prompt & (index < (prompt_ends + settings.forced_tokens).minimum(ends))
    force = (surprise * is_forced).sum(1) / is_forced.sum(1)
    shared = problem.opening_loss + begun.surprise[prefixes]
    fluency = (shared + (surprise * is_prompt).sum(1)) / (begun.length - 1 + prompt_ends[:, 0])
    return torch.stack(
        [
            force,
            settings.distance_weight * distance,
            settings.cosine_weight * cosine,
            settings.fluency_weight * fluency,
        ],
        dim=1,
    )


def in_batches(
    problem: Problem, kind: str, kept: int, rows: list[list[int]], run: Callable[[list[int]], Tensor]
) -> tuple[list[int], list[Tensor]]:
    """Run over rows that follow `kept` tokens, the longest first so that little is padding, in as few batches as memory has room for.

    Returns:
        the rows' positions in the order in which they were run, and what each batch gave.
    """
    order = sorted(range(len(rows)), key=lambda position: len(rows[position]), reverse=True)
    results = list[Tensor]()
    problem.halvings[kind] = run_within_memory(
        len(rows),
        lambda start: problem.settings.batch_tokens // (kept + len(rows[order[start]])),
        lambda part: results.append(run(order[part])),
        problem.halvings[kind],
    )
    return order, results


def complete(problem: Problem, prefix: list[int]) -> list[list[int]]:
    """Per question, what follows a legal prefix: question and completion as tokens."""
    placed = problem.chats.place(prefix)
    assert placed is not None, "prefixes that are tried are legal"
    kept = len(problem.chats.before) + len(prefix)
    return [row[kept:] + completion for row, completion in zip(placed, problem.completions, strict=True)]


def evaluate_alike(problem: Problem, prefixes: list[list[int]], asked: Sequence[int]) -> Tensor:
    """What the models say of L for prefixes of one length, as means over questions `[prefixes, 4]`."""
    begun = begin(problem, prefixes, embed_prefixes(problem, prefixes))
    completed = [complete(problem, prefix) for prefix in prefixes]
    pairs = [(number, question) for number in range(len(prefixes)) for question in asked]
    rows = [completed[number][question] for number, question in pairs]

    def run(positions: list[int]) -> Tensor:
        numbers, questions = zip(*(pairs[position] for position in positions), strict=True)
        return model_losses(problem, begun, [rows[position] for position in positions], numbers, questions)

    order, results = in_batches(problem, "forward", begun.length, rows, run)
    return torch.cat(results)[torch.tensor(order).argsort()].reshape(len(prefixes), len(asked), -1).mean(1)


@torch.no_grad()
def evaluate(problem: Problem, prefixes: list[list[int]], asked: Sequence[int] | None = None) -> list[dict[str, float]]:
    """The loss of legal prefixes, `loss` and its parts, as the mean over the questions `asked` (None: all)."""
    asked = range(len(problem.completions)) if asked is None else asked
    values: list[list[float]] = [[] for _ in prefixes]
    for length in sorted(set(map(len, prefixes))):
        alike = [place for place, prefix in enumerate(prefixes) if len(prefix) == length]

        def run(part: slice, alike: list[int] = alike) -> None:
            losses = evaluate_alike(problem, [prefixes[place] for place in alike[part]], asked)
            for place, parts in zip(alike[part], losses.tolist(), strict=True):
                values[place] = parts

        at_once = [problem.settings.batch_tokens // (len(problem.chats.before) + length)] * len(alike)
        problem.halvings["begin"] = run_within_memory(len(alike), at_once.__getitem__, run, problem.halvings["begin"])
    found = []
    for prefix, parts in zip(prefixes, values, strict=True):
        named = dict(zip(("force", "distance", "cosine", "fluency"), parts, strict=True))
        named["repetition"] = problem.settings.repetition_weight * repetition(prefix)
        found.append({"loss": sum(named.values()), **named})
    return found


def embed_prefixes(problem: Problem, prefixes: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Prefixes of one length as each model's input embeddings `[prefixes, length, hidden]`."""
    tokens = torch.tensor(prefixes, dtype=torch.long, device=problem.unlearned.device)
    return embed(problem.unlearned, tokens), embed(problem.original, tokens)


def token_gradient(problem: Problem, prefix: list[int]) -> Tensor:
    """How L would change, to first order, with each token at each place of the prefix `[prefix, vocabulary]`.

    That is its gradient by the one-hot prefix: the gradients by both models' input embeddings, times those embeddings.
    """
    rows = complete(problem, prefix)

    def run(questions: list[int]) -> Tensor:
        unlearned, original = (embedded.requires_grad_() for embedded in embed_prefixes(problem, [prefix]))
        begun = begin(problem, [prefix], (unlearned, original))
        chosen = [rows[question] for question in questions]
        losses = model_losses(problem, begun, chosen, [0] * len(chosen), questions)
        gradients = torch.autograd.grad(losses.sum() / len(rows), (unlearned, original))
        return torch.cat([gradient.float() for gradient in gradients])

    results = in_batches(problem, "gradient", len(problem.chats.before) + len(prefix), rows, run)[1]
    by_embedding = torch.stack(results).sum(0)
    vocabulary = torch.arange(problem.opening.shape[0], device=by_embedding.device)
    by_token = [
        gradient @ embed(model, vocabulary).float().T
        for gradient, model in zip(by_embedding, (problem.unlearned, problem.original), strict=True)
    ]
    return torch.stack(by_token).sum(0)


@torch.no_grad()
def next_probabilities(problem: Problem, prefix: list[int]) -> Tensor:
    """U's probabilities of the token before each place of the prefix and behind it, allowed ones only `[prefix + 1, vocabulary]`."""
    model = problem.unlearned
    logits = problem.opening[None]
    if prefix:
        hidden = run_from(model, problem.caches[0], embed(model, torch.tensor([prefix], device=model.device)))
        following = unembed(model, hidden.last_hidden_state[0]).log_softmax(-1)
        logits = torch.cat([logits, following])
    refused = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    refused[problem.chats.allowed] = False
    return logits.masked_fill(refused, -torch.inf).softmax(-1)


def propose(problem: Problem, prefix: list[int], step: int, generator: random.Random) -> tuple[str, list[list[int]]]:
    """The kind of a step, and its legal candidates: prefixes that differ from the given one in one token.

    A step swaps tokens by gradient (`swap`), inserts tokens that U samples (`insert`), deletes them (`delete`), or swaps them
    for such that U samples (`sample`); a prefix that is too short only grows, and the longest never does.
    """
    settings, chats = problem.settings, problem.chats
    shares = dict(zip(STEPS, settings.step_shares, strict=True))
    if len(prefix) <= minimum_length(step, settings):
        shares = {"insert": 1.0}
    elif len(prefix) >= settings.maximum_length:
        shares["insert"] = 0.0
    kind = generator.choices(list(shares), list(shares.values()))[0]

    if kind == "swap":
        gradient = token_gradient(problem, prefix)
        best = gradient[:, chats.allowed].topk(settings.top_k, largest=False).indices.tolist()
        tokens = [[chats.allowed[index] for index in places] for places in best]
    elif kind != "delete":
        probabilities = next_probabilities(problem, prefix)
        sampler = torch.Generator().manual_seed(generator.getrandbits(48))
        drawn = probabilities.cpu().multinomial(settings.candidates * DRAWS, replacement=True, generator=sampler)
        tokens = drawn.tolist()

    candidates: list[list[int]] = []
    for draw in range(settings.candidates * DRAWS):
        place = generator.randrange(len(prefix) + (kind == "insert"))
        kept = prefix[place + (kind != "insert") :]
        if kind == "delete":
            candidate = prefix[:place] + kept
        elif kind == "swap":
            candidate = [*prefix[:place], generator.choice(tokens[place]), *kept]
        else:
            candidate = [*prefix[:place], tokens[place][draw], *kept]
        if candidate != prefix and candidate not in candidates and chats.place(candidate) is not None:
            candidates.append(candidate)
        if len(candidates) == settings.candidates:
            break
    return kind, candidates


def screen(
    problem: Problem, candidates: list[list[int]], generator: random.Random
) -> tuple[list[list[int]], list[dict[str, float]]]:
    """The candidates that are best on a few questions, drawn anew for each step, and their losses on all; or all of them without that."""
    settings, count = problem.settings, len(problem.completions)
    if settings.screening_questions is None or settings.screening_questions >= count:
        return candidates, evaluate(problem, candidates)
    asked = sorted(generator.sample(range(count), settings.screening_questions))
    first = evaluate(problem, candidates, asked)
    best = sorted(range(len(candidates)), key=lambda place: first[place]["loss"])[: settings.screened]
    kept = [candidates[place] for place in best]
    then = evaluate(problem, kept, [question for question in range(count) if question not in asked])
    share = len(asked) / count
    return kept, [
        {name: share * first[place][name] + (1 - share) * value for name, value in parts.items()}
        for place, parts in zip(best, then, strict=True)
    ]


def take_step(problem: Problem, search: Search, generator: random.Random) -> None:
    """One step: the best prefix leaves the buffer, its candidates enter it."""
    settings = problem.settings
    _, prefix = search.buffer.pop(0)
    kind, candidates = propose(problem, prefix, search.step, generator)
    row: dict[str, Any] = {"step": search.step + 1, "kind": kind, "candidates": len(candidates)}
    if candidates:
        candidates, losses = screen(problem, candidates, generator)
        found = [(parts["loss"], candidate) for parts, candidate in zip(losses, candidates, strict=True)]
        search.buffer = sorted([*search.buffer, *found], key=lambda entry: entry[0])[: settings.buffer]
        search.best = min([search.best, *found], key=lambda entry: entry[0])
        parts, prefix = min(zip(losses, candidates, strict=True), key=lambda pair: pair[0]["loss"])
        row |= parts | {"prefix": problem.chats.tokenizer.decode(prefix)}
    search.buffer = search.buffer or [search.best]
    search.step += 1
    search.curve.append(row | {"best_loss": search.best[0], "length": len(search.best[1])})
    if search.step in snapshot_steps(settings):
        search.snapshots.append(search.best[1])


def first_prefixes(target: Target, chats: Chats, settings: EnhancedGCGSettings, part: str) -> list[list[int]]:
    """The prefixes that the search starts from: an earlier one, an empty one, or random ones.

    Raises:
        ResurfaceError: the tokenizer does not read an earlier prefix as it was found, or there is none.
    """
    if target.start_folder is not None:
        prompt = read_variants(target.start_folder)[-1].prompt
        if not isinstance(prompt, Prepend):
            raise ResurfaceError(
                f"{target.start_folder}: found no prefix in its last variant; --start takes a search's folder"
            )
        text, source = prompt.text, str(target.start_folder)
    elif settings.start_prefix is not None:
        text, source = settings.start_prefix, "enhanced_gcg.start_prefix"
    elif settings.start == "empty":
        return [[]]
    else:
        generator = random.Random(f"{target.seed}/{part}/start")
        return [draw_prefix(chats, settings.start_length, generator) for _ in range(settings.random_starts)]
    prefix = chats.find(text)
    if prefix is None:
        kind = "printable " if settings.printable else ""
        raise ResurfaceError(
            f"{source}: the tokenizer of {chats.tokenizer.name_or_path} does not read the prefix {text!r} as the same {kind}tokens "
            "in front of every question, or reads special tokens in it; take another prefix, or `start: random`"
        )
    if len(prefix) > settings.maximum_length:
        raise ResurfaceError(
            f"{source}: found a prefix of {len(prefix)} tokens; enhanced_gcg.maximum_length is {settings.maximum_length}"
        )
    return [prefix]


@torch.no_grad()
def state_problem(
    unlearned: PreTrainedModel,
    original: PreTrainedModel,
    chats: Chats,
    blocks: list[int],
    settings: EnhancedGCGSettings,
) -> Problem:
    """Let the original write its completions, and compute once what no prefix changes.

    Raises:
        ResurfaceError: a model that keeps no plain keys and values.
    """
    texts = render_prompts(chats.tokenizer, chats.prompts, "chat")
    written = generate_tokens(
        original, chats.tokenizer, texts, settings.forced_tokens + settings.matched_tokens, len(texts)
    )
    (cache, hidden), (original_cache, _) = (keep_cache(model, chats.before) for model in (unlearned, original))
    if cache is None or original_cache is None:
        raise ResurfaceError(
            f"{unlearned.config.name_or_path}: models of type {unlearned.config.model_type} do not keep plain keys and values, "
            "from which a search goes on after the chat's beginning; leave enhanced_gcg out for them"
        )
    logprobs = unembed(unlearned, hidden).log_softmax(-1)
    known = torch.tensor(chats.before[1:], device=logprobs.device)
    clean = []
    for after, completion in zip(chats.after, written, strict=True):
        with recording(original, blocks) as states:
            tokens = torch.tensor([after + completion], device=original.device)
            run_from(original, original_cache, embed(original, tokens))
            clean.append(torch.stack([states[block][0, 1:].float() for block in blocks]))
    return Problem(
        unlearned,
        original,
        chats,
        written,
        clean,
        (cache, original_cache),
        logprobs[-1],
        -float(logprobs[:-1].gather(1, known[:, None]).sum()),
        blocks,
        settings,
        Counter(),
    )


def search_prefix(problem: Problem, target: Target, part: str) -> Search:
    """Search to the end, from where an interrupted search of the same job stopped.

    Raises:
        Preempted: the search was asked to end, and has saved.
        ResurfaceError: no legal prefix to start from, or a full disk.
    """
    settings = problem.settings
    state = target.resume_folder / "search.json"
    if state.is_file():
        search = Search(**read_json(state))
        log.info("going on after step %d of an interrupted search", search.step)
    else:
        prefixes = first_prefixes(target, problem.chats, settings, part)
        losses = [parts["loss"] for parts in evaluate(problem, prefixes)]
        if not all(math.isfinite(loss) for loss in losses):
            raise ResurfaceError(
                f"{target.model_folder}: the loss of a first prefix is {max(losses, key=math.isnan)}: this model has diverged, or "
                "its numbers leave the range of its dtype; look at its losses"
            )
        buffer = sorted(zip(losses, prefixes, strict=True), key=lambda entry: entry[0])[: settings.buffer]
        search = Search(0, buffer, buffer[0])
    with (
        postponing_end() as is_asked,
        tqdm(total=settings.steps, initial=search.step, desc=f"search {part}", disable=None) as progress,
    ):
        while search.step < settings.steps:
            take_step(problem, search, random.Random(f"{target.seed}/{part}/{search.step}"))
            with publish(state) as temporary:
                temporary.write_text(json.dumps(asdict(search)))
            if is_asked():
                raise Preempted(f"step {search.step} is saved, and the next run goes on from there")
            progress.set_postfix(best=f"{search.best[0]:.3f}", length=len(search.best[1]))
            progress.update()
    return search


def attack(target: Target, settings: EnhancedGCGSettings, part: str) -> None:
    """Search a prefix that matches the blocks of search `part`, and leave the best of each part of the search as variants.

    Raises:
        ResurfaceError: a block that the model does not have, no question that only the original answers, a prefix to start
            from that the tokenizer does not read, too few tokens to draw from, or a broken checkpoint or table.
    """
    set_seed(target.seed)
    device = pick_device(target.device)
    tokenizer = load_tokenizer(target.model_folder)
    unlearned, original = (
        load_model(folder, device).requires_grad_(False) for folder in (target.model_folder, target.original_folder)
    )
    blocks = settings.searches[part]
    check_blocks(blocks, unlearned, f"enhanced_gcg.searches.{part}")
    prompts = read_hidden_questions(target, tokenizer, original, unlearned, settings.batch_tokens)
    chats = set_chats(tokenizer, prompts[: settings.questions], settings.printable)
    if settings.top_k > len(chats.allowed):
        raise ResurfaceError(
            f"enhanced_gcg.top_k: found {settings.top_k}, but of the tokenizer's {len(tokenizer)} tokens a prefix may "
            f"consist of {len(chats.allowed)}; take at most so many"
        )
    problem = state_problem(unlearned, original, chats, blocks, settings)
    search = search_prefix(problem, target, part)
    with publish_folder(target.output) as folder:
        pd.DataFrame(search.curve).to_parquet(folder / "losses.parquet", index=False)
        write_variants(
            folder,
            [
                Variant(variant=f"{part}-step{step}", prompt=Prepend(text=tokenizer.decode(prefix)))
                for step, prefix in zip(snapshot_steps(settings), search.snapshots, strict=True)
            ],
        )
    remove(target.resume_folder)


def snapshot_steps(settings: EnhancedGCGSettings) -> list[int]:
    """The steps after which each part of the search ends."""
    return [settings.steps * number // settings.snapshots for number in range(1, settings.snapshots + 1)]
