"""The hub: what is downloaded, linked and left, and what is said when it cannot be; against a server that speaks its protocol."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import CHECKPOINTS, ROOT
from hub_server import COMMIT, serving
from public_data import COUNTS, write_public_data

from resurface.settings.sources import check_place, split_hub_id

SECRET = "hf_aSecretOfTheHubXXXXXXXXXXXXXXXX"
MODEL = "org/tiny"
CODE = "raise SystemExit('code of a model was run')"


@pytest.fixture
def hub(tmp_path):
    """A hub with a model, beside whose weights lies what must not be fetched, and with WMDP."""
    model = tmp_path / "hub" / MODEL
    shutil.copytree(CHECKPOINTS / "original", model)
    for name, content in {
        "pytorch_model.bin": "a pickle",
        "modeling_tiny.py": CODE,
        "consolidated.safetensors": "the same weights once more",
        "original/params.json": "{}",
    }.items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(content)
    write_public_data(tmp_path / "hub" / "datasets" / "org")
    with serving(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def resurface(tmp_path, hub):
    """Run a command with this hub, in a folder, with a token that no message may hold."""

    def run(*arguments, **environment):
        result = subprocess.run(
            [sys.executable, "-m", "resurface.cli", "--log", "log", *map(str, arguments)],
            cwd=tmp_path,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
                "PYTHONPATH": str(ROOT / "src"),
                "HF_ENDPOINT": hub.address,
                "HF_HOME": str(tmp_path / "home"),
                "HF_TOKEN": SECRET,
                **environment,
            },
            capture_output=True,
            text=True,
        )
        said = result.stdout + result.stderr + (tmp_path / "log").read_text()
        records = "".join(path.read_text() for path in tmp_path.glob("*.provenance.json"))
        assert SECRET not in said + records
        assert "Traceback" not in said
        return result

    return run


def test_a_model_is_fetched_once_and_linked(tmp_path, hub, resurface):
    run = resurface("model", f"{MODEL}@main", "--output", "model")
    assert run.returncode == 0, run.stderr
    assert f"{MODEL}@main: commit {COMMIT}" in run.stderr
    ours = {path.name for path in (tmp_path / "model").iterdir()}
    assert ours == {path.name for path in (CHECKPOINTS / "original").iterdir()}
    assert sorted(hub.asked) == sorted(ours), "pickles, code and second copies of the weights are not even fetched"
    assert all(path.is_symlink() for path in (tmp_path / "model").iterdir())
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert weights == (CHECKPOINTS / "original" / "model.safetensors").read_bytes()

    hub.asked.clear()
    for source in (f"{MODEL}@main", f"{MODEL}@{COMMIT}"):
        run = resurface("model", source, "--output", "again", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
        assert run.returncode == 0, run.stderr
    assert hub.asked == []


def test_a_tokenizer_comes_without_its_model(tmp_path, hub, resurface):
    bare = tmp_path / "hub" / "org" / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(CHECKPOINTS / "never_learned" / name, bare / name)
    (bare / "tokenizer_config.json").write_text("{}")
    run = resurface("model", "org/bare@main", "--output", "model")
    assert run.returncode == 1
    assert "no tokenizer; expected one of tokenizer.json" in run.stderr
    hub.asked.clear()
    run = resurface("model", "org/bare@main", "--tokenizer", f"{MODEL}@main", "--output", "model")
    assert run.returncode == 0, run.stderr
    assert "model.safetensors" not in hub.asked
    for name, home in {"model.safetensors": "never_learned", "tokenizer.json": "original"}.items():
        assert (tmp_path / "model" / name).read_bytes() == (CHECKPOINTS / home / name).read_bytes()
    assert (tmp_path / "model" / "tokenizer_config.json").read_text() != "{}", "none of its own tokenizer is left"
    run = resurface("model", f"{MODEL}@main", "--output", "again", HF_HUB_OFFLINE="1")
    assert run.returncode == 1
    assert f"`hf download {MODEL} --revision main`" in run.stderr, "its tokenizer alone is in the cache"


def test_a_part_of_a_data_set_is_fetched(tmp_path, hub, resurface):
    run = resurface(
        "source", "wmdp_bio", "--output", "q.parquet", "--settings", '{"wmdp":"org/wmdp@main","rows":{"wmdp_bio":12}}'
    )
    assert run.returncode == 0, run.stderr
    assert len(pd.read_parquet(tmp_path / "q.parquet")) == COUNTS["wmdp_bio"]
    assert hub.asked == ["wmdp-bio/test-00000-of-00001.parquet"]


def test_another_part_in_the_cache_is_not_taken_for_what_is_asked(tmp_path, hub, resurface):
    settings = '{"wmdp":"org/wmdp@main","rows":{"wmdp_bio":12}}'
    assert resurface("source", "wmdp_bio", "--output", "q.parquet", "--settings", settings).returncode == 0
    run = resurface("source", "wmdp_cyber", "--output", "r.parquet", "--settings", settings, HF_HUB_OFFLINE="1")
    assert run.returncode == 1
    assert "`hf download org/wmdp --revision main --repo-type dataset`" in run.stderr


DATA = ["source", "wmdp_bio", "--settings", '{"wmdp":"org/wmdp@main"}', "--output", "out"]
GATED = ["access to this", "must be asked for at", "hf auth login", "HF_TOKEN"]


@pytest.mark.parametrize(
    ("arguments", "change", "environment", "words"),
    [
        (["model", f"{MODEL}@main", "--output", "out"], "gated", {}, [*GATED, "/org/tiny;"]),
        (["model", f"{MODEL}@{COMMIT}", "--output", "out"], "gated", {"HF_TOKEN": ""}, [*GATED, "/org/tiny;"]),
        (["model", f"{MODEL}@main", "--output", "out"], "refused", {}, ["(status 401); log in anew"]),
        (DATA, "gated", {}, [*GATED, "/datasets/org/wmdp;"]),
        (["model", f"{MODEL}@v9", "--output", "out"], "", {}, ["no revision 'v9'", "commits/main"]),
        (["model", f"{MODEL}@{'f' * 40}", "--output", "out"], "", {}, [f"no revision '{'f' * 40}'"]),
        (["model", "org/absent@main", "--output", "out"], "", {}, ["the hub has no model org/absent that you can see"]),
        (
            ["model", f"{MODEL}@main", "--output", "out"],
            "",
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            ["gives no answer (ConnectError)", "`hf download org/tiny --revision main`", "cache"],
        ),
        (DATA, "", {"HF_HUB_OFFLINE": "1"}, ["HF_HUB_OFFLINE is set", "--revision main --repo-type dataset`"]),
        (["model", MODEL, "--output", "out"], "", {}, ["no such checkpoint folder", "org/name@main"]),
    ],
)
def test_what_cannot_be_had_is_said(tmp_path, hub, resurface, arguments, change, environment, words):
    if change == "gated":
        hub.gated |= {MODEL, "org/wmdp"}
    if change == "refused":
        hub.refused.add(SECRET)
    run = resurface(*arguments, **environment)
    assert run.returncode == 1
    for word in words:
        assert word in run.stderr
    assert not (tmp_path / "out").exists()


def test_a_token_with_access_opens_what_is_gated(tmp_path, hub, resurface):
    hub.gated.add(MODEL)
    hub.members.add(SECRET)
    run = resurface("model", f"{MODEL}@main", "--output", "model")
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_a_download_that_ends_in_the_middle_goes_on(tmp_path, hub, resurface):
    hub.broken = "model.safetensors"
    run = resurface("model", f"{MODEL}@main", "--output", "out")
    assert run.returncode == 1
    assert "could not be read from (RemoteProtocolError); try again later" in run.stderr
    assert f"{hub.address}/" not in run.stderr, "addresses may be signed"
    run = resurface("model", f"{MODEL}@main", "--output", "out", HF_HUB_OFFLINE="1")
    assert run.returncode == 1
    assert "the files are not all in the cache" in run.stderr
    hub.broken = None
    assert resurface("model", f"{MODEL}@main", "--output", "out").returncode == 0


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name@main", ("org/name", "main")),
        ("org/name@refs/pr/1", ("org/name", "refs/pr/1")),
        ("a-b.c/d_e.f@v1.0", ("a-b.c/d_e.f", "v1.0")),
        ("./org/name@main", None),
        ("/models/org@home/name", None),
        ("org/name", None),
    ],
)
def test_hub_ids_are_told_from_paths(source, expected):
    assert split_hub_id(check_place(source)) == expected


@pytest.mark.parametrize("source", ["", "name@main", "org/name@", "org/a/b@main", "org/name@a b", "a\nb", "x" * 1001])
def test_what_is_neither_is_refused(source):
    with pytest.raises(ValueError, match="hub id"):
        check_place(source)


def test_a_path_is_not_looked_up_anywhere(tmp_path):
    from resurface.hub import find_checkpoint

    assert find_checkpoint(str(tmp_path)) == tmp_path
