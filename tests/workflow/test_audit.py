"""Audits of a real, reduced run: whatever is changed is found, nothing else is, and jobs come out again."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import DOMAIN, ROOT, snakemake

from resurface.artifacts import check_folder, write_table
from resurface.errors import ResurfaceError
from resurface.reproducibility import reproduce as reproducing
from resurface.reproducibility.compare import compare_scores, explain, list_unshared, read_verified
from resurface.reproducibility.manifest import compute_digest, place, read_manifest
from resurface.reproducibility.record import dump_canonical
from resurface.reproducibility.verify import read_experiment, show_plainly, verify

pytestmark = pytest.mark.audit

SCORES = "results/scores/xenotoxicology/rmu/seed0/none.parquet"
CHANGES = 200
COPIES = 20


@pytest.fixture
def results(finished, tmp_path):
    """A copy of the results alone, under another name."""
    return shutil.copytree(finished / "results", tmp_path / "theirs", symlinks=True)


def faults(results, **options):
    """What is found, as kind and path; the manifest itself is refused as a whole."""
    try:
        return {(finding.kind, finding.path) for finding in verify(results, **options)[1]}
    except ResurfaceError as error:
        assert "manifest.json" in str(error)
        return {("changed", "results/manifest.json")}


def audit(*arguments, cwd):
    """Run an audit where the environment is not activated, and a profile of another workflow is set."""
    outside = os.pathsep.join(
        path for path in os.environ["PATH"].split(os.pathsep) if Path(path) != Path(sys.executable).parent
    )
    return subprocess.run(
        [sys.executable, "-m", "resurface.cli", "audit", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "PATH": outside, "SNAKEMAKE_PROFILE": "nowhere"},
        capture_output=True,
        text=True,
    )


def rewrite_manifest(results, change):
    """Change a manifest's content and give it a digest that fits, as somebody does who wants to hide a change."""
    content = json.loads((results / "manifest.json").read_text())
    change(content)
    accounts = content["records"]["results/costs.parquet.provenance.json"]["inputs"]  # records are its inputs
    for path in accounts.keys() & content["records"].keys():
        accounts[path] = hashlib.sha256(dump_canonical(content["records"][path]).encode()).hexdigest()
    for path, record in content["records"].items():
        text = dump_canonical(record)
        place(results, path).write_text(text)
        content["files"][path] = hashlib.sha256(text.encode()).hexdigest()
    content["digest"] = compute_digest(content)
    (results / "manifest.json").write_text(dump_canonical(content))


def test_untouched_copies_pass(finished, tmp_path):
    assert faults(finished / "results") == set()
    for number in range(COPIES):
        copy = tmp_path / f"copy{number}"
        subprocess.run(["cp", "-r", finished / "results", copy], check=True)
        assert faults(copy) == set()
        shutil.rmtree(copy)


def change_byte(results, files, generator):
    file = generator.choice([file for file in files if file.stat().st_size])
    content = bytearray(file.read_bytes())
    content[generator.randrange(len(content))] ^= generator.randrange(1, 256)
    file.write_bytes(content)
    return {file}


def delete(results, files, generator):
    file = generator.choice(files)
    file.unlink()
    return {file}


def swap(results, files, generator):
    while True:
        one, other = generator.sample(files, 2)
        if one.read_bytes() != other.read_bytes():
            break
    spare = results.parent / "spare"
    one.rename(spare)
    other.rename(one)
    spare.rename(other)
    return {one, other}


def add(results, files, generator):
    folder = generator.choice(sorted({file.parent for file in files} | {results / ".resume"}))
    name = generator.choice(["more.parquet", ".hidden", "é \n.txt", "deep/er/file.bin", "model.pt", ".lock"])
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(generator.randbytes(generator.choice([0, 10])))
    return {folder / name}


def test_every_change_is_found(finished, tmp_path):
    generator = random.Random(0)
    for number in range(CHANGES):
        results = shutil.copytree(finished / "results", tmp_path / f"changed{number}", symlinks=True)
        files = sorted(path for path in results.rglob("*") if path.is_file())
        change = [change_byte, delete, swap, add][number % 4]
        touched = change(results, files, generator)
        found = {path for _, path in faults(results)}
        missed = {f"results/{path.relative_to(results).as_posix()}" for path in touched} - found
        if "results/manifest.json" in found:
            missed = set()  # without its manifest a folder is refused as a whole
        assert not missed, f"{number}: {change.__name__}"
        shutil.rmtree(results)


def test_a_record_holds_what_the_job_was(finished):
    record = read_manifest(finished / "results").records[f"{SCORES}.provenance.json"]
    assert (record.rule, record.seed, record.settings["method"]) == ("score", 0, "rmu")
    assert record.inputs.keys() >= {
        "results/unlearned/xenotoxicology/rmu/seed0.hashes.json",
        "results/data/xenotoxicology/questions.parquet",
    }
    assert record.outputs == {SCORES: hashlib.sha256((finished / SCORES).read_bytes()).hexdigest()}
    assert record.versions["torch"].startswith("2.")
    assert record.device.type in ("cpu", "cuda")
    assert record.wall_seconds > 0
    assert record.peak_memory > 100_000_000


def test_a_job_dropped_from_the_manifest_is_missed(results):
    def drop(content):
        record = content["records"].pop(f"{SCORES}.provenance.json")
        for name in (*record["outputs"], f"{SCORES}.provenance.json", record["log"]):
            del content["files"][name]
            place(results, name).unlink()

    rewrite_manifest(results, drop)
    assert faults(results) >= {("missing", f"{SCORES}.provenance.json"), ("lineage", SCORES)}


def test_a_forged_score_breaks_the_lineage(results):
    table = pd.read_parquet(place(results, SCORES))
    write_table(table.assign(correct=True), place(results, SCORES))
    forged = hashlib.sha256(place(results, SCORES).read_bytes()).hexdigest()

    def forge(content):
        content["records"][f"{SCORES}.provenance.json"]["outputs"][SCORES] = forged
        content["files"][SCORES] = forged

    rewrite_manifest(results, forge)
    assert faults(results) == {("lineage", SCORES)}, "the summary was made from another table"


def test_other_settings_and_other_source_are_named(results, finished):
    npo = "results/unlearned/xenotoxicology/npo/seed0.provenance.json"

    def change(content):
        content["records"][npo]["settings"]["beta"] = 0.3
        content["records"][npo]["source"] = "0" * 16

    rewrite_manifest(results, change)
    assert faults(results) == {("settings", npo), ("source", npo)}


def test_another_configuration_is_named(finished, tmp_path):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    config["methods"]["npo"]["beta"] = 0.3
    config["models"] = {"never_learned": "/elsewhere"}
    config["benchmarks"]["general"] = ["testbed_general_sports"]
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(config))
    same = audit("verify", "--configfile", "config.yaml", cwd=finished)
    assert same.returncode == 0, same.stderr
    changed = audit("verify", "--configfile", other, cwd=finished)
    assert changed.returncode == 1
    for key in ("methods.npo.beta", "models.never_learned", "benchmarks.general"):
        assert key in changed.stdout
    assert "Traceback" not in changed.stderr


def test_the_digest_is_printed_and_checked(finished):
    passed = audit("verify", cwd=finished)
    digest = passed.stdout.split("digest ")[1].split()[0]
    assert audit("verify", "--digest", digest, cwd=finished).returncode == 0
    refused = audit("verify", "--digest", "0" * 64, cwd=finished)
    assert refused.returncode == 1
    assert digest in refused.stderr


@pytest.mark.parametrize("name", ["../outside", "results/../../outside", "/etc/passwd", "results//double", "results"])
def test_paths_that_leave_the_folder_are_refused(results, name):
    rewrite_manifest(results, lambda content: content["files"].update({name: "0" * 64}))
    with pytest.raises(ResurfaceError, match="must stay inside"):
        verify(results)


def test_links_and_pipes_are_not_read(results, tmp_path):
    for name in ("summary.parquet", "report.html", "figures/main_table.svg", "worst_case.parquet"):
        (results / name).unlink()
    (results / "summary.parquet").symlink_to("/dev/zero")
    os.mkfifo(results / "report.html")
    (results / "figures/main_table.svg").symlink_to(tmp_path)
    (results / "worst_case.parquet").mkdir()
    (results / "loop").symlink_to(results)
    assert faults(results) == {
        ("link", "results/summary.parquet"),
        ("changed", "results/report.html"),
        ("link", "results/figures/main_table.svg"),
        ("changed", "results/worst_case.parquet"),
        ("stranger", "results/loop"),
    }
    assert ("changed", "results/summary.parquet") in faults(results, follow_links=True)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": NaN}', "{}", "\x00", '{"digest": 1e999}'])
def test_a_manifest_of_nonsense_is_refused(results, text):
    (results / "manifest.json").write_text(text)
    with pytest.raises(ResurfaceError, match=r"manifest\.json"):
        verify(results)


def test_names_of_files_cannot_speak_to_the_terminal(results):
    (results / "\x1b[2Jgone\n").write_text("")
    run = audit("verify", results, cwd=results.parent)
    assert run.returncode == 1
    assert "\x1b[2J" not in run.stdout + run.stderr
    assert "\\x1b[2Jgone" in run.stdout
    assert show_plainly("é\n\u202e") == "é\\n\\u202e"


def test_jobs_come_out_again(finished, tmp_path):
    """Of rules that read one another too, and a score of files that lie in a folder; nothing else is run."""
    attacked = "xenotoxicology/npo/seed0/orthogonalization"
    jobs = {
        "unlearn": "results/unlearned/xenotoxicology/npo/seed0",
        "attack": f"results/attacks/{attacked}/all",
        "score": f"results/scores/{attacked}.parquet",
        "summarize": "results/summary.parquet",
        "account": "results/costs.parquet",
    }
    run = audit("reproduce", *jobs.values(), "--scratch", tmp_path / "scratch", cwd=finished)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("identical") == len(jobs)
    written = [path for path in (tmp_path / "scratch").rglob("*.provenance.json") if not path.is_symlink()]
    assert len(written) == len(jobs)


def test_a_sample_comes_out_again_and_runs_no_recorded_command(results, finished, tmp_path):
    def plant(content):
        for record in content["records"].values():
            record["command"] = ["touch", str(tmp_path / "ran")]

    rewrite_manifest(results, plant)
    outcomes = list(reproducing.reproduce(results, [], 4, 1, tmp_path / "scratch", finished / "Snakefile", 2))
    assert [(outcome.verdict, outcome.text) for outcome in outcomes] == [("identical", "")] * 4
    assert not (tmp_path / "ran").exists()


def test_a_forged_table_does_not_come_out_again(results, finished, tmp_path):
    """The summary was made from the true table, so only a rerun shows that one which nobody has read is forged."""
    path = "results/refusals/xenotoxicology/npo/seed0.parquet"
    table = pd.read_parquet(place(results, path))
    write_table(table.assign(refused=~table["refused"]), place(results, path))
    forged = hashlib.sha256(place(results, path).read_bytes()).hexdigest()

    def forge(content):
        for record in content["records"].values():
            for files in (record["inputs"], record["outputs"]):
                files.update({path: forged} if path in files else {})
        content["files"][path] = forged

    rewrite_manifest(results, forge)
    assert faults(results) == set()
    (outcome,) = reproducing.reproduce(results, [path], 1, 0, tmp_path / "scratch", finished / "Snakefile", 2)
    assert outcome.verdict == "differs"
    assert path in outcome.text


def test_what_a_job_reads_as_a_whole_holds_nothing_that_jobs_write(results, finished, tmp_path):
    """Else it would seem to have come out again, and a job that did run would write into the results that are audited."""
    options, folder = f"{SCORES}.provenance.json", "results/scores/xenotoxicology/rmu"

    def forge(content):
        digest = hashlib.sha256(b"{}").hexdigest()
        content["records"]["results/unlearned/xenotoxicology/rmu/seed0.provenance.json"]["outputs"][
            f"{folder}.hashes.json"
        ] = digest
        content["records"][options]["inputs"][f"{folder}.hashes.json"] = digest
        content["files"][f"{folder}.hashes.json"] = digest

    (results / "scores/xenotoxicology/rmu.hashes.json").write_text("{}")
    rewrite_manifest(results, forge)
    manifest = read_manifest(results)
    with pytest.raises(ResurfaceError, match="as a whole, and read or write"):
        reproducing.lay_out(tmp_path / "scratch", results, manifest, [options], read_experiment(manifest), "cpu")


def test_a_record_must_be_of_the_job_whose_place_it_has(results, finished, tmp_path):
    """Else its rule would end up on a command line, and its outputs would excuse whatever lies there."""
    (results / "model.pt").write_bytes(b"x")
    options = f"{SCORES}.provenance.json"
    stranger = "results/refusals/xenotoxicology/npo/seed0.parquet.provenance.json"

    def forge(content):
        content["records"][options]["rule"] = "--snakefile=results/report.html"
        content["records"][stranger]["outputs"]["results/model.pt"] = hashlib.sha256(b"x").hexdigest()
        content["files"]["results/model.pt"] = hashlib.sha256(b"x").hexdigest()

    rewrite_manifest(results, forge)
    assert faults(results) == {("job", options), ("job", stranger)}
    with pytest.raises(ResurfaceError, match="audit verify"):
        list(reproducing.reproduce(results, [SCORES], 1, 0, tmp_path / "scratch", finished / "Snakefile", 2))


def test_what_is_correct_must_follow_from_the_answers(finished, tmp_path):
    """Tolerances for other machines are no excuse for a score table that contradicts itself."""
    table = pd.read_parquet(finished / SCORES)
    forged = tmp_path / "forged.parquet"
    assert reproducing.compare_tables(finished / SCORES, finished / SCORES) is None
    write_table(table.assign(correct=True), forged)
    assert "cannot be compared" in reproducing.compare_files(forged, finished / SCORES)
    unknown = [values * float("nan") for values in table["logprobs"]]
    write_table(table.assign(logprobs=unknown), forged)
    assert "cannot be compared" in reproducing.compare_files(forged, finished / SCORES)


def test_two_folders_are_compared_question_by_question(finished, project):
    config = yaml.safe_load((project / "config.yaml").read_text())
    config["methods"]["npo"]["max_steps"] = 6
    (project / "config.yaml").write_text(yaml.safe_dump(config))
    snakemake(project)
    same = audit("compare", finished / "results", finished / "results", cwd=finished)
    assert same.returncode == 0, same.stderr
    run = audit("compare", finished / "results", project / "results", cwd=finished)
    assert run.returncode == 1
    assert "setting methods.npo.max_steps: 2 in A, 6 in B" in run.stdout
    (a, scores_a), (b, scores_b) = (read_verified(folder / "results", False) for folder in (finished, project))
    compared = compare_scores(scores_a, scores_b)
    changed = compared[compared["largest_gap"] > 0]
    assert set(changed["method"]) == {"npo"}
    assert list_unshared(scores_a, scores_b) == []
    assert explain(a, b) == ["setting methods.npo.max_steps: 2 in A, 6 in B"]


@pytest.fixture(scope="module")
def validator(tmp_path_factory):
    """The Python of an environment that has the validator of crates."""
    folder = tmp_path_factory.mktemp("validator")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    lock = ROOT / "envs" / "crate-validator.lock"
    install = subprocess.run([python, "-m", "pip", "install", "-q", "-r", lock], capture_output=True, text=True)
    if install.returncode:
        pytest.skip(f"the validator cannot be installed: {install.stderr[-300:]}")
    return python


def test_an_exported_crate_is_a_workflow_run_crate(finished, tmp_path, validator):
    crate = tmp_path / "crate"
    run = audit("export", crate, cwd=finished)
    assert run.returncode == 0, run.stderr
    assert (crate / SCORES).read_bytes() == (finished / SCORES).read_bytes()
    assert not list(crate.rglob("model.safetensors")), "weights come along only if asked for"
    described = {
        entity["@id"]: entity for entity in json.loads((crate / "ro-crate-metadata.json").read_text())["@graph"]
    }
    job = described[f"#{SCORES}.provenance.json"]
    assert {"@id": "results/data/xenotoxicology/questions.parquet"} in job["object"]
    assert job["result"] == [{"@id": SCORES}]

    script = ROOT / "tests" / "workflow" / "validate_crate.py"
    faults = subprocess.run([validator, script, crate, tmp_path / "cache"], capture_output=True, text=True)
    assert (faults.returncode, faults.stdout) == (0, ""), faults.stderr
    metadata = crate / "ro-crate-metadata.json"
    metadata.write_text(metadata.read_text().replace('"SoftwareSourceCode",', ""))
    faults = subprocess.run([validator, script, crate, tmp_path / "cache"], capture_output=True, text=True)
    assert "SoftwareSourceCode" in faults.stdout, "the validator reads what it is given"


def test_the_cache_between_workflows_serves_a_second_checkout(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    checkouts = []
    for name in ("first", "second"):
        checkout = tmp_path / name
        shutil.copytree(finished, checkout, ignore=shutil.ignore_patterns("results", ".snakemake"))
        run = snakemake(checkout, SCORES, "--cache", check=False)
        assert run.returncode == 0, run.stdout[-3000:]
        checkouts.append(checkout)
    folder = checkouts[1] / "results" / "logs"
    ran = {path.relative_to(folder).parts[0] for path in folder.rglob("*.log") if path.stat().st_size}
    assert ran == {"data", "models"}, "the second computes nothing expensive; Snakemake leaves empty logs"
    for checkout in checkouts:
        assert (checkout / SCORES).read_bytes() == (finished / SCORES).read_bytes()
        for table in ("forget_corpus", "questions"):
            assert (checkout / f"results/data/{DOMAIN}/{table}.parquet").is_file()
    assert "Nothing to be done" in snakemake(checkouts[1], SCORES, "--dry-run").stdout


def test_what_the_cache_has_linked_is_audited_like_files(finished, tmp_path):
    """The first checkout links whole folders, another one the files in them."""
    for name, places in {"folder": ["attacks/xenotoxicology/rmu/seed0/finetuning/forget"], "files": []}.items():
        results = shutil.copytree(finished / "results", tmp_path / name, symlinks=True)
        for linked in places or list(results.glob("attacks/*/rmu/seed0/finetuning/forget/*")):
            there = tmp_path / "cache" / name / Path(linked).name
            there.parent.mkdir(parents=True, exist_ok=True)
            (results / linked).rename(there)
            (results / linked).symlink_to(there)
        check_folder(results / "attacks/xenotoxicology/rmu/seed0/finetuning/forget")
        assert {kind for kind, _ in faults(results)} == {"link"}
        assert faults(results, follow_links=True) == set()
