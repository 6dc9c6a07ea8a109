"""Models and data sets of the Hugging Face hub, by id and revision.

They are downloaded into the hub's own cache (`HF_HOME`), where every tool finds them again, and linked or read from there. Only
files that can be read without running code are fetched. What the hub answers becomes one error that says what to fetch or where
to ask; its own messages are not passed on, because they hold addresses, which may be signed.
"""

import logging
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from resurface.artifacts import naming_full_disk
from resurface.checkpoints import TAKEN, TOKENIZER_FILES
from resurface.errors import ResurfaceError
from resurface.settings.sources import split_hub_id

log = logging.getLogger("resurface")

Kind = Literal["model", "dataset"]
# Beside a model: what lies in folders (the same weights in another layout), and the same weights once more.
LEFT = ("*/*", "consolidated*")


def find_files(
    source: str, kind: Kind, allowed: Sequence[str], ignored: Sequence[str] = (), needed: Sequence[str] = ()
) -> Path:
    """The place of a model or a data set: a path as it is, or the downloaded files of a hub id.

    Args:
        source: `org/name@revision`, or a path.
        kind: what the hub has under this id.
        allowed: patterns of the files to fetch; `*` matches slashes too.
        ignored: patterns of files among these to leave.
        needed: patterns of which one file at least must fit one; `allowed` if there are none. Offline, a cache may hold another part.

    Raises:
        ResurfaceError: the hub cannot be reached, has no such id or revision or file, or asks for access first.
    """
    hub_id = split_hub_id(source)
    if hub_id is None:
        return Path(source)
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    repository, revision = hub_id
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repository}"
    command = f"hf download {repository} --revision {revision}{' --repo-type dataset' if kind == 'dataset' else ''}"
    disable_progress_bars()
    hub_logging.set_verbosity_error()  # its warnings show addresses too
    try:
        with naming_full_disk(Path(constants.HF_HUB_CACHE)):
            folder = Path(
                snapshot_download(
                    repository,
                    repo_type=kind,
                    revision=revision,
                    allow_patterns=list(allowed),
                    ignore_patterns=list(ignored),
                )
            )
    except errors.GatedRepoError:
        raise ResurfaceError(
            f"{source}: access to this {kind} must be asked for at {page}; then log in (`hf auth login`, or a token in "
            "HF_TOKEN) and start again, or name a local copy"
        ) from None
    except errors.RevisionNotFoundError:
        raise ResurfaceError(
            f"{source}: {repository} has no revision {revision!r}; {page}/commits/main lists those that it has"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ResurfaceError(
            f"{source}: the hub has no {kind} {repository} that you can see; look at {page}, and log in (`hf auth login`, or a "
            "token in HF_TOKEN) if it is private"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set"
        else:
            reason = f"{constants.ENDPOINT} gives no answer ({_name_cause(error)})"
        raise ResurfaceError(
            f"{source}: {reason}, and the files are not all in the cache {constants.HF_HUB_CACHE}; fetch them where there is a "
            f"network: `{command}`, with HF_HOME on a disk that this machine sees, or name a local copy"
        ) from None
    except errors.HTTPError as error:  # type: ignore[attr-defined]
        cause = _name_cause(error)
        is_refused = cause in ("status 401", "status 403")
        remedy = (
            "log in anew (`hf auth login`, or HF_TOKEN)" if is_refused else "try again later: what was fetched is kept"
        )
        raise ResurfaceError(f"{source}: {constants.ENDPOINT} could not be read from ({cause}); {remedy}") from None
    kept = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    if not any(fnmatch(path, pattern) for path in kept for pattern in needed or allowed):
        raise ResurfaceError(
            f"{source}: found no file {' or '.join(needed or allowed)} among those in the cache {constants.HF_HUB_CACHE}; without a "
            f"network, fetch all where there is one: `{command}`, with HF_HOME on a disk that this machine sees, or name a local copy. "
            f"{page}/tree/main shows what the hub has"
        )
    log.info("%s: commit %s, in the cache", source, folder.name)
    return folder


def find_checkpoint(source: str) -> Path:
    """The folder of a model: a path as it is, or the downloaded files of a hub id.

    Raises:
        ResurfaceError: see `find_files`.
    """
    return find_files(source, "model", [f"*{suffix}" for suffix in TAKEN], LEFT, ["config.json"])


def find_tokenizer(source: str) -> Path:
    """The folder of a model's tokenizer, likewise, without its weights.

    Raises:
        ResurfaceError: see `find_files`.
    """
    return find_files(source, "model", TOKENIZER_FILES, LEFT)


def _name_cause(error: BaseException) -> str:
    """What went wrong, without addresses: the status that the hub answered with, or the kind of the error."""
    cause = error.__cause__ or error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    return f"status {status}" if status else type(cause).__name__
