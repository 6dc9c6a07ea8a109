"""Files that mean harm: none of them leads out of its folder, runs code, or writes into a terminal or a page; secrets stay secret."""

import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import CHECKPOINTS
from safetensors.torch import load_file, save_file

from resurface.analysis.findings import read_findings
from resurface.analysis.report import Tables, write_report
from resurface.artifacts import path_inside, read_json, write_table
from resurface.checkpoints import check_checkpoint, take_over
from resurface.cli import Printable
from resurface.config import validate_config
from resurface.errors import ResurfaceError
from resurface.interventions import (
    Adapter,
    Directions,
    Prepend,
    Pruning,
    Rewrite,
    Variant,
    read_variants,
    write_variants,
)
from resurface.models import load_model, load_tokenizer
from resurface.scoring.apply import change_model, prompt_changer
from resurface.scoring.score import load_tasks

SECRETS = {
    "HF_TOKEN": "hf_aSecretOfTheHubXXXXXXXXXXXXXXXX",
    "HUGGING_FACE_HUB_TOKEN": "hf_anotherSecretOfTheHubXXXXXXX",
    "OPENAI_API_KEY": "sk-aSecretOfAServiceXXXXXXXXXXXX",
    "WANDB_API_KEY": "aSecretOfATrackerXXXXXXXXXXXXXXX",
    "AWS_SECRET_ACCESS_KEY": "aSecretOfAStoreXXXXXXXXXXXXXXXXX",
}
HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}</pre>"


class Marker:
    """What a pickle does when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def checkpoint(folder: Path) -> Path:
    shutil.copytree(CHECKPOINTS / "original", folder)
    return folder


def update(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# Names -----------------------------------------------------------------------------------------------------------------

OUTSIDE = ["..", ".", "", "../x", "a/../../x", "/etc/passwd", "a\0b", "a" * 5000, "link", "link/x", "loop"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_cannot_leave_their_folder(tmp_path, name):
    folder = tmp_path / "attack"
    folder.mkdir()
    (tmp_path / "x").write_text("secret")
    (folder / "link").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    with pytest.raises(ResurfaceError, match="attack: found the name"):
        path_inside(folder, name)


def test_names_inside_are_found_also_below_a_linked_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("a")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert path_inside(tmp_path / "linked", "a.txt").read_text() == "a"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", "", ".hidden", "a b", "a\n"])
def test_variants_name_files_beside_them_only(tmp_path, name):
    for part in (
        {"model": {"kind": "adapter", "folder": name}},
        {"model": {"kind": "directions", "file": name, "blocks": [0]}},
        {"model": {"kind": "pruning", "file": name, "p": 5.0, "q": 1.0}},
        {"prompt": {"kind": "rewrite", "file": name, "name": "x"}},
    ):
        (tmp_path / "variants.json").write_text(json.dumps([{"variant": "v", **part}]))
        with pytest.raises(ResurfaceError, match=r"variants\.json: this is no list of variants: at 0\.") as caught:
            read_variants(tmp_path)
        assert "string should" in str(caught.value)


def test_links_out_of_an_attack_are_not_followed(model, tmp_path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "attack"
    elsewhere.mkdir()
    folder.mkdir()
    save_file({"directions": torch.ones(6, 128)}, elsewhere / "d.safetensors")
    pd.DataFrame({"variant": ["x"], "prompt": ["p"], "rewritten": ["r"]}).to_parquet(elsewhere / "p.parquet")
    for name in ("d.safetensors", "p.parquet"):
        (folder / name).symlink_to(elsewhere / name)
    (folder / "lora").symlink_to(elsewhere)
    for part in (
        Adapter(folder="lora"),
        Directions(file="d.safetensors", blocks=[0]),
        Pruning(file="p.parquet", p=5.0, q=1.0),
    ):
        with pytest.raises(ResurfaceError, match="leads out of this folder"), change_model(model, part, folder):
            pass
    with pytest.raises(ResurfaceError, match="leads out of this folder"):
        prompt_changer(Rewrite(file="p.parquet", name="x"), folder)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/x.safetensors", "a/b.safetensors", ""])
def test_shards_lie_in_their_checkpoint(tmp_path, name):
    folder = checkpoint(tmp_path / "checkpoint")
    weights = folder / "model.safetensors"
    shutil.copyfile(weights, tmp_path / "elsewhere.safetensors")
    index = {"weight_map": dict.fromkeys(load_file(weights), name)}
    weights.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ResurfaceError, match=r"index\.json: `weight_map` must name"):
        check_checkpoint(folder)


@pytest.mark.parametrize("name", ["../../../secret", "original/../../..", "", "other"])
def test_bundled_models_are_two(tmp_path, name):
    with pytest.raises(ResurfaceError, match="bundled are testbed:original"):
        take_over(Path(f"testbed:{name}"), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


# Code ------------------------------------------------------------------------------------------------------------------


def test_code_beside_a_checkpoint_is_never_run(tmp_path, monkeypatch):
    """Neither with the kinds of models that transformers knows, which then are used instead, nor with others."""
    folder, marker = checkpoint(tmp_path / "checkpoint"), tmp_path / "executed"
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\ny\n"))  # transformers would ask whether it may
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
    for name in ("configuration_x", "modeling_x", "tokenization_x"):
        (folder / f"{name}.py").write_text(code + "class X: pass\n")
    maps = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    update(folder / "config.json", auto_map=maps)
    update(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", "tokenization_x.X"]})
    load_tokenizer(folder)
    load_model(folder, torch.device("cpu"))
    assert not marker.exists()
    update(folder / "config.json", auto_map=maps, model_type="unheard_of", architectures=["XForCausalLM"])
    update(folder / "tokenizer_config.json", tokenizer_class="XTokenizer")
    with pytest.raises(ResurfaceError, match="cannot be loaded"):
        load_model(folder, torch.device("cpu"))
    try:
        load_tokenizer(folder)
    except ResurfaceError as error:
        assert str(folder) in str(error)
    assert not marker.exists()


def test_pickles_are_neither_read_nor_taken_over(tmp_path):
    folder, marker = checkpoint(tmp_path / "checkpoint"), tmp_path / "executed"
    content = pickle.dumps(Marker(marker))
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin", "vocab.pkl", "evil.py"):
        (folder / name).write_bytes(content)
    take_over(folder, tmp_path / "model")
    load_tokenizer(tmp_path / "model")
    load_model(tmp_path / "model", torch.device("cpu"))
    taken = {path.suffix for path in (tmp_path / "model").iterdir()}
    assert taken == {".json", ".safetensors", ".jinja"}
    (folder / "model.safetensors").unlink()
    with pytest.raises(ResurfaceError, match=r"\(pickles\) are not read"):
        load_model(folder, torch.device("cpu"))
    assert not marker.exists()


def test_a_pickled_adapter_is_not_read(model, tmp_path):
    marker = tmp_path / "executed"
    (tmp_path / "attack" / "lora").mkdir(parents=True)
    folder = tmp_path / "attack"
    (folder / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    (folder / "lora" / "adapter_model.bin").write_bytes(pickle.dumps(Marker(marker)))
    with (
        pytest.raises(ResurfaceError, match=r"adapter_model\.safetensors: no such file"),
        change_model(model, Adapter(folder="lora"), folder),
    ):
        pass
    assert not marker.exists()


def test_an_adapter_in_a_checkpoint_does_not_bring_another_model(tmp_path):
    folder = checkpoint(tmp_path / "checkpoint")
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(CHECKPOINTS / "never_learned")})
    )
    with pytest.raises(ResurfaceError, match=r"adapter_config\.json is there"):
        load_model(folder, torch.device("cpu"))


def test_kernels_from_elsewhere_are_refused(tmp_path):
    folder = checkpoint(tmp_path / "checkpoint")
    update(folder / "config.json", attn_implementation="somebody/attention")
    with pytest.raises(ResurfaceError, match="names code from elsewhere"):
        check_checkpoint(folder)


@pytest.mark.parametrize(
    "name", ["evil.yaml", "./evil.yaml", "/tmp/evil.yaml", "../tasks/evil", "a b", "evil.yml", "", "a\nb", "tasks/evil"]
)
def test_tasks_are_names_never_files(tmp_path, monkeypatch, name):
    """The harness takes a YAML file for a task, and runs what `!function` in it names."""
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "executed"
    (tmp_path / "evil_code.py").write_text(
        f"import pathlib\npathlib.Path({str(marker)!r}).touch()\ndef load(**_): pass\n"
    )
    (tmp_path / "evil.yaml").write_text(
        "task: evil\ncustom_dataset: !function evil_code.load\noutput_type: multiple_choice\n"
    )
    config = {"domains": ["runecraft"], "methods": {"npo": {}}, "attacks": {}, "benchmarks": {"general": [name]}}
    with pytest.raises(ResurfaceError, match=r"benchmarks\.general\.0: found"):
        validate_config(config, "config.yaml")
    assert not marker.exists()


def test_the_scorer_takes_no_file_for_a_task(tmp_path, monkeypatch):
    import lm_eval.tasks

    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.yaml").write_text("task: evil\noutput_type: multiple_choice\n")
    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr(  # the harness's own thousands take seconds to index and change nothing here
        lm_eval.tasks,
        "TaskManager",
        lambda include_path, include_defaults: manager(include_path=include_path, include_defaults=False),
    )
    for name in ("evil.yaml", str(tmp_path / "evil.yaml"), "evil"):
        with pytest.raises(ResurfaceError, match="the harness has no task"):
            load_tasks([name])


# Sizes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 5},
        {"head_dim": 10**10},
        {"vocab_size": 10**12},
        {"hidden_size": 10**12},
        {"intermediate_size": -1},
        {"num_attention_heads": "4"},
        {"num_key_value_heads": True},
    ],
)
def test_nothing_is_built_that_the_weights_do_not_have(tmp_path, values):
    folder = checkpoint(tmp_path / "checkpoint")
    update(folder / "config.json", **values)
    with pytest.raises(ResurfaceError, match=rf"config\.json: found {next(iter(values))}"):
        check_checkpoint(folder)


def test_a_small_table_of_endless_rows_is_not_read(tmp_path, monkeypatch):
    from resurface.artifacts import read_table

    monkeypatch.setattr("resurface.artifacts.MOST_ROWS", 1000)
    write_table(pd.DataFrame({"text": ["x"] * 1001}), tmp_path / "t.parquet")
    with pytest.raises(ResurfaceError, match=r"t\.parquet: found 1,001 rows"):
        read_table(tmp_path / "t.parquet", ["text"])


def test_a_tokenizer_of_more_tokens_than_its_model(tmp_path):
    folder = checkpoint(tmp_path / "checkpoint")
    update(folder / "config.json", vocab_size=1000)
    with pytest.raises(ResurfaceError, match="vocab_size 1000; the tokenizer is another"):
        load_tokenizer(folder)


def test_a_key_that_stands_twice_is_no_json(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1, "b": 2, "a": 3}')
    with pytest.raises(ResurfaceError, match="'a' stands there twice"):
        read_json(tmp_path / "x.json")


# What people look at ---------------------------------------------------------------------------------------------------


def test_terminals_are_sent_no_commands():
    record = logging.LogRecord(
        "resurface", logging.ERROR, "", 0, "found %s", ("\x1b]0;x\x07\x9b2J\u202eü\n\tend",), None
    )
    assert Printable("%(message)s").format(record) == r"found \x1b]0;x\x07\x9b2J\u202eü" + "\n\tend"


def test_hostile_text_in_settings_stays_text(tmp_path):
    """Prefixes, phrases and system turns are a config's free texts; the page shows them all."""
    from test_report import make_evidence, make_summary, make_verdicts, make_worst_case

    experiment = {
        "summary": {"confidence": 0.95},
        "refusals": {"phrases": [HOSTILE, "]]>", "<!--", "\u2028"]},
        "attacks": {"enhanced_gcg": {"start_prefix": HOSTILE}, "finetuning": {"system": HOSTILE}},
        HOSTILE: {HOSTILE: HOSTILE},
    }
    summary = make_summary(methods=("npo",), attacks=("none", "orthogonalization"))
    nothing = read_findings(None, summary)
    tables = Tables(summary, make_worst_case(), make_evidence(), make_verdicts(HOSTILE), nothing)
    write_report(tables, experiment, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for harmful in ("<img", "<!--"):
        assert harmful not in page.lower()
    assert (page.lower().count("<script"), page.lower().count("</script")) == (1, 1), "the page's own"
    assert "{{7*7}}" in page, "shown, not rendered"
    assert page.count("</pre>") == 1
    assert "default-src 'none'" in page


# The command line ------------------------------------------------------------------------------------------------------


def resurface(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "resurface.cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **SECRETS},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["judge", "bad.parquet", "--output", "out.parquet"], "bad.parquet: this is no readable parquet file"),
        (["summarize", "bad.parquet", "--output", "out.parquet"], "bad.parquet: this is no readable parquet file"),
        (["model", "checkpoint", "--output", "out"], "model.safetensors: this is no whole safetensors file"),
        (
            [
                "attack",
                "logit_lens",
                "--model",
                "checkpoint",
                "--original",
                "checkpoint",
                "--data",
                "d",
                "--output",
                "out",
            ],
            "checkpoint.hashes.json: this is no readable JSON file",
        ),
        (["refusals", "--model", "m", "--benchmarks", "[]", "--identity", "{}", "--output", "out"], "--benchmarks: "),
        (
            ["unlearn", "npo", "--model", "m", "--data", "d", "--output", "out", "--settings", "[" * 50_000],
            "--settings",
        ),
    ],
)
def test_commands_end_with_one_message_and_leave_nothing(tmp_path, arguments, word):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + b"\xff" * 100 + b"PAR1")
    folder = checkpoint(tmp_path / "checkpoint")
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "checkpoint.hashes.json").write_bytes(b"\xff")
    before = set(tmp_path.rglob("*"))
    run = resurface(*arguments, cwd=tmp_path)
    assert run.returncode == 1
    assert word in run.stderr
    assert "Traceback" not in run.stderr
    assert {path for path in tmp_path.rglob("*") if path.name != ".resume"} == before


@pytest.mark.slow
def test_secrets_reach_no_log_and_no_result(data, tmp_path):
    """Commands that train, score and report, run with secrets in the environment, and one that fails."""
    domain = data / "results" / "data" / "xenotoxicology"
    (tmp_path / "results").symlink_to(data / "results")
    original = tmp_path / "original"
    folder = tmp_path / "prefixes"
    folder.mkdir()
    write_variants(folder, [Variant(variant="a", prompt=Prepend(text="x "))])
    identity = json.dumps({"domain": "xenotoxicology", "method": "npo", "seed": 0, "attack": "finetuning"})
    small = '{"datasets":{"forget":[2]},"epochs":1,"lora_rank":2}'
    models = ["--model", original, "--original", original]
    commands = [
        ["model", "testbed:original", "--output", original],
        [
            "attack",
            "finetuning",
            "--part",
            "forget",
            *models,
            "--data",
            domain,
            "--output",
            tmp_path / "lora",
            "--settings",
            small,
        ],
        [
            *(
                "perplexity",
                *models,
                "--tasks",
                '["testbed_xenotoxicology"]',
                "--identity",
                identity,
                "--interventions",
                folder,
            ),
            *(
                "--output",
                tmp_path / "p.parquet",
                "--settings",
                '{"questions":2,"new_tokens":2}',
                "--templates",
                '["plain"]',
            ),
        ],
        ["show", "nowhere"],
    ]
    written = []
    for number, command in enumerate(commands):
        run = resurface("--log", tmp_path / "logs" / f"{number}.log", *command, cwd=tmp_path)
        assert (run.returncode == 0) == (command[0] != "show"), run.stderr
        written += [run.stdout.encode(), run.stderr.encode()]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 12
    written += [path.read_bytes() for path in files]
    for name, secret in SECRETS.items():
        assert not any(secret.encode() in content for content in written), name
