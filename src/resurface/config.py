"""The experiment: one strict description of everything a configuration may say.

The workflow validates its configuration here before it schedules a job. Errors name the key, what was found, and what is
allowed. `python -m resurface.config` prints the JSON schema that editors use (`workflow/schemas/config.schema.json`).

A configuration may be a stranger's: whatever it holds, the answer is an experiment or an error that fits a screen.
"""

import json
import re
import reprlib
import shlex
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, create_model, model_validator

from resurface.artifacts import read_json
from resurface.checkpoints import BUNDLED
from resurface.errors import ResurfaceError
from resurface.registry import ATTACKS, METHODS
from resurface.settings.base import DistinctList, DistinctOrEmptyList, Named, PositiveInt, Seed, Settings
from resurface.settings.data import TestbedSettings
from resurface.settings.preferences import PreferenceSettings
from resurface.settings.published import PublishedSettings
from resurface.settings.report import ReportSettings
from resurface.settings.scoring import PerplexitySettings, RefusalSettings, ScoringSettings
from resurface.settings.sources import PUBLIC_DOMAINS, SourceSettings, check_place
from resurface.settings.summary import SummarySettings
from resurface.settings.teaching import TeachingSettings
from resurface.settings.testbed import PretrainingSettings
from resurface.testbed.world import FORGET_DOMAINS

MODELS = ("original", "never_learned")
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=60)]
LOCAL_TASKS = Path(__file__).parent / "testbed" / "tasks"
PUBLIC_TASKS = Path(__file__).parent / "data" / "tasks"
LOCAL_PREFIXES = ("testbed_", "resurface_")
TASK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
TRANSFERABLE = tuple(name for name, entry in ATTACKS.items() if entry.transfers)
MOST_FAULTS = 20  # lines of an error message
MOST_LETTERS = 100  # of a key in it
MOST_BYTES = 100_000  # of a configuration on a command line; Linux ends an argument at 131,072


@cache
def local_tasks() -> list[str]:
    """The names of the workflow's own tasks and groups: the testbed's, and WMDP and MMLU from local tables."""
    texts = [path.read_text() for folder in (LOCAL_TASKS, PUBLIC_TASKS) for path in folder.glob("*.yaml")]
    return sorted(name for text in texts for name in re.findall(r"^(?:task|group): *(\w+)$", text, re.MULTILINE))


def check_task(name: str) -> str:
    """The name of a harness task, or a `ValueError` if it looks like one of the workflow's own and is none.

    Other names are left to the harness: to import it and index its thousands of tasks would take 7 seconds at every call of
    Snakemake. Paths are not: the harness would take a YAML file for a task, and run the code that it names.
    """
    if not TASK_NAME.fullmatch(name) or name.endswith((".yaml", ".yml")):
        raise ValueError(f"found {reprlib.repr(name)}; allowed are names of the harness's tasks, no paths")
    if name.startswith(LOCAL_PREFIXES) and name not in local_tasks():
        prefix = next(prefix for prefix in LOCAL_PREFIXES if name.startswith(prefix))
        like = [task for task in local_tasks() if task.startswith(prefix)]
        raise ValueError(f"found {name!r}; of this kind there are {', '.join(like)}")
    return name


def check_source(source: str) -> str:
    """The source of a reference model, or a `ValueError` if it can be none."""
    try:
        return check_place(source)
    except ValueError as error:
        raise ValueError(f"found {reprlib.repr(source)}; allowed are `testbed`, `pretrain`, `teach`, {error}") from None


Task = Annotated[str, AfterValidator(check_task)]
Source = Annotated[str, AfterValidator(check_source)]


class Models(Settings):
    """Where the two reference models come from."""

    original: Source = Field(
        "testbed",
        description="`testbed` (bundled), `pretrain` (trained from scratch), `teach` (the never-learned model, taught the "
        "fictional domains), a hub id with its revision (`org/name@revision`) or the path of a checkpoint folder",
    )
    never_learned: Source | None = Field(
        "testbed", description="the control, likewise; null: there is none, and the report says so"
    )


class Published(Settings):
    """Methods that somebody else has run: their checkpoints."""

    published: Named[Name, PublishedSettings] = Field(
        {}, description="name → a published checkpoint, which is attacked and reported on as a method of this name"
    )


MethodSettings = create_model(
    "MethodSettings",
    __base__=Published,
    **{name: (entry.settings_class() | None, None) for name, entry in METHODS.items()},  # type: ignore[call-overload]
)
AttackSettings = create_model(
    "AttackSettings",
    __base__=Settings,
    **{name: (entry.settings_class() | None, None) for name, entry in ATTACKS.items()},  # type: ignore[call-overload]
)


class Experiment(Settings):
    """A whole experiment. Only what differs from the defaults needs to be said."""

    domains: DistinctList[Literal[(*FORGET_DOMAINS, *PUBLIC_DOMAINS)]] = Field(  # type: ignore[valid-type]
        description="forget domains, each unlearned, attacked and reported on its own: fictional ones of the testbed, or WMDP's"
    )
    seeds: DistinctList[Seed] = Field([0], description="seeds of unlearning and attack; each is run once")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$", description="auto, cpu, cuda or cuda:<number>"
    )
    training_gpus: PositiveInt = Field(
        1, description="GPUs that share a model out while all its weights are trained (FSDP2), as one job"
    )
    model_gpus: PositiveInt = Field(
        1,
        description="GPUs over which a model's blocks are spread wherever it is not shared out so: scoring, attacks, RMU, LoRA",
    )
    models: Models = Models()
    benchmarks: Named[Name, DistinctList[Task]] = Field(
        {"general": ["testbed_general"]},
        description="name → tasks or groups of lm-evaluation-harness that measure general ability; each domain's own "
        "questions are a benchmark of the domain's name",
    )
    methods: MethodSettings = Field(description="unlearning methods and their settings")  # type: ignore[valid-type]
    attacks: AttackSettings = Field(description="attacks and their settings")  # type: ignore[valid-type]
    transfers: DistinctOrEmptyList[Literal[TRANSFERABLE]] = Field(  # type: ignore[valid-type]
        list(TRANSFERABLE),
        description="attacks of which what they find on one method's model is also scored on all other models: with many methods most of "
        "the scores",
    )
    data: TestbedSettings = TestbedSettings()
    pretraining: PretrainingSettings = PretrainingSettings()
    preferences: PreferenceSettings = PreferenceSettings()
    teaching: TeachingSettings = TeachingSettings()
    sources: SourceSettings = SourceSettings()
    scoring: ScoringSettings = ScoringSettings()
    refusals: RefusalSettings = RefusalSettings()
    perplexity: PerplexitySettings = PerplexitySettings()
    summary: SummarySettings = SummarySettings()
    report: ReportSettings = ReportSettings()

    @model_validator(mode="after")
    def check_names(self) -> "Experiment":
        """No name that a benchmark and a domain share, and at least one method."""
        shared = sorted(set(self.benchmarks) & set(self.domains))
        if shared:
            raise ValueError(f"benchmarks.{shared[0]}: this is a domain's name; a domain's own questions need no entry")
        if not self.method_names:
            raise ValueError(f"methods: found none; allowed are {', '.join(METHODS)}")
        return self

    @model_validator(mode="after")
    def check_gpus(self) -> "Experiment":
        """A model is spread only over GPUs that are not named one by one."""
        if self.model_gpus > 1 and self.device not in ("auto", "cuda"):
            raise ValueError(
                f"model_gpus: found {self.model_gpus}, but `device` is {self.device!r}; models are spread with `auto` or `cuda`"
            )
        return self

    @model_validator(mode="after")
    def check_shares(self) -> "Experiment":
        """The samples of a step are shared out evenly over the GPUs of a training."""
        for name in self.trained_methods:
            settings: Any = self.settings_of("methods", name)
            gpus, size = self.gpus_of(name), settings.device_batch_size or 1
            if gpus > 1 and settings.batch_size % (gpus * size):
                raise ValueError(
                    f"methods.{name}: found batch_size {settings.batch_size}, which {gpus} GPUs (training_gpus) with device_batch_size "
                    f"{size} do not share out evenly; make it a multiple of {gpus * size}, or change one of these"
                )
        return self

    @model_validator(mode="after")
    def check_published(self) -> "Experiment":
        """A published checkpoint has a name of its own and a domain of this experiment."""
        for name, settings in self.published.items():
            if name in (*METHODS, *MODELS, "published"):
                raise ValueError(f"methods.published.{name}: this name is taken; choose another")
            if not any(self.is_of_domain(name, domain) for domain in self.domains):
                raise ValueError(
                    f"methods.published.{name}.domains: found {reprlib.repr(settings.domains)}; the domains of this experiment are "
                    f"{', '.join(self.domains)}"
                )
        return self

    @model_validator(mode="after")
    def check_public_domains(self) -> "Experiment":
        """There are corpora of every public domain."""
        if "chem" in self.domains and not self.sources.chem_forget_corpus:
            raise ValueError(
                "sources.chem_forget_corpus: found none; no forget corpus of the domain chem is published: name your own, or "
                "leave chem out of `domains`"
            )
        if "chem" in self.domains and self.sources.retain_text == "domain":
            raise ValueError(
                "sources.retain_text: found 'domain'; chem has no retain corpus of its own: take 'wikitext'"
            )
        if self.sources.forget_text == "abstract" and set(self.domains) & {"chem", "cyber"}:
            raise ValueError(
                "sources.forget_text: found 'abstract'; only the forget corpus of the domain bio has abstracts"
            )
        return self

    @model_validator(mode="after")
    def check_teaching(self) -> "Experiment":
        """Only the original is taught, from a control, and only what is fictional."""
        if self.models.never_learned == "teach":
            raise ValueError("models.never_learned: found 'teach'; only the original is taught")
        if self.models.original == "teach":
            real = [domain for domain in self.domains if domain in PUBLIC_DOMAINS]
            if real:
                raise ValueError(
                    f"models.original: found 'teach' and the domain {real[0]!r}; only fictional domains are taught: "
                    f"{', '.join(FORGET_DOMAINS)}"
                )
            if self.models.never_learned is None:
                raise ValueError("models.never_learned: found none; `models.original: teach` teaches this model")
        return self

    @model_validator(mode="after")
    def check_starts(self) -> "Experiment":
        """A search starts from what the same attack found on another method of this experiment, and not in a circle.

        The control's search may start so too: then it goes through what the method's went through.
        """
        controls = ["never_learned"] if self.models.never_learned else []
        for attack in self.attack_names:
            starts: dict[str, str] = getattr(self.settings_of("attacks", attack), "start_from", {})
            key = f"attacks.{attack}.start_from"
            for name in starts:
                if name not in (*self.method_names, *controls):
                    raise ValueError(
                        f"{key}: found {name!r}; what may start from another is {', '.join([*self.method_names, *controls])}"
                    )
            for name in starts.values():
                if name not in self.method_names:
                    raise ValueError(
                        f"{key}: found {name!r}; methods of this experiment are {', '.join(self.method_names)}"
                    )
            for first in starts:
                path = [first]
                while path[-1] in starts and path.count(path[-1]) == 1:
                    path.append(starts[path[-1]])
                if path.count(path[-1]) > 1:
                    raise ValueError(f"{key}: found the circle {' ← '.join(path)}; one of these must start by itself")
        return self

    @model_validator(mode="after")
    def check_worlds(self) -> "Experiment":
        """The testbed's models were taught the world that its questions ask for; of any other they know nothing."""
        asked = self.data.world_seed
        for model in MODELS:
            source = getattr(self.models, model)
            if source == "testbed":
                taught = read_json(BUNDLED / model / "testbed.json")["settings"]["world_seed"]
            elif source == "pretrain":
                taught = self.pretraining.world_seed
            elif source == "teach":
                taught = self.teaching.world_seed
            else:
                continue
            if taught != asked:
                raise ValueError(
                    f"data.world_seed: found {asked}, but models.{model} is `{source}`, which is taught world {taught}; set "
                    f"data.world_seed to {taught}, or {_other_world(model, source, asked)}"
                )
            dealt = self.teaching.domain_seed if source == "teach" else None
            if model == "original" and dealt != self.data.domain_seed:
                raise ValueError(
                    f"data.domain_seed: found {_show_seed(self.data.domain_seed)}, but models.original is `{source}`, which is taught "
                    f"domains of seed {_show_seed(dealt)}; set data.domain_seed to {_show_seed(dealt)}, or models.original to `teach` "
                    f"and teaching.domain_seed to {_show_seed(self.data.domain_seed)}"
                )
        return self

    @property
    def trained_methods(self) -> list[str]:
        """The methods that this experiment runs itself."""
        return [name for name in METHODS if getattr(self.methods, name) is not None]

    @property
    def published(self) -> dict[str, PublishedSettings]:
        """The methods whose checkpoints others have published."""
        found: dict[str, PublishedSettings] = self.methods.published
        return found

    @property
    def method_names(self) -> list[str]:
        """The methods of this experiment."""
        return [*self.trained_methods, *self.published]

    def is_of_domain(self, method: str, domain: str) -> bool:
        """Whether a model is scored on a domain: a published checkpoint may have unlearned only some of them."""
        settings = self.published.get(method)
        return settings is None or settings.domains is None or domain in settings.domains

    @property
    def attack_names(self) -> list[str]:
        """The attacks of this experiment; `none` is always among them, because every other is compared with it."""
        return [name for name in ATTACKS if name == "none" or getattr(self.attacks, name) is not None]

    def settings_of(self, kind: Literal["methods", "attacks"], name: str) -> Settings:
        """The settings of a method or an attack."""
        registry = METHODS if kind == "methods" else ATTACKS
        return getattr(getattr(self, kind), name) or registry[name].settings_class()()

    def others_of(self, method: str, domain: str) -> list[str]:
        """The other methods whose models are scored on a domain."""
        return [name for name in self.method_names if name != method and self.is_of_domain(name, domain)]

    def gpus_of(self, method: str) -> int:
        """How many GPUs share the model out that a method trains: one, where it trains few of the weights."""
        return self.training_gpus if METHODS[method].shares_out(self.settings_of("methods", method)) else 1

    def parts_of(self, attack: str) -> list[str]:
        """The jobs that an attack is split into: keys of a setting, or `all`."""
        setting = ATTACKS[attack].parts
        return list(getattr(self.settings_of("attacks", attack), setting)) if setting else ["all"]

    def is_transferred(self, attack: str) -> bool:
        """Whether what an attack finds on one method's model is also scored on all other models."""
        setting = ATTACKS[attack].transfers
        return bool(setting and getattr(self.settings_of("attacks", attack), setting) and attack in self.transfers)


def _show_seed(seed: int | None) -> str:
    """A seed as YAML writes it."""
    return "null" if seed is None else str(seed)


def _other_world(model: str, source: str, seed: int) -> str:
    """How a model comes to know another world."""
    if source == "teach":
        return f"teaching.world_seed to {seed}"
    return f"models.{model} to `pretrain` and pretraining.world_seed to {seed}"


def validate_config(config: Any, source: str) -> Experiment:
    """Validate a configuration.

    Args:
        config: what was read from YAML and the command line.
        source: the file's name, for the error message.

    Raises:
        ResurfaceError: with one line per fault: key, what was found, what is allowed.
    """
    try:
        experiment = Experiment.model_validate(_fill_empty_sections(config))
    except ValidationError as error:
        count = error.error_count()
        lines = explain_faults(error, Experiment)
        raise ResurfaceError("\n".join([f"{source}: {count} fault(s) in the configuration", *lines])) from None
    size = len(shlex.quote(dump_settings(experiment)))
    if size > MOST_BYTES:
        raise ResurfaceError(
            f"{source}: the configuration takes {size:,} bytes on a command line, which jobs get it by; at most {MOST_BYTES:,} "
            "are possible: shorten its texts and lists"
        )
    return experiment


def _fill_empty_sections(config: Any) -> Any:
    """`npo:` without anything below it means the method with its defaults, although YAML reads it as null."""
    if not isinstance(config, dict):
        return config
    filled = dict(config)
    for kind in ("methods", "attacks"):
        section = filled.get(kind)
        if isinstance(section, dict):
            filled[kind] = {name: {} if settings is None else settings for name, settings in section.items()}
    return filled


def explain_faults(error: ValidationError, settings: type[Settings]) -> list[str]:
    """One line per fault for the reader: key, what was found, what is allowed; the first of them, if there are many."""
    faults = error.errors(include_url=False)
    more = [f"  … and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
    return [_explain(dict(fault), settings) for fault in faults[:MOST_FAULTS]] + more


def _explain(fault: dict[str, Any], settings: type[Settings]) -> str:
    """One fault as a line."""
    keys = [str(key) for key in fault["loc"] if key != "[key]"]
    key = ".".join(keys)
    if len(key) > MOST_LETTERS or not key.isprintable():
        key = ascii(key[:MOST_LETTERS]) + ("…" if len(key) > MOST_LETTERS else "")
    if fault["type"] == "extra_forbidden":
        return f"  {key}: unknown key; allowed here: {', '.join(_allowed_keys(keys[:-1], settings))}"
    if fault["type"] == "value_error":
        return f"  {key}{': ' if key else ''}{fault['ctx']['error']}"
    if fault["type"] == "missing":
        return f"  {key}: missing; this key is required"
    found = fault.get("input")
    if fault["type"] == "model_type":
        return f"  {key}{': ' if key else ''}found {_show(found)}; expected keys with values"
    hint = ""
    if isinstance(found, str) and fault["type"] in ("float_type", "int_type", "float_parsing"):
        hint = " (YAML reads 1e-3 as text: write 1.0e-3)"
    return f"  {key}{': ' if key else ''}found {_show(found)}; {fault['msg'].lower()}{hint}"


def _show(found: Any) -> str:
    """A value as it stands in a message: cut, however large or deep it is."""
    try:
        shown = reprlib.Repr()
        shown.maxlevel = 2  # six levels of six items would be 46,000
        return shown.repr(found)
    except ValueError:
        return "a number of thousands of digits"  # Python refuses to write these


def _allowed_keys(keys: list[str], settings: type[Settings]) -> list[str]:
    """The keys that may stand in the section of `settings` that `keys` lead to."""
    section: Any = settings
    for key in keys:
        fields = getattr(section, "model_fields", {})
        annotation = fields[key].annotation if key in fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next((option for option in options if hasattr(option, "model_fields")), None)
    return list(getattr(section, "model_fields", {}))


def dump_settings(settings: Settings, without: Collection[str] = ()) -> str:
    """Settings as one line of sorted JSON: what a rule's parameters and a command line carry.

    Args:
        settings: what to dump.
        without: keys that the rule does not read. Named are these rather than those that it reads, so that a new key makes
            a job stale once too often, never too seldom.
    """
    return json.dumps(settings.model_dump(exclude=set(without)), sort_keys=True, separators=(",", ":"))


def write_schema(path: Path) -> None:
    """Write the JSON schema of the configuration."""
    path.write_text(json.dumps(Experiment.model_json_schema(), indent=2) + "\n")


if __name__ == "__main__":
    write_schema(Path("workflow/schemas/config.schema.json"))
