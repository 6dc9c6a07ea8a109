"""The documentation: it builds as a site, and every command in it is run, page by page, as a reader would.

A page is followed from top to bottom in a copy of the finished project: files that it shows with a title are written, its changes are
applied, its Python is executed, its commands are run by a shell that ends at the first failure. What takes hours, or needs what is not at
hand here (a cluster, a hub, a bucket, several GPUs), is run by another test in a smaller way: `ELSEWHERE` says which.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import typer
import yaml
from conftest import DOMAIN, REDUCED, ROOT

PAGES = {str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
LANGUAGES = {"bash", "python", "yaml", "diff", "mermaid", "text"}
COMMANDS = re.compile(r"^(\S+/)?(snakemake|resurface|make|python|pip|pytest|hf|git|cp|mkdir|export)\b")
FENCE = re.compile(r'^( *)```(\w*)(?: title="([^"]+)")?\n(.*?)^\1```$', re.DOTALL | re.MULTILINE)

# What another test runs: the command as it stands in a page → that test, and what it runs instead.
ELSEWHERE = {
    "make environment": ".ci/run: make check",
    "make test": ".ci/run: make test",
    "make pretrain": "tests/test_pretraining.py: pretrain",
    "make calibration": "tests/test_calibration.py: --small",
    "python -m calibration worlds --worlds 20 --most 4": "tests/test_calibration.py: --small",
    "python -m calibration.count worlds docs": "tests/test_calibration.py: calibration.count",
    ".venv/bin/pip install --requirement envs/cluster.lock": "tests/workflow/cluster.py: cluster.lock",
    "snakemake --workflow-profile profiles/slurm --dry-run": "tests/workflow/test_profiles.py: --dry-run",
    "snakemake --workflow-profile profiles/slurm": "tests/workflow/test_slurm.py: --workflow-profile",
    "export SNAKEMAKE_STORAGE_S3_ENDPOINT_URL=… SNAKEMAKE_STORAGE_S3_ACCESS_KEY=… SNAKEMAKE_STORAGE_S3_SECRET_KEY=…": (
        "tests/workflow/test_profiles.py: SNAKEMAKE_STORAGE_S3_"
    ),
    "snakemake --workflow-profile profiles/kubernetes": "tests/workflow/test_profiles.py: kubernetes",
    "snakemake --unlock && snakemake --cores all": "tests/workflow/test_faults.py: RESUME",
    "resurface write-preferences --forget-corpus mine.parquet --benign-corpus wikitext.parquet --benign-questions arc.parquet "
    "--general-pairs chat.parquet --subject biology --output out/preferences.parquet --settings "
    '\'{"base_url":"…","model":"…"}\'': "tests/test_preferences.py: write-preferences",
    "resurface unlearn npo --gpus 4 --model results/models/original --data results/data/bio --output … --settings …": (
        "tests/test_launch.py: --gpus"
    ),
    "snakemake --cores all --configfile workflow/experiments/zephyr-7b-bio.yaml": (
        "tests/workflow/test_public_domain.py: write_public_data"
    ),
    "snakemake --cores 1 --configfile workflow/experiments/zephyr-7b-bio.yaml results/data/sources/wmdp_bio.parquet": (
        "tests/workflow/test_public_domain.py: wmdp_bio"
    ),
    "hf download HuggingFaceH4/zephyr-7b-beta --revision 892b3d7a7b1cf10c7a701c60881cd93df615734c": (
        "tests/test_hub.py: hf download"
    ),
    "hf download cais/wmdp --revision 7125571f22f032c56415e7980f48d877dd830ff8 --repo-type dataset": (
        "tests/test_hub.py: --repo-type dataset"
    ),
    **{
        f"python -m benchmarks.{name}": f"tests/test_benchmarks.py: {name}"
        for name in (
            "scoring",
            "variants",
            "logit_lens",
            "orthogonalization",
            "pruning",
            "enhanced_gcg",
            "generation",
            "preferences",
            "finetuning",
        )
    },
    "python -m benchmarks.plot results/benchmarks/mistral-7b docs": "tests/test_benchmarks.py: benchmarks.plot",
}
# A page's placeholders, and what the reduced run has in their place.
PLACEHOLDERS = {
    "/somewhere/theirs": "theirs",
    "/shared/folder": "shared",
    "3f2a…": "$(python -c \"import json; print(json.load(open('theirs/manifest.json'))['digest'])\")",
    "THEIRS.yaml": "config.yaml",
    "my.yaml": "config.yaml",
    "my-experiment.yaml": "config.yaml",
    "original-blocks-0to2": "original-blocks-2",
    "documents: 36_000": "documents: 64",
    "max_steps: 120": "max_steps: 2",
    "--sample 3": "--sample 1",
    "--sample 5": "--sample 1",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its commands, without comments, each on one line."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        lines = [re.sub(r"\s+# .*$", "", line).strip() for line in joined.splitlines()]
        return [line for line in lines if line and not line.startswith("#")] if self.language == "bash" else []


def read_blocks(page: str) -> list[Block]:
    """The blocks of a page, in their order."""
    found = FENCE.findall(PAGES[page].read_text())
    return [
        Block(page, language, title, re.sub(f"^{indent}", "", text, flags=re.M))
        for indent, language, title, text in found
    ]


def test_commands_are_marked_as_such_and_those_run_elsewhere_are():
    commands = {command for page in PAGES for block in read_blocks(page) for command in block.commands}
    assert len(commands) > 50
    assert set(ELSEWHERE) <= commands, "these are in no page any more"
    for command, where in ELSEWHERE.items():
        file, words = where.split(": ", 1)
        assert words in (ROOT / file).read_text(), f"{command}: not in {file}"
    for page in PAGES:
        assert PAGES[page].read_text().count("```") == 2 * len(read_blocks(page)), page
        for block in read_blocks(page):
            assert block.language in LANGUAGES, (page, block.text)
            if block.language == "text":
                assert not [line for line in block.text.splitlines() if COMMANDS.match(line)], (page, block.text)


def read_inline_commands(page: str) -> list[list[str]]:
    """The commands within the sentences of a page, or of a notebook's, as words; `…` stands for whatever is left out."""
    text = page_text(page)
    if page.endswith(".ipynb"):
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    parts = [part for span in spans if INLINE.match(span) for part in span.split(" && ")]
    return [shlex.split(INLINE.sub(r"\1", part)) for part in parts]


def page_text(page: str) -> str:
    """A page as it stands in its file."""
    return (ROOT / page).read_text()


def split_options(words: list[str]) -> tuple[list[str], list[str]]:
    """The names of options, without values that are joined to them, and all other words."""
    options = [word.split("=")[0] for word in words if word.startswith("-")]
    return options, [word for word in words if not word.startswith("-") and "…" not in word]


@cache
def read_help(*words: str) -> str:
    """What a module says of its options."""
    command = [sys.executable, "-m", *words, "--help"]
    run = subprocess.run(command, cwd=ROOT, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True)
    assert run.returncode == 0, (words, run.stderr)
    return run.stdout


def check_options(options: list[str], *words: str) -> None:
    """Check that the help of a module names each option."""
    known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", read_help(*words)))
    assert set(options) <= known, (words, set(options) - known)


def check_resurface(words: list[str]) -> None:
    """Check that subcommands, and the options of each, exist."""
    from resurface.cli import app

    found = typer.main.get_command(app)
    for word in words:
        if word.startswith("--"):
            assert word in {name for option in found.params for name in option.opts}, word
        elif hasattr(found, "commands") and "…" not in word and not word.isdigit():
            assert word in found.commands, word
            found = found.commands[word]


def check_make(words: list[str]) -> None:
    """Check that targets exist."""
    targets = set(re.findall(r"^([a-z]+):", page_text("Makefile"), flags=re.MULTILINE))
    assert set(split_options(words)[1]) <= targets


def check_snakemake(words: list[str]) -> None:
    """Check that Snakemake takes the options, and that rules exist."""
    from snakemake.cli import get_argument_parser

    parser = get_argument_parser()
    parser.allow_abbrev = False
    given = parser.parse_args(words)
    sources = [ROOT / "Snakefile", *(ROOT / "workflow").rglob("*.smk")]
    rules = {name for path in sources for name in re.findall(r"^rule (\w+):", path.read_text(), flags=re.MULTILINE)}
    asked = {*given.until, *given.omit_from, *(given.forcerun or []), *given.targets}
    assert {str(name) for name in asked if not re.search("[/…]", str(name))} <= rules


def check_module(words: list[str]) -> None:
    """Check that `python -m` finds the module, and that it takes the options and needs no other argument."""
    name, *rest = words
    if name in CHECKS:
        return CHECKS[name](rest)
    options, others = split_options(rest)
    assert find_spec(name), name
    if name.startswith("resurface."):
        assert not rest, "these modules take nothing"
        return None
    check_options(options, name)
    needed = re.sub(r"\[[^\[\]]*(\[[^\[\]]*\])*[^\[\]]*\]", "", read_help(name).split("\n\n")[0]).split()[2:]
    assert len(others) >= len(needed) or "…" in rest, f"{name} needs {needed}"
    return None


def check_pytest(words: list[str]) -> None:
    """Check that pytest takes the options, and that there are such tests and marks."""
    options, _ = split_options(words)
    check_options(options, "pytest")
    tests = [ROOT / word for word in words if word.startswith("tests/")] or list((ROOT / "tests").rglob("test_*.py"))
    names = " ".join(name for path in tests for name in re.findall(r"^def (test_.*)\(", path.read_text(), re.MULTILINE))
    marks = " ".join(re.findall(r'^    "(\w+): ', page_text("pyproject.toml"), re.MULTILINE))
    for option, word in pairwise(words):
        for part in {*re.findall(r"\w+", word)} - {"and", "or", "not"} if option in ("-k", "-m") else ():
            assert part in (names if option == "-k" else marks), part


def check_subcommand(tool: str, words: list[str]) -> None:
    """Check that a tool has the subcommand, and that it takes the options."""
    check_options(split_options(words)[0], tool, *words[:1])


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "resurface": check_resurface,
    "snakemake": check_snakemake,
    "make": check_make,
    "python -m": check_module,
    "pytest": check_pytest,
    "pip": partial(check_subcommand, "pip"),
    "mkdocs": partial(check_subcommand, "mkdocs"),
}
# What stands before it says where and with which settings of the environment it is run.
INLINE = re.compile(rf"^(?:\w+=\S* )*(?:\.venv/bin/)?({'|'.join(CHECKS)})(?= |$)")


def check_command(words: list[str]) -> None:
    """Check that a command can be read by what it starts, and that files of the project that it names exist."""
    tool, rest = ("python -m", words[2:]) if words[0] == "python" else (words[0], words[1:])
    folders = tuple(f"{name}/" for name in ("benchmarks", "docs", "envs", "profiles", "src", "tests", "workflow"))
    for word in rest:
        assert not word.startswith(folders) or "…" in word or (ROOT / word.split("::")[0]).exists(), word
    CHECKS[tool](rest)


def test_commands_within_sentences_exist():
    commands = {
        page: [words for words in read_inline_commands(page) if len(words) > 1] for page in (*PAGES, "docs/audit.ipynb")
    }
    for page, found in commands.items():
        for words in found:
            try:
                check_command(words)
            except (AssertionError, SystemExit) as error:
                pytest.fail(f"{page}: {shlex.join(words)}: {error}")
    assert sum(map(len, commands.values())) > 40
    assert {words[0] for found in commands.values() for words in found} >= {"snakemake", "python", "pytest", "pip"}


@pytest.mark.parametrize(
    "command",
    [
        "resurface shows",
        "resurface audit prove",
        "resurface plan --nothing",
        "make tea",
        "snakemake --core all",
        "snakemake --cores all --until modl",
        "snakemake calibration",
        "snakemake --cores all --workflow-profile profiles/slrm",
        "python -m benchmarks.scales",
        "python -m benchmarks.scale",
        "python -m benchmarks.scale folder --gpu 2",
        "python -m pytest --nothing",
        "pytest tests/test_nothing.py",
        "pytest tests/test_launch.py -k three_gpus",
        "pytest -m fault_finding",
        "pip instal bitsandbytes",
        "pip install --requirements envs/cluster.lock",
        "mkdocs built",
    ],
)
def test_commands_that_do_not_exist_are_found(command):
    with pytest.raises((AssertionError, SystemExit)):
        check_command(shlex.split(command))


def test_the_site_builds_without_a_warning(tmp_path):
    command = ["mkdocs", "build", "--strict", "--config-file", ROOT / "mkdocs.yml", "--site-dir", tmp_path / "site"]
    # The theme's makers advertise their next one, in capitals.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run([sys.executable, "-m", *command], env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stdout + built.stderr
    pages = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.html")}
    assert {page.removeprefix("docs/").replace(".md", ".html") for page in PAGES if page != "README.md"} <= pages
    loaded = re.findall(
        r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"',
        "".join((tmp_path / "site" / page).read_text() for page in pages),
    )
    assert loaded == [], "the site loads nothing from other hosts"


def follow(page: str, project: Path, configuration: dict, done: frozenset[str] = frozenset()) -> None:
    """Do what a page says, in a copy of the project, but for commands that are done already."""
    (project / "config.yaml").write_text(yaml.safe_dump(configuration))
    if not (project / ".venv").exists():
        (project / ".venv").symlink_to(sys.prefix)
    environment = os.environ | {"PYTHONPATH": str(project / "src"), "COLUMNS": "200"}
    for block in read_blocks(page):
        text, commands = block.text, [command for command in block.commands if command not in ELSEWHERE]
        for placeholder, instead in PLACEHOLDERS.items():
            text = text.replace(placeholder, instead)
            commands = [command.replace(placeholder, instead) for command in commands]
        commands = [command for command in commands if command not in done]
        if block.title:
            (project / block.title).write_text(text)
            continue
        if block.language == "diff":
            arguments, given = ["git", "apply", "-"], text
        elif block.language == "python":
            arguments, given = [sys.executable, "-"], text
        elif commands:
            arguments, given = ["bash", "-e"], "\n".join(commands)
        else:
            continue
        run = subprocess.run(arguments, cwd=project, env=environment, input=given, capture_output=True, text=True)
        assert run.returncode == 0, f"{page}\n{given}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"


ALONE = {"docs/first-audit.md", "docs/own-model.md", "docs/add-attack.md", "docs/add-method.md", "docs/add-domain.md"}
FOLLOWED = [
    page for page in PAGES if page not in ALONE and any(set(b.commands) - set(ELSEWHERE) for b in read_blocks(page))
]


@pytest.mark.audit
def test_every_other_page_can_be_followed(project):
    (project / "theirs").symlink_to(project / "results", target_is_directory=True)
    assert "README.md" in FOLLOWED
    (project / "shared").mkdir()
    done: frozenset[str] = frozenset()
    for page in FOLLOWED:
        shutil.rmtree(project / "crate", ignore_errors=True)
        follow(page, project, REDUCED, done)
        done |= {command for block in read_blocks(page) for command in block.commands}


@pytest.mark.audit
def test_the_first_audit_finds_what_its_page_says(project):
    """The page's own experiment, whole; then its model is audited as one's own."""
    shutil.rmtree(project / "results")
    follow("docs/first-audit.md", project, REDUCED)
    verdicts = pd.read_parquet(project / "results" / "verdicts.parquet").set_index("method")
    assert verdicts.loc["rmu", "verdict"] == "resurfaces"
    evidence = pd.read_parquet(project / "results" / "evidence.parquet").set_index("attack")
    assert evidence.loc["none", "accuracy"] < 0.35
    assert evidence.loc["orthogonalization", "accuracy"] > 0.85
    assert evidence["control_accuracy"].max() < 0.32
    follow("docs/own-model.md", project, REDUCED)
    verdicts = pd.read_parquet(project / "results" / "verdicts.parquet").set_index("method")
    assert verdicts.loc["mine", "verdict"] == "resurfaces"


@pytest.mark.audit
def test_an_attack_a_method_and_a_domain_are_added_as_their_pages_say(project):
    follow("docs/add-attack.md", project, REDUCED)
    summary = pd.read_parquet(project / "results" / "summary.parquet")
    assert set(summary.loc[summary["attack"] == "persona", "variant"]) == {"expert", "examiner"}
    assert set(summary.loc[summary["attack"] == "persona", "method"]) >= {"rmu", "npo", "never_learned"}

    follow("docs/add-method.md", project, REDUCED)
    folder = project / "results" / "unlearned" / DOMAIN / "gradient_difference" / "seed0"
    assert list(pd.read_parquet(folder / "losses.parquet")[["forget_loss", "retain_loss"]].shape) == [2, 2]
    assert "gradient_difference" in set(pd.read_parquet(project / "results" / "verdicts.parquet")["method"])

    follow("docs/add-domain.md", project, REDUCED)
    verdicts = pd.read_parquet(project / "results" / "verdicts.parquet")
    assert set(verdicts["domain"]) == {"starlore"}
    assert len(json.loads((project / "results" / "manifest.json").read_text())["records"]) > 10
