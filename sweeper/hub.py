"""Which commit of the Hugging Face hub is read, and what is wrong where none can be."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from sweeper.errors import ConfigError

__all__ = ["commit_of", "work_offline"]

logger = logging.getLogger(__name__)

Kind = Literal["model", "dataset"]
TIMEOUT = 10.0  # seconds to an answer


def commit_of(name: str, revision: str | None = None, *, kind: Kind = "model") -> str:
    """The commit that a revision of a repository names, so that all of its files are read from one version.

    Where the hub does not answer, the commit that was read last from it, and from then on this process asks the hub
    no more: each client would repeat each request for half a minute.

    Args:
        name: ``user/name``.
        revision: a branch, tag or commit; ``None`` = main.
        kind: ``model`` or ``dataset``.

    Raises:
        ConfigError: there is no such repository or revision, its owner does not let this user in, or the hub does not
            answer and nothing is cached.
    """
    key = f"{kind} {name!r}"
    api = HfApi()
    try:
        if _is_cached(name, revision, kind):
            return str(revision)
        try:
            api.repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT)
            # Notes the commit in the cache, for the next time without a connection.
            return api.resolve_revision(name, repo_type=kind, revision=revision).resolved
        except (httpx2.TransportError, OfflineModeIsEnabled) as error:
            silent: Exception = error
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
            silent = error
        found = api.resolve_revision(name, repo_type=kind, revision=revision, local_files_only=True).resolved
        if not constants.is_offline_mode():
            logger.warning("%s does not answer (%s): %s is read from the cache", constants.ENDPOINT, silent, key)
            work_offline()
        return found
    except HFValidationError as error:
        raise ConfigError(f"{key}: no name of a repository on the hub", "Names look like user/name.") from error
    except GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
        raise ConfigError(
            f"{key} is gated: its owner grants access to those who ask for it",
            f"Ask on {page}, then set HF_TOKEN to a token of your account (or `hf auth login`).",
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{key} does not exist on {constants.ENDPOINT}, or is private",
            f"Check {kind}.name (user/name); for a private one set HF_TOKEN to a token that may read it.",
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"{key} has no revision {revision!r}", f"{kind}.revision names a branch, a tag or a commit; null = main."
        ) from error
    except RevisionResolutionError as error:
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else f"{constants.ENDPOINT} does not answer"
        raise ConfigError(
            f"{key} cannot be fetched: {why}, and {constants.HF_HUB_CACHE} does not hold it",
            "Connect and start again; what was fetched once is found there later. Without the hub: model=minilm, "
            "model=efficientnet_lite0 or model=local, dataset=review_lines, textile or files of your own.",
        ) from error
    except HfHubHTTPError as error:
        raise ConfigError(
            f"{key} cannot be fetched: {constants.ENDPOINT} answers {error.response.status_code}",
            "Check HF_TOKEN and HF_ENDPOINT, or try again later.",
        ) from error


def work_offline() -> None:
    """Let the hub's clients in this process read their caches and nothing else, as ``HF_HUB_OFFLINE=1`` does."""
    constants.HF_HUB_OFFLINE = True


def _is_cached(name: str, revision: str | None, kind: Kind) -> bool:
    """Whether ``revision`` is a commit, which never changes, of which there are files."""
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "snapshots" / str(revision)
    return len(revision or "") == 40 and folder.is_dir()
