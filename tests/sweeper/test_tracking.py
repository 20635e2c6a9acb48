"""What MLflow is told, and that all of it arrives once: past kills, dead servers and a full disk."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import optuna
import pandas as pd
import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Run

from sweeper import schema
from sweeper.errors import StudyError
from sweeper.outbox import FILE, Outbox
from sweeper.tracking import Tracker, log_report
from tests.cli import TINY_SWEEP, run, start
from tests.mlflow_server import Server, free_port

TINY = [
    "strategy=full",
    *TINY_SWEEP,
    "study.pruner=none",
    "verbosity=verbose",
]
SECONDS = {"train_seconds", "train_samples_per_second", "test_samples_per_second", "peak_memory_mb", "tuning_seconds"}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def recorded(uri: str, experiment: str = "thawline") -> dict[str, Run]:
    """The runs of an experiment by their names, which no two of them share."""
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len({run.info.run_name for run in found}) == len(found), "a run was recorded twice"
    return {run.info.run_name: run for run in found}


def log_two_runs(tracker: Tracker) -> tuple[str, str]:
    parent = tracker.start(schema.KIND_STUDY, "the study", {schema.TAG_STUDY: "s"}, {"epochs": 2, "absent": None})
    trial = tracker.start(schema.KIND_TRIAL, "a trial", {schema.TAG_STUDY: "s"}, {"rank": 8}, parent=parent)
    frame = pd.DataFrame({"text": ["a", "b"], "label": [0, 1]})
    tracker.log_dataset(parent, "two rows", {"train": frame, "test": frame[:1]}, source="two rows")
    for epoch, loss in enumerate([0.5, 0.5, math.nan], start=1):
        tracker.log_metrics(trial, {"loss": loss}, epoch)
    tracker.log_table(trial, "predictions.csv", frame)
    tracker.finish(trial, schema.STATE_PRUNED, reason="0.5 after epoch 3", metrics={"epochs_run": 3})
    return parent, trial


def check_two_runs(uri: str) -> None:
    runs, client = recorded(uri), MlflowClient(uri)
    parent, trial = runs["the study"], runs["a trial"]
    assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.params == {"epochs": "2"} and trial.data.params == {"rank": "8"}
    history = client.get_metric_history(trial.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history[:2]] == [(1, 0.5), (2, 0.5)]
    assert len(history) == 3 and math.isnan(history[2].value)
    assert len(client.get_metric_history(trial.info.run_id, "epochs_run")) == 1
    assert trial.info.status == "KILLED" and trial.info.end_time >= trial.info.start_time
    assert trial.data.tags[schema.TAG_REASON] == "0.5 after epoch 3"
    assert {given.tags[0].value for given in parent.inputs.dataset_inputs} == {"train", "test"}
    path = client.download_artifacts(trial.info.run_id, "predictions.csv")
    assert Path(path).read_text() == "text,label\na,0\nb,1\n"


def test_what_is_logged_arrives_and_runs_can_be_opened_again(tmp_path: Path, uri: str) -> None:
    with Tracker(uri, "thawline", tmp_path) as tracker:
        parent, trial = log_two_runs(tracker)
        assert tracker.open_runs("s") == [parent]
        assert tracker.find({schema.TAG_KIND: schema.KIND_TRIAL}) == [trial]
        tracker.close_interrupted([parent])
    check_two_runs(uri)
    assert recorded(uri)["the study"].data.tags[schema.TAG_STATE] == schema.STATE_INTERRUPTED

    with Tracker(uri, "thawline", tmp_path) as tracker:
        assert tracker.open_runs("s") == []
        assert tracker.reopen(parent, {"more": "tags"}) and not tracker.reopen("0" * 32, {})
    study = recorded(uri)["the study"]
    assert study.info.status == "RUNNING" and study.data.tags["more"] == "tags"
    assert schema.TAG_REASON not in study.data.tags

    (tmp_path / FILE).unlink()  # its ids are found in MLflow
    with Tracker(uri, "thawline", tmp_path) as tracker:
        assert tracker.reopen(parent, {})


def test_what_was_sent_but_not_struck_off_is_not_recorded_twice(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise StudyError("as if killed here")

    monkeypatch.setattr("sweeper.tracking.SEND_SECONDS", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "set_mlflow_id", killed)  # after MLflow created a run
        with Tracker(uri, "thawline", tmp_path) as tracker:
            log_two_runs(tracker)
    assert set(recorded(uri)) == {"the study"}

    notes: list[str] = []
    with Tracker(uri, "thawline", tmp_path, notes.append) as tracker, monkeypatch.context() as patch:
        patch.setattr(Outbox, "remove", lambda *_: None)  # everything is sent over and over
        tracker.flush()
        deadline = time.monotonic() + 30
        while tracker._sender._arrived < 40 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert tracker._sender._arrived >= 40
    check_two_runs(uri)
    assert notes == []


def test_what_mlflow_refuses_waits_and_holds_nothing_else_up(tmp_path: Path, uri: str) -> None:
    notes: list[str] = []
    with Tracker(uri, "thawline", tmp_path, notes.append) as tracker:
        refused = tracker.start(schema.KIND_TRIAL, "a trial of before", {}, {})
        tracker.log_params(refused, {"not/a:*name": 1})
        tracker.finish(refused, schema.STATE_COMPLETE)
        log_two_runs(tracker)
    assert recorded(uri)["a trial of before"].data.tags[schema.TAG_STATE] == schema.STATE_RUNNING
    assert recorded(uri)["a trial"].info.status == "KILLED"
    (note,) = notes
    assert "wait in" in note and "it refuses some" in note and "not/a:*name" in note


class _Answered(Exception):
    """As botocore's errors."""

    def __init__(self, status: int) -> None:
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def _http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


@pytest.mark.parametrize(
    ("error", "arrives"),
    [
        (requests.ConnectionError("no route to host"), True),
        (requests.ReadTimeout(), True),
        (_http_error(503), True),
        (_http_error(400), False),
        (_Answered(500), True),
        (_Answered(404), False),
        (Exception("EndpointConnectionError: could not connect"), True),
        (TypeError("a mistake in the code"), False),
    ],
    ids=repr,
)
def test_a_file_that_a_store_did_not_take_is_sent_again_unless_it_said_no(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, error: Exception, arrives: bool
) -> None:
    left = [error]
    send = MlflowClient.log_artifact

    def fail_once(self: MlflowClient, *args: object, **given: object) -> None:
        if left:
            raise left.pop()
        send(self, *args, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "log_artifact", fail_once)
    monkeypatch.setattr("sweeper.tracking.SEND_SECONDS", 0.05)
    tracker = Tracker(uri, "thawline", tmp_path)
    run_id = tracker.start(schema.KIND_TRIAL, "a trial", {}, {})
    tracker.log_text(run_id, "note.txt", "all is well")
    deadline = time.monotonic() + 20
    while left or (arrives and "note.txt" not in artifacts_of(uri)):
        assert time.monotonic() < deadline, "it was not sent again"
        time.sleep(0.05)
    unsent = tracker.close()
    assert (unsent is None) is arrives


def artifacts_of(uri: str) -> list[str]:
    """The files of all runs."""
    client = MlflowClient(uri)
    return [file.path for run in recorded(uri).values() for file in client.list_artifacts(run.info.run_id)]


def test_a_full_disk_is_said_and_harms_nothing(tmp_path: Path, uri: str) -> None:
    with Tracker(uri, "thawline", tmp_path) as tracker:
        _, trial = log_two_runs(tracker)
        database = tracker._outbox._db
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then says what it says of a full disk
        with pytest.raises(StudyError, match=r"outbox\.db: database or disk is full\nMake room"):
            tracker.log_text(trial, "large.txt", "x" * 1_000_000)
        database.execute("PRAGMA max_page_count = 100000")
        tracker.log_text(trial, "small.txt", "x")
    check_two_runs(uri)
    client = MlflowClient(uri)
    names = {file.path for file in client.list_artifacts(recorded(uri)["a trial"].info.run_id)}
    assert names == {"predictions.csv", "small.txt"}


def test_a_damaged_outbox_is_said(tmp_path: Path, uri: str) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(StudyError, match=r"outbox\.db, where writes wait for MLflow, is damaged"):
        Tracker(uri, "thawline", tmp_path)


def test_an_address_that_never_answered_is_refused_before_the_first_trial(tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match=r"http://user:\*\*\*@127.0.0.1:\d+ cannot be opened: .*refused\nStart it, or check"
    ):
        Tracker(f"http://user:secret@127.0.0.1:{free_port()}", "thawline", tmp_path)


def test_a_report_is_found_with_its_run_and_what_cannot_be_logged_is_said(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    page = tmp_path / "report.html"
    page.write_text("<p>")
    run = client.create_run(client.create_experiment("open", artifact_location=(tmp_path / "art").as_uri()))
    log_report(uri, run.info.run_id, [page])
    assert [file.path for file in client.list_artifacts(run.info.run_id, "report")] == ["report/report.html"]

    closed = client.create_run(client.create_experiment("closed", artifact_location=page.as_uri()))  # a file, no folder
    for unknown in (closed.info.run_id, "0" * 32):
        with pytest.raises(StudyError, match="the report was not logged"):
            log_report(uri, unknown, [page])


# --- a real server -----------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "server")
    server.start()
    yield server
    server.kill()


def histories(uri: str, output: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Run -> metric -> (step, value), of the runs that an output folder made; times and memory left out."""
    with contextlib.closing(sqlite3.connect(output / FILE)) as outbox:
        ours = {row[0] for row in outbox.execute("SELECT id FROM runs")}
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("thawline").experiment_id])
    runs = [run for run in found if run.data.tags[schema.TAG_RUN] in ours]
    assert len(runs) == len(ours), "a run is missing or doubled"
    return {
        run.info.run_name: {
            key: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
            if key not in SECONDS
        }
        for run in runs
    }


class Sweep:
    """A sweep in a process of its own, and what it printed so far."""

    def __init__(self, output: Path, *arguments: str) -> None:
        self._printed = output.with_suffix(".log")
        self._printed.write_text("")
        self.process = start(output, "sweep", *arguments, printed=self._printed)

    def text(self) -> str:
        return self._printed.read_text()

    def wait_for(self, what: str) -> None:
        deadline = time.monotonic() + 240
        while what not in self.text():
            assert self.process.is_alive() and time.monotonic() < deadline, self.text()
            time.sleep(0.02)

    def end(self, status: int) -> str:
        self.process.join(240)
        assert self.process.exitcode == status, self.text()
        return self.text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_server_that_dies_slows_nothing_and_is_told_everything_later(
    tmp_path: Path, tiny_checkpoint: Path, server: Server
) -> None:
    arguments = [*TINY, f"model.path={tiny_checkpoint}", f"tracking.uri={server.uri}", "trainer.epochs=6"]
    arguments += ["final.seeds=1"]
    alive, dead = tmp_path / "alive", tmp_path / "dead"

    def timed(sweep: Sweep) -> float:
        started = time.monotonic()
        sweep.wait_for("final 0 (1/1)")
        return time.monotonic() - started

    reference = Sweep(alive, *arguments, "study.n_trials=4")
    reference.wait_for("epoch 2/6")
    before = timed(reference)
    assert "Report:" in reference.end(0)
    sweep = Sweep(dead, *arguments, "study.n_trials=4")
    sweep.wait_for("epoch 2/6")
    server.kill()
    after = timed(sweep)
    print(f"\nfrom epoch 2 of the first trial to the final: {before:.1f} s with a server, {after:.1f} s without")
    assert after < 3 * before + 20  # MLflow's own retries take minutes for each write
    text = sweep.end(2)
    assert "writes for MLflow at" in text and "Nothing is lost: the same command" in text
    assert "Traceback" not in text and "Report:" not in text

    # Down from the start, and killed with writes that only the disk has.
    killed = Sweep(dead, *arguments, "study.n_trials=6")
    killed.wait_for("epoch 2/6")
    killed.process.kill()
    killed.process.join()
    assert f"MLflow at {server.uri} does not answer" in Sweep(dead, *arguments, "study.n_trials=5").end(2)
    assert "wait in" in run(dead, "report", f"tracking.uri={server.uri}", status=2)

    server.start()
    assert "Report:" in run(dead, "report", f"tracking.uri={server.uri}")
    told, expected = histories(server.uri, dead), histories(server.uri, alive)
    both = [name for name in expected if " trial " in name]
    assert len(both) == 4
    assert {name: told[name] for name in both} == {name: expected[name] for name in both}

    storage = f"sqlite:///{dead / 'optuna.db'}"
    (study,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=study, storage=storage).trials
    assert len(trials) == 6  # five, and the one that was killed
    for trial in trials:
        scores = told[f"full trial {trial.number:03d}"]["validation_accuracy"]
        # A process may be killed between telling MLflow and telling Optuna.
        assert trial.intermediate_values.items() <= dict(scores).items() and len(scores) == len(dict(scores))


@pytest.mark.slow
def test_a_server_that_comes_back_is_told_everything_by_the_same_process(tmp_path: Path, server: Server) -> None:
    notes: list[str] = []
    with Tracker(server.uri, "thawline", tmp_path, notes.append) as tracker:
        log_two_runs(tracker)
        server.kill()
        run_id = tracker.start(schema.KIND_TRIAL, "while it was down", {}, {})
        deadline = time.monotonic() + 30
        while not notes and time.monotonic() < deadline:
            tracker.log_metrics(run_id, {"loss": 1.0}, step=1)
            time.sleep(0.1)
        server.start()
        tracker.finish(run_id, schema.STATE_COMPLETE, metrics={"epochs_run": 1})
    assert "does not answer" in notes[0]
    assert not any("wait in" in note for note in notes)
    check_two_runs(server.uri)
    assert recorded(server.uri)["while it was down"].data.metrics == {"loss": 1.0, "epochs_run": 1}


@pytest.mark.slow
def test_what_telling_mlflow_costs_a_trial(tmp_path: Path, uri: str) -> None:
    trials, metrics = 50, {f"metric_{number}": number / 7 for number in range(6)}
    with Tracker(uri, "thawline", tmp_path) as tracker:
        parent = tracker.start(schema.KIND_STUDY, "a study", {}, {})
        started, used = time.monotonic(), time.process_time()
        for number in range(trials):
            params = {f"param_{index}": index for index in range(20)}
            run_id = tracker.start(schema.KIND_TRIAL, f"trial {number}", {schema.TAG_STUDY: "s"}, params, parent=parent)
            for epoch in range(3):
                tracker.log_metrics(run_id, metrics, epoch)
            tracker.flush()
            tracker.finish(run_id, schema.STATE_COMPLETE, metrics=metrics)
        waited = (time.monotonic() - started) / trials
    computed = (time.process_time() - used) / trials
    print(f"\na trial of 3 epochs waits {waited * 1e3:.1f} ms; with the sending, {computed * 1e3:.1f} ms of a core")
    assert waited < 0.1 and computed < 0.1
