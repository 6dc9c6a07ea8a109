"""What the jobs of each rule cost; of methods and attacks, `resurface.planning.methods` and `resurface.planning.attacks` say it."""

import math
from collections.abc import Callable
from dataclasses import replace

from resurface.planning import attacks, methods
from resurface.planning.attacks import CHARACTERS, GENERATING, Left
from resurface.planning.sizes import CHAT_TOKENS, TEXT_TOKENS, Facts
from resurface.planning.work import Pass, Work, weight_bytes
from resurface.reproducibility.jobs import all_jobs, model_source
from resurface.settings.sources import split_hub_id

REQUEST_ROWS = 100  # of a table that are summarized in the time in which the harness builds a question's requests
SCORE_BYTES = 28  # of a row of a score table
WRITTEN_TOKENS = 90  # of a question that a server writes, with its four options
ASKING_TOKENS = 250  # of the instructions in a request


def job_work(facts: Facts, output: str, rule: str, name: str | None) -> tuple[Work, str | None]:
    """What a job of `all_jobs` does, and which method or attack it is about."""
    work, shown = _single_work(facts, output, rule, name)
    if facts.is_gpu and work.memory and work.gpus == 1 and rule != "pretrain":
        spread = facts.experiment.model_gpus
        work = replace(work, spread=spread, memory=work.memory / spread)
    return work, shown


def _single_work(facts: Facts, output: str, rule: str, name: str | None) -> tuple[Work, str | None]:
    """What a job does if no model is spread over GPUs."""
    parts = output.removesuffix(".parquet").split("/")[2:]
    if rule == "unlearn" and name is not None:
        function = getattr(methods, name, None)
        settings = facts.experiment.settings_of("methods", name)
        return (function(settings, facts, parts[0]) if function else Work(is_known=False)), name
    if rule == "attack" and name is not None:
        work, _ = attack_work(facts, parts[0], name, parts[-1])
        return work, name
    if rule == "score":
        return _score(facts, parts[0], parts[1], parts[3]), parts[3]
    if rule == "perplexity":
        return _perplexity(facts, parts[0], parts[3]), parts[3]
    return (RULES[rule](facts, parts) if rule in RULES else Work(is_known=False)), name


def attack_work(facts: Facts, domain: str, attack: str, part: str) -> tuple[Work, Left]:
    """What one job of an attack does and leaves; of an attack whose cost is not known, nothing."""
    function = getattr(attacks, attack, None)
    settings = facts.experiment.settings_of("attacks", attack)
    return function(settings, facts, domain, part) if function else (Work(is_known=False), Left(1))


def _left(facts: Facts, domain: str, attack: str) -> list[Left]:
    """What all jobs of an attack leave on one model."""
    return [attack_work(facts, domain, attack, part)[1] for part in facts.experiment.parts_of(attack)]


def _score(facts: Facts, domain: str, method: str, attack: str) -> Work:
    """A pass over all benchmarks for each variant that changes the model or the prompt."""
    experiment, shape = facts.experiment, facts.shape
    left = _left(facts, domain, attack)
    others = 0
    if experiment.is_transferred(attack):
        others = len(experiment.others_of(method, domain))
    is_attacked = method != "original" or attack == "none"
    counts = [one.variants * is_attacked + one.transferred * others for one in left]
    passes = sum(count / one.reads for count, one in zip(counts, left, strict=True))
    general_passes = min(1, passes) if left and all(one.rewrites for one in left) else passes
    longer = max((one.longer for one in left), default=0)
    benchmarks = facts.benchmarks(domain)
    questions = sum(count for count, _ in benchmarks) * len(experiment.scoring.templates)
    own, *general = (
        sum(count * (prompt + longer + CHAT_TOKENS * (template == "chat")) for template in experiment.scoring.templates)
        for count, prompt in benchmarks
    )
    tokens = passes * own + general_passes * sum(general)
    batch = experiment.scoring.batch_tokens
    held = max((one.held for one in left), default=0)
    at_once = batch * (8 * shape.hidden + 3 * shape.intermediate) * weight_bytes(facts.is_gpu)
    head = 4 * shape.vocabulary * shape.hidden
    return Work(
        passes=[Pass(tokens, math.ceil(tokens / batch))],
        rows=REQUEST_ROWS * questions,
        memory=shape.parameters * weight_bytes(facts.is_gpu) + held + at_once + head,
        loaded=2 * shape.parameters,
        tables=SCORE_BYTES * sum(counts) * questions,
    )


def _perplexity(facts: Facts, domain: str, attack: str) -> Work:
    """Replies of both models, and of the attacked one under each variant, written and read."""
    experiment, shape = facts.experiment, facts.shape
    settings, data = experiment.perplexity, facts.domain(domain)
    left = _left(facts, domain, attack)
    variants = sum(one.variants for one in left)
    longer = max((one.longer for one in left), default=0)
    templates = len(experiment.scoring.templates)
    row = data.prompt + longer + CHAT_TOKENS / 2 + settings.new_tokens
    written, read = (2 + variants) * templates, (3 + 2 * variants) * templates
    batches = math.ceil(settings.questions / settings.batch_size)
    tokens = settings.questions * row
    return Work(
        passes=[
            Pass(written * tokens, GENERATING * written * batches * settings.new_tokens),
            Pass(read * tokens, read * math.ceil(tokens / settings.batch_tokens)),
        ],
        memory=2 * shape.parameters * weight_bytes(facts.is_gpu) + settings.batch_tokens * 8 * shape.vocabulary,
        loaded=4 * shape.parameters,
        tables=4 * variants * templates * settings.questions * 8,
    )


def _refusals(facts: Facts, parts: list[str]) -> Work:
    """Short replies to the first questions of each benchmark."""
    settings, shape = facts.experiment.refusals, facts.shape
    templates = len(facts.experiment.scoring.templates)
    benchmarks = facts.benchmarks(parts[0])
    prompts = sum(min(settings.questions, count) for count, _ in benchmarks)
    tokens = sum(min(settings.questions, count) * (prompt + CHAT_TOKENS / 2) for count, prompt in benchmarks)
    batches = math.ceil(prompts / settings.batch_size)
    return Work(
        passes=[
            Pass(
                templates * (tokens + prompts * settings.new_tokens),
                GENERATING * templates * batches * settings.new_tokens,
            )
        ],
        memory=shape.parameters * weight_bytes(facts.is_gpu)
        + settings.batch_size * max(prompt for _, prompt in benchmarks) * 4 * shape.vocabulary,
        loaded=2 * shape.parameters,
        tables=10_000,
    )


def _pretrain(facts: Facts, parts: list[str]) -> Work:
    """Training from scratch, letters first."""
    settings, shape = facts.experiment.pretraining, facts.shape
    steps = settings.steps + settings.letter_steps / 2
    tokens = steps * settings.batch_size * settings.length * 0.7
    kept = settings.batch_size * settings.length * shape.blocks * (10 * shape.hidden + 4 * shape.intermediate) * 4
    return Work(
        passes=[Pass(tokens, steps, forwards=3)],
        updated=steps * shape.parameters,
        memory=16 * shape.parameters + kept,
        checkpoint=2 * shape.parameters,
    )


def _model(facts: Facts, parts: list[str]) -> Work:
    """What was made here is copied, a user's own checkpoint linked, one of the hub downloaded and linked."""
    source = model_source(facts.experiment, parts[0])
    size = 2.0 * facts.shape.parameters
    if split_hub_id(source):
        return Work(downloaded=size)
    return Work(checkpoint=size) if source.startswith(("testbed:", "results/")) else Work()


def _teach(facts: Facts, parts: list[str]) -> Work:
    """The control reads documents about the fictional domains."""
    settings = facts.experiment.teaching
    steps = methods.count_steps(settings, settings.documents)
    row = min(settings.length, TEXT_TOKENS + CHAT_TOKENS / 2)
    return methods.train_whole(settings, facts, steps, row, samples=1, reference_rows=0)


def _write_preferences(facts: Facts, parts: list[str]) -> Work:
    """Questions written from articles, some of them in one request: by a server, or by the original in the job itself."""
    settings, shape = facts.experiment.preferences, facts.shape
    questions = settings.forget_questions + settings.benign_questions
    requests = math.ceil(questions / settings.questions_per_article)
    asked = ASKING_TOKENS + settings.article_characters / CHARACTERS
    written = questions * WRITTEN_TOKENS
    if settings.base_url is not None:
        return Work(tokens=requests * asked + written, tables=1e7)
    longest = min(settings.reply_tokens, settings.questions_per_article * WRITTEN_TOKENS)
    batches = math.ceil(requests / settings.batch_size)
    return Work(
        passes=[Pass(requests * asked + written, GENERATING * batches * longest)],
        memory=shape.parameters * weight_bytes(facts.is_gpu) + settings.batch_size * 4 * shape.vocabulary,
        loaded=2 * shape.parameters,
        tables=1e7,
    )


def _summarize(facts: Facts, parts: list[str]) -> Work:
    """The rows of all score tables are read and resampled."""
    experiment = facts.experiment
    tables = sum(
        work.tables
        for output, (rule, name) in all_jobs(experiment).items()
        if rule == "score"
        for work, _ in [job_work(facts, output, rule, name)]
    )
    return Work(rows=tables / SCORE_BYTES, tables=1e6)


RULES: dict[str, Callable[[Facts, list[str]], Work]] = {
    "data": lambda _facts, _parts: Work(tables=1e6),
    "general_questions": lambda _facts, _parts: Work(tables=1e5),
    "source": lambda _facts, _parts: Work(tables=1e7),
    "corpora": lambda _facts, _parts: Work(tables=1e8),
    "questions": lambda _facts, _parts: Work(tables=1e6),
    "model": _model,
    "pretrain": _pretrain,
    "teach": _teach,
    "refusals": _refusals,
    "write_preferences": _write_preferences,
    "summarize": _summarize,
    "worst_case": lambda _facts, _parts: Work(tables=1e5),
    "weigh": lambda _facts, _parts: Work(tables=1e5),
    "judge": lambda _facts, _parts: Work(tables=1e4),
    "select_answers": lambda _facts, _parts: Work(tables=1e6),
    "summarize_perplexity": lambda _facts, _parts: Work(tables=1e5),
    "account": lambda _facts, _parts: Work(tables=1e5),
    "report": lambda _facts, _parts: Work(tables=1e7),
}
