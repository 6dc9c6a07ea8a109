"""The configuration: what is refused, what the message says, and that the published schema is current."""

import copy
import json

import pytest
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from resurface.config import (
    LOCAL_TASKS,
    PUBLIC_TASKS,
    TRANSFERABLE,
    Experiment,
    dump_settings,
    local_tasks,
    validate_config,
)
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
    assert experiment.attack_names == [
        "none",
        "finetuning",
        "orthogonalization",
        "pruning",
        "perturbation",
        "random_prefix",
        "gcg",
        "enhanced_gcg",
        "logit_lens",
    ]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("methods.rmv", {}, ["methods.rmv", "rmu, npo, dpo"]),
        ("attacks.gcgg", {}, ["attacks.gcgg", "finetuning"]),
        ("domains", ["alchemy"], ["domains.0", "'alchemy'", "xenotoxicology", "'cyber'"]),
        ("domains", ["chem"], ["sources.chem_forget_corpus: found none", "name your own"]),
        ("sources", {"wmdp": "cais/wmdp@"}, ["sources.wmdp", "'cais/wmdp@'", "org/name@revision"]),
        ("sources.rows", {"wmdp_bio": 0}, ["sources.rows.wmdp_bio", "greater than or equal to 1"]),
        ("models.original", "zephyr@main", ["models.original", "'zephyr@main'", "`teach`", "org/name@revision"]),
        ("models", {"original": "teach", "never_learned": None}, ["models.never_learned: found none", "teach"]),
        ("models.never_learned", "teach", ["models.never_learned: found 'teach'", "only the original"]),
        ("methods.published", {"rmu": {"checkpoint": "a/b@main"}}, ["methods.published.rmu", "taken"]),
        ("methods.published", {"original": {"checkpoint": "a/b@main"}}, ["methods.published.original", "taken"]),
        ("methods.published", {"Zephyr": {"checkpoint": "a/b@main"}}, ["methods.published.Zephyr", "pattern"]),
        ("methods.published", {"z": {}}, ["methods.published.z.checkpoint", "missing"]),
        (
            "methods.published",
            {"z": {"checkpoint": "a/b@main", "domains": ["cyber"]}},
            ["methods.published.z.domains", "'cyber'", "xenotoxicology"],
        ),
        ("benchmarks", {"general": ["resurface_mmmlu"]}, ["'resurface_mmmlu'", "resurface_mmlu_anatomy"]),
        ("model_gpus", 0, ["model_gpus", "greater than or equal to 1"]),
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
        ("benchmarks", {"general": []}, ["benchmarks.general", "at least 1"]),
        (
            "benchmarks",
            {"general": ["testbed_general", "testbed_genral"]},
            ["benchmarks.general.1", "'testbed_genral'"],
        ),
        (
            "benchmarks",
            {"general": ["testbed_"]},
            ["benchmarks.general.0", "testbed_general_music, testbed_general_sp"],
        ),
        ("methods", {}, ["methods", "rmu"]),
        ("methods.dpo.forget_share", 0.8, ["methods.dpo: ", "forget_share 0.8", "retain_share 0.5", "at most 1"]),
        ("methods.npo.trained_blocks", [], ["methods.npo.trained_blocks", "at least 1"]),
        ("methods.rmu.trained_blocks", [], ["methods.rmu.trained_blocks", "at least 1"]),
        ("methods.rmu.trained_blocks", [-1], ["methods.rmu.trained_blocks.0", "-1"]),
        ("methods.rmu.trained_blocks", [4, 3], ["methods.rmu: ", "block 2", "[4, 3]", "2 or below"]),
        ("attacks.finetuning.datasets", {"forget": []}, ["attacks.finetuning.datasets.forget", "at least 1"]),
        ("attacks.logit_lens.streams", [], ["attacks.logit_lens.streams", "at least 1"]),
        ("attacks.logit_lens.blocks", [], ["attacks.logit_lens.blocks", "at least 1"]),
        ("attacks.logit_lens.blocks", [-1], ["attacks.logit_lens.blocks.0", "-1"]),
        ("attacks.orthogonalization.references", [], ["attacks.orthogonalization.references", "at least 1"]),
        ("attacks.orthogonalization.block_sets", {"3": []}, ["attacks.orthogonalization.block_sets.3", "at least 1"]),
        ("attacks.orthogonalization.block_sets", {"all": [1]}, ["attacks.orthogonalization.block_sets.all", "itself"]),
        ("scoring.templates", [], ["scoring.templates", "at least 1"]),
        (
            "attacks.enhanced_gcg.start_from",
            {"npo": "gnu"},
            ["attacks.enhanced_gcg.start_from", "'gnu'", "rmu, npo, dpo"],
        ),
        ("attacks.enhanced_gcg.start_from", {"gnu": "rmu"}, ["start_from", "'gnu'", "rmu, npo, dpo, never_learned"]),
        (
            "attacks.enhanced_gcg.start_from",
            {"npo": "never_learned"},
            ["start_from", "'never_learned'", "rmu, npo, dpo"],
        ),
        ("attacks.enhanced_gcg.start_from", {"npo": "rmu", "rmu": "npo"}, ["start_from", "npo ← rmu ← npo"]),
        ("attacks.enhanced_gcg.snapshots", 51, ["snapshots 51", "steps 50"]),
        ("attacks.enhanced_gcg.step_shares", [0, 1, 0, 0], ["step_shares", "other than that of insertions"]),
        ("pretraining.hidden", 100, ["hidden 100", "heads 4", "multiple"]),
        ("pretraining.key_value_heads", 3, ["heads 4", "key_value_heads 3"]),
        ("pretraining.vocabulary", 260, ["pretraining.vocabulary", "260"]),
        ("attacks.enhanced_gcg.searches", {"_a": [2]}, ["attacks.enhanced_gcg.searches", "_a"]),
        ("attacks.pruning.datasets", {"a" * 41: {"forget": "corpus", "utility": "text"}}, ["attacks.pruning.datasets"]),
        ("attacks.pruning.p", [50.00000001, 50.0], ["attacks.pruning.p", "once"]),
        ("attacks.enhanced_gcg.start_length", 41, ["start_length 41", "maximum_length 40"]),
        ("attacks.enhanced_gcg.minimum_lengths", [30, 20], ["minimum_lengths [30, 20]", "maximum_length 40"]),
        ("data.world_seed", 1, ["data.world_seed: found 1", "models.original is `testbed`", "world 0", "`pretrain`"]),
    ],
)
def test_faults_are_named(path, value, words):
    with pytest.raises(ResurfaceError) as caught:
        validate_config(changed(path, value), "config.yaml")
    for word in ["config.yaml", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("domains", ["runecraft", "runecraft"]),
        ("seeds", [0, 1, 0]),
        ("benchmarks.general", ["testbed_general", "testbed_general"]),
        ("methods.npo.trained_blocks", [0, 0]),
        ("methods.rmu.trained_blocks", [1, 1]),
        ("attacks.finetuning.datasets.forget", [5, 5]),
        ("attacks.logit_lens.streams", ["mlp", "mlp"]),
        ("attacks.logit_lens.blocks", [3, 3]),
        ("attacks.orthogonalization.references", ["text", "text"]),
        ("attacks.orthogonalization.block_sets.0to2", [0, 0]),
        ("scoring.templates", ["plain", "plain"]),
    ],
)
def test_nothing_is_named_twice(path, value):
    with pytest.raises(ResurfaceError) as caught:
        validate_config(changed(path, value), "config.yaml")
    assert f"{path}: found {value}; each may be named once" in str(caught.value)


def assert_fault(config, fault):
    """A configuration is refused for this, or valid if there is no fault."""
    if fault is None:
        validate_config(config, "config.yaml")
        return
    with pytest.raises(ResurfaceError) as caught:
        validate_config(config, "config.yaml")
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("models", "data_world", "pretraining_world", "fault"),
    [
        ({"original": "pretrain", "never_learned": "pretrain"}, 1, 1, None),
        ({"original": "pretrain", "never_learned": "pretrain"}, 1, 0, "models.original is `pretrain`"),
        ({"original": "pretrain", "never_learned": "testbed"}, 1, 1, "models.never_learned is `testbed`"),
        ({"original": "pretrain", "never_learned": None}, 1, 1, None),
        ({"original": "testbed"}, 0, 1, None),
        ({"original": "some/folder", "never_learned": None}, 1, 0, None),
        ({"original": "teach", "never_learned": "org/name@main"}, 0, 1, None),
        ({"original": "teach", "never_learned": "org/name@main"}, 1, 0, "or teaching.world_seed to 1"),
    ],
)
def test_models_are_asked_about_the_world_that_they_were_taught(models, data_world, pretraining_world, fault):
    config = CONFIG | {
        "models": models,
        "data": {"world_seed": data_world},
        "pretraining": {"world_seed": pretraining_world},
    }
    assert_fault(config, fault)


@pytest.mark.parametrize(
    ("original", "asked", "taught", "fault"),
    [
        (
            "testbed",
            3,
            None,
            "data.domain_seed: found 3, but models.original is `testbed`, which is taught domains of seed null",
        ),
        ("teach", 3, None, "teaching.domain_seed to 3"),
        ("teach", None, 3, "set data.domain_seed to 3"),
        ("teach", 3, 3, None),
        ("org/name@main", 3, None, None),
    ],
)
def test_models_are_asked_about_the_domains_that_they_were_taught(original, asked, taught, fault):
    config = CONFIG | {
        "models": {"original": original, "never_learned": "org/name@main"},
        "data": {"domain_seed": asked},
        "teaching": {"domain_seed": taught},
    }
    assert_fault(config, fault)


def test_deeply_nested_nonsense_is_shown_on_a_line():
    nested: list = []
    for _ in range(8):
        nested = [nested] * 8
    with pytest.raises(ResurfaceError, match=r"attacks\.enhanced_gcg: found \[") as caught:
        validate_config(changed("attacks.enhanced_gcg", nested), "config.yaml")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_model_is_spread_over_gpus_that_are_not_named(device):
    validate_config(CONFIG | {"model_gpus": 2, "device": "cuda"}, "config.yaml")
    with pytest.raises(ResurfaceError, match=f"model_gpus: found 2, but `device` is '{device}'"):
        validate_config(CONFIG | {"model_gpus": 2, "device": device}, "config.yaml")


def test_only_fictional_domains_are_taught():
    config = CONFIG | {"domains": ["bio"], "models": {"original": "teach", "never_learned": "org/name@main"}}
    with pytest.raises(ResurfaceError, match=r"'teach' and the domain 'bio'; only fictional domains"):
        validate_config(config, "config.yaml")


@pytest.mark.parametrize(
    ("domain", "changes", "fault"),
    [
        ("cyber", {"forget_text": "abstract"}, "sources.forget_text"),
        ("chem", {"chem_forget_corpus": "mine.jsonl", "retain_text": "domain"}, "sources.retain_text"),
        ("chem", {"chem_forget_corpus": "mine.jsonl"}, None),
        ("bio", {"forget_text": "abstract", "bio_forget_corpus": "./mine@home.jsonl"}, None),
    ],
)
def test_public_domains_have_what_they_are_made_of(domain, changes, fault):
    config = CONFIG | {"domains": [domain], "sources": changes}
    if fault is None:
        validate_config(config, "config.yaml")
        return
    with pytest.raises(ResurfaceError, match=fault):
        validate_config(config, "config.yaml")


def test_the_control_s_search_may_start_from_a_method_s():
    config = changed("attacks.enhanced_gcg.start_from", {"npo": "rmu", "never_learned": "npo"})
    validate_config(config, "config.yaml")
    config["models"] = {"never_learned": None}
    with pytest.raises(ResurfaceError, match=r"start_from: found 'never_learned'; .* is rmu, npo, dpo$"):
        validate_config(config, "config.yaml")


@pytest.mark.parametrize("thresholds", [[], [0.9]])
def test_what_is_found_on_a_model_transfers(thresholds):
    """Noise that looks at no model does not: it is the same on every model."""
    chosen = {"every": [7], "text_thresholds": thresholds, "prompt_thresholds": thresholds}
    experiment = validate_config(changed("attacks.perturbation", chosen), "config.yaml")
    expected = {"gcg", "enhanced_gcg"} | ({"perturbation"} if thresholds else set())
    assert {name for name in experiment.attack_names if experiment.is_transferred(name)} == {"enhanced_gcg"}
    everything = experiment.model_copy(update={"transfers": list(TRANSFERABLE)})
    assert {name for name in experiment.attack_names if everything.is_transferred(name)} == expected


def test_tasks_of_the_testbed_are_known_and_others_are_left_to_the_harness():
    written = {path.stem for folder in (LOCAL_TASKS, PUBLIC_TASKS) for path in folder.glob("[!_]*.yaml")}
    assert set(local_tasks()) == written
    assert {"testbed_general", "resurface_wmdp_bio", "resurface_mmlu", "resurface_mmlu_virology"} <= written
    validate_config(changed("benchmarks", {"mmlu": ["mmlu_abstract_algebra"], "local": sorted(written)}), "config.yaml")


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


NAMED = {
    "benchmarks": {"general": ["testbed_general"], "arithmetic": ["arithmetic_1dc"], "wide": ["mmlu"]},
    "methods.published": {name: {"checkpoint": "org/model@1234567"} for name in ("theirs", "another", "rmu_7b")},
    "attacks.finetuning.datasets": {"retain": [5], "forget": [20], "text": [5]},
    "attacks.orthogonalization.block_sets": {"late": [3], "early": [0, 1], "middle": [2]},
    "attacks.pruning.datasets": {name: {"forget": "corpus", "utility": "text"} for name in ("words", "facts")},
    "attacks.enhanced_gcg.searches": {"low": [0], "high": [3], "both": [0, 3]},
    "attacks.enhanced_gcg.start_from": {"npo": "rmu", "dpo": "rmu", "never_learned": "npo"},
}


@pytest.mark.parametrize("path", NAMED)
@given(draw=st.data())
def test_the_order_of_names_is_not_part_of_an_experiment(path, draw):
    """A manifest keeps none, and commands are made again from it."""
    names = draw.draw(st.permutations(list(NAMED[path])))
    experiment = validate_config(changed(path, {name: NAMED[path][name] for name in names}), "config.yaml")
    assert repr(experiment) == repr(validate_config(changed(path, NAMED[path]), "config.yaml"))


def test_settings_are_sorted_json():
    line = dump_settings(validate_config(CONFIG, "config.yaml").settings_of("methods", "npo"))
    assert list(json.loads(line)) == sorted(json.loads(line))


def test_a_rule_carries_only_the_settings_that_it_reads():
    few, many = (
        validate_config(changed("data", {"general_questions": count}), "config.yaml").data for count in (10, 40)
    )
    assert dump_settings(few, without=["general_questions"]) == dump_settings(many, without=["general_questions"])
    line = dump_settings(few, without=["articles", "domain_seed", "preference_draws", "wordings"])
    assert json.loads(line) == {"general_questions": 10, "world_seed": 0}


def test_samples_of_a_step_are_shared_out_evenly_over_gpus():
    methods = {"npo": {"batch_size": 72, "device_batch_size": 8}}
    validate_config(CONFIG | {"methods": methods}, "config.yaml")
    with pytest.raises(
        ResurfaceError,
        match=r"npo: found batch_size 72, which 2 GPUs .* do not share out evenly; make it a multiple of 16",
    ):
        validate_config(CONFIG | {"methods": methods, "training_gpus": 2}, "config.yaml")
    for alone in ({"npo": {**methods["npo"], "adapter": "lora"}}, {"rmu": methods["npo"]}):
        validate_config(CONFIG | {"methods": alone, "training_gpus": 2}, "config.yaml")
