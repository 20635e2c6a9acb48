"""Budgets that constrain the search: what exceeds them is not trained, and does not win."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest

from tests import cli

TINY = [
    *cli.TINY_SWEEP,
    "trainer.epochs=1",
    "final.seeds=1",
    "study.pruner=none",
    "report.constrain_search=true",
]


@pytest.mark.slow
def test_what_exceeds_the_budget_of_parameters_is_not_trained_and_does_not_win(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    overrides = [*TINY, f"model.path={tiny_checkpoint}", "strategy=lora", "study.n_trials=8"]
    overrides += ["strategy.search_space.rank.choices=[1,16]", "report.max_trainable_params=1500"]
    printed = cli.run(tmp_path, "sweep", *overrides)

    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    trials = optuna.load_study(study_name=None, storage=storage).get_trials()
    small, large = ([t for t in trials if t.params["rank"] == rank] for rank in (1, 16))
    assert small and large, "the sampler drew one rank only"
    assert all(t.state.name == "COMPLETE" and t.constraints["trainable_params"] <= 0 for t in small)
    assert all(t.state.name == "PRUNED" and t.constraints["trainable_params"] > 0 for t in large)
    skipped = cli.runs(tmp_path, kind="trial", state="pruned")
    assert len(skipped) == len(large) and (skipped["metrics.epochs_run"] == 0).all()
    assert re.fullmatch(
        r"[\d,]+ trainable parameters exceed report.max_trainable_params=1500", skipped["tags.thawline.reason"].iloc[0]
    )
    assert set(cli.runs(tmp_path, kind="final")["params.rank"]) == {"1"}
    assert "Train lora: test accuracy" in printed


def test_the_winner_is_the_best_trial_that_fits_and_none_is_an_answer(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A second of training cannot be kept by any trial: there are no finals, no error, and a report that says so."""
    overrides = [*TINY, f"model.path={tiny_checkpoint}", "strategy=frozen", "study.n_trials=2"]
    printed = cli.run(tmp_path, "sweep", *overrides, "report.max_train_seconds=1e-6")
    assert "no trial of frozen completed within the budgets" in printed
    assert "Nothing can be chosen yet" in printed
    assert cli.runs(tmp_path, kind="final").empty
    assert (cli.runs(tmp_path, kind="trial")["tags.thawline.state"] == "complete").all()


def test_constraining_the_search_by_nothing_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    printed = cli.run(tmp_path, "sweep", *TINY, f"model.path={tiny_checkpoint}", status=2)
    assert "report.constrain_search=true: there is no budget to keep to" in printed
