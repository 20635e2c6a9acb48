"""The only reader of MLflow: one comparison as tidy tables, whatever state its runs were left in.

Design choices: every search is paged (one page stops at 1,000 runs); runs are found by their tags, so that a study
whose runs lie in two experiments is still whole; a missing or unreadable piece becomes an empty value and a note,
never a crash; only artifacts that a report needs are fetched.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import re
import socket
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import pandas as pd

from reports.formats import different, is_installed, is_missing, score
from sweeper import schema
from sweeper.errors import ThawlineError, near_matches

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = [
    "FINISHED",
    "PREDICTION_COLUMNS",
    "Comparison",
    "best_trial",
    "is_curve",
    "list_comparisons",
    "load_comparison",
    "load_curve",
    "newest_run",
    "parsed_config",
    "score_column",
]

PREDICTION_COLUMNS = ("item", "group", "label", "prediction", "probability")
_PAGE = 1000  # the most that MLflow returns at once
_NEXT_STEP = "Run `thawline sweep` (`make sweep`) first, or name another store with tracking.uri=..."
_LARGEST = 1e308
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
#: States of trials that came to an end of their own.
FINISHED = (schema.STATE_COMPLETE, schema.STATE_PRUNED, schema.STATE_DIVERGED, schema.STATE_FAILED)
_STATE_OF_STATUS = {
    "FINISHED": schema.STATE_COMPLETE,
    "FAILED": schema.STATE_FAILED,
    "KILLED": schema.STATE_INTERRUPTED,
    "RUNNING": schema.STATE_RUNNING,
    "SCHEDULED": schema.STATE_RUNNING,
}

#: tag -> column of the tables below.
_TAG_COLUMNS = {
    schema.TAG_KIND: "kind",
    schema.TAG_COMPARISON: "comparison",
    schema.TAG_CURVE: "curve",
    schema.TAG_STUDY: "study",
    schema.TAG_STATE: "state",
    schema.TAG_REASON: "reason",
    schema.TAG_STRATEGY: "strategy",
    schema.TAG_MODEL: "model",
    schema.TAG_DATASET: "dataset",
    schema.TAG_COMMAND: "command",
    schema.TAG_GIT: "git_revision",
    schema.TAG_FINGERPRINT: "data_fingerprint",
    schema.TAG_WINNER: "configuration",
    schema.TAG_SHIFTED: "shifted",
}
_METRICS = (
    *schema.EPOCH_METRICS,
    *schema.SIZE_METRICS,
    schema.BEST_EPOCH,
    schema.BEST_VALIDATION_ACCURACY,
    schema.BEST_VALIDATION_MACRO_F1,
    schema.BEST_VALIDATION_LOSS,
    schema.EPOCHS_RUN,
    schema.EXPECTED_TRAINABLE_PARAMS,
    schema.TRAIN_SECONDS,
    schema.RECORDED_SECONDS,
    schema.PEAK_MEMORY_MB,
    schema.MICRO_BATCH_SIZE,
    schema.TEST_ACCURACY,
    schema.TEST_MACRO_F1,
    schema.TEST_LOSS,
    schema.TEST_SAMPLES_PER_SECOND,
    schema.PROMPTED_ITEMS,
    schema.PROMPTED_UNPARSED,
    schema.PROMPTED_CUT,
    schema.SHIFTED_ACCURACY,
    schema.SHIFTED_MACRO_F1,
    schema.SHIFTED_LOSS,
    schema.DRIFT_CKA,
    schema.DRIFT_COSINE,
    schema.DRIFT_ITEMS,
    schema.TUNING_SECONDS,
    schema.DOMAIN_PRETRAIN_SECONDS,
    schema.N_TRIALS,
    schema.FINAL_SEEDS,
)
_PARAMS = tuple(value for name, value in vars(schema).items() if name.startswith("PARAM_"))


@dataclass(frozen=True)
class Comparison:
    """What MLflow holds of one comparison.

    Attributes:
        name: the comparison's name.
        studies: one row per study, oldest first. Columns: tags without their ``thawline.`` prefix (``configuration`` is
            the current winner), params and metrics by name, ``run_id``, ``label`` (the strategy, made unique),
            ``start_time`` and ``end_time`` in UTC.
        runs: one row per trial and final with the same kinds of columns; params that are numbers are numbers.
            ``use`` says what a report does with the row: ``counted``; ``earlier`` (a final of an older winner, or one
            that repeats a counted final: the test split was looked at, the score is not used); ``ignored`` (an
            older record of the same trial, or a final that was never scored).
        floors: one row per floor (``floor`` names it), the newest of each.
        predictions: run id -> test predictions (text columns ``item group label prediction``, numeric
            ``probability``) of counted finals and floors; absent where nothing readable was logged.
        shifted_predictions: the same of the shifted data, of counted finals that were scored on it.
        histories: run id -> one row per epoch, by epoch: ``epoch`` (from 1) and ``schema.EPOCH_METRICS`` (NaN where
            one was not logged); of counted finals and each study's best trial, absent where no epoch was logged.
        spaces: study -> searched hyperparameter -> its ``low``, ``high``, ``log`` and ``step``, or ``choices``.
        importances: study -> hyperparameter -> share of the scores' variance that it explains, highest first; absent
            where there were too few trials to tell.
        versions: package -> version of the newest study that logged them.
        configs: study -> YAML of its composed configuration; the newest study that has one is the last.
        data_summary: sizes, label counts and warnings of the dataset; may be empty.
        floor_looks: how often a floor or a reference was scored on the test split, repeated ones included.
        notes: sentences about what was missing or inconsistent.
    """

    name: str
    studies: pd.DataFrame
    runs: pd.DataFrame
    floors: pd.DataFrame
    predictions: dict[str, pd.DataFrame] = field(default_factory=dict)
    shifted_predictions: dict[str, pd.DataFrame] = field(default_factory=dict)
    histories: dict[str, pd.DataFrame] = field(default_factory=dict)
    spaces: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    importances: dict[str, dict[str, float]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    configs: dict[str, str] = field(default_factory=dict)
    data_summary: dict[str, Any] = field(default_factory=dict)
    floor_looks: int = 0
    notes: tuple[str, ...] = ()

    def trials(self, study: str) -> pd.DataFrame:
        """The counted trials of one study, by number."""
        return self._of(study, schema.KIND_TRIAL, "counted").sort_values(schema.PARAM_TRIAL)

    def finals(self, study: str, use: str = "counted") -> pd.DataFrame:
        """The finals of one study, by seed: the ``counted`` ones, the ``earlier`` or the ``ignored``."""
        return self._of(study, schema.KIND_FINAL, use).sort_values(schema.PARAM_SEED)

    def lost_finals(self, study: str) -> pd.DataFrame:
        """The finals of one study's present winner that have no score; those that name no configuration among them."""
        lost = self.finals(study, "ignored")
        winners = self.studies.loc[self.studies["study"] == study, "configuration"].dropna()
        if winners.empty:  # as of studies that were not recorded by the engine, whose newest final is of the winner
            winners = self.finals(study)["configuration"].dropna()
        same = lost["configuration"].isna() | (lost["configuration"] == (winners.iloc[-1] if len(winners) else None))
        return lost[same] if len(winners) else lost

    @property
    def train_size(self) -> float:
        """Examples that it trained on, NaN where that was not logged."""
        sizes = pd.to_numeric(self.studies[schema.PARAM_TRAIN_SIZE], errors="coerce").dropna()
        return float(sizes.iloc[-1]) if len(sizes) else math.nan

    @property
    def installed(self) -> bool:
        """Whether it was run by an installed package, where there is no ``make``, and not from a clone."""
        revisions = self.studies["git_revision"].dropna()
        return len(revisions) > 0 and all(map(is_installed, revisions))

    @property
    def config(self) -> str:
        """YAML of the newest study's composed configuration; empty where none was logged."""
        return next(reversed(self.configs.values()), "")

    def setting(self, key: str) -> Any:
        """A value of the newest study's configuration by its dotted key; None where it is not set or not logged."""
        value: Any = self.settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The newest study's configuration; empty where none was logged that can be read."""
        return parsed_config(self.config)

    @property
    def title(self) -> str:
        """``minilm on review_lines``; the comparison's name where model or dataset were not logged."""
        model, dataset = (different(self.studies[column]) for column in ("model", "dataset"))
        return f"{model} on {dataset}" if model and dataset else self.name

    def _of(self, study: str, kind: str, use: str) -> pd.DataFrame:
        runs = self.runs
        return runs[(runs["study"] == study) & (runs["kind"] == kind) & (runs["use"] == use)]


def list_comparisons(tracking_uri: str, experiment: str | None = None) -> pd.DataFrame:
    """The recorded comparisons, newest first.

    Args:
        tracking_uri: MLflow's address, e.g. ``sqlite:///outputs/mlflow.db`` or ``http://127.0.0.1:5000``.
        experiment: only this MLflow experiment; every one by default.

    Returns:
        Columns ``comparison``, ``curve`` (what it shares with those that differ in their train split only; missing
        in old records), ``studies`` (count), ``strategies`` (names joined by commas), ``started`` (start of the newest
        study, UTC). No rows when nothing was recorded or the store does not exist.

    Raises:
        ThawlineError: the store cannot be reached or is of a kind that MLflow refuses, or the experiment is unknown.
    """
    columns = ["comparison", "curve", "studies", "strategies", "started"]
    if not _store_exists(tracking_uri):
        return pd.DataFrame(columns=columns)
    client = _client(tracking_uri)
    studies = _study_frame(_search(client, _experiments(client, experiment), schema.TAG_KIND, schema.KIND_STUDY))
    rows = [
        [
            name,
            group["curve"].iloc[-1],
            group["study"].nunique(),
            ", ".join(sorted(set(group["strategy"]))),
            group["start_time"].max(),
        ]
        for name, group in studies.groupby("comparison")
    ]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["started", "comparison"], ascending=[False, True], ignore_index=True)


def load_comparison(tracking_uri: str, name: str | None = None) -> Comparison:
    """Read one comparison from MLflow.

    Args:
        tracking_uri: MLflow's address.
        name: the comparison; ``None`` means the one whose newest study started last.

    Raises:
        ThawlineError: the store cannot be read, holds no comparison, or holds none of that name (the message lists
            those that it holds, the likeliest first).
    """
    known = list_comparisons(tracking_uri)
    if name is None and len(known):
        name = str(known["comparison"].iloc[0])
    if name is None or name not in set(known["comparison"]):
        raise _not_found(tracking_uri, name, known)

    client = _client(tracking_uri)
    experiments = _experiments(client, None)
    found = list(_search(client, experiments, schema.TAG_COMPARISON, name))
    studies = _merge_studies(_study_frame(r for r in found if _tag(r, schema.TAG_KIND) == schema.KIND_STUDY))
    notes = _key_notes(found, set(studies["study"]))
    # A study keeps its trials when its budget, and with it perhaps its comparison, changes.
    for study in studies["study"]:
        found += _search(client, experiments, schema.TAG_STUDY, study, other_than=(schema.TAG_COMPARISON, name))

    runs = _frame(r for r in found if _tag(r, schema.TAG_KIND) in (schema.KIND_TRIAL, schema.KIND_FINAL))
    runs = _mark_use(runs[runs["study"].isin(studies["study"])].reset_index(drop=True), studies)
    notes += _value_notes(runs)
    floors = _frame(
        r for r in found if _tag(r, schema.TAG_KIND) == schema.KIND_FLOOR and _tag(r, schema.TAG_COMPARISON) == name
    )
    floors = floors[floors[schema.TEST_ACCURACY].notna()]
    floor_looks = len(floors)
    floors = floors.drop_duplicates(schema.PARAM_FLOOR, keep="last")
    floors = floors.sort_values(schema.TEST_ACCURACY, ignore_index=True)

    with tempfile.TemporaryDirectory() as folder:
        counted = runs[(runs["kind"] == schema.KIND_FINAL) & (runs["use"] == "counted")]
        owners = {row["run_id"]: _owner(row) for _, row in counted.iterrows()}
        predictions = _load_predictions(
            client,
            owners | {row["run_id"]: f"floor {row[schema.PARAM_FLOOR]}" for _, row in floors.iterrows()},
            schema.ARTIFACT_PREDICTIONS,
            pd.concat([counted, floors]).set_index("run_id")[schema.TEST_ACCURACY],
            folder,
            notes,
        )
        logged = counted.set_index("run_id")[schema.SHIFTED_ACCURACY].dropna()
        shifted = _load_predictions(
            client,
            {run_id: owners[run_id] for run_id in logged.index},
            schema.ARTIFACT_SHIFTED_PREDICTIONS,
            logged,
            folder,
            notes,
        )
        versions, configs, summary = _load_study_artifacts(client, studies, folder, notes)
        spaces, importances = _load_search(client, studies, folder, notes)
    for column, what in (("data_fingerprint", "different data"), ("git_revision", "different revisions of the code")):
        if studies[column].nunique() > 1:
            notes.append(f"The studies of this comparison ran on {what}.")
    comparison = Comparison(
        name=name,
        studies=studies,
        runs=runs,
        floors=floors,
        predictions=predictions,
        shifted_predictions=shifted,
        spaces=spaces,
        importances=importances,
        versions=versions,
        configs=configs,
        data_summary=summary,
        floor_looks=floor_looks,
        notes=tuple(notes),
    )
    histories = _load_histories(client, comparison, notes)
    return replace(comparison, histories=histories, notes=tuple(notes))


def parsed_config(text: str) -> dict[str, Any]:
    """A logged configuration; empty where it cannot be read."""
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def newest_run(comparisons: Sequence[Comparison]) -> str:
    """The run of the study that started last, of several comparisons."""
    studies = pd.concat([comparison.studies for comparison in comparisons])
    return str(studies.sort_values("start_time")["run_id"].iloc[-1])


def best_trial(comparison: Comparison, study: pd.Series) -> pd.Series | None:
    """The trial whose configuration won a study, or ``None`` when none completed.

    The counted finals name it; before they ran, it is the complete trial that carries the study's winner or else the
    one with the best value of what the study selects by (least for a loss).
    """
    trials = comparison.trials(study["study"])
    complete = trials[trials["state"] == schema.STATE_COMPLETE]
    if complete.empty:
        return None
    named = set(comparison.finals(study["study"])[schema.PARAM_TRIAL].dropna())
    won = complete[complete[schema.PARAM_TRIAL].isin(named)]
    if won.empty and not is_missing(study["configuration"]):
        won = complete[complete["configuration"] == study["configuration"]]
    if not won.empty:
        return won.iloc[-1]
    column = score_column(study, complete)
    values = pd.to_numeric(complete.get(column, pd.Series(math.nan, index=complete.index)), errors="coerce").dropna()
    if values.empty:
        return None
    return complete.loc[values.idxmin() if column.endswith("loss") else values.idxmax()]


def score_column(study: pd.Series, trials: pd.DataFrame) -> str:
    """The column of ``trials`` by which a study chooses among them; less is better where it ends in ``loss``."""
    metric = study[schema.PARAM_METRIC]
    metric = schema.VALIDATION_ACCURACY if is_missing(metric) else str(metric)
    return f"best_{metric}" if f"best_{metric}" in trials.columns else metric


def _not_found(tracking_uri: str, name: str | None, known: pd.DataFrame) -> ThawlineError:
    """Why there is no such comparison: nothing at all, another name, or runs without what makes them one."""
    runs: list[Run] = []
    if _store_exists(tracking_uri):
        client = _client(tracking_uri)
        experiments = _experiments(client, None)
        if name is not None:
            runs = list(_search(client, experiments, schema.TAG_COMPARISON, name))
        elif known.empty:
            runs = list(_search(client, experiments, schema.TAG_KIND, schema.KIND_STUDY))
    if runs:
        whose = f"comparison {name!r} has {len(runs)} runs" if name else f"{tracking_uri} has {len(runs)} studies"
        return ThawlineError(
            f"{whose}, but no run with all of the tags {schema.TAG_KIND} = {schema.KIND_STUDY}, "
            f"{schema.TAG_COMPARISON} and {schema.TAG_STUDY}",
            "Log one for each strategy, as docs/mlflow_schema.md says.",
        )
    if known.empty:
        return ThawlineError(f"no comparison is recorded in {tracking_uri}", _NEXT_STEP)
    return ThawlineError(
        f"unknown comparison {name!r}: {near_matches(str(name), [*known['comparison'], *_curves(known)])}",
        "Name one of them with COMPARISON=..., or leave it out for the newest.",
    )


def is_curve(tracking_uri: str, name: str) -> bool:
    """Whether a name is that of a curve over train sizes.

    Raises:
        ThawlineError: the store cannot be read.
    """
    return name in set(list_comparisons(tracking_uri)["curve"].dropna())


def load_curve(tracking_uri: str, curve: str) -> list[Comparison]:
    """The comparisons that differ in their train split only, the smallest split first.

    Args:
        tracking_uri: MLflow's address.
        curve: its name.

    Raises:
        ThawlineError: the store cannot be read, or holds no such curve.
    """
    known = list_comparisons(tracking_uri)
    members = known.loc[known["curve"] == curve, "comparison"]
    if members.empty:
        raise ThawlineError(f"unknown curve {curve!r}: {near_matches(curve, _curves(known))}", _NEXT_STEP)
    loaded = [load_comparison(tracking_uri, str(name)) for name in members]
    return sorted(loaded, key=lambda comparison: (comparison.train_size, comparison.name))


def _curves(known: pd.DataFrame) -> list[str]:
    """The curves of more than one point."""
    points = known["curve"].dropna().value_counts()
    return [str(name) for name in points[points > 1].index]


# --- reaching the store ------------------------------------------------------------------------------------------


def _store_exists(tracking_uri: str) -> bool:
    """Whether an SQLite address names an MLflow database: MLflow itself would silently create or fill the file."""
    if not tracking_uri.startswith("sqlite:///"):
        return True
    path = Path(tracking_uri.removeprefix("sqlite:///").split("?")[0])
    if not path.is_file():
        return False
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('runs', 'experiments')"
            return bool(connection.execute(query).fetchone()[0] == 2)
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise ThawlineError(f"cannot read {path} as an SQLite database: {error}", _NEXT_STEP) from error


def _client(tracking_uri: str) -> MlflowClient:
    # MLflow reads these when it is imported or used; what the user has set stays.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar per file of a few kB
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    address = urlparse(tracking_uri)
    proxied = any(os.environ.get(key) for key in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"))
    if address.scheme in ("http", "https") and address.hostname and not proxied:
        # MLflow would retry a dead server for minutes.
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname, port), timeout=10).close()
        except OSError as error:
            raise ThawlineError(
                f"no MLflow server answers at {tracking_uri}: {error}",
                "Start it with `thawline ui` (`make ui`), or change tracking.uri.",
            ) from error
    try:
        return MlflowClient(tracking_uri)
    except MlflowException as error:
        raise _unreadable(tracking_uri, error) from error


def _unreadable(tracking_uri: str, error: Exception) -> ThawlineError:
    reason = str(error).strip().splitlines()[0]
    return ThawlineError(
        f"MLflow cannot read {tracking_uri}: {reason}",
        "tracking.uri is sqlite:///<file> or the http(s) address of an MLflow server.",
    )


def _experiments(client: MlflowClient, name: str | None) -> list[str]:
    from mlflow.exceptions import MlflowException

    names: dict[str, str] = {}
    token: str | None = None
    try:
        while True:
            page = client.search_experiments(max_results=_PAGE, page_token=token)
            names |= {experiment.name: experiment.experiment_id for experiment in page}
            token = page.token
            if not token:
                break
    except MlflowException as error:
        raise _unreadable(client.tracking_uri, error) from error
    if name is None:
        return list(names.values())
    if name not in names:
        raise ThawlineError(
            f"unknown MLflow experiment {name!r}: {near_matches(name, names)}", "Change tracking.experiment."
        )
    return [names[name]]


def _search(
    client: MlflowClient, experiments: list[str], tag: str, value: str, other_than: tuple[str, str] | None = None
) -> Iterator[Run]:
    """Every active run whose tag has this value, oldest first, page by page.

    ``other_than`` leaves out the runs in which another tag has a value, so that no run is read twice: reading is what a
    report of thousands of runs spends its time on.
    """
    from mlflow.exceptions import MlflowException

    # MLflow's filter has no escape for quotes: such a value is matched here alone.
    condition = f"tags.`{tag}` = '{value}'" if _plain(value) else f"tags.`{tag}` LIKE '%'"
    if other_than and _plain(other_than[1]):
        condition += f" AND tags.`{other_than[0]}` != '{other_than[1]}'"
    token: str | None = None
    while experiments:
        try:
            with _without_collections():
                page = client.search_runs(
                    experiments, condition, max_results=_PAGE, page_token=token, order_by=["attributes.start_time ASC"]
                )
        except MlflowException as error:
            raise _unreadable(client.tracking_uri, error) from error
        for run in page:
            if _tag(run, tag) == value and not (other_than and _tag(run, other_than[0]) == other_than[1]):
                yield run
        token = page.token
        if not token:
            return


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """A page makes a hundred thousand objects that stay; looking for dead ones among them takes as long as reading."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _plain(value: str) -> bool:
    return not re.search(r"['\"\\%`]", value)


def _tag(run: Run, tag: str) -> str | None:
    value = run.data.tags.get(tag)
    return None if value is None else str(value)


# --- runs -> tables ----------------------------------------------------------------------------------------------


def _finite(value: float) -> float:
    """A metric, NaN where it is infinite: a database keeps an infinity as the largest number that there is."""
    return value if abs(value) < _LARGEST else math.nan


def _state(run: Run) -> str | None:
    """The state as tagged; of a run that has no such tag, what MLflow's own status says."""
    return run.data.tags.get(schema.TAG_STATE) or _STATE_OF_STATUS.get(run.info.status)


def _typed(text: str) -> Any:
    """A param as a number when it reads as a finite one, else the text itself; ``None``-like text is missing."""
    text = text.strip()
    if text in ("", "None", "null"):
        return None
    if not _NUMBER.fullmatch(text):
        return text
    try:
        return int(text)
    except ValueError:
        number = float(text)
        return number if number not in (float("inf"), float("-inf")) else text


def _frame(runs: Iterable[Run]) -> pd.DataFrame:
    """Runs as rows, oldest first; every column of the schema exists, and metrics are floats."""
    rows = []
    for run in runs:
        params = {key: _typed(value) for key, value in run.data.params.items()}
        tags = {column: run.data.tags[tag] for tag, column in _TAG_COLUMNS.items() if run.data.tags.get(tag)}
        metrics = {key: _finite(value) for key, value in run.data.metrics.items()}
        rows.append(
            {**metrics, **params, **tags, "state": _state(run), "run_id": run.info.run_id, "status": run.info.status}
            | {"start_time": run.info.start_time, "end_time": run.info.end_time}
        )
    table = pd.DataFrame(rows)
    wanted = ["run_id", "status", "start_time", "end_time", *_TAG_COLUMNS.values(), *_METRICS, *_PARAMS]
    missing = [column for column in dict.fromkeys(wanted) if column not in table.columns]
    table = pd.concat([table, pd.DataFrame(None, index=table.index, columns=missing, dtype=object)], axis=1)
    for column in ("start_time", "end_time"):
        table[column] = pd.to_datetime(pd.to_numeric(table[column]), unit="ms", utc=True)
    for column in (*_METRICS, schema.PARAM_SEED, schema.PARAM_TRIAL):
        table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    table[schema.TEST_ACCURACY] = table[schema.TEST_ACCURACY].where(table[schema.TEST_ACCURACY].between(0, 1))
    return table.sort_values("start_time", kind="stable", ignore_index=True)


def _study_frame(runs: Iterable[Run]) -> pd.DataFrame:
    """Study runs as rows; runs without a study or comparison name are none of ours."""
    table = _frame(runs)
    table = table[table["study"].notna() & table["comparison"].notna()].reset_index(drop=True)
    table["strategy"] = table["strategy"].fillna(table["study"]).astype(str)
    return table


def _key_notes(found: list[Run], studies: set[str]) -> list[str]:
    """What of a comparison is left out because a run lacks a key that ties it to the others."""
    notes = []
    kinds = [_tag(run, schema.TAG_KIND) for run in found]
    if unknown := sum(kind not in schema.KINDS for kind in kinds):
        notes.append(f"{_runs(unknown)} left out: the tag {schema.TAG_KIND} is none of {', '.join(schema.KINDS)}.")
    for kind in (schema.KIND_TRIAL, schema.KIND_FINAL):
        lost = sum(
            k == kind and _tag(run, schema.TAG_STUDY) not in studies for k, run in zip(kinds, found, strict=True)
        )
        if lost:
            notes.append(
                f"{_runs(lost, kind)} left out: the tag {schema.TAG_STUDY} is missing, or no run of kind "
                f"{schema.KIND_STUDY} in this comparison has it."
            )
    if nameless := sum(
        kind == schema.KIND_STUDY and not _tag(run, schema.TAG_STUDY) for kind, run in zip(kinds, found, strict=True)
    ):
        notes.append(f"{_runs(nameless, schema.KIND_STUDY)} left out: the tag {schema.TAG_STUDY} is missing.")
    return notes


def _value_notes(runs: pd.DataFrame) -> list[str]:
    """What of a comparison's finals a report needs and does not find."""
    notes = []
    finals = runs[runs["kind"] == schema.KIND_FINAL]
    unscored = finals[(finals["state"] == schema.STATE_COMPLETE) & finals[schema.TEST_ACCURACY].isna()]
    if len(unscored):
        notes.append(
            f"{_runs(len(unscored), schema.KIND_FINAL)} left out: complete, but the metric "
            f"{schema.TEST_ACCURACY} is missing or no fraction between 0 and 1."
        )
    used = finals[finals["use"] != "ignored"]
    for study, rows in used[used[schema.PARAM_SEED].isna()].groupby("study"):
        if len(rows) > 1:
            notes.append(
                f"{len(rows)} finals of {study} have no param {schema.PARAM_SEED}: only the newest of them counts."
            )
    other = used[(used["use"] == "earlier") & used["configuration"].isna()]
    other = other[other["study"].isin(used.loc[used["configuration"].notna(), "study"])]
    if len(other):
        notes.append(
            f"{_runs(len(other), schema.KIND_FINAL)} not counted: the tag {schema.TAG_WINNER} is missing, "
            "while other finals of the same study have it."
        )
    counted = used[used["use"] == "counted"]
    sizes = counted.groupby("study")[schema.TRAINABLE_PARAMS].max()
    for study in sizes.index[sizes.isna()]:
        notes.append(
            f"The finals of {study} have no metric {schema.TRAINABLE_PARAMS}: it counts as the largest when strategies "
            "tie, and no figure shows it."
        )
    return notes


def _runs(number: int, kind: str = "") -> str:
    of = f" of kind {kind}" if kind else ""
    return f"1 run{of} is" if number == 1 else f"{number} runs{of} are"


def _owner(final: pd.Series) -> str:
    """What a note calls a final."""
    whose = str(final["study"] if is_missing(final["strategy"]) else final["strategy"])
    seed = final[schema.PARAM_SEED]
    return whose if is_missing(seed) else f"{whose}, seed {seed:.0f}"


def _merge_studies(table: pd.DataFrame) -> pd.DataFrame:
    """One row per study: the newest record, completed with what only an older record of the same study says."""
    rows = []
    for _, records in table.groupby("study", sort=False):
        row = records.iloc[-1].copy()
        for column in records.columns.difference(["reason", "state", "status", "end_time"]):
            said = records[column].dropna()
            if len(said):
                row[column] = said.iloc[-1]
        row["start_time"] = records["start_time"].min()
        rows.append(row)
    merged = pd.DataFrame(rows, columns=table.columns).sort_values("start_time", kind="stable", ignore_index=True)
    merged["label"] = _labels(list(merged["strategy"]), list(merged["study"]))
    return merged


def _labels(strategies: list[str], studies: list[str]) -> list[str]:
    """The strategy's name; where two studies share it, the last part of the study's name is added."""
    return [
        strategy if strategies.count(strategy) == 1 else f"{strategy} ({study.rsplit('-', 1)[-1]})"
        for strategy, study in zip(strategies, studies, strict=True)
    ]


def _mark_use(runs: pd.DataFrame, studies: pd.DataFrame) -> pd.DataFrame:
    """Add the column ``use`` (see :class:`Comparison`); rows are oldest first."""
    runs = runs.copy()
    runs["use"] = pd.Series("counted", index=runs.index, dtype=object)
    scored = runs[(runs["kind"] == schema.KIND_FINAL) & runs[schema.TEST_ACCURACY].notna()]
    # A study that names no winner was not recorded by the engine: its newest final is of the winner.
    newest = {study: rows["configuration"].iloc[-1] for study, rows in scored.groupby("study")}
    named = zip(studies["study"], studies["configuration"], strict=True)
    winners = {study: newest.get(study) if is_missing(winner) else winner for study, winner in named}

    trials = runs[(runs["kind"] == schema.KIND_TRIAL) & runs[schema.PARAM_TRIAL].notna()]
    key = ["study", schema.PARAM_TRIAL]
    finished = trials[trials["state"].isin(FINISHED)]
    runs.loc[finished.index[finished.duplicated(key, keep="last")], "use"] = "ignored"
    done = set(finished[key].itertuples(index=False, name=None))
    running = trials[~trials["state"].isin((*FINISHED, schema.STATE_INTERRUPTED))]
    stale = [row.Index for row in running[key].itertuples() if tuple(row)[1:] in done]
    runs.loc[stale, "use"] = "ignored"

    runs.loc[runs["kind"] == schema.KIND_FINAL, "use"] = "ignored"
    runs.loc[scored.index, "use"] = "earlier"
    trained = scored["configuration"].astype(object).fillna("")
    winner = scored["study"].map(winners).astype(object).fillna("")
    current = scored[(scored["state"] == schema.STATE_COMPLETE) & (trained == winner)]
    last = current[~(current.duplicated(["study", schema.PARAM_SEED], keep="last"))]
    runs.loc[last.index, "use"] = "counted"
    return runs


# --- artifacts ---------------------------------------------------------------------------------------------------


def _artifact(client: MlflowClient, run_id: str, name: str, folder: str) -> Path | None:
    """Local path of an artifact, or nothing when it was not logged or its store cannot be reached."""
    from mlflow.exceptions import MlflowException

    target = Path(folder, run_id)
    target.mkdir(exist_ok=True)
    try:
        path = Path(client.download_artifacts(run_id, name, str(target)))
    except (MlflowException, OSError):
        return None
    return path if path.is_file() else None


def _read_predictions(path: Path) -> pd.DataFrame:
    """One row per test item. Text stays text: a label may well be called ``NA``, ``None`` or ``01``."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [column for column in ("item", "label", "prediction") if column not in table.columns]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}")
    for column in ("group", "probability"):
        if column not in table.columns:
            table[column] = ""
    table["probability"] = pd.to_numeric(table["probability"], errors="coerce")
    return table[list(PREDICTION_COLUMNS)].drop_duplicates("item", ignore_index=True)


def _load_predictions(
    client: MlflowClient, owners: dict[str, str], artifact: str, logged: pd.Series, folder: str, notes: list[str]
) -> dict[str, pd.DataFrame]:
    """Run id -> predictions; ``owners`` says of each run what a note calls it, ``logged`` its accuracy."""
    from reports.stats import AGREEMENT

    predictions, odd = {}, []
    for run_id, owner in owners.items():
        path = _artifact(client, run_id, artifact, folder)
        if path is None:
            continue
        try:
            predictions[run_id] = _read_predictions(path)
        except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
            notes.append(f"{artifact} of {owner} cannot be read: {error}.")
            continue
        accuracy = (predictions[run_id]["label"] == predictions[run_id]["prediction"]).mean()
        if abs(accuracy - logged[run_id]) > AGREEMENT:
            odd.append(f"{owner}: {score(accuracy)} instead of {score(logged[run_id])}")
    if odd:
        notes.append(
            f"{len(odd)} of {len(owners)} finals and floors have predictions ({artifact}) of another accuracy than the "
            f"logged one ({odd[0]}{', ...' * (len(odd) > 1)}): their differences are not paired by test item."
        )
    if lost := len(owners) - len(predictions):
        notes.append(
            f"{lost} of {len(owners)} finals and floors have no readable predictions "
            f"({artifact}): their differences are not paired by test item."
        )
    return predictions


def _load_study_artifacts(
    client: MlflowClient, studies: pd.DataFrame, folder: str, notes: list[str]
) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    """Versions and data summary, each from the newest study that logged it, and every study's configuration."""
    versions: dict[str, str] = {}
    configs: dict[str, str] = {}
    summary: dict[str, Any] = {}
    for _, study in studies.iterrows():  # oldest first: the newest is what remains
        logged = _read_json(client, study, schema.ARTIFACT_VERSIONS, folder, notes)
        logged = {str(package): str(version) for package, version in logged.items()}
        differing = sorted(p for p in logged if p in versions and versions[p] != logged[p])
        if differing:
            notes.append(f"Studies of this comparison ran with different versions of {', '.join(differing)}.")
        versions |= logged
        summary = _read_json(client, study, schema.ARTIFACT_DATA_SUMMARY, folder, notes) or summary
        path = _artifact(client, study["run_id"], schema.ARTIFACT_CONFIG, folder)
        if path:
            configs[str(study["study"])] = path.read_text(encoding="utf-8", errors="replace")
    return versions, configs, summary


def _load_search(
    client: MlflowClient, studies: pd.DataFrame, folder: str, notes: list[str]
) -> tuple[dict[str, dict[str, dict[str, Any]]], dict[str, dict[str, float]]]:
    """What each study searched, and how much each hyperparameter mattered; what is of another shape is left out."""
    spaces, importances = {}, {}
    for _, study in studies.iterrows():
        space = _read_json(client, study, schema.ARTIFACT_SEARCH_SPACE, folder, notes)
        if bounds := {str(name): bounds for name, bounds in space.items() if isinstance(bounds, dict)}:
            spaces[str(study["study"])] = bounds
        logged = _read_json(client, study, schema.ARTIFACT_IMPORTANCES, folder, notes)
        if shares := {str(name): float(share) for name, share in logged.items() if isinstance(share, int | float)}:
            importances[str(study["study"])] = dict(sorted(shares.items(), key=lambda pair: -pair[1]))
    return spaces, importances


def _load_histories(client: MlflowClient, comparison: Comparison, notes: list[str]) -> dict[str, pd.DataFrame]:
    """The epochs of the runs that a report draws: one request for each of their metrics, so not of every trial."""
    from mlflow.exceptions import MlflowException

    histories, lost = {}, []
    for _, study in comparison.studies.iterrows():
        runs = list(comparison.finals(study["study"])["run_id"])
        if (trial := best_trial(comparison, study)) is not None:
            runs.append(trial["run_id"])
        for run_id in runs:
            try:
                columns = {
                    metric: {point.step: _finite(point.value) for point in client.get_metric_history(run_id, metric)}
                    for metric in schema.EPOCH_METRICS
                }
            except MlflowException as error:
                lost.append(str(error).strip().splitlines()[0])
                continue
            table = pd.DataFrame(columns, dtype=float).rename_axis("epoch").sort_index().reset_index()
            table = table[table["epoch"] > 0].reset_index(drop=True)
            if len(table):
                histories[str(run_id)] = table
    if lost:
        of = "1 run" if len(lost) == 1 else f"{len(lost)} runs"
        notes.append(f"The epochs of {of} cannot be read, and no figure shows them: {lost[0]}.")
    return histories


def _read_json(client: MlflowClient, study: pd.Series, name: str, folder: str, notes: list[str]) -> dict[str, Any]:
    path = _artifact(client, study["run_id"], name, folder)
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        notes.append(f"{name} of study {study['study']} cannot be read: {error}.")
        return {}
    return content if isinstance(content, dict) else {}
