"""The only module that writes MLflow: runs, metrics and artifacts by the names of :mod:`sweeper.schema`.

Whoever logs writes to an :class:`sweeper.outbox.Outbox` on disk and goes on; a thread sends what waits there. So a
server that is slow, down or dead is felt nowhere else, and what a killed process left is sent by the next one.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import tempfile
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from sweeper import schema
from sweeper.errors import StudyError
from sweeper.faults import storage_error
from sweeper.new_database import new_database
from sweeper.outbox import FILE, Entry, Outbox, waiting_for
from sweeper.ownership import Owner
from sweeper.secrets import redacted

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # with a server: two lines for every run
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
# Its own retries go on for minutes, and would do so in a process that wants to end; ours outlive the process.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

__all__ = ["Tracker", "Unsent", "log_report", "send_waiting"]

_PARAM_LENGTH = 6000  # MLflow refuses longer values
_BATCH_ITEMS, _BATCH_METRICS = 100, 500  # params or tags, and metrics, of one request: MLflow takes 1000 in all
_WINDOW = 500  # writes that are looked at together
SEND_SECONDS = 1.0  # between two windows: epochs of milliseconds are not worth a transaction each
RETRY_SECONDS = 30.0  # at most, between two attempts to reach a server
CLOSE_SECONDS = 10.0  # without an answer, after which a process that ends leaves the rest to the next one
_PROBE_SECONDS = 5.0  # to connect

# Kinds of writes.
_CREATE, _BATCH, _STATUS, _UNTAG, _FILE, _INPUTS = "create", "batch", "status", "untag", "file", "inputs"


class Unsent(StudyError):
    """Writes that wait on the disk, because MLflow cannot be reached or, where ``refused``, does not take them."""

    def __init__(self, message: str, hint: str, *, refused: bool) -> None:
        super().__init__(message, hint)
        self.refused = refused


class Tracker:
    """Writes the runs of one MLflow experiment; a context manager, whose end sends what can be sent.

    Its methods return at once, whatever MLflow does, and are for one thread. Run ids are the project's own: MLflow
    gives its ids later, and carries ours in the tag ``thawline.run``.

    Args:
        uri: where MLflow keeps them, e.g. ``sqlite:///outputs/mlflow.db``.
        experiment: created when missing.
        output_dir: holds the outbox and, where ``uri`` is a database and the experiment is new, ``artifacts/``. The
            caller owns it (:class:`sweeper.ownership.Owner`).
        note: told in a line when the server stops or starts answering, and what is left unsent.

    Raises:
        StudyError: the store cannot be opened; a server that answered an earlier call may be down. Methods raise it
            when the outbox cannot be written.
    """

    def __init__(
        self, uri: str, experiment: str, output_dir: Path, note: Callable[[str], None] = lambda text: None
    ) -> None:
        self.uri = redacted(uri)
        self._address = uri
        self._note = note
        self._outbox = Outbox(output_dir / FILE)
        try:
            self._store, self._sender = self._open(experiment, output_dir / "artifacts")
        except BaseException:
            self._outbox.close()
            raise
        self._told_down = False
        self._tell()
        self._sender.start()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        if left := self.close():
            self._note(f"{left.message}. {left.hint}")

    def close(self) -> Unsent | None:
        """Send what can be sent, and stop; what is left. Nothing can be written after it."""
        self._sender.stop()
        waiting = self._outbox.waiting(self._store)
        self._outbox.close()
        if not waiting:
            return None
        refused = "" if self._sender.failure else next(iter(self._sender.refused.values()), "")
        why = f"it refuses some: {refused}" if refused else self._sender.failure or "it answers too slowly"
        return Unsent(
            f"{waiting} writes for MLflow at {self.uri} wait in {self._outbox.path} ({why})",
            "Nothing is lost: the same command, or `thawline report` with the same tracking.uri, sends them.",
            refused=bool(refused),
        )

    def start(
        self,
        kind: str,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        parent: str | None = None,
    ) -> str:
        """Open a run of a ``kind`` of the schema and return its id."""
        run_id = uuid.uuid4().hex
        all_tags = {
            schema.TAG_SCHEMA: schema.SCHEMA_VERSION,
            schema.TAG_KIND: kind,
            schema.TAG_STATE: schema.STATE_RUNNING,
            schema.TAG_RUN: run_id,
            "mlflow.source.name": "thawline",
            **{key: str(value) for key, value in tags.items()},
        }
        with self._outbox.together():
            self._outbox.add_run(self._store, run_id, all_tags)
            self._put(run_id, _CREATE, {"name": name, "tags": all_tags, "parent": parent})
            self.log_params(run_id, params)
        return run_id

    def reopen(self, run_id: str, tags: Mapping[str, str]) -> bool:
        """Set a run back to running; False where MLflow does not know it (any more)."""
        if not self._sender.knows(run_id):
            return False
        with self._outbox.together():
            self._put(run_id, _STATUS, {"status": "RUNNING"})
            self.set_tags(run_id, {**tags, schema.TAG_STATE: schema.STATE_RUNNING})
            self._outbox.update_tags(run_id, {schema.TAG_REASON: None})
            self._put(run_id, _UNTAG, {"key": schema.TAG_REASON})
        return True

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log params, flat; None values are left out."""
        given = {key: str(value)[:_PARAM_LENGTH] for key, value in params.items() if value is not None}
        self._put(run_id, _BATCH, {"params": given})

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step; an epoch is a step."""
        if metrics:
            self._put(
                run_id, _BATCH, {"metrics": {key: float(value) for key, value in metrics.items()}, "step": int(step)}
            )

    def flush(self) -> None:
        """Wait until the disk has all that was logged: a killed process loses none, but the power may fail."""
        self._outbox.sync()

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        given = {key: str(value) for key, value in tags.items()}
        with self._outbox.together():
            self._outbox.update_tags(run_id, given)
            self._put(run_id, _BATCH, {"tags": given})

    def log_text(self, run_id: str, name: str, text: str) -> None:
        """Store a text file."""
        self._put(run_id, _FILE, {"name": name}, text.encode())

    def log_table(self, run_id: str, name: str, table: pd.DataFrame) -> None:
        """Store a table as CSV."""
        self.log_text(run_id, name, table.to_csv(index=False))

    def log_dataset(self, run_id: str, name: str, splits: Mapping[str, pd.DataFrame], source: str) -> None:
        """Record the splits as inputs of a run, each with its digest; context = the split's name."""
        inputs = []
        for split, frame in splits.items():
            data = mlflow.data.from_pandas(frame, source=source, targets="label", name=name)  # type: ignore[attr-defined]
            inputs.append({"context": split, "dataset": data._to_mlflow_entity().to_dictionary()})
        self._put(run_id, _INPUTS, {"inputs": inputs})

    def finish(self, run_id: str, state: str, *, reason: str = "", metrics: Mapping[str, float] | None = None) -> None:
        """Close a run with a state of the schema and its last metrics."""
        tags = {schema.TAG_STATE: state}
        if reason:
            tags[schema.TAG_REASON] = redacted(reason)[:_PARAM_LENGTH]
        with self._outbox.together():
            self.log_metrics(run_id, metrics or {})
            self.set_tags(run_id, tags)
            self._put(run_id, _STATUS, {"status": schema.MLFLOW_STATUS[state]})

    def close_interrupted(self, run_ids: Iterable[str]) -> None:
        """Close runs that a dead process left open."""
        for run_id in run_ids:
            self.finish(run_id, schema.STATE_INTERRUPTED, reason=schema.REASON_PROCESS_ENDED)

    def open_runs(self, study: str) -> list[str]:
        """The ids of a study's runs that this output folder opened and did not close."""
        return self.find({schema.TAG_STUDY: study, schema.TAG_STATE: schema.STATE_RUNNING})

    def find(self, tags: Mapping[str, str]) -> list[str]:
        """The ids of this output folder's runs that carry these tags, the newest first.

        MLflow is not asked: it may be down, and runs of other folders on the same server are not ours to close.
        """
        return self._outbox.find(self._store, tags)

    def _put(self, run_id: str, kind: str, body: Mapping[str, Any], content: bytes | None = None) -> None:
        self._tell()
        self._outbox.put(self._store, run_id, kind, body, content)
        self._sender.wake()

    def _tell(self) -> None:
        """What the sender met, said by the thread that may write to the screen."""
        failure = self._sender.failure
        if failure and not self._told_down:
            self._note(
                f"MLflow at {self.uri} does not answer ({failure}). Training goes on, and what to tell it waits."
            )
        elif not failure and self._told_down:
            self._note(f"MLflow at {self.uri} answers again and is told what waited.")
        self._told_down = bool(failure)

    def _open(self, experiment: str, artifacts: Path) -> tuple[int, _Sender]:
        """Find or create the experiment; a server that is down is taken for the one that answered before."""
        failure = ""
        try:
            with new_database(self._address):
                client = MlflowClient(tracking_uri=self._address)
            _probe(self._address)
            found = client.get_experiment_by_name(experiment)
            if found is None:
                location = None if self._address.startswith("http") else artifacts.resolve().as_uri()
                tags = {"mlflow.experimentKind": "custom_model_development"}
                # the kind opens the UI on training runs instead of traces
                found = client.get_experiment(client.create_experiment(experiment, location, tags))
        except (MlflowException, SQLAlchemyError, OSError, ValueError) as error:
            if (said := storage_error(error, artifacts.parent)) is not None:
                raise said from error
            failure = _reason(error)
            known = self._outbox.known_store(self.uri, experiment) if _is_down(error) else None
            if known is None:
                raise StudyError(
                    f"the MLflow store at {self.uri} cannot be opened: {failure}",
                    "Start it, or check tracking.uri: its first call needs an answer, later ones do without. "
                    "Leave tracking.uri out to use a database in output_dir."
                    if self._address.startswith("http")
                    else "Check tracking.uri, or leave it out to use a database in output_dir.",
                ) from error
            store, experiment_id = known
        else:
            if found.lifecycle_stage == LifecycleStage.DELETED:
                raise StudyError(
                    f"the MLflow experiment {experiment!r} at {self.uri} is deleted",
                    f"Restore it (mlflow experiments restore -x {found.experiment_id}), or set tracking.experiment.",
                )
            experiment_id = found.experiment_id
            store = self._outbox.store(self.uri, experiment, experiment_id, found.creation_time or 0)
        return store, _Sender(client, self._address, experiment_id, self._outbox, store, failure)


class _Refused(Exception):
    """MLflow cannot take a write, and the message says why."""


class _Sender(threading.Thread):
    """Sends what waits in an outbox, in order, each write at least once.

    A write that arrives twice changes nothing: runs are looked up by their tag where an earlier attempt may have
    created them, and MLflow stores equal metrics (key, step, time and value) once. What MLflow refuses stays, with all
    later writes of the same run, for the next command.

    Attributes:
        failure: why MLflow cannot be reached; empty while it can.
        refused: run -> why its writes are refused.
    """

    def __init__(
        self, client: MlflowClient, address: str, experiment_id: str, outbox: Outbox, store: int, failure: str
    ) -> None:
        super().__init__(name="thawline-mlflow", daemon=True)
        self.failure = failure
        self.refused: dict[str, str] = {}
        self._client = client
        self._address = address
        self._experiment_id = experiment_id
        self._outbox = outbox
        self._store = store
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._arrived = 0
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a warning for every retry

    def wake(self) -> None:
        """Something waits."""
        self._woken.set()

    def stop(self) -> None:
        """Send the rest, as long as MLflow takes it; the last attempt is made at once."""
        self._stopping.set()
        self._woken.set()
        while self.is_alive():
            before = self._arrived
            self.join(CLOSE_SECONDS)
            if self._arrived == before:
                break  # a server that holds its answer back; the thread ends with the process

    def knows(self, run_id: str) -> bool:
        """Whether MLflow has the run or will be told of it; a run of a lost outbox is looked up."""
        known = self._outbox.has_run(self._store, run_id)
        if self.failure:
            return known
        try:
            # Output folders of before the outbox noted MLflow's own ids.
            mlflow_id = self._outbox.mlflow_id(run_id) if known else self._lookup(run_id) or run_id
            if mlflow_id is not None and self._client.get_run(mlflow_id).info.lifecycle_stage != LifecycleStage.ACTIVE:
                return False
        except (MlflowException, OSError) as error:
            return known and _is_down(error)
        if not known:
            self._outbox.add_run(self._store, run_id, {}, mlflow_id)
        return True

    def run(self) -> None:
        """Send until told to stop."""
        pause = SEND_SECONDS
        while True:
            self._woken.clear()  # first: what is put or asked from here on wakes again
            stopping = self._stopping.is_set()
            try:
                if self.failure:
                    _probe(self._address)
                sent = self._send_window()
                self.failure, pause = "", SEND_SECONDS
            except Exception as error:  # each store raises errors of its own; the outbox keeps what was not sent
                sent = False
                self.failure = _reason(error)
                pause = min(2 * pause, RETRY_SECONDS)
            if stopping and not sent:
                return
            if not stopping:
                if not sent and not self.failure:
                    self._woken.wait()
                self._stopping.wait(pause)

    def _send_window(self) -> bool:
        """Send the oldest writes, run by run; False where none wait."""
        window = self._outbox.first(self._store, _WINDOW, tuple(self.refused))
        created = {entry.run for entry in window if entry.kind == _CREATE}
        doubtful = self._outbox.try_runs(created) if created else set()
        runs: dict[str, list[Entry]] = {}
        for entry in window:
            runs.setdefault(entry.run, []).append(entry)
        for run, entries in runs.items():
            try:
                for group in _grouped(entries):
                    self._send(run, group, doubtful)
                    self._outbox.remove(group)
                    self._arrived += len(group)
            except Exception as error:
                if _is_down(error) or isinstance(error, StudyError):
                    raise
                self.refused[run] = _reason(error)
        return bool(window)

    def _send(self, run: str, group: list[Entry], doubtful: set[str]) -> None:
        first = group[0]
        if first.kind == _CREATE:
            found = self._outbox.mlflow_id(run) or (self._lookup(run) if run in doubtful else None)
            self._outbox.set_mlflow_id(run, found or self._create(first))
            return
        run_id = self._mlflow_id(run)
        if first.kind == _BATCH:
            self._send_batches(run_id, group)
        elif first.kind == _STATUS and first.body["status"] == "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        elif first.kind == _STATUS:
            self._client.set_terminated(run_id, first.body["status"], first.time)
        elif first.kind == _UNTAG:
            try:
                self._client.delete_tag(run_id, first.body["key"])
            except MlflowException as error:
                if _is_down(error):
                    raise  # else it has none
        elif first.kind == _FILE:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / first.body["name"]
                path.write_bytes(self._outbox.content(first))
                self._client.log_artifact(run_id, str(path))
        elif first.kind == _INPUTS:
            tagged = [
                DatasetInput(Dataset(**given["dataset"]), [InputTag("mlflow.data.context", given["context"])])
                for given in first.body["inputs"]
            ]
            self._client.log_inputs(run_id, tagged)

    def _create(self, entry: Entry) -> str:
        tags = entry.body["tags"]
        if entry.body["parent"] is not None:
            tags = {**tags, schema.TAG_PARENT: self._mlflow_id(entry.body["parent"])}
        run = self._client.create_run(self._experiment_id, entry.time, tags, entry.body["name"])
        return str(run.info.run_id)

    def _send_batches(self, run_id: str, group: list[Entry]) -> None:
        metrics = [
            Metric(key, value, entry.time, entry.body["step"])
            for entry in group
            for key, value in entry.body.get("metrics", {}).items()
        ]
        params = [Param(*item) for entry in group for item in entry.body.get("params", {}).items()]
        newest = {key: value for entry in group for key, value in entry.body.get("tags", {}).items()}
        tags = [RunTag(*item) for item in newest.items()]
        batches = itertools.zip_longest(
            _chunks(metrics, _BATCH_METRICS), _chunks(params, _BATCH_ITEMS), _chunks(tags, _BATCH_ITEMS), fillvalue=()
        )
        for some_metrics, some_params, some_tags in batches:
            self._client.log_batch(run_id, some_metrics, some_params, some_tags)

    def _mlflow_id(self, run: str) -> str:
        if (found := self._outbox.mlflow_id(run)) is None:
            raise _Refused("its parent run or itself was never recorded")
        return found

    def _lookup(self, run: str) -> str | None:
        found = self._client.search_runs([self._experiment_id], f"tags.`{schema.TAG_RUN}` = '{run}'", max_results=1)
        return str(found[0].info.run_id) if found else None


def _grouped(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Neighbouring batches together, every other write alone."""
    for kind, group in itertools.groupby(entries, key=lambda entry: entry.kind):
        if kind == _BATCH:
            yield list(group)
        else:
            yield from ([entry] for entry in group)


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _probe(address: str) -> None:
    """Connect to a server, which takes seconds at most where a request takes a minute to fail.

    Raises:
        ConnectionError: nothing answers.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.scheme in urllib.request.getproxies():
        return
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise ConnectionError(str(error)) from error


def _is_down(error: Exception) -> bool:
    """Whether the same write can succeed later: no connection, answer or permission yet, or an error of the server."""
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    else:  # of a store of artifacts, each with errors of its own
        response = getattr(error, "response", None)
        details = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        status = getattr(response, "status_code", None) or details.get("HTTPStatusCode")
        if status is None:  # no answer at all, unless the code is mistaken
            mistakes = _Refused | TypeError | ValueError | AttributeError | LookupError
            return isinstance(error, OSError) or not isinstance(error, mistakes)
    return status in (401, 403, 408, 429) or status >= 500


def _reason(error: Exception) -> str:
    return redacted((str(error).strip() or type(error).__name__).splitlines()[0])[:300]


def send_waiting(uri: str, experiment: str, output_dir: Path, note: Callable[[str], None]) -> None:
    """Send what an earlier command could not; where another process owns the folder, that is its business.

    Args:
        uri: as in :class:`Tracker`.
        experiment: its name; only what waits for it is sent.
        output_dir: holds the outbox.
        note: told in a line what MLflow refuses.

    Raises:
        Unsent: MLflow cannot be reached, so that it lacks what waits.
    """
    if not waiting_for(output_dir / FILE, redacted(uri), experiment):
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(Owner(output_dir))
        except StudyError:
            return
        left = Tracker(uri, experiment, output_dir).close()
    if left is not None and left.refused:
        note(f"{left.message}. {left.hint}")
    elif left is not None:
        raise left


def log_report(uri: str, run_id: str, files: Iterable[Path]) -> None:
    """Store the files of a report with a run, in its folder ``report``.

    Raises:
        StudyError: they cannot be stored, for example because the server is for reading only.
    """
    try:
        client = MlflowClient(tracking_uri=uri)
        for path in files:
            client.log_artifact(run_id, str(path), schema.ARTIFACT_REPORT)
    except Exception as error:  # each store of artifacts raises errors of its own, and a report is written already
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StudyError(
            f"the report was not logged to MLflow at {redacted(uri)}: {redacted(reason)}",
            "The files named above are complete.",
        ) from error
