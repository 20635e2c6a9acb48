"""The Hugging Face hub: which commit of it is read, how a model gets there, and what is wrong where neither can be."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, without an __all__
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    validate_repo_id,
)

from sweeper.errors import ConfigError, ThawlineError

__all__ = ["commit_of", "push_model", "push_problems", "work_offline"]

logger = logging.getLogger(__name__)

Kind = Literal["model", "dataset"]
TIMEOUT = 10.0  # seconds to an answer
#: What is uploaded of a saved model's folder: nothing else that a user may have put there.
MODEL_FILES = re.compile(
    r"(adapter/)?([^/.][^/]*\.(json|safetensors|txt|model|jinja)|README\.md)|(classifier|additions)\.py"
)
#: What saving a model writes, and the next upload may therefore remove: the weights, their settings, the tokenizer.
SAVED_FILES = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|adapter/adapter_(config\.json|model\.safetensors)|"
    r"((generation_|preprocessor_|processor_|tokenizer_)?config|thawline)\.json|(classifier|additions)\.py|"
    r"(tokenizer|special_tokens_map|added_tokens|vocab)\.json|(vocab|merges)\.txt|chat_template\.jinja|"
    r"(spiece|spm|tokenizer|sentencepiece(\.bpe)?)\.model"
)
#: Of what is uploaded, the files that may name a folder of this machine, and the keys there that do.
SETTINGS = re.compile(r"(.*/)?(.*config|thawline)\.json")
PATH_KEYS = re.compile(r"(.*_)?(path|files?|dir|source)")
_OFFLINE = constants.is_offline_mode()  # as the user set it, before work_offline


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


# --- upload ------------------------------------------------------------------------------------------------------


def push_problems(repository: str, *, private: bool) -> list[str]:
    """Why a model could not be uploaded, as far as the hub tells before anything is trained; a line each.

    A hub that does not answer is no mistake: a warning is logged.

    Args:
        repository: ``user/name``.
        private: whether the model is to be seen by its owner alone.
    """
    given = f"hub.push={repository}"
    try:
        validate_repo_id(repository)
        if repository.count("/") != 1:
            raise HFValidationError
    except HFValidationError:
        return [
            f"{given}: must be user/name, of letters, digits and - _ . (no -- or .., neither - nor . at an end; "
            "at most 96 characters)"
        ]
    if _OFFLINE:
        return [f"{given}: HF_HUB_OFFLINE is set; unset it, or leave hub.push out"]
    if get_token() is None:
        return [f"{given}: there is no token; {_a_token()}"]
    try:
        account = _get("/api/whoami-v2")
        if problems := _refusals(account, repository):
            return problems
        found = _get(f"/api/models/{repository}")
    except httpx2.TransportError as error:
        logger.warning("%s does not answer (%s): whether %s can be written is seen at the end", *_at(error), repository)
        return []
    except RepositoryNotFoundError:
        return []  # it will be created
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            return [f"{given}: {constants.ENDPOINT} does not know the token; {_a_token()}"]
        logger.warning("%s answers %s: whether %s can be written is seen at the end", *_at(error), repository)
        return []
    return [_public(repository)] if private and found.get("private") is False else []


def push_model(folder: Path, repository: str, *, private: bool, comparison: str) -> str:
    """Upload a saved model with its card in one commit, and return its address.

    Of the folder, ``MODEL_FILES`` go up; paths of this machine in their settings are cut to their last part. From a
    repository with an earlier model of this program (``thawline.json``), ``SAVED_FILES`` that the folder has not are
    removed; all else stays.

    Args:
        folder: with ``config.json`` and ``README.md``.
        repository: ``user/name``; created where it does not exist.
        private: whether a new one is to be seen by its owner alone.
        comparison: named in the commit's message.

    Raises:
        ThawlineError: there is no model, no token, or the hub refuses it or is out of reach; nothing is lost here.
    """
    kept = f"{folder} is complete; the same command uploads again and trains nothing."
    given = f"hub.push={repository}"
    if not (folder / "config.json").is_file():
        raise ThawlineError(
            f"{given}: {folder} holds no model: it was removed, or trained with another output_dir",
            "Give hub.push to the sweep that trained it, with its output_dir.",
        )
    if get_token() is None:
        raise ThawlineError(f"{given}: there is no token; {_a_token()}", kept)
    constants.HF_HUB_OFFLINE = _OFFLINE  # a hub that was silent hours ago may answer now
    api = HfApi()
    files = dict(_model_files(folder))
    try:
        _get("/api/whoami-v2")  # with a limit of time, which uploads have none of
        api.create_repo(repository, private=private, exist_ok=True)
        if private and api.model_info(repository, timeout=TIMEOUT).private is False:
            raise ThawlineError(_public(repository), kept)
        there = api.list_repo_files(repository)
        old = [name for name in there if "thawline.json" in there and SAVED_FILES.fullmatch(name)]
        api.create_commit(
            repository,
            [
                *(CommitOperationDelete(name) for name in old if name not in files),
                *(CommitOperationAdd(name, content) for name, content in files.items()),
            ],
            commit_message=f"The winner of {comparison}",
        )
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise ThawlineError(f"{given}: {_refused(error, repository)}", kept) from error
    return f"{constants.ENDPOINT}/{repository}"


def _get(path: str) -> dict[str, Any]:
    """What the hub answers, within ``TIMEOUT``; the clients' own calls wait for ever."""
    response = get_session().get(f"{constants.ENDPOINT}{path}", headers=build_hf_headers(), timeout=TIMEOUT)
    hf_raise_for_status(response)
    answer = response.json()
    return answer if isinstance(answer, dict) else {}


def _at(error: Exception) -> tuple[str, object]:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else error
    return constants.ENDPOINT, status


def _a_token() -> str:
    return f"set HF_TOKEN to one that may write ({constants.ENDPOINT}/settings/tokens), or run `hf auth login`"


def _public(repository: str) -> str:
    return (
        f"hub.push={repository}: it exists and is public, which an upload does not change; hub.private=false publishes "
        f"the model, or make it private on {constants.ENDPOINT}/{repository}/settings"
    )


def _refusals(account: Mapping[str, Any], repository: str) -> list[str]:
    """Why an account and its token may not write a repository, by what ``whoami`` tells of them."""
    owner = repository.partition("/")[0]
    known = [account.get("name"), *(organisation.get("name") for organisation in account.get("orgs") or [])]
    names = [str(name) for name in known if name]
    token = (account.get("auth") or {}).get("accessToken") or {}
    scopes = (token.get("fineGrained") or {}).get("scoped") or []
    writes = any("repo.write" in (scope.get("permissions") or []) for scope in scopes)
    problems = []
    if names and owner.casefold() not in [name.casefold() for name in names]:
        problems.append(f"hub.push={repository}: {owner} is not yours; the token is for {', '.join(names)}")
    if token.get("role") == "read" or (token.get("role") == "fineGrained" and not writes):
        problems.append(f"hub.push={repository}: the token may read only; {_a_token()}")
    return problems


def _model_files(folder: Path) -> Iterator[tuple[str, bytes | str]]:
    """What is uploaded: names in the repository with paths, or with the content of settings without local paths."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or not MODEL_FILES.fullmatch(name):
            continue
        yield name, _without_paths(path.read_text(encoding="utf-8")).encode() if SETTINGS.fullmatch(name) else str(path)


def _without_paths(text: str) -> str:
    """Settings whose paths of this machine are cut to their last part, as a pretrained model of one's own has."""

    def cut(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            kept = ("id2label", "label2id")
            return {name: part if name in kept else cut(part, name) for name, part in value.items()}
        if isinstance(value, list):
            return [cut(part, key) for part in value]
        local = isinstance(value, str) and PATH_KEYS.fullmatch(key) and _is_local(value)
        return re.split(r"[\\/]+", value.rstrip("\\/"))[-1] if local else value

    return json.dumps(cut(json.loads(text)), indent=2, ensure_ascii=False) + "\n"


def _is_local(value: str) -> bool:
    """Whether what is a path or ``user/name`` of the hub is a path."""
    return bool(re.match(r"[/\\.~]|[A-Za-z]:[\\/]|file:", value)) or (value.count("/") > 1 and "://" not in value)


def _refused(error: BaseException, repository: str) -> str:
    """What went wrong with an upload, and what to do, from what the clients raise."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for cause in chain:
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set: unset it"
        if isinstance(cause, HfHubHTTPError):
            return _of_status(cause, repository)
        if isinstance(cause, httpx2.TransportError):
            return f"the connection to {constants.ENDPOINT} was lost or not made ({str(cause) or type(cause).__name__})"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"the upload failed: {reason[:400]}"


def _of_status(error: HfHubHTTPError, repository: str) -> str:
    status = error.response.status_code
    said = f" ({' '.join(error.server_message.split())[:300]})" if error.server_message else ""
    if isinstance(error, RepositoryNotFoundError) and status != 401:
        return f"{constants.ENDPOINT} has no model of that name{said}: a dataset or a space may have it; name another"
    if status == 401:
        return f"{constants.ENDPOINT} does not accept the token{said}; {_a_token()}"
    if status == 403:
        owner = repository.partition("/")[0]
        return f"the token may not write to repositories of {owner}{said}; {_a_token()}"
    if status in (402, 413, 507):
        return f"the model is too large for this account{said}: free some of its storage, or name another owner"
    return f"{constants.ENDPOINT} answers {status}{said}: try again later"
