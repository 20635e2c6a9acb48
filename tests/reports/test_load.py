"""Reading a real MLflow store: everything is found, and nothing that is missing or odd is a crash."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys

import pytest

import reports
from reports import load
from sweeper import schema
from sweeper.errors import ThawlineError
from tests.reports.conftest import EQUAL, FAILURES, HOSTILE, KNOWN, SINGLE, predictions


def test_newest_comparison_comes_first_and_is_the_default(uri):
    table = reports.list_comparisons(uri)
    ours = [HOSTILE, FAILURES, SINGLE, EQUAL, KNOWN]  # other tests record theirs in the same store, before or after
    assert [name for name in table["comparison"] if name in ours] == ours
    assert table.set_index("comparison").loc[KNOWN, "strategies"] == "frozen, full, lora"
    assert reports.load_comparison(uri).name == table["comparison"].iloc[0]


def test_everything_logged_is_there_and_typed(uri):
    comparison = reports.load_comparison(uri, KNOWN)
    assert set(comparison.studies["strategy"]) == {"full", "frozen", "lora"}
    lora = comparison.studies.set_index("strategy").loc["lora"]
    trials, finals = comparison.trials(lora["study"]), comparison.finals(lora["study"])
    assert list(trials["trial"]) == [0, 1, 2, 3] and len(finals) == 3
    assert trials["learning_rate"].iloc[0] == pytest.approx(3.123e-4) and trials["rank"].iloc[0] == 8
    assert trials["device"].iloc[0] == "cpu"
    assert list(comparison.floors["floor"]) == ["majority", "tfidf_logreg"]
    assert len(comparison.predictions) == 3 * 3 + 2
    table = comparison.predictions[finals["run_id"].iloc[0]]
    assert set(table["label"]) == {"fresh", "NA"}  # a label called NA is not a missing value
    assert (table["label"] == table["prediction"]).mean() == pytest.approx(finals["test_accuracy"].iloc[0])
    assert comparison.versions["torch"] == "2.15.0" and comparison.config.startswith("strategy:")
    assert comparison.data_summary["sizes"]["test"] == 2000


def test_epochs_of_finals_and_best_trials_are_read_in_order(recorder):
    study = recorder.study("c-epochs", "lora")
    other = recorder.trial("c-epochs", study, 0, score=0.6)
    best = recorder.trial("c-epochs", study, 1, score=0.8)
    final = recorder.final("c-epochs", study, 1000, 0.8, size=10)
    earlier = recorder.final("c-epochs", study, 1001, 0.8, size=10, winner="old")
    for run in (other, best, final, earlier):
        recorder.epochs(run, train_loss=[0.7, 0.6, 0.5], validation_accuracy=[0.6, 0.8])
    histories = reports.load_comparison(recorder.uri, "c-epochs").histories
    assert set(histories) == {best, final}  # of thousands of trials a report draws one
    table = histories[final]
    assert list(table.columns) == ["epoch", *schema.EPOCH_METRICS] and list(table["epoch"]) == [1, 2, 3]
    assert list(table["train_loss"]) == [0.7, 0.6, 0.5]
    assert list(table["validation_accuracy"][:2]) == [0.6, 0.8] and table["validation_accuracy"].isna()[2]


def test_search_space_and_importances_are_read_and_odd_ones_left_out(recorder):
    space = {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "rank": "8"}
    study = recorder.study(
        "c-space",
        "lora",
        artifacts={
            schema.ARTIFACT_SEARCH_SPACE: json.dumps(space),
            schema.ARTIFACT_IMPORTANCES: json.dumps({"rank": 0.2, "learning_rate": 0.8, "targets": "much"}),
        },
    )
    comparison = reports.load_comparison(recorder.uri, "c-space")
    assert comparison.spaces == {study: {"learning_rate": space["learning_rate"]}}
    assert list(comparison.importances[study].items()) == [("learning_rate", 0.8), ("rank", 0.2)]


def test_finals_count_only_for_the_present_winner_and_once_per_seed(uri):
    comparison = reports.load_comparison(uri, SINGLE)
    study = comparison.studies["study"].iloc[0]
    finals = comparison.finals(study)
    assert list(finals["seed"]) == [1000, 1001] and list(finals["test_accuracy"]) == [0.80, 0.81]
    assert len(comparison.finals(study, "earlier")) == 4  # three of the old winner, one repeated
    assert list(comparison.finals(study, "ignored")["state"]) == [schema.STATE_FAILED]


def test_trials_follow_their_study_and_are_counted_once(uri):
    comparison = reports.load_comparison(uri, SINGLE)
    trials = comparison.trials(comparison.studies["study"].iloc[0])
    assert sorted(zip(trials["trial"], trials["state"], strict=True)) == [
        (0, "complete"),
        (1, "complete"),
        (2, "complete"),
        (2, "interrupted"),
    ]


def test_two_studies_of_one_strategy_are_told_apart(recorder):
    for name in ("m-d-lora-aaa", "m-d-lora-bbb"):
        recorder.study("c-twins", "lora", name=name)
    assert list(reports.load_comparison(recorder.uri, "c-twins").studies["label"]) == ["lora (aaa)", "lora (bbb)"]


def test_resumed_study_is_one_row_with_its_present_state(recorder):
    recorder.study("c-resumed", "lora", state=schema.STATE_FAILED, tags={schema.TAG_REASON: "disk full"})
    recorder.study("c-resumed", "lora", winner=None, state=schema.STATE_RUNNING)
    studies = reports.load_comparison(recorder.uri, "c-resumed").studies
    assert len(studies) == 1
    assert studies["state"].iloc[0] == schema.STATE_RUNNING and studies["configuration"].iloc[0] == "c1"
    assert not isinstance(studies["reason"].iloc[0], str)


def test_unreadable_artifacts_become_notes(recorder):
    study = recorder.study("c-broken", "lora")
    run = recorder.final("c-broken", study, 1000, 0.8, size=10, logged=False)
    recorder.client.log_text(run, "no,useful,columns\n1,2,3\n", schema.ARTIFACT_PREDICTIONS)
    parent = recorder.client.search_runs([recorder.experiment], f"tags.`{schema.TAG_STUDY}` = '{study}'")[-1]
    recorder.client.log_text(parent.info.run_id, "{not json", schema.ARTIFACT_VERSIONS)
    comparison = reports.load_comparison(recorder.uri, "c-broken")
    assert comparison.predictions == {} and comparison.versions == {}
    assert any("lora, seed 1000" in note and "no column item" in note for note in comparison.notes)
    assert any(schema.ARTIFACT_VERSIONS in note for note in comparison.notes)


def test_predictions_of_another_accuracy_and_repeated_floors_are_said(recorder, tmp_path):
    study = recorder.study("c-odd", "lora")
    run = recorder.log(
        schema.KIND_FINAL,
        "c-odd",
        study=study,
        strategy="lora",
        tags={schema.TAG_WINNER: "c1"},
        metrics={schema.TEST_ACCURACY: 0.9},
        artifacts={schema.ARTIFACT_PREDICTIONS: predictions(0.8, 7).to_csv(index=False)},
    )
    recorder.epochs(run, validation_accuracy=[0.7, 0.8, 0.9])
    for accuracy in (0.6, 0.62):
        recorder.floor("c-odd", "majority", accuracy)
    report = reports.build_report(recorder.uri, reports_dir=tmp_path, comparison="c-odd")
    text = report.path.read_text("utf-8")
    assert "1 of 2 finals and floors have predictions (predictions.csv) of another accuracy" in text
    assert (
        "(lora: 0.800 instead of 0.900)" in text
        and "nan" not in report.path.with_name("learning_curves.svg").read_text()
    )
    said = "was scored 3 times in this comparison: 1 by finals, 2 by floors and references"
    assert said in text


def test_epochs_that_are_infinite_or_cannot_be_read_are_missing(recorder, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    study = recorder.study("c-infinite", "lora")
    run = recorder.final("c-infinite", study, 1000, 0.8, size=10)
    recorder.epochs(run, validation_loss=[0.5, float("inf")])
    loss = reports.load_comparison(recorder.uri, "c-infinite").histories[run]["validation_loss"]
    assert loss[0] == 0.5 and loss.isna()[1]

    def broken(*args: object) -> None:
        raise MlflowException("500 Internal Server Error")

    monkeypatch.setattr(MlflowClient, "get_metric_history", broken)
    comparison = reports.load_comparison(recorder.uri, "c-infinite")
    assert comparison.histories == {}
    assert (
        "The epochs of 1 run cannot be read, and no figure shows them: 500 Internal Server Error." in comparison.notes
    )


def test_pages_are_followed_to_the_end(uri, monkeypatch):
    whole = len(reports.load_comparison(uri, KNOWN).runs)
    monkeypatch.setattr(load, "_PAGE", 2)
    assert len(reports.load_comparison(uri, KNOWN).runs) == whole == 21


def test_unknown_comparison_names_the_near_ones(uri):
    with pytest.raises(ThawlineError, match=r"unknown comparison 'c-knwon': did you mean 'c-known'") as error:
        reports.load_comparison(uri, "c-knwon")
    assert SINGLE in str(error.value)


def test_nothing_recorded_says_what_to_run_and_creates_nothing(tmp_path):
    path = tmp_path / "mlflow.db"
    with pytest.raises(ThawlineError, match="make sweep"):
        reports.load_comparison(f"sqlite:///{path}")
    assert not path.exists()
    sqlite3.connect(path).close()
    path.touch()
    with pytest.raises(ThawlineError, match="make sweep"):
        reports.load_comparison(f"sqlite:///{path}")
    assert path.stat().st_size == 0  # MLflow was not let near a database that is not its own
    path.write_text("this is no database, whatever it is called " * 50)
    with pytest.raises(ThawlineError, match="cannot read"):
        reports.load_comparison(f"sqlite:///{path}")


def test_store_without_comparisons_is_empty(uri):
    from mlflow import MlflowClient

    MlflowClient(uri).create_experiment("nothing in it")
    assert reports.list_comparisons(uri, "nothing in it").empty
    with pytest.raises(ThawlineError, match="did you mean 'thawline'"):
        reports.list_comparisons(uri, "thawlin")


def test_refused_stores_and_dead_servers_fail_at_once(tmp_path):
    with pytest.raises(ThawlineError, match=r"tracking\.uri"):
        reports.list_comparisons(f"file://{tmp_path}/mlruns")
    with pytest.raises(ThawlineError, match="no MLflow server answers"):
        reports.list_comparisons("http://127.0.0.1:9")


def test_importing_the_package_is_light_and_never_loads_the_engine():
    script = (
        "import sys, reports\n"
        "assert not {'mlflow', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "import reports.load, reports.stats, reports.tables, reports.verdict, reports.plots, reports.render\n"
        "heavy = {'mlflow', 'matplotlib', 'torch', 'optuna', 'hydra', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "ours = {m for m in sys.modules if m.split('.')[0] in ('sweeper', 'strategies')}\n"
        "assert ours <= {'sweeper', 'sweeper.schema', 'sweeper.errors', 'sweeper.files', 'sweeper.secrets'}, ours\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
