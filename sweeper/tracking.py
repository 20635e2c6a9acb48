"""The only module that writes MLflow: runs, metrics and artifacts by the names of :mod:`sweeper.schema`."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sweeper import schema
from sweeper.errors import StudyError
from sweeper.faults import storage_error

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # with a server: two lines for every run
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")

import mlflow
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

__all__ = ["Tracker", "log_report", "versions"]

_PARAM_LENGTH = 6000  # MLflow refuses longer values
_BATCH_PARAMS, _BATCH_METRICS = 100, 1000
SEND_SECONDS = 1.0  # epochs of milliseconds are not worth a transaction each


class Tracker:
    """Writes the runs of one MLflow experiment.

    Args:
        uri: where MLflow keeps them, e.g. ``sqlite:///outputs/mlflow.db``.
        experiment: created when missing.
        artifacts: folder for files, used where ``uri`` is a database and the experiment is new.

    Raises:
        StudyError: the store cannot be opened.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path) -> None:
        self.uri = uri
        self._pending: dict[str, list[Metric]] = {}
        self._sent = time.monotonic()
        try:
            self._client = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                location = None if uri.startswith("http") else artifacts.resolve().as_uri()
                self._experiment = self._client.create_experiment(
                    experiment, artifact_location=location, tags={"mlflow.experimentKind": "custom_model_development"}
                )  # the kind opens the UI on training runs instead of traces
            elif found.lifecycle_stage == "deleted":
                raise StudyError(
                    f"the MLflow experiment {experiment!r} at {uri} is deleted",
                    f"Restore it (mlflow experiments restore -x {found.experiment_id}), or set tracking.experiment.",
                )
            else:
                self._experiment = found.experiment_id
        except (MlflowException, SQLAlchemyError, OSError) as error:
            if (said := storage_error(error, artifacts.parent)) is not None:
                raise said from error
            raise StudyError(
                f"the MLflow store at {uri} cannot be opened: {str(error).splitlines()[0]}",
                "Check tracking.uri, or leave it out to use a database in output_dir.",
            ) from error

    def start(
        self,
        kind: str,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        parent: str | None = None,
    ) -> str:
        """Open a run of a ``kind`` of the schema and return its id."""
        all_tags = {
            schema.TAG_SCHEMA: schema.SCHEMA_VERSION,
            schema.TAG_KIND: kind,
            schema.TAG_STATE: schema.STATE_RUNNING,
            "mlflow.source.name": "thawline",
            **tags,
        }
        if parent is not None:
            all_tags[schema.TAG_PARENT] = parent
        run = self._client.create_run(self._experiment, run_name=name, tags=all_tags)
        self.log_params(run.info.run_id, params)
        return str(run.info.run_id)

    def reopen(self, run_id: str, tags: Mapping[str, str]) -> bool:
        """Set a run back to running; False where MLflow does not know it (any more)."""
        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException:
            return False
        self._send(run_id, {**tags, schema.TAG_STATE: schema.STATE_RUNNING})
        with contextlib.suppress(MlflowException):  # it may have none
            self._client.delete_tag(run_id, schema.TAG_REASON)
        return True

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log params, flat; None values are left out."""
        items = [Param(key, str(value)[:_PARAM_LENGTH]) for key, value in params.items() if value is not None]
        for start in range(0, len(items), _BATCH_PARAMS):
            self._client.log_batch(run_id, params=items[start : start + _BATCH_PARAMS])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step; an epoch is a step. They are sent within ``SEND_SECONDS``, or by :meth:`flush`."""
        now = int(time.time() * 1000)
        pending = self._pending.setdefault(run_id, [])
        pending += [Metric(key, float(value), now, step) for key, value in metrics.items()]
        if time.monotonic() - self._sent > SEND_SECONDS or len(pending) > _BATCH_METRICS // 2:
            self.flush()

    def flush(self) -> None:
        """Send every metric that was logged."""
        for run_id in list(self._pending):
            self._send(run_id)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        self._send(run_id, tags)

    def log_text(self, run_id: str, name: str, text: str) -> None:
        """Store a text file."""
        self._client.log_text(run_id, text, name)

    def log_table(self, run_id: str, name: str, table: pd.DataFrame) -> None:
        """Store a table as CSV."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            table.to_csv(path, index=False)
            self._client.log_artifact(run_id, str(path))

    def log_dataset(self, run_id: str, name: str, splits: Mapping[str, pd.DataFrame], source: str) -> None:
        """Record the splits as inputs of a run, each with its digest; context = the split's name."""
        inputs = []
        for split, frame in splits.items():
            data = mlflow.data.from_pandas(frame, source=source, targets="label", name=name)  # type: ignore[attr-defined]
            tag = InputTag(key="mlflow.data.context", value=split)
            inputs.append(DatasetInput(dataset=data._to_mlflow_entity(), tags=[tag]))
        self._client.log_inputs(run_id, inputs)

    def finish(self, run_id: str, state: str, *, reason: str = "", metrics: Mapping[str, float] | None = None) -> None:
        """Close a run with a state of the schema and its last metrics."""
        tags = {schema.TAG_STATE: state}
        if reason:
            tags[schema.TAG_REASON] = reason[:_PARAM_LENGTH]
        self.log_metrics(run_id, metrics or {})
        self._send(run_id, tags)
        self._client.set_terminated(run_id, status=schema.MLFLOW_STATUS[state])

    def close_interrupted(self, run_ids: Iterable[str]) -> None:
        """Close runs that a dead process left open."""
        for run_id in run_ids:
            self.finish(run_id, schema.STATE_INTERRUPTED, reason=schema.REASON_PROCESS_ENDED)

    def open_runs(self, study: str) -> list[str]:
        """The ids of a study's runs that are not closed."""
        return self.find({schema.TAG_STUDY: study, schema.TAG_STATE: schema.STATE_RUNNING})

    def find(self, tags: Mapping[str, str]) -> list[str]:
        """The ids of all runs that carry these tags."""
        quoted = " and ".join(f"tags.`{key}` = {_quoted(value)}" for key, value in tags.items())
        runs: list[str] = []
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment], quoted, page_token=token)
            runs += [run.info.run_id for run in page]
            token = page.token
            if not token:
                return runs

    def _send(self, run_id: str, tags: Mapping[str, str] | None = None) -> None:
        metrics: Sequence[Metric] = self._pending.pop(run_id, [])
        self._client.log_batch(
            run_id, metrics=metrics, tags=[RunTag(key, str(value)) for key, value in (tags or {}).items()]
        )
        self._sent = time.monotonic()


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
            f"the report was not logged to MLflow at {uri}: {reason}", "The files named above are complete."
        ) from error


def _quoted(value: str) -> str:
    """A string of MLflow's search language; it has no escapes, only two kinds of quotes."""
    return f"'{value}'" if "'" not in value else f'"{value}"'


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a result depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for package in (
        "thawline",
        "torch",
        "transformers",
        "peft",
        "timm",
        "torchvision",
        "optuna",
        "mlflow",
        "hydra-core",
        "scikit-learn",
        "numpy",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
