"""The jobs of an experiment: where each writes, its slice of the configuration, and the source that it runs.

The rules pass these to Snakemake, which makes stale what they change; records keep them; an audit compares records with
them. A rule is split by name where methods or attacks share it.
"""

import json
from collections.abc import Collection
from typing import Any

from resurface.config import MODELS as REFERENCE_NAMES
from resurface.config import Experiment, dump_settings
from resurface.registry import ATTACKS, METHODS
from resurface.reproducibility.fingerprint import fingerprint
from resurface.settings.base import Settings
from resurface.settings.sources import PUBLIC_DOMAINS, unread_keys
from resurface.testbed.world import FORGET_DOMAINS

DATA = "results/data/{domain}"
PREFERENCES = f"{DATA}/preferences.parquet"
PUBLIC = "results/data/sources/{table}.parquet"
QUESTIONS = "results/data/{domain}/questions.parquet"
TESTBED = "results/testbed/{model}"
TAUGHT = "results/taught"
MODELS = "results/models/{model}"
UNLEARNED = "results/unlearned/{domain}/{method}/seed{seed}"
ATTACKED = "results/attacks/{domain}/{method}/seed{seed}/{attack}/{part}"
SCORES = "results/scores/{domain}/{method}/seed{seed}/{attack}.parquet"
PERPLEXITY = "results/perplexity/{domain}/{method}/seed{seed}/{attack}.parquet"
REFUSALS = "results/refusals/{domain}/{method}/seed{seed}.parquet"
SUMMARY = "results/summary.parquet"
PERPLEXITIES = "results/perplexity.parquet"
WORST_CASE = "results/worst_case.parquet"
ANSWERS = "results/answers.parquet"
EVIDENCE = "results/evidence.parquet"
VERDICTS = "results/verdicts.parquet"
COSTS = "results/costs.parquet"
REPORT = "results/report.html"
FINALS = {
    SUMMARY: "summarize",
    WORST_CASE: "worst_case",
    EVIDENCE: "weigh",
    VERDICTS: "judge",
    ANSWERS: "select_answers",
    PERPLEXITIES: "summarize_perplexity",
    COSTS: "account",
    REPORT: "report",
}

# The modules that a rule's jobs run, each with the package's files that it reads besides. Harness tasks are found by name:
# nothing imports them.
TASKS = ("resurface.testbed.tasks.questions", "testbed/tasks/*.yaml", "data/tasks/*.yaml")
SOURCES: dict[str, list[tuple[str, ...]]] = {
    "data": [("resurface.data.testbed",)],
    "general_questions": [("resurface.data.testbed",)],
    "write_preferences": [("resurface.data.preferences",)],
    "source": [("resurface.data.public",)],
    "corpora": [("resurface.data.public",)],
    "questions": [("resurface.data.public",)],
    "model": [("resurface.checkpoints",), ("resurface.hub",)],
    "pretrain": [("resurface.testbed.pretraining",)],
    "teach": [("resurface.testbed.teaching",)],
    "score": [("resurface.scoring.score",), TASKS],
    "refusals": [("resurface.scoring.refusals",), TASKS],
    "perplexity": [("resurface.scoring.perplexity",), TASKS],
    "summarize": [("resurface.analysis.summary",)],
    "worst_case": [("resurface.analysis.worst_case",)],
    "weigh": [("resurface.analysis.evidence",)],
    "judge": [("resurface.analysis.verdict",)],
    "select_answers": [("resurface.analysis.answers",)],
    "summarize_perplexity": [("resurface.analysis.perplexity",)],
    "account": [("resurface.analysis.costs",)],
    "report": [
        ("resurface.analysis.report", "analysis/report.html.jinja", "analysis/report.js"),
        ("resurface.analysis.figures",),
    ],
}
# Of each rule that summarizes answers the settings of the summary that it does not read.
UNREAD_BY_SUMMARIES = {
    "summarize": ["margin", "power"],
    "worst_case": ["margin", "power"],
    "weigh": [],
    "judge": ["power", "resamples", "seed"],
}
# Tables that a job writes beside what its command line names as output.
WRITTEN_BESIDE = {"write_preferences": ("train_questions", "retain_questions", "rejects")}
NAMED = {"unlearn": METHODS, "attack": ATTACKS}


def job_source(rule: str, name: str | None = None) -> str:
    """The fingerprint of the source that a rule's jobs run.

    Args:
        rule: a key of `SOURCES` or `NAMED`.
        name: the method of `unlearn`, the attack of `attack`; `source` and `corpora` are the same whatever they read.
    """
    sources = SOURCES[rule] if rule in SOURCES else [(NAMED[rule][name or ""].module,)]
    return "-".join(fingerprint(*source) for source in sources)


def job_settings(experiment: Experiment, rule: str, name: str | None = None) -> str:
    """A rule's own slice of the configuration as one line of sorted JSON: what its command line carries as `--settings`.

    Args:
        experiment: the whole configuration.
        rule: a key of `SOURCES` or `NAMED`.
        name: the method of `unlearn`, the attack of `attack`, the table of `source`, the domain of `corpora`.
    """
    if rule in ("source", "corpora") and name is not None:
        return dump_settings(experiment.sources, without=unread_keys(name))
    if name is not None:
        return dump_settings(experiment.settings_of("methods" if rule == "unlearn" else "attacks", name))
    if rule == "data":
        return dump_settings(experiment.data, without=["general_questions"])
    if rule == "general_questions":
        return dump_settings(experiment.data, without=["articles", "domain_seed", "preference_draws", "wordings"])
    if rule in UNREAD_BY_SUMMARIES:
        return dump_settings(experiment.summary, without=UNREAD_BY_SUMMARIES[rule])
    slices: dict[str, Settings] = {
        "pretrain": experiment.pretraining,
        "write_preferences": experiment.preferences,
        "teach": experiment.teaching,
        "score": experiment.scoring,
        "refusals": experiment.refusals,
        "perplexity": experiment.perplexity,
    }
    return dump_settings(slices[rule]) if rule in slices else json.dumps({})


def public_domains(experiment: Experiment) -> list[str]:
    """The domains whose preference data is written."""
    return [name for name in experiment.domains if name in PUBLIC_DOMAINS]


def reference_models(experiment: Experiment) -> list[str]:
    """The original, and the control if there is one."""
    return [name for name in REFERENCE_NAMES if getattr(experiment.models, name)]


def attacked_models(experiment: Experiment) -> list[str]:
    """The models that attacks run on: all but the original, which is only looked at as it is."""
    return [name for name in (*reference_models(experiment), *experiment.method_names) if name != "original"]


def prompt_attacks(experiment: Experiment) -> list[str]:
    """The attacks through the prompt, under which perplexity is measured."""
    return [name for name in experiment.attack_names if ATTACKS[name].changes_prompts]


def reported(
    experiment: Experiment, pattern: str, attacks: Collection[str], models: Collection[str] | None = None
) -> list[str]:
    """All files of a pattern that the experiment needs.

    A reference model without attack does not depend on a seed; the original is not attacked, but what attacks found on others
    may be scored on it.

    Args:
        experiment: the whole configuration.
        pattern: a path with the wildcards domain, method, seed and attack.
        attacks: these attacks.
        models: these models; None: all.
    """
    references = reference_models(experiment)
    return [
        pattern.format(domain=domain, method=method, seed=seed, attack=attack)
        for domain in experiment.domains
        for method in (models or (*references, *experiment.method_names))
        for seed in experiment.seeds
        for attack in attacks
        if experiment.is_of_domain(method, domain)
        and (seed == experiment.seeds[0] or not (attack == "none" and method in references))
        and (method != "original" or attack == "none" or experiment.is_transferred(attack))
    ]


def attack_folders(experiment: Experiment, attack: str) -> list[str]:
    """The folders of an attack's jobs, one per model and part."""
    models = None if attack == "none" else attacked_models(experiment)
    return [
        folder
        for part in experiment.parts_of(attack)
        for folder in reported(experiment, ATTACKED.replace("{part}", part), [attack], models)
    ]


def shown_folders(experiment: Experiment) -> list[str]:
    """The folders of attacks whose search or outcome the report shows."""
    shown = [attack for attack in experiment.attack_names if ATTACKS[attack].is_shown]
    return [folder for attack in shown for folder in attack_folders(experiment, attack)]


def shown_domains(experiment: Experiment) -> list[str]:
    """The domains whose questions the report may hold as text."""
    text = experiment.report.question_text
    return [
        name for name in experiment.domains if text == "all" or (text == "fictional" and name not in PUBLIC_DOMAINS)
    ]


def model_source(experiment: Experiment, model: str) -> str:
    """Where a reference model or a published checkpoint is taken over from: what the `model` command gets."""
    if model in experiment.published:
        return experiment.published[model].checkpoint
    source: str = getattr(experiment.models, model)
    made_here = {"testbed": f"testbed:{model}", "pretrain": TESTBED.format(model=model), "teach": TAUGHT}
    return made_here.get(source, source)


def tokenizer_source(experiment: Experiment, model: str) -> str | None:
    """Where the tokenizer of a model comes from, if not from the model itself."""
    settings = experiment.published.get(model)
    return settings.tokenizer if settings else None


def task_table(task: str) -> str | None:
    """The table that a local task reads; None for the harness's own tasks, which fetch their data themselves."""
    if task.startswith("testbed_general"):
        return DATA.format(domain="general") + "/questions.parquet"
    if task.startswith("testbed_"):
        return QUESTIONS.format(domain=task.removeprefix("testbed_"))
    if task.startswith("resurface_mmlu"):
        return PUBLIC.format(table="mmlu")
    if task.startswith("resurface_"):
        return PUBLIC.format(table=task.removeprefix("resurface_"))
    return None


def benchmark_tables(experiment: Experiment, domain: str) -> list[str]:
    """The tables that a domain's questions and the general benchmarks are read from."""
    tasks = [*domain_tasks(domain), *(task for tasks in experiment.benchmarks.values() for task in tasks)]
    return list(dict.fromkeys(table for table in map(task_table, tasks) if table))


def data_jobs(experiment: Experiment) -> dict[str, tuple[str, str | None]]:
    """The jobs that write the tables of an experiment: output → rule, and what of it."""
    tables = {table for domain in experiment.domains for table in benchmark_tables(experiment, domain)}
    jobs: dict[str, tuple[str, str | None]] = {}
    for domain in FORGET_DOMAINS:
        if domain in experiment.domains or QUESTIONS.format(domain=domain) in tables:
            jobs[DATA.format(domain=domain)] = ("data", None)
    if QUESTIONS.format(domain="general") in tables:
        jobs[DATA.format(domain="general")] = ("general_questions", None)
    public = public_domains(experiment)
    for domain in public:
        jobs[DATA.format(domain=domain)] = ("corpora", domain)
        jobs[QUESTIONS.format(domain=domain)] = ("questions", None)
    names = [f"wmdp_{domain}" for domain in PUBLIC_DOMAINS] + ["mmlu"]
    shared = [name for name in names if PUBLIC.format(table=name) in tables]
    shared += ["wikitext", "benign_questions", "general_pairs"] if public else []
    return jobs | {PUBLIC.format(table=name): ("source", name) for name in shared}


def all_jobs(experiment: Experiment) -> dict[str, tuple[str, str | None]]:
    """All jobs of an experiment: what a job's command line names as output → its rule, and the method or the attack."""
    jobs: dict[str, tuple[str, str | None]] = data_jobs(experiment)
    jobs |= {PREFERENCES.format(domain=name): ("write_preferences", None) for name in public_domains(experiment)}
    for name in [*reference_models(experiment), *experiment.published]:
        source = model_source(experiment, name)
        if source == TESTBED.format(model=name):
            jobs[source] = ("pretrain", None)
        if source == TAUGHT:
            jobs[source] = ("teach", None)
        jobs[MODELS.format(model=name)] = ("model", None)
    for name in experiment.trained_methods:
        jobs |= dict.fromkeys(reported(experiment, UNLEARNED, ["none"], [name]), ("unlearn", name))
    for name in experiment.attack_names:
        jobs |= dict.fromkeys(attack_folders(experiment, name), ("attack", name))
    prompted = reported(experiment, PERPLEXITY, prompt_attacks(experiment), attacked_models(experiment))
    jobs |= dict.fromkeys(reported(experiment, SCORES, experiment.attack_names), ("score", None))
    jobs |= dict.fromkeys(reported(experiment, REFUSALS, ["none"]), ("refusals", None))
    jobs |= dict.fromkeys(prompted, ("perplexity", None))
    return jobs | {path: (rule, None) for path, rule in FINALS.items()}


def accounted_jobs(experiment: Experiment) -> list[str]:
    """The jobs whose cost is reported, by output: all but those that summarize, which take seconds."""
    return [output for output in all_jobs(experiment) if output not in FINALS]


def identify(domain: str, method: str, seed: int, attack: str | None) -> dict[str, str | int | None]:
    """What a table says of its model; a reference model without attack has no seed.

    Args:
        domain: the domain.
        method: the method, or a reference model.
        seed: as it stands in the table's path.
        attack: the attack; None in tables that are about no attack.
    """
    is_seedless = method in REFERENCE_NAMES and attack in (None, "none")
    named = {} if attack is None else {"attack": attack}
    return {"domain": domain, "method": method, "seed": None if is_seedless else seed, **named}


def job_facts(experiment: Experiment, output: str, rule: str) -> dict[str, Any]:
    """What a record must say of a job besides its slice of the configuration, as its output's path and the configuration tell.

    Args:
        experiment: the whole configuration.
        output: what the job's command line names as output (`all_jobs`).
        rule: its rule.

    Returns:
        `seed`, and settings by key.
    """
    parts = output.removesuffix(".parquet").split("/")[2:]
    if rule == "write_preferences":
        return {"seed": None, "subject": PUBLIC_DOMAINS[parts[0]]}
    if rule == "model":
        tokenizer = tokenizer_source(experiment, parts[0])
        return {"seed": None, "source": model_source(experiment, parts[0]), "tokenizer": tokenizer}
    if rule == "pretrain":
        return {"seed": experiment.pretraining.seed}
    if rule == "teach":
        return {"seed": experiment.teaching.seed, "domains": experiment.domains}
    if rule in ("unlearn", "attack"):
        return {"seed": int(parts[2].removeprefix("seed"))}
    if rule not in ("score", "refusals", "perplexity"):
        return {"seed": None}
    domain, method, seed, *attack = parts
    facts: dict[str, Any] = identify(domain, method, int(seed.removeprefix("seed")), next(iter(attack), None))
    if rule == "perplexity":
        return {**facts, "tasks": domain_tasks(domain), "templates": experiment.scoring.templates}
    facts["benchmarks"] = {domain: domain_tasks(domain), **experiment.benchmarks}
    return facts if rule == "score" else {**facts, "templates": experiment.scoring.templates}


def domain_tasks(domain: str) -> list[str]:
    """The harness tasks of a domain's own questions."""
    return [f"resurface_wmdp_{domain}" if domain in PUBLIC_DOMAINS else f"testbed_{domain}"]


def is_output(path: str, output: str, rule: str) -> bool:
    """Whether a job writes a file, by what its command line names as output."""
    folder = output.rpartition("/")[0]
    beside = [f"{folder}/{name}.parquet" for name in WRITTEN_BESIDE.get(rule, ())]
    written = (output, f"{output}.hashes.json", *beside)
    return path in written or path.startswith((f"{output}/", *(["results/figures/"] if rule == "report" else [])))
