"""What attacks cost, and how many variants they leave: a function per attack, of its name, for one of its jobs."""

import math
from dataclasses import dataclass

from resurface.planning.methods import DTYPE_BYTES
from resurface.planning.sizes import CHAT_TOKENS, DataSize, Facts
from resurface.planning.work import Pass, Work, activation_bytes, weight_bytes
from resurface.settings.base import Settings
from resurface.settings.enhanced_gcg import EnhancedGCGSettings
from resurface.settings.finetuning import FinetuningSettings
from resurface.settings.gcg import GCGSettings
from resurface.settings.logit_lens import LogitLensSettings
from resurface.settings.orthogonalization import OrthogonalizationSettings
from resurface.settings.perturbation import PerturbationSettings
from resurface.settings.pruning import PruningSettings
from resurface.settings.random_prefix import RandomPrefixSettings

MASK_BYTES = 0.17  # per weight, of the paper's whole grid
HELD_BYTES = 1.5  # per weight, while a mask is applied: its file, which weights are removed, and what they were
SORT_BYTES = 24  # per weight of a layer that is sorted
GENERATING = 2  # passes that a generated token takes as long as: the library does much beside the pass
CHARACTERS = 4  # of a token


@dataclass(frozen=True)
class Left:
    """What one job of an attack leaves to be scored.

    Attributes:
        variants: how many there are.
        reads: variants that one pass answers for.
        transferred: variants that are scored on the other models too.
        longer: tokens by which a prompt grows.
        held: bytes that applying a variant takes on the device.
        rewrites: whether they change the domain's own questions only, so that the general ones are read once.
    """

    variants: int
    reads: int = 1
    transferred: int = 0
    longer: float = 0.0
    held: float = 0.0
    rewrites: bool = False


def none(settings: Settings, facts: Facts, domain: str, part: str) -> tuple[Work, Left]:
    """The attack that does nothing."""
    return Work(), Left(1)


def finetuning(settings: FinetuningSettings, facts: Facts, domain: str, part: str) -> tuple[Work, Left]:
    """Training of one adapter per sample count; the update itself is as many layers again."""
    data, shape = facts.domain(domain), facts.shape
    counts: list[int] = settings.datasets[part]  # type: ignore[index]
    row = min(settings.length, data.text if part == "text" else data.prompt + CHAT_TOKENS + 10)
    steps = sum(math.ceil(count / settings.batch_size) * settings.epochs for count in counts)
    tokens = sum(counts) * settings.epochs * row
    weights = shape.adapter_weights(settings.lora_rank)
    passes = [Pass(tokens, steps, forwards=3), Pass(tokens * weights / shape.block_weights, steps, forwards=3)]
    size = DTYPE_BYTES[settings.dtype]
    kept = settings.batch_size * row * (activation_bytes(shape, facts.is_gpu) * shape.blocks + 8 * shape.vocabulary)
    work = Work(
        passes=passes,
        updated=steps * weights,
        memory=shape.parameters * size + 16 * weights + kept,
        loaded=2 * shape.parameters,
        interventions=4 * weights * len(counts),
        state=12 * weights * min(3, max(counts) * settings.epochs // settings.batch_size // settings.save_steps),
        changing=len(counts),
    )
    return work, Left(len(counts), held=4 * weights)


def orthogonalization(settings: OrthogonalizationSettings, facts: Facts, domain: str, part: str) -> tuple[Work, Left]:
    """Activations of both models on forget questions, of the unlearned one on benign questions and on texts."""
    data, shape = facts.domain(domain), facts.shape
    questions = min(settings.questions, data.train_questions)
    tokens = questions * (5 * data.prompt + settings.text_length * ("text" in settings.references))
    variants = len(settings.references) * (len(settings.block_sets) + 1)
    apart = (
        2 * settings.outlier_tokens
    )  # token ids at most, of forget and of benign questions; their sums, and those of a batch
    states = 4 * shape.blocks * shape.hidden * (settings.batch_tokens + 2 * apart)
    work = Work(
        passes=[Pass(tokens, tokens / settings.batch_tokens)],
        memory=2 * _loaded_bytes(facts) + states,
        loaded=4 * shape.parameters,
        interventions=4 * len(settings.references) * shape.blocks * shape.hidden,
    )
    return work, Left(variants)


def pruning(settings: PruningSettings, facts: Facts, domain: str, part: str) -> tuple[Work, Left]:
    """A pass and the way back per sample, answers written before where they are the samples, and a sort of each layer."""
    data, shape = facts.domain(domain), facts.shape
    chosen = settings.datasets[part]
    answered = data.prompt + CHAT_TOKENS / 2 + settings.answer_tokens
    rows = {"corpus": data.text, "text": data.text, "answers": answered, "questions": data.prompt}
    forwards = {"gradient": 3, "activation": 1}
    passes = []
    for kind in (chosen.forget, chosen.utility):
        row = min(settings.length, rows[kind])
        passes += [
            Pass(settings.samples * row, settings.samples, forwards=forwards[score]) for score in settings.scores
        ]
        if kind == "answers":
            passes.append(_generation(settings.samples, row, settings.answer_tokens, settings.batch_size))
    longest = min(settings.length, max(rows[chosen.forget], rows[chosen.utility]))
    kept = longest * (activation_bytes(shape, facts.is_gpu) * shape.blocks + 8 * shape.vocabulary)
    pairs = sum(p >= q for p in settings.p for q in settings.q)
    work = Work(
        passes=passes,
        memory=_loaded_bytes(facts) + 4 * shape.block_weights + SORT_BYTES * shape.hidden * shape.intermediate + kept,
        loaded=2 * shape.parameters,
        interventions=MASK_BYTES * shape.block_weights * len(settings.scores),
        changing=pairs * len(settings.scores),
    )
    return work, Left(pairs * len(settings.scores), held=HELD_BYTES * shape.block_weights)


def perturbation(settings: PerturbationSettings, facts: Facts, domain: str, part: str) -> tuple[Work, Left]:
    """Informed: each prompt is read again after each perturbation, of which it takes about one for every second token."""
    data = facts.domain(domain)
    informed = len(settings.text_thresholds) * len(settings.prompt_thresholds)
    naive = len(settings.characters) * (len(settings.every) + len(settings.probabilities))
    depth = (settings.block + 1) / facts.shape.blocks
    rounds = min(settings.rounds, data.prompt / 2)
    tokens = informed * data.questions * data.prompt * rounds
    work = Work(
        passes=[Pass(tokens, tokens / settings.batch_tokens, depth)] if informed else [],
        memory=2 * _loaded_bytes(facts) if informed else 0,
        loaded=4 * facts.shape.parameters if informed else 0,
        interventions=(informed + naive) * data.questions * data.prompt,
    )
    return work, Left(informed + naive, transferred=informed, longer=data.prompt / 2, rewrites=True)


def random_prefix(settings: RandomPrefixSettings, facts: Facts, domain: str, part: str) -> tuple[Work, Left]:
    """Prefixes are drawn, and nothing is computed."""
    return Work(), Left(settings.count, longer=settings.length)


def gcg(settings: GCGSettings, facts: Facts, domain: str, part: str) -> tuple[Work, Left]:
    """A search per question: a gradient and all candidates each step."""
    data, shape = facts.domain(domain), facts.shape
    prefix = len(settings.optim_str_init.split())
    row = data.prompt + CHAT_TOKENS + settings.target_tokens + prefix
    steps = settings.questions * settings.num_steps
    passes = [
        *_hidden_questions(data, 8192),
        Pass(steps * settings.search_width * row, steps),
        Pass(steps * row, steps, forwards=2),
    ]
    at_once = settings.search_width * row * (4 * shape.hidden * weight_bytes(facts.is_gpu) + 4 * shape.vocabulary)
    work = Work(passes=passes, memory=2 * _loaded_bytes(facts) + at_once, loaded=4 * shape.parameters)
    return work, Left(settings.questions, transferred=settings.questions, longer=prefix)


def enhanced_gcg(settings: EnhancedGCGSettings, facts: Facts, domain: str, part: str) -> tuple[Work, Left]:
    """A universal search: candidates through the whole attacked model, and through the original up to the deepest matched block."""
    data, shape = facts.domain(domain), facts.shape
    prefix = sum(settings.minimum_lengths) / 2
    completion = settings.forced_tokens + settings.matched_tokens
    row = data.prompt + CHAT_TOKENS + prefix + completion
    asked = settings.questions
    rows = settings.candidates * asked
    if settings.screening_questions:
        rows = settings.candidates * min(asked, settings.screening_questions) + settings.screened * asked
    # All questions go on from a prefix that is read once.
    begun = settings.candidates + (settings.screened if settings.screening_questions else 0)
    tried = settings.steps * (rows * (row - prefix) + begun * prefix) + settings.random_starts * (
        asked * (row - prefix) + prefix
    )
    swaps = settings.steps * settings.step_shares[0]
    passes = _hidden_questions(data, settings.batch_tokens)
    for depth in (1.0, (max(settings.searches[part]) + 1) / shape.blocks):
        passes += [
            Pass(tried, settings.steps * math.ceil(rows * row / settings.batch_tokens), depth),
            Pass(
                swaps * (asked * (row - prefix) + prefix),
                swaps * math.ceil(asked * row / settings.batch_tokens),
                depth,
                forwards=2,
            ),
        ]
    passes.append(_generation(asked, row, completion, asked))
    at_once = min(settings.batch_tokens, asked * row)
    kept = at_once * (2 * activation_bytes(shape, facts.is_gpu) * shape.blocks + 8 * shape.vocabulary)
    work = Work(passes=passes, memory=2 * _loaded_bytes(facts) + kept, loaded=4 * shape.parameters)
    return work, Left(settings.snapshots, transferred=settings.snapshots, longer=prefix)


def logit_lens(settings: LogitLensSettings, facts: Facts, domain: str, part: str) -> tuple[Work, Left]:
    """The variants name what to read; one pass reads all."""
    blocks = facts.shape.blocks if settings.blocks is None else len(settings.blocks)
    reads = len(settings.streams) * blocks
    return Work(), Left(reads, reads=reads, longer=len(settings.prepend) / CHARACTERS)


def _loaded_bytes(facts: Facts) -> float:
    """Bytes of a model that is loaded for inference."""
    return facts.shape.parameters * weight_bytes(facts.is_gpu)


def _hidden_questions(data: DataSize, batch_tokens: int) -> list[Pass]:
    """Both models answer the train questions, so that those which only the original answers are found."""
    tokens = 2 * data.train_questions * data.prompt
    return [Pass(tokens, tokens / batch_tokens)]


def _generation(prompts: float, row: float, new_tokens: float, batch_size: int) -> Pass:
    """Greedy replies: a pass per token and batch."""
    return Pass(prompts * row, GENERATING * new_tokens * math.ceil(prompts / batch_size))
