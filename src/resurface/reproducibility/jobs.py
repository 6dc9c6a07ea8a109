"""The jobs of an experiment: where each writes, its slice of the configuration, and the source that it runs.

The rules pass these to Snakemake, which makes stale what they change; records keep them; an audit compares records with
them. A rule is split by name where methods or attacks share it.
"""

import json
from collections.abc import Collection, Iterator

from resurface.config import MODELS as REFERENCE_NAMES
from resurface.config import Experiment, dump_settings
from resurface.registry import ATTACKS, METHODS
from resurface.reproducibility.fingerprint import fingerprint
from resurface.settings.base import Settings

DATA = "results/data/{domain}"
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
NAMED = {"unlearn": METHODS, "attack": ATTACKS}
RULES = (*SOURCES, *NAMED)


def job_source(rule: str, name: str | None = None) -> str:
    """The fingerprint of the source that a rule's jobs run.

    Args:
        rule: one of `RULES`.
        name: the method of `unlearn`, the attack of `attack`.
    """
    sources = SOURCES[rule] if name is None else [(NAMED[rule][name].module,)]
    return "-".join(fingerprint(*source) for source in sources)


def job_settings(experiment: Experiment, rule: str, name: str | None = None) -> str:
    """A rule's own slice of the configuration as one line of sorted JSON: what its command line carries as `--settings`.

    Args:
        experiment: the whole configuration.
        rule: one of `RULES`.
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
        "score": experiment.scoring,
        "refusals": experiment.refusals,
        "perplexity": experiment.perplexity,
        "summarize": experiment.summary,
        "worst_case": experiment.summary,
    }
    return dump_settings(slices[rule]) if rule in slices else json.dumps({})


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


def job_outputs(experiment: Experiment) -> Iterator[str]:
    """What the command line of each job of an experiment names as output, in the order of the stages."""
    yield from (DATA.format(domain=name) for name in (*experiment.domains, "general"))
    for name in reference_models(experiment):
        if getattr(experiment.models, name) == "pretrain":
            yield TESTBED.format(model=name)
        yield MODELS.format(model=name)
    yield from reported(experiment, UNLEARNED, ["none"], experiment.method_names)
    for attack in experiment.attack_names:
        yield from attack_folders(experiment, attack)
    yield from reported(experiment, SCORES, experiment.attack_names)
    yield from reported(experiment, REFUSALS, ["none"])
    yield from reported(experiment, PERPLEXITY, prompt_attacks(experiment), attacked_models(experiment))
    yield from (SUMMARY, WORST_CASE, PERPLEXITIES, REPORT)
