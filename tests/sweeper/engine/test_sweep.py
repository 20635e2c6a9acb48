"""Whole sweeps whose runs are trained side by side: pruning, a worker that is killed, finals at the same time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import optuna
import psutil
import pytest

from tests.cli import piped, runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_killed_worker_costs_one_attempt_and_the_study_ends_as_asked(tmp_path: Path, tiny_checkpoint: Path) -> None:
    given = [
        *("strategy=full", "model=local", f"model.path={tiny_checkpoint}", "engine=processes", "engine.workers=2"),
        *("dataset.train_size=128", "dataset.validation_size=40", "dataset.test_size=60", "trainer.epochs=12"),
        *("trainer.precision=fp32", "study.n_trials=8", "study.pruner=median", "final.seeds=3", "verbosity=verbose"),
    ]
    owner = piped(tmp_path, "sweep", *given)
    assert owner.stdout is not None
    printed, killed = "", False
    for line in owner.stdout:
        printed += line
        if "epoch 2/12" in line and not killed:
            (server,) = (child for child in psutil.Process(owner.pid).children() if child.children())
            server.children()[0].kill()
            killed = True
    assert owner.wait(60) == 0 and killed, printed
    assert "was ended by SIGKILL" in printed

    (study,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path / 'optuna.db'}")
    trials = optuna.load_study(study_name=study.study_name, storage=f"sqlite:///{tmp_path / 'optuna.db'}").trials
    states = Counter(trial.user_attrs["state"] for trial in trials)
    assert states["interrupted"] == 1 and states["complete"] + states["pruned"] == 8 and len(trials) == 9
    assert states["pruned"] >= 1, "12 epochs at very different rates, and the median prunes none"
    (lost,) = (trial for trial in trials if trial.user_attrs["state"] == "interrupted")
    again = [trial for trial in trials if trial.user_attrs["index"] == lost.user_attrs["index"]]
    assert [trial.params for trial in again] == [lost.params] * 2
    assert len(runs(tmp_path, kind="final", state="complete")) == 3
    assert "RUNNING" not in set(runs(tmp_path)["status"])
    assert len(list((tmp_path / "models").iterdir())) == 1, "the best final's weights, and nothing that was staged"
