"""Caching: what an edit schedules, asserted with dry runs of Snakemake after one real, reduced run."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import snakemake

pytestmark = pytest.mark.slow


def scheduled(project: Path) -> set[str]:
    """The jobs that a dry run would start, as `rule method attack`, wildcards where a rule has them."""
    plan = snakemake(project, "--dry-run", "--quiet", "host").stdout
    jobs = set()
    for rule, block in re.findall(r"^rule (\w+):\n((?:    .*\n)*)", plan, flags=re.MULTILINE):
        found = re.search(r"wildcards: (.*)", block)
        wildcards = dict(re.findall(r"(\w+)=(\w+)", found[1])) if found else {}
        jobs.add(" ".join([rule, *(wildcards[key] for key in ("method", "attack") if key in wildcards)]))
    return jobs - {"all"}


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "\n# an edit\n")


def set_config(project: Path, *keys: str, value) -> None:
    config = yaml.safe_load((project / "config.yaml").read_text())
    section = config
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    (project / "config.yaml").write_text(yaml.safe_dump(config))


# What follows any change of a score; the manifest follows every change.
FINAL = {"summarize", "worst_case", "weigh", "judge", "select_answers", "account", "report", "manifest"}


def chain(attack: str, methods=("rmu", "npo", "never_learned")) -> set[str]:
    jobs = {f"{rule} {method} {attack}" for method in methods for rule in ("attack", "score")}
    return jobs | FINAL


def test_a_second_run_schedules_nothing(project):
    assert scheduled(project) == set()


def test_the_reduced_run_left_what_the_design_says(project):
    results = project / "results"
    for name in ["summary.parquet", "report.html", "figures/main_table.svg", "figures/main_table.png"]:
        assert (results / name).stat().st_size > 0
    assert (results / "unlearned/xenotoxicology/npo/seed0/losses.parquet").is_file()
    assert not list((results / ".resume").glob("*")), "resume state goes on success"
    left = [path for path in results.rglob("*") if path.suffix in {".bin", ".pt", ".pkl", ".pth"}]
    assert not left, "declared outputs hold no pickles"


@pytest.mark.parametrize("attack", ["finetuning", "orthogonalization", "logit_lens"])
def test_editing_an_attack_schedules_it_and_what_follows(project, attack):
    edit(project / "src/resurface/attacks" / f"{attack}.py")
    assert scheduled(project) == chain(attack)


def test_changing_settings_of_an_attack_schedules_it_and_what_follows(project):
    set_config(project, "attacks", "finetuning", "learning_rate", value=0.01)
    assert scheduled(project) == chain("finetuning")


def test_changing_settings_of_a_method_leaves_the_others_alone(project):
    set_config(project, "methods", "npo", "beta", value=0.2)
    attacks = ["none", "finetuning", "orthogonalization", "logit_lens"]
    expected = {"unlearn npo", "refusals npo", *FINAL}
    for attack in attacks:
        expected |= {f"attack npo {attack}", f"score npo {attack}"}
    assert scheduled(project) == expected


@pytest.mark.parametrize(
    "path", ["scoring/language_model.py", "testbed/tasks/_questions.yaml", "testbed/tasks/questions.py"]
)
def test_editing_the_scorer_or_a_task_schedules_scores_only(project, path):
    edit(project / "src/resurface" / path)
    rules = {job.split()[0] for job in scheduled(project)}
    assert rules == {"score", "refusals", *FINAL}


@pytest.mark.parametrize("path", ["report.py", "report.html.jinja"])
def test_editing_the_report_schedules_the_report_only(project, path):
    edit(project / "src/resurface/analysis" / path)
    assert scheduled(project) == {"report", "manifest"}


def test_editing_a_readme_the_command_line_or_a_test_schedules_nothing(project):
    edit(project / "README.md")
    edit(project / "src/resurface/commands/computing.py")
    edit(project / "tests/conftest.py")
    assert scheduled(project) == set()


def turn_round(section):
    """A configuration with the keys of each section in the opposite order."""
    if not isinstance(section, dict):
        return section
    return {key: turn_round(value) for key, value in reversed(section.items())}


def test_the_order_of_names_changes_nothing(project):
    """A manifest keeps none, and jobs that are run again are made from it."""
    config = yaml.safe_load((project / "config.yaml").read_text())
    assert list(config["attacks"]["finetuning"]["datasets"]) == ["forget", "retain"]
    (project / "config.yaml").write_text(yaml.safe_dump(turn_round(config), sort_keys=False))
    assert scheduled(project) == set()


def test_a_new_domain_leaves_the_first_alone(project):
    set_config(project, "domains", value=["xenotoxicology", "runecraft"])
    plan = snakemake(project, "--dry-run", "--quiet", "host").stdout
    assert "domain=runecraft" in plan
    assert "domain=xenotoxicology" not in plan


def test_the_device_makes_nothing_stale(project):
    set_config(project, "device", value="cpu")
    assert scheduled(project) <= {"report", "manifest"}, "these show the configuration; no more depends on the device"


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("methods", "rmv"), {}, ["methods.rmv", "unknown key", "rmu, npo, dpo"]),
        (("attacks", "gcg2"), {}, ["attacks.gcg2", "unknown key"]),
        (("domains",), ["alchemy"], ["domains.0", "'alchemy'"]),
        (("methods", "npo", "learning_rate"), -0.1, ["methods.npo.learning_rate", "-0.1"]),
    ],
)
def test_a_bad_configuration_stops_before_any_job(project, keys, value, words):
    set_config(project, *keys, value=value)
    run = snakemake(project, check=False)
    assert run.returncode != 0
    for word in ["config.yaml", *words]:
        assert word in run.stdout
    assert "Traceback" not in run.stdout


def test_a_configfile_replaces_the_default(project, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(
        yaml.safe_dump({"domains": ["runecraft"], "methods": {"dpo": None}, "attacks": {"logit_lens": None}})
    )
    plan = snakemake(project, "--dry-run", "--quiet", "host", "--configfile", str(other)).stdout
    assert "domain=runecraft" in plan
    assert "xenotoxicology" not in plan
    assert "method=npo" not in plan


def test_a_broken_checkpoint_stops_its_job_and_leaves_nothing(project, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(project / "results/models/original", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])
    set_config(project, "models", value={"original": str(broken)})
    run = snakemake(project, "results/models/original", check=False)
    assert run.returncode != 0
    assert "truncated" in run.stdout
    assert str(weights) in run.stdout
    assert not (project / "results/models/original").exists()
    assert "truncated" in (project / "results/logs/models/original.log").read_text()


def test_a_truncated_table_stops_its_job_and_is_named(project):
    table = project / "results/data/xenotoxicology/questions.parquet"
    table.write_bytes(table.read_bytes()[:100])
    run = snakemake(project, "results/scores/xenotoxicology/npo/seed0/none.parquet", "--forcerun", "score", check=False)
    assert run.returncode != 0
    assert f"{table}: this is no readable parquet file" in run.stdout
    assert "bug" not in run.stdout
