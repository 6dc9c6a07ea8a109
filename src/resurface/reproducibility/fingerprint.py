"""Fingerprints of source code: what a job's result depends on besides its settings and inputs.

A module's closure is the module, the packages above it and every first-party module that it imports, transitively,
imports inside functions included. Files are parsed, nothing is imported, and closures are computed once per process.
Editing a module therefore makes stale exactly the jobs whose closure holds it. What a module reads from the package
without importing it (templates, tasks of the harness) is named beside it.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = "resurface"
SOURCE = Path(__file__).parents[1]


@cache
def module_path(module: str) -> Path | None:
    """The file of a first-party module, or None if there is no such module."""
    path = SOURCE.joinpath(*module.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def direct_imports(module: str) -> frozenset[str]:
    """First-party modules that a module imports anywhere in its source, and the packages above it."""
    path = module_path(module)
    assert path is not None, f"no first-party module {module}"
    found = {module.rsplit(".", 1)[0]} if "." in module else set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not used in this package"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(
        name for name in found if name.split(".")[0] == PACKAGE and module_path(name) is not None and name != module
    )


@cache
def closure(module: str) -> tuple[str, ...]:
    """A module and every first-party module that it needs, sorted."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += direct_imports(name)
    return tuple(sorted(seen))


@cache
def fingerprint(module: str, *patterns: str) -> str:
    """SHA-256 over the sources of a module's closure and over files that it reads (first 16 hex digits).

    Args:
        module: a first-party module.
        patterns: the package's files that the module's job reads besides, relative to the package; may hold `*`.
    """
    digest = hashlib.sha256()
    for name in closure(module):
        path = module_path(name)
        assert path is not None
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    for pattern in patterns:
        files = sorted(SOURCE.glob(pattern))
        assert files, f"no file {pattern} in {SOURCE}"
        for path in files:
            name = path.relative_to(SOURCE).as_posix()
            digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
