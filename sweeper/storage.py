"""Optuna's storage: where it is, what it holds, and how long a database server is waited for that does not answer."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from sweeper.errors import StudyError
from sweeper.faults import storage_error
from sweeper.ownership import StudyOwner, sqlite_file

__all__ = ["Storage", "existing_storage", "open_storage", "storage_url"]

PATIENCE = 120.0  # seconds for which a server that went away is waited for
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0  # seconds between two attempts

_Method = TypeVar("_Method", bound=Callable[..., Any])


class Storage(RDBStorage):
    """Optuna's ``RDBStorage``, which survives a database server that is away for a while.

    Each call is repeated with growing pauses while the server does not answer, or another process locks the SQLite
    file. Before it is repeated, the locks of the studies are taken again, which a restarted server has released.

    Raises:
        StudyError: the server was away for ``PATIENCE`` seconds, or the database cannot be written. From then on each
            call has one attempt, until one succeeds.
    """

    patience = PATIENCE
    owner: StudyOwner | None = None

    @contextmanager
    def owned(self, studies: Sequence[str]) -> Iterator[Storage]:
        """This storage while its studies of these names are written by this process alone.

        Raises:
            StudyError: another process is at them, or the server does not answer.
        """
        with ExitStack() as stack:
            try:
                self.owner = stack.enter_context(StudyOwner(sqlalchemy.make_url(self.url), studies))
            except SQLAlchemyError as error:
                raise _unusable(self.url, error) from error
            yield self

    def _create_new_trial(self, *args: Any, **kwargs: Any) -> Any:
        if self.owner is not None:
            self.owner.confirm()  # a connection can be lost without anyone noticing
        return super()._create_new_trial(*args, **kwargs)


def _repeated(method: _Method) -> _Method:
    @functools.wraps(method)
    def call(self: Storage, *args: Any, **kwargs: Any) -> Any:
        deadline, wait, failed = time.monotonic() + self.patience, _FIRST_WAIT, False
        while True:
            try:
                if failed and self.owner is not None:
                    self.owner.confirm()
                result = method(self, *args, **kwargs)
                self.patience = type(self).patience
                return result
            except UpdateFinishedTrialError:
                if failed and method.__name__ == "set_trial_state_values":
                    return True  # the attempt before reached the database, its answer did not reach us
                raise
            except (StorageInternalError, OperationalError, InterfaceError) as error:
                cause = error if isinstance(error, DBAPIError) else error.__cause__
                if not _is_away(cause) or time.monotonic() + wait > deadline:
                    self.patience = 0.0
                    if (said := _said(self.url, error)) is not None:
                        raise said from error
                    raise StudyError(
                        f"the Optuna storage {self.url} cannot be used: {_reason(cause or error)}",
                        "Once it can be, the same command continues; nothing finished is lost.",
                    ) from error
            failed = True
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    return cast(_Method, call)


#: What Optuna calls, through its cache or directly.
for _name in (
    "create_new_study",
    "get_all_studies",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "set_study_user_attr",
    "set_study_system_attr",
    "_create_new_trial",
    "_get_trials",
    "_get_best_trial_id",
    "_set_trial_param",
    "get_trial",
    "get_all_trials",
    "get_trial_id_from_study_id_trial_number",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
):
    setattr(Storage, _name, _repeated(getattr(Storage, _name)))


def storage_url(given: str | None, output_dir: Path) -> str:
    """The SQLAlchemy URL of ``study.storage``: by default a file in ``output_dir``.

    A URL that begins with ``postgresql://`` gets the driver that is installed.

    Raises:
        StudyError: none is.
    """
    if given is None:
        return f"sqlite:///{output_dir / 'optuna.db'}"
    scheme, _, rest = given.partition("://")
    if scheme not in ("postgresql", "postgres"):
        return given
    for driver in ("psycopg", "psycopg2"):
        if importlib.util.find_spec(driver) is not None:
            return f"postgresql+{driver}://{rest}"
    raise StudyError(
        f"study.storage={given}: no driver for PostgreSQL is installed",
        "Install it: pip install 'thawline[postgresql]', which brings psycopg.",
    )


def open_storage(url: str) -> Storage:
    """The storage, its tables created when missing.

    Raises:
        StudyError: it cannot be opened.
    """
    try:
        return Storage(url, _engine_kwargs(url))
    except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as error:
        raise _unusable(url, error) from error


def existing_storage(url: str) -> Storage | None:
    """The storage if it is there; nothing is created.

    Raises:
        StudyError: it cannot be opened.
    """
    try:
        parsed = sqlalchemy.make_url(url)
        path = sqlite_file(parsed)
        if parsed.get_backend_name() == "sqlite" and (path is None or not path.is_file()):
            return None
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, **_engine_kwargs(url))
        if not sqlalchemy.inspect(engine).has_table("studies"):
            return None
        return Storage(url, _engine_kwargs(url), skip_table_creation=True)
    except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as error:
        raise _unusable(url, error) from error


def _said(url: str, error: Exception) -> StudyError | None:
    """What to say of a file of SQLite that the disk fails."""
    path = sqlite_file(sqlalchemy.make_url(url))
    return storage_error(error, path and path.parent)


def _unusable(url: str, error: Exception) -> StudyError:
    with contextlib.suppress(SQLAlchemyError):  # of a URL that is none
        if (said := _said(url, error)) is not None:
            return said
    return StudyError(
        f"the Optuna storage study.storage={url} cannot be opened: {_reason(error)}",
        "Leave it out to use a database in output_dir, or give an SQLAlchemy URL such as sqlite:///file.db or "
        "postgresql://user@host/database (pip install 'thawline[postgresql]').",
    )


def _engine_kwargs(url: str) -> dict[str, Any]:
    return {"connect_args": {"connect_timeout": 10}} if url.startswith("postgresql+psycopg") else {}


def _is_away(error: BaseException | None) -> bool:
    """Whether another attempt may succeed: the connection is lost or refused, or another writer is at work."""
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    if isinstance(error.orig, Exception) and type(error.orig).__module__.startswith("sqlite3"):
        return "locked" in str(error.orig)
    return error.connection_invalidated or error.statement is None


def _reason(error: BaseException) -> str:
    return (str(getattr(error, "orig", None) or error).strip() or type(error).__name__).splitlines()[0]
