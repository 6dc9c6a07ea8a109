"""Configurations that nobody would write: each is either an experiment or one clear error, whatever it holds.

Two roads lead in. `validate_config` gets values, as from Snakemake; `read_config_file` gets bytes. What makes the values is
seeded, so that a failure comes again.
"""

import copy
import datetime
import json
import re
import reprlib
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, make_project, snakemake
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from resurface.config import Experiment, dump_settings, validate_config
from resurface.config_file import read_config_file
from resurface.errors import ResurfaceError

DEFAULT = yaml.safe_load((ROOT / "config.yaml").read_text())
EXAMPLES = 700
MOST_CHARACTERS = 20_000


def places_in(value, path=()):
    """The path of every key and list item of a configuration."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*path, key)
        yield from places_in(below, (*path, key))


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def itself():
    value = {}
    value["again"] = [value]
    return value


def billion_laughs():
    value = ["ha"]
    for _ in range(30):
        value = [value] * 9
    return value


CHOSEN = [
    *(
        "",
        " ",
        "\0",
        "\x1b[2J",
        "a\nb",
        "\ud800",
        "é" * 3,
        "x" * 10_000,
        "../../etc",
        "/etc/passwd",
        "~",
        "{wildcards}",
    ),
    *("cuda:٣", "cuda:" + "9" * 30, "testbed:../..", "tasks/evil.yaml", "evil.yaml", "; touch x", "$(touch x)"),
    *(2**31, 2**32, 2**63, 2**64, -(2**63), 10**400, 16**5000, 0, -1, 1e308, 5e-324, -0.0),
    *(datetime.date(2020, 1, 1), {1, 2}, (1, 2), complex(1, 2), print, object),
    *(nested(50), nested(5000), itself(), billion_laughs(), {None: None}, {1: 2}, {("a",): 1}, {"a" * 5000: 1}),
    *([None] * 1000, {str(i): i for i in range(1000)}, [[]], {"a": {"b": {"c": {}}}}),
]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**30, max_value=10**40).map(lambda number: -number),
    st.floats(),
    st.text(max_size=30),
    st.binary(max_size=10),
    st.integers(0, len(CHOSEN) - 1).map(lambda place: CHOSEN[place]),  # by place: some of them cannot be written
)
JUNK = st.recursive(
    ODD,
    lambda below: st.one_of(st.lists(below, max_size=4), st.dictionaries(st.text(max_size=8), below, max_size=4)),
    max_leaves=8,
)


class Hidden:
    """A configuration that a failure does not write out: some would fill the disk."""

    def __init__(self, config):
        self.config = config

    def __repr__(self):
        try:
            return reprlib.repr(self.config)
        except ValueError:
            return "numbers that cannot be written"


@st.composite
def broken_configs(draw):
    """The default configuration with one to three places replaced, deleted, renamed or put among others."""
    config = copy.deepcopy(DEFAULT)
    for _ in range(draw(st.integers(1, 3))):
        places = sorted(places_in(config), key=repr)
        if not places:
            break
        *above, last = draw(st.sampled_from(places))
        section = config
        for key in above:
            section = section[key]
        match draw(st.sampled_from(["replace", "replace", "replace", "delete", "rename", "add", "repeat"])):
            case "replace":
                section[last] = draw(JUNK)
                break  # what was put there may be endless: no further places are looked for
            case "delete":
                del section[last]
            case "rename" if isinstance(section, dict):
                section[draw(st.one_of(st.text(max_size=50), st.integers(), st.none()))] = section.pop(last)
            case "add" if isinstance(section, dict):
                section[draw(st.text(max_size=50))] = draw(JUNK)
                break
            case "repeat" if isinstance(section, list):
                section.append(section[last])
    return Hidden(draw(JUNK) if draw(st.integers(0, 19)) == 0 else config)


def answer(config) -> str:
    """Which of the two possible answers a configuration gets; both must be of use."""
    try:
        experiment = validate_config(config, "config.yaml")
    except ResurfaceError as error:
        message = str(error)
        assert message.startswith("config.yaml: ")
        assert len(message) < MOST_CHARACTERS, "it must fit a screen"
        assert all(letter.isprintable() or letter == "\n" for letter in message), repr(message)
        assert len(message.splitlines()) > 1, "a fault is named"
        return "error"
    assert isinstance(experiment, Experiment)
    line = dump_settings(experiment)
    assert len(line) < 131_072
    assert Experiment.model_validate(json.loads(line)) == experiment
    return "valid"


def test_odd_configurations_are_experiments_or_clear_errors():
    found = []

    @seed(20260101)
    @settings(max_examples=EXAMPLES, derandomize=False, database=None, deadline=10_000)
    @given(broken_configs())
    def check(config):
        found.append(answer(config.config))

    check()
    assert len(found) >= 500
    assert found.count("error") >= 300, "most of these are wrong"
    assert found.count("valid") >= 5, "some changes do no harm"


@pytest.mark.parametrize("place", sorted(places_in(DEFAULT), key=repr), ids=lambda place: ".".join(map(str, place)))
def test_no_key_takes_a_value_of_another_kind(place):
    """A hundred and more single faults, each with its key in the message."""
    config = copy.deepcopy(DEFAULT)
    *above, last = place
    section = config
    for key in above:
        section = section[key]
    section[last] = {"stranger": [None]}
    with pytest.raises(ResurfaceError) as caught:
        validate_config(config, "config.yaml")
    assert ".".join(str(key) for key in place[:1]) in str(caught.value)


FILES = {
    "empty": b"",
    "comments only": b"# nothing\n",
    "a list": b"- domains\n",
    "a text": b"domains",
    "a number": b"1",
    "no UTF-8": b"domains: [\xff\xfe]\n",
    "UTF-16": "domains: []\n".encode("utf-16"),
    "null bytes": b"domains: [a\0b]\n",
    "a tab": b"domains:\n\t- x\n",
    "an open bracket": b"domains: [",
    "an open quote": b'domains: ["x',
    "an unknown alias": b"domains: *nobody\n",
    "an object": b"domains: !!python/object:pathlib.Path {}\n",
    "a call": b'domains: !!python/object/apply:os.system ["touch executed"]\n',
    "a name": b"domains: !!python/name:os.system\n",
    "a module": b"domains: !!python/module:os\n",
    "a tuple": b"domains: !!python/tuple [1]\n",
    "an unknown tag": b"domains: !secret x\n",
    "keys twice": b"seeds: [0]\nseeds: [1]\n",
    "keys twice below": b"methods:\n  npo:\n    beta: 0.1\n    beta: 0.2\n",
    "keys twice in JSON": b'{"seeds": [0], "seeds": [1]}',
    "keys that are lists": b"? [a]\n: 1\n",
    "a template": b"__use_yte__: true\n?__import__('os').system('touch executed'): 1\n",
    "a deep list": b"domains: " + b"[" * 5000 + b"]" * 5000 + b"\n",
    "deep JSON": b'{"domains": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a list in itself": b"domains: &a [*a]\n",
    "a billion laughs": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(
        b"%c: &%c [%s]\n" % (name, name, b",".join([b"*%c" % (name - 1)] * 9)) for name in range(ord("b"), ord("k"))
    ),
    "too large": b"# " + b"x" * 300_000 + b"\ndomains: []\n",
    "a wrong date": b"domains: 2020-99-99\n",
    "a number of thousands of digits": b"seeds: [" + b"9" * 5000 + b"]\n",
    "two documents": b"domains: []\n---\ndomains: []\n",
    "a directive": b"%YAML 9.9\n---\ndomains: []\n",
    "binary": b"domains: !!binary '!!!'\n",
    "a wrong merge": b"<<: 1\ndomains: []\n",
    "a set": b"domains: !!set {a, b}\n",
}


@pytest.mark.parametrize("name", FILES)
def test_broken_files_are_named_and_execute_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "strange.yaml"
    path.write_bytes(FILES[name])
    with pytest.raises(ResurfaceError, match=r"strange\.yaml: "):
        validate_config(read_config_file(path), str(path))
    assert [path.name for path in tmp_path.iterdir()] == ["strange.yaml"], "nothing was executed"


def test_anchors_and_merges_are_read_as_yaml_means_them(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\nc: *a\n")
    assert read_config_file(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


@given(st.binary(max_size=300))
@settings(max_examples=150, derandomize=True)
def test_random_bytes_and_edits_of_the_default_file(tmp_path_factory, junk):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    text = (ROOT / "config.yaml").read_bytes()
    place = int.from_bytes(junk[:2], "big") % len(text)
    for content in (junk, text[:place] + junk[2:4] + text[place:], text[:place]):
        path.write_bytes(content)
        try:
            validate_config(read_config_file(path), str(path))
        except ResurfaceError as error:
            assert str(path) in str(error)


def test_the_command_checks_without_snakemake(tmp_path):
    def check(path):
        return subprocess.run(
            [sys.executable, "-m", "resurface.cli", "check", path], cwd=tmp_path, capture_output=True, text=True
        )

    run = check(ROOT / "config.yaml")
    assert (run.returncode, "a valid configuration" in run.stdout) == (0, True), run.stderr
    (tmp_path / "strange.yaml").write_bytes(FILES["a template"])
    run = check(tmp_path / "strange.yaml")
    assert run.returncode == 1
    assert "__use_yte__" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "executed").exists()


SECTIONS = yaml.safe_dump({key: value for key, value in DEFAULT.items() if key != "domains"}).encode()
RUN = [
    *("empty", "a list", "no UTF-8", "an object", "a template", "keys twice", "a billion laughs", "a deep list"),
    *("a number of thousands of digits", "a wrong date"),
]
RUN_VALUES = {
    "an escape code": b'domains: ["\\e[2J"]\n' + SECTIONS,
    "a null byte in a path": b'models: {original: "a\\0b"}\ndomains: [runecraft]\n' + SECTIONS,
    "a path among tasks": SECTIONS.replace(b"testbed_general", b"tasks/evil.yaml") + b"domains: [runecraft]\n",
    "a name that leads out": SECTIONS.replace(b"block2:", b"../up:") + b"domains: [runecraft]\n",
}


@pytest.mark.slow
def test_snakemake_answers_with_a_message(tmp_path):
    """As the workflow's own `config.yaml`, where no file may be read by anything else before."""
    project = make_project(tmp_path / "resurface")
    for name, content in {**{name: FILES[name] for name in RUN}, **RUN_VALUES}.items():
        (project / "config.yaml").write_bytes(content)
        run = snakemake(project, "--dry-run", check=False)
        assert run.returncode == 1, (name, run.stdout)
        assert "config.yaml: " in run.stdout, (name, run.stdout)
        assert "Traceback" not in run.stdout, (name, run.stdout)
        assert not re.search(r"[\x00-\x08\x0e-\x1f]", run.stdout), name
        assert not (project / "executed").exists(), name
        assert not list((project / "results").glob("*")), name
    (project / "config.yaml").unlink()
    (project / "other.yaml").write_bytes(FILES["keys twice"])
    run = snakemake(project, "--dry-run", "--configfile", "other.yaml", check=False)
    assert run.returncode == 1
    assert "other.yaml: " in run.stdout
    assert "stands there twice" in run.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["resurface"]
