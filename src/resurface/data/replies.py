"""Replies that were paid for, kept so that nobody pays for them twice.

Each is one file, named by the hash of everything that its request said. They lie outside `results/`: Snakemake deletes declared
outputs before a rerun, audits take other files in there for strangers', and who deletes all results does not mean to pay again.
Neither requests nor keys are kept; replies hold questions about the corpus, so treat the folder as the corpus itself.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from resurface.artifacts import publish, read_json_object
from resurface.errors import ResurfaceError
from resurface.settings.base import Count, Settings

log = logging.getLogger("resurface")


class Reply(Settings):
    """What a model wrote."""

    text: str
    end: Literal["whole", "cut", "refused"] = Field(
        description="whole, cut at the most tokens, or refused by the server or its model"
    )
    prompt_tokens: Count = Field(description="tokens read")
    reply_tokens: Count = Field(description="tokens written")


def request_name(request: dict[str, Any]) -> str:
    """The name of a request: a hash of all that it says and of whom it asks."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def reply_path(folder: Path, name: str) -> Path:
    """Where the reply to a request is kept; no folder holds more than a few hundred."""
    return folder / name[:2] / f"{name}.json"


def read_reply(folder: Path, name: str) -> Reply | None:
    """The reply to a request, if it is kept.

    Raises:
        ResurfaceError: its file is damaged.
    """
    path = reply_path(folder, name)
    if not path.is_file():
        return None
    try:
        return Reply.model_validate(read_json_object(path))
    except ValidationError as error:
        fault = error.errors()[0]
        raise ResurfaceError(
            f"{path}: this is no kept reply ({'.'.join(map(str, fault['loc']))}: {fault['msg'].lower()}); delete it, and it "
            "will be asked for again"
        ) from None


def keep_reply(folder: Path, name: str, reply: Reply) -> None:
    """Keep the reply to a request, whole or not at all."""
    path = reply_path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with publish(path) as temporary:
        temporary.write_text(reply.model_dump_json() + "\n", encoding="utf-8")


@contextmanager
def holding_replies(folder: Path) -> Iterator[None]:
    """Wait until no other job asks, for as long as that takes: limits hold for all, and no two pay for the same reply."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another job that asks for replies; what it gets serves this one too")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
