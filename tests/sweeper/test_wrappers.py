"""The wrappers on the real command line: names, rows of the report, cost, resume, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import cast

import mlflow
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from sweeper.comparison import _check_wrappers, _load
from sweeper.config import Config, check, config_dir, register
from sweeper.errors import ConfigError
from tests.cli import run, runs

TINY = [
    "sweep",
    "strategy=frozen",
    "model=local",
    "dataset.train_size=48",
    "dataset.validation_size=32",
    "dataset.test_size=40",
    "dataset.max_length=24",
    "trainer.epochs=2",
    "trainer.precision=fp32",
    "final.seeds=1",
    "study.n_trials=1",
    "study.pruner=hyperband",
]
WRAPPED = [
    "pseudo_label.rounds=1",
    "pseudo_label.threshold=0.5",
    "pseudo_label.size=30",
    "domain_pretrain.epochs=1",
    "domain_pretrain.size=64",
]
LABEL = "frozen+pseudo_label+domain_pretrain"


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> list[str]:
    return [*TINY, f"model.path={tiny_checkpoint}"]


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> tuple[Path, str, str]:
    """The plain study, then the same with both wrappers; their output folder and what each printed."""
    output = tmp_path_factory.mktemp("wrapped")
    return output, run(output, *tiny), run(output, *tiny, *WRAPPED)


@pytest.mark.slow
def test_wrapped_and_plain_land_in_one_report_as_two_rows(wrapped: tuple[Path, str, str]) -> None:
    output, _, text = wrapped
    studies = runs(output, kind="study")
    assert studies["tags.thawline.strategy"].tolist() == ["frozen", LABEL]
    assert studies["tags.thawline.comparison"].nunique() == 1
    name = studies["tags.thawline.study"][1]
    assert "-review_lines-frozen_pseudo_label_domain_pretrain-" in name, "safe as a file's name"
    (report,) = (output / "reports").glob("*/report.md")
    rows = [line for line in report.read_text().splitlines() if line.startswith("|") and "frozen" in line]
    names = {line.split("|")[1].strip(" *").replace("\\", "") for line in rows}
    assert names == {"frozen", LABEL}
    table = text.partition(", test split")[2].partition("Report:")[0]
    assert "…" not in table, "nothing is cut at 80 columns"
    assert re.search(r"frozen +[\d,]{9} .*\n +\+pseudo_label *\n +\+domain_pretrain *\n", table), table
    assert len(runs(output, kind="floor")) == 2, "one comparison, one set of floors"


@pytest.mark.slow
def test_rounds_are_logged_and_epochs_go_on(wrapped: tuple[Path, str, str]) -> None:
    output, _, text = wrapped
    assert "1 trial of up to 4 epochs" in text
    children = runs(output, strategy=LABEL)
    children = children[children["tags.thawline.kind"] != "study"]
    assert sorted(children["tags.thawline.kind"]) == ["final", "trial"]
    assert (children["metrics.pseudo_labelled"] == 30).all(), "with two classes one has at least half"
    assert set(children["params.epochs"]) == {"4"}
    for child in children["run_id"]:
        history = mlflow.MlflowClient().get_metric_history(child, "validation_accuracy")
        assert [point.step for point in history] == [1, 2, 3, 4]
        (labelling,) = mlflow.MlflowClient().get_metric_history(child, "pseudo_labelled")
        assert labelling.step == 1
    assert runs(output, strategy="frozen")["metrics.epochs_run"].dropna().tolist() == [2, 2]


@pytest.mark.slow
def test_domain_pretraining_is_charged_and_not_repeated_on_resume(
    wrapped: tuple[Path, str, str], tiny: list[str]
) -> None:
    output, _, text = wrapped
    assert "Domain pretraining: 64 texts, 1 epochs" in text
    (record,) = (output / "models" / "domain_pretrain").glob("*/domain_pretrain.json")
    seconds = json.loads(record.read_text())["seconds"]
    trained = record.stat().st_mtime_ns

    def charged() -> pd.Series:
        parent, trials = runs(output, kind="study", strategy=LABEL), runs(output, kind="trial", strategy=LABEL)
        (row,) = parent.to_dict("records")
        assert row["metrics.domain_pretrain_seconds"] == pytest.approx(seconds)
        assert row["metrics.domain_pretrain_loss"] == pytest.approx(json.loads(record.read_text())["losses"][-1])
        spent = trials["metrics.train_seconds"].sum() + seconds
        assert row["metrics.tuning_seconds"] == pytest.approx(spent, rel=1e-3)
        return row

    before = charged()
    again = run(output, *tiny, *WRAPPED, "study.n_trials=2")
    assert "texts, 1 epochs" not in again
    assert record.stat().st_mtime_ns == trained
    after = charged()
    assert after["metrics.trials_complete"] + after["metrics.trials_pruned"] == 2
    assert after["metrics.tuning_seconds"] > before["metrics.tuning_seconds"]
    plain = runs(output, kind="study", strategy="frozen")
    assert "metrics.domain_pretrain_seconds" not in plain or plain["metrics.domain_pretrain_seconds"].isna().all()


def test_a_dry_run_counts_the_wrappers(tmp_path: Path, tiny: list[str]) -> None:
    text = run(tmp_path, *tiny, *WRAPPED, "dry_run=true")
    assert re.search(r"domain pretraining, 1 epochs once for all: about [\d.]+ s, charged to each study", text), text
    assert "pseudo-labelling, 1 rounds in each trial and final" in text
    assert not list(tmp_path.glob("models*"))


def composed(*overrides: str) -> Config:
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return cast(Config, compose("config", overrides=list(overrides)))


def test_too_few_unlabelled_items_are_refused(tiny: list[str]) -> None:
    def refused(*overrides: str) -> str:
        config = composed(*tiny[1:], *WRAPPED, *overrides)
        with pytest.raises(ConfigError) as caught:
            _check_wrappers(config, _load(config, Console(quiet=True)))
        return str(caught.value)

    text = refused("pseudo_label.size=9000", "domain_pretrain.size=9001")
    assert "pseudo_label.size=9000 is more than the 8903 unlabelled items" in text
    assert "domain_pretrain.size=9001 is more than the 8903 unlabelled items" in text
    text = refused("dataset.train_size=null")
    assert "pseudo_label.rounds=1: review_lines has no unlabelled items left" in text
    assert "domain_pretrain.epochs=1: review_lines has no unlabelled items left" in text
    assert "a lower dataset.train_size leaves more" in text


def test_impossible_values_are_named_all_at_once() -> None:
    overrides = [
        "pseudo_label.rounds=-1",
        "pseudo_label.threshold=1.5",
        "pseudo_label.size=0",
        "domain_pretrain.epochs=1",
        "domain_pretrain.learning_rate=0",
        "domain_pretrain.batch_size=0",
        "domain_pretrain.mask_probability=0",
        "domain_pretrain.size=0",
        "model.modality=image",
        "dataset.modality=image",
    ]
    assert sorted(check(composed(*overrides))) == [
        "domain_pretrain.batch_size=0: must be at least 1",
        "domain_pretrain.epochs=1: it trains on text, and model=minilm takes image; allowed is 0",
        "domain_pretrain.learning_rate=0.0: must be above 0",
        "domain_pretrain.mask_probability=0.0: must be at least 0.01 and below 1",
        "domain_pretrain.size=0: must be at least 1",
        "pseudo_label.rounds=-1: must be at least 0",
        "pseudo_label.size=0: must be at least 1",
        "pseudo_label.threshold=1.5: must be at least 0 and below 1",
    ]
