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

DATA = "results/data/{domain}"
PREFERENCES = f"{DATA}/preferences.parquet"
TESTBED = "results/testbed/{model}"
MODELS = "results/models/{model}"
UNLEARNED = "results/unlearned/{domain}/{method}/seed{seed}"
ATTACKED = "results/attacks/{domain}/{method}/seed{seed}/{attack}/{part}"
SCORES = "results/scores/{domain}/{method}/seed{seed}/{attack}.parquet"
PERPLEXITY = "results/perplexity/{domain}/{method}/seed{seed}/{attack}.parquet"
REFUSALS = "results/refusals/{domain}/{method}/seed{seed}.parquet"
SUMMARY = "results/summary.parquet"
PERPLEXITIES = "results/perplexity.parquet"
WORST_CASE = "results/worst_case.parquet"
REPORT = "results/report.html"

# The modules that a rule's jobs run, each with the package's files that it reads besides. Harness tasks are found by name:
# nothing imports them.
TASKS = ("resurface.testbed.tasks.questions", "testbed/tasks/*.yaml")
SOURCES: dict[str, list[tuple[str, ...]]] = {
    "data": [("resurface.data.testbed",)],
    "general_questions": [("resurface.data.testbed",)],
    "write_preferences": [("resurface.data.preferences",)],
    "model": [("resurface.checkpoints",)],
    "pretrain": [("resurface.testbed.pretraining",)],
    "score": [("resurface.scoring.score",), TASKS],
    "refusals": [("resurface.scoring.refusals",), TASKS],
    "perplexity": [("resurface.scoring.perplexity",), TASKS],
    "summarize": [("resurface.analysis.summary",)],
    "worst_case": [("resurface.analysis.worst_case",)],
    "summarize_perplexity": [("resurface.analysis.perplexity",)],
    "report": [("resurface.analysis.report", "analysis/report.html.jinja"), ("resurface.analysis.figures",)],
}
# Tables that a job writes beside what its command line names as output.
WRITTEN_BESIDE = {"write_preferences": ("train_questions", "retain_questions", "rejects")}
# The public domains, for which preference data is written, each with its field as it stands in a prompt's header.
PUBLIC_SUBJECTS = {"bio": "biology", "chem": "chemistry", "cyber": "cybersecurity"}
NAMED = {"unlearn": METHODS, "attack": ATTACKS}


def job_source(rule: str, name: str | None = None) -> str:
    """The fingerprint of the source that a rule's jobs run.

    Args:
        rule: a key of `SOURCES` or `NAMED`.
        name: the method of `unlearn`, the attack of `attack`.
    """
    sources = SOURCES[rule] if name is None else [(NAMED[rule][name].module,)]
    return "-".join(fingerprint(*source) for source in sources)


def job_settings(experiment: Experiment, rule: str, name: str | None = None) -> str:
    """A rule's own slice of the configuration as one line of sorted JSON: what its command line carries as `--settings`.

    Args:
        experiment: the whole configuration.
        rule: a key of `SOURCES` or `NAMED`.
        name: the method of `unlearn`, the attack of `attack`.
    """
    if name is not None:
        return dump_settings(experiment.settings_of("methods" if rule == "unlearn" else "attacks", name))
    if rule == "data":
        return dump_settings(experiment.data, without=["general_questions"])
    if rule == "general_questions":
        return dump_settings(experiment.data, without=["articles", "preference_draws"])
    slices: dict[str, Settings] = {
        "pretrain": experiment.pretraining,
        "write_preferences": experiment.preferences,
        "score": experiment.scoring,
        "refusals": experiment.refusals,
        "perplexity": experiment.perplexity,
        "summarize": experiment.summary,
        "worst_case": experiment.summary,
    }
    return dump_settings(slices[rule]) if rule in slices else json.dumps({})


def public_domains(experiment: Experiment) -> list[str]:
    """The domains whose preference data is written."""
    return [name for name in experiment.domains if name in PUBLIC_SUBJECTS]


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
        if (seed == experiment.seeds[0] or not (attack == "none" and method in references))
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


def all_jobs(experiment: Experiment) -> dict[str, tuple[str, str | None]]:
    """All jobs of an experiment: what a job's command line names as output → its rule, and the method or the attack."""
    jobs: dict[str, tuple[str, str | None]] = {DATA.format(domain=name): ("data", None) for name in experiment.domains}
    jobs[DATA.format(domain="general")] = ("general_questions", None)
    jobs |= {PREFERENCES.format(domain=name): ("write_preferences", None) for name in public_domains(experiment)}
    for name in reference_models(experiment):
        if getattr(experiment.models, name) == "pretrain":
            jobs[TESTBED.format(model=name)] = ("pretrain", None)
        jobs[MODELS.format(model=name)] = ("model", None)
    for name in experiment.method_names:
        jobs |= dict.fromkeys(reported(experiment, UNLEARNED, ["none"], [name]), ("unlearn", name))
    for name in experiment.attack_names:
        jobs |= dict.fromkeys(attack_folders(experiment, name), ("attack", name))
    prompted = reported(experiment, PERPLEXITY, prompt_attacks(experiment), attacked_models(experiment))
    jobs |= dict.fromkeys(reported(experiment, SCORES, experiment.attack_names), ("score", None))
    jobs |= dict.fromkeys(reported(experiment, REFUSALS, ["none"]), ("refusals", None))
    jobs |= dict.fromkeys(prompted, ("perplexity", None))
    finals = {SUMMARY: "summarize", WORST_CASE: "worst_case", PERPLEXITIES: "summarize_perplexity", REPORT: "report"}
    return jobs | {path: (rule, None) for path, rule in finals.items()}


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
        return {"seed": None, "subject": PUBLIC_SUBJECTS[parts[0]]}
    if rule == "model":
        source = getattr(experiment.models, parts[0])
        named = {"testbed": f"testbed:{parts[0]}", "pretrain": TESTBED.format(model=parts[0])}
        return {"seed": None, "source": named.get(source, source)}
    if rule == "pretrain":
        return {"seed": experiment.pretraining.seed}
    if rule in ("unlearn", "attack"):
        return {"seed": int(parts[2].removeprefix("seed"))}
    if rule not in ("score", "refusals", "perplexity"):
        return {"seed": None}
    domain, method, seed, *attack = parts
    is_seedless = method in REFERENCE_NAMES and (attack or ["none"]) == ["none"]
    facts: dict[str, Any] = {
        "domain": domain,
        "method": method,
        "seed": None if is_seedless else int(seed.removeprefix("seed")),
        **({"attack": attack[0]} if attack else {}),
    }
    if rule == "perplexity":
        return {**facts, "tasks": domain_tasks(domain), "templates": experiment.scoring.templates}
    facts["benchmarks"] = {domain: domain_tasks(domain), **experiment.benchmarks}
    return facts if rule == "score" else {**facts, "templates": experiment.scoring.templates}


def domain_tasks(domain: str) -> list[str]:
    """The harness tasks of a domain's own questions."""
    return [f"testbed_{domain}"]


def is_output(path: str, output: str, rule: str) -> bool:
    """Whether a job writes a file, by what its command line names as output."""
    folder = output.rpartition("/")[0]
    beside = [f"{folder}/{name}.parquet" for name in WRITTEN_BESIDE.get(rule, ())]
    written = (output, f"{output}.hashes.json", *beside)
    return path in written or path.startswith((f"{output}/", *(["results/figures/"] if rule == "report" else [])))
