"""Configuration files, read so that nothing in them is executed and nothing is read two ways.

Snakemake reads a configuration with a reader that evaluates Python expressions if the file says `__use_yte__: true`, takes the
last of keys that stand there twice, and ends with a traceback at some broken files. Here such files are refused, by name and
line, before Snakemake reads the default one, and by `resurface check` before it reads any other.
"""

import json
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from resurface.artifacts import read_json
from resurface.errors import ResurfaceError

MOST_BYTES = 200_000
MOST_VALUES = 20_000
TEMPLATE_KEY = "__use_yte__"


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which knows no tags that name Python objects; it refuses keys that stand there twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping and compare its keys, before `<<` merges others into it."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[Hashable] = set()
        for key, _ in node.value:
            written = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            if written in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands there twice", problem_mark=key.start_mark
                )
            seen.add(written)
        return node


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a configuration as Snakemake does, JSON or else YAML, but strictly and without executing anything.

    Raises:
        ResurfaceError: the file is missing, too large, no UTF-8, no YAML, no mapping, nested too deeply, has a key twice, a tag
            that names a Python object, or asks for the evaluation of expressions.
    """
    if not path.is_file():
        raise ResurfaceError(f"{path}: no such configuration file")
    if path.stat().st_size > MOST_BYTES:
        raise ResurfaceError(f"{path}: found {path.stat().st_size:,} bytes; a configuration has at most {MOST_BYTES:,}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ResurfaceError(f"{path}: this is no UTF-8 text: {error.reason} at byte {error.start}") from error
    try:
        found = read_json(path) if _is_json(text) else yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ResurfaceError(f"{path}: this is no readable YAML: {error}") from error
    except RecursionError:
        raise ResurfaceError(f"{path}: this YAML is nested too deeply to be a configuration") from None
    if not isinstance(found, dict):
        raise ResurfaceError(
            f"{path}: found {'nothing' if found is None else f'a {type(found).__name__}'} at the top; expected keys, of which "
            "`domains`, `methods` and `attacks` are needed"
        )
    if TEMPLATE_KEY in found:
        raise ResurfaceError(
            f"{path}: {TEMPLATE_KEY}: Snakemake would evaluate Python expressions in this file; a configuration holds values only"
        )
    _check_size(found, path)
    return found


def check_config_files(paths: Iterable[Path]) -> None:
    """Check all files of a workflow's configuration.

    Raises:
        ResurfaceError: one of them cannot be read strictly.
    """
    for path in paths:
        read_config_file(path)


def _is_json(text: str) -> bool:
    """Whether Snakemake reads this text as JSON, which it tries first."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _check_size(found: Any, path: Path) -> None:
    """Count the values that anchors and aliases expand to: a few lines may stand for billions, or for themselves."""
    waiting, count = [found], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise ResurfaceError(f"{path}: its anchors expand to more than {MOST_VALUES:,} values")
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += list(value)
