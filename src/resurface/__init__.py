"""Resurface: does an unlearned language model still hold the knowledge it was made to forget?"""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """`load_results` (`resurface.results`), imported when it is asked for: no job needs it or is stale when it changes."""
    if name == "load_results":
        return import_module("resurface.results").load_results
    raise AttributeError(f"module 'resurface' has no attribute {name!r}")
