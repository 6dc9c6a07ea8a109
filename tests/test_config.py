"""The configuration: what is refused, what the message says, and that the published schema is current."""

import copy
import json

import pytest
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from resurface.config import Experiment, dump_settings, validate_config
from resurface.errors import ResurfaceError
from resurface.registry import ATTACKS, METHODS

CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())


def changed(path: str, value):
    config = copy.deepcopy(CONFIG)
    *sections, last = path.split(".")
    section = config
    for key in sections:
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
    section[last] = value
    return config


def test_the_default_configuration_is_valid():
    experiment = validate_config(CONFIG, "config.yaml")
    assert experiment.method_names == ["rmu", "npo", "dpo"]
    assert experiment.attack_names == ["none", "finetuning", "orthogonalization", "logit_lens"]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("methods.rmv", {}, ["methods.rmv", "rmu, npo, dpo"]),
        ("attacks.gcgg", {}, ["attacks.gcgg", "finetuning"]),
        ("domains", ["bio"], ["domains.0", "'bio'", "xenotoxicology"]),
        ("domain", ["runecraft"], ["domain: unknown key", "domains"]),
        ("methods.npo.learning_rate", -1.0, ["methods.npo.learning_rate", "-1.0", "greater than 0"]),
        ("methods.npo.learning_rate", "1e-3", ["methods.npo.learning_rate", "1e-3", "1.0e-3"]),
        ("methods.npo.learning_rate", float("nan"), ["methods.npo.learning_rate", "finite"]),
        ("methods.npo.learning_rate", float("inf"), ["methods.npo.learning_rate", "finite"]),
        ("methods.npo.max_steps", True, ["methods.npo.max_steps", "True", "integer"]),
        ("methods.rmu.coeficient", 3.0, ["methods.rmu.coeficient", "unknown key", "coefficient"]),
        ("attacks.finetuning.datasets", {"forge": [5]}, ["attacks.finetuning.datasets.forge", "forget"]),
        ("attacks.finetuning.datasets", {"forget": [0]}, ["attacks.finetuning.datasets.forget.0", "greater"]),
        ("seeds", [0, 0], ["seeds", "once"]),
        ("seeds", [-1], ["seeds.0", "-1"]),
        ("device", "tpu", ["device", "'tpu'"]),
        ("benchmarks", {"xenotoxicology": ["testbed_general"]}, ["benchmarks.xenotoxicology"]),
        ("benchmarks", {"../up": ["testbed_general"]}, ["benchmarks", "../up"]),
        ("methods", {}, ["methods", "rmu"]),
    ],
)
def test_faults_are_named(path, value, words):
    with pytest.raises(ResurfaceError) as caught:
        validate_config(changed(path, value), "config.yaml")
    for word in ["config.yaml", *words]:
        assert word in str(caught.value)


@given(
    st.sampled_from(sorted(METHODS)), st.text(min_size=1, max_size=20), st.one_of(st.none(), st.text(), st.booleans())
)
def test_no_stray_key_passes(method, key, value):
    fields = METHODS[method].settings_class().model_fields
    if key in fields:
        return
    with pytest.raises(ResurfaceError):
        validate_config(changed("methods", {method: {key: value}}), "config.yaml")


def test_every_setting_is_described():
    for entry in [*METHODS.values(), *ATTACKS.values()]:
        for name, field in entry.settings_class().model_fields.items():
            assert field.description, f"{entry.settings}.{name}"


def test_the_published_schema_is_current():
    published = json.loads((ROOT / "workflow" / "schemas" / "config.schema.json").read_text())
    assert published == Experiment.model_json_schema(), "run `make schema`"


def test_settings_are_sorted_json():
    line = dump_settings(validate_config(CONFIG, "config.yaml").settings_of("methods", "npo"))
    assert list(json.loads(line)) == sorted(json.loads(line))
