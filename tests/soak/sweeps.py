"""Sweeps of a tiny model by the real command line, and whether what they left is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState

from sweeper import schema
from sweeper.runs import INDEX, RUN, STATE
from sweeper.study import finished_trials
from tests.checkpoints import build
from tests.cli import start

__all__ = ["WorkersGone", "arguments", "begin", "problems", "workers_of"]


def arguments(model: Path, *, trials: int, epochs: int = 2, finals: int = 1) -> list[str]:
    """What makes a sweep tiny; ``model`` is a folder, made where it is missing."""
    if not model.exists():
        build("bert", model)
    return [
        "sweep",
        "strategy=full",
        "model=local",
        f"model.path={model}",
        "dataset.train_size=32",
        "dataset.validation_size=24",
        "dataset.test_size=24",
        "dataset.max_length=24",
        f"trainer.epochs={epochs}",
        "trainer.precision=fp32",
        "study.pruner=none",
        f"study.n_trials={trials}",
        f"final.seeds={finals}",
        "verbosity=quiet",
    ]


def begin(output: Path, given: list[str]) -> BaseProcess:
    """Start the command; what it prints is appended to ``output``'s ``printed.log``."""
    output.mkdir(parents=True, exist_ok=True)
    (log := output / "printed.log").touch()
    return start(output, *given, printed=log)


class WorkersGone(Exception):
    """There is no worker (any more) to be killed."""


def workers_of(owner: int) -> list[int]:
    """The worker processes of a sweep, by what /proc tells."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[pid] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it ended meanwhile
            continue
    servers = {pid for pid, parent in parents.items() if parent == owner and "forkserver" in names.get(pid, "")}
    forked = [pid for pid, parent in parents.items() if parent in servers]
    mine = {owner}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    found = forked + [pid for pid in mine if names.get(pid, "").startswith("ray::_Actor")]
    if not found:
        raise WorkersGone
    return found


def problems(storage: str, tracking_uri: str, *, trials: int, finals: int) -> list[str]:
    """What is wrong with a study that has ended, each in a line; ``storage`` holds that study alone."""
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    client = MlflowClient(tracking_uri)
    found = []
    every = study.get_trials(deepcopy=False)
    if (finished := len(finished_trials(study))) != trials:
        found.append(f"{finished} finished trials, not {trials}")
    if running := sum(trial.state == TrialState.RUNNING for trial in every):
        found.append(f"{running} trials left running in Optuna")
    counted = Counter(
        trial.user_attrs.get(INDEX) for trial in every if trial.user_attrs.get(STATE) == schema.STATE_COMPLETE
    )
    if twice := [index for index, count in counted.items() if count > 1]:
        found.append(f"trials run twice to completion: {twice}")
    runs = [
        run
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id], max_results=10_000)
    ]
    if left := sum(run.info.status == "RUNNING" for run in runs):
        found.append(f"{left} runs left running in MLflow")
    scored = [
        run
        for run in runs
        if run.data.tags.get(schema.TAG_KIND) == schema.KIND_FINAL
        and run.data.tags.get(schema.TAG_STATE) == schema.STATE_COMPLETE
    ]
    if len(scored) != finals:
        found.append(f"{len(scored)} complete finals, not {finals}")
    ids = {run.data.tags.get(schema.TAG_RUN): run.info.run_id for run in runs}
    for trial in every:
        found += _lost(client, trial, ids)
    return found


def _lost(client: MlflowClient, trial: FrozenTrial, ids: Mapping[str, str]) -> list[str]:
    """Scores that Optuna has of a trial and MLflow has not; ``ids`` are MLflow's, by our own."""
    if trial.user_attrs.get(RUN) is None or trial.user_attrs.get(STATE) == schema.STATE_DIVERGED:
        return []
    if (run_id := ids.get(trial.user_attrs[RUN])) is None:
        return [f"trial {trial.number}: MLflow lacks its run"]
    history = client.get_metric_history(run_id, schema.VALIDATION_ACCURACY)
    known = {metric.step: metric.value for metric in history}
    lost = [step for step, value in trial.intermediate_values.items() if known.get(step) != value]
    state = trial.user_attrs.get(STATE)
    return [f"trial {trial.number} ({state}): MLflow lacks its scores of epochs {lost}"] if lost else []
