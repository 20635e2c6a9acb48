"""Reports of runs that were not made here: logged with plain MLflow calls, by ``docs/mlflow_schema.md`` alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.text import Text

import reports
from reports.plots import report_figures
from sweeper import commands
from sweeper.config import Config, TrackingConfig
from sweeper.errors import ThawlineError
from tests.cli import give_database
from tests.mlflow_server import Server
from tests.reports.conftest import Recorder, predictions

GUIDE = Path(__file__).parents[2] / "docs" / "mlflow_schema.md"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all tests, each of which records a comparison of its own."""
    folder = tmp_path_factory.mktemp("foreign")
    give_database(folder)
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def _own_mlflow() -> Iterator[None]:
    """The fluent API is global: what a test set must not reach the next one."""
    import mlflow

    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


def start(uri: str, tags: dict[str, str], params: dict[str, object], metrics: dict[str, float]) -> str:
    """One finished run as anybody logs it; ``kind`` stands for ``thawline.kind``."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("theirs")
    with mlflow.start_run() as run:
        mlflow.set_tags({f"thawline.{key}": value for key, value in tags.items()})
        mlflow.log_params(params)
        for key, value in metrics.items():
            mlflow.log_metric(key, value)
    return run.info.run_id


def minimal(uri: str, comparison: str, scores: dict[str, list[float]]) -> None:
    """The smallest set of keys of which a report can be made."""
    for place, (strategy, accuracies) in enumerate(scores.items()):
        common = {"comparison": comparison, "study": f"{comparison} {strategy}"}
        start(uri, {"kind": "study", "strategy": strategy, **common}, {}, {})
        for seed, accuracy in enumerate(accuracies):
            metrics = {"test_accuracy": accuracy, "trainable_params": 10.0 ** (3 + place)}
            start(uri, {"kind": "final", **common}, {"seed": seed}, metrics)


def text(report: reports.Report) -> str:
    return report.path.read_text(encoding="utf-8")


def test_the_documented_example_is_a_report(store, tmp_path, monkeypatch):
    """The example of the guide, run as it stands (with the address of a store of its own)."""
    code = GUIDE.read_text(encoding="utf-8").split("## Runs that were not made here")[1]
    code = code.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code.replace("http://127.0.0.1:5000", store), {})
    report = reports.build_report(store, reports_dir=tmp_path, comparison="ours")
    assert report.summary.startswith("Train **adapters**") and "highest score is that of everything" in report.summary
    assert text(report).count("Note: ") == 1 and "6 of 6 finals and floors have no readable" in text(report)


def test_minimal_keys_give_a_choice_with_an_interval(store, tmp_path):
    minimal(store, "minimal", {"small": [0.80, 0.81, 0.82], "large": [0.80, 0.815, 0.82]})
    report = reports.build_report(store, reports_dir=tmp_path, comparison="minimal")
    assert report.summary.startswith("Train **small**") and "with 1 k trainable parameters" in report.summary
    assert "highest score is that of large" in report.summary and "over 3 seeds" in report.summary
    assert report.path.with_name("accuracy_vs_parameters.svg") in report.files
    assert "Student's t over seeds" in text(report)
    assert not re.search(r"\b(nan|NaN|None|NaT)\b", text(report))
    assert text(report).startswith("# minimal: 2 strategies")  # neither a model nor a dataset is named
    figures = report_figures(reports.load_comparison(store, "minimal"), report.table, chosen="small")
    drawn = {text.get_text() for text in figures[0].figure.findobj(Text)}
    assert "minimal: what each trainable parameter buys" in drawn
    results = json.loads(report.path.with_name("results.json").read_text())
    assert results["model"] is None and results["dataset"] is None


def test_each_missing_key_is_named(store, tmp_path):
    minimal(store, "missing", {"a": [0.8, 0.81]})
    common = {"comparison": "missing", "study": "missing b"}
    start(store, {"kind": "study", "strategy": "b", **common}, {}, {})
    start(store, {"kind": "final", **common}, {}, {"test_accuracy": 0.7})
    start(store, {"kind": "final", **common}, {}, {"test_accuracy": 0.71})  # no seed, no trainable_params
    start(store, {"kind": "final", **common}, {"seed": 1}, {"test_accuracy": 81.2})  # percent
    start(store, {"kind": "final", "comparison": "missing", "study": "nobody's"}, {"seed": 1}, {"test_accuracy": 0.9})
    start(store, {"kind": "trial", "comparison": "missing"}, {}, {})
    start(store, {"comparison": "missing"}, {}, {})
    start(store, {"kind": "study", "comparison": "missing"}, {}, {})
    report = reports.build_report(store, reports_dir=tmp_path, comparison="missing")
    for note in (
        "2 finals of missing b have no param seed: only the newest of them counts",
        "1 run of kind final is left out: complete, but the metric test\\_accuracy is missing or no fraction",
        "1 run of kind final is left out: the tag thawline.study is missing, or no run of kind study",
        "1 run of kind trial is left out: the tag thawline.study is missing",
        "1 run is left out: the tag thawline.kind is none of study, trial, final, floor",
        "1 run of kind study is left out: the tag thawline.study is missing",
        "The finals of missing b have no metric trainable\\_params",
    ):
        assert note.replace("\\", "") in text(report).replace("\\", ""), note
    table = report.table.set_index("strategy")
    assert table.loc["b", "test_accuracy"] == 0.71 and table.loc["b", "seeds"] == 1


def test_finals_without_a_study_say_what_is_missing(tmp_path):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    start(store, {"kind": "final", "comparison": "lost", "study": "s"}, {"seed": 0}, {"test_accuracy": 0.8})
    with pytest.raises(ThawlineError, match=r"comparison 'lost' has 1 runs, but no run with all of the tags"):
        reports.load_comparison(store, "lost")
    start(store, {"kind": "study"}, {}, {})
    with pytest.raises(ThawlineError, match=r"has 1 studies, but no run with .* thawline\.comparison"):
        reports.load_comparison(store)


def test_states_follow_mlflow_where_no_tag_names_one(store):
    import mlflow

    minimal(store, "states", {"a": [0.8]})
    mlflow.set_tracking_uri(store)
    for status in ("FINISHED", "FAILED", "KILLED"):
        with mlflow.start_run() as run:
            mlflow.set_tags({"thawline.kind": "trial", "thawline.comparison": "states", "thawline.study": "states a"})
        mlflow.MlflowClient().set_terminated(run.info.run_id, status)
    trials = reports.load_comparison(store, "states").trials("states a")
    assert sorted(trials["state"]) == ["complete", "failed", "interrupted"]


def test_metrics_that_are_no_numbers_are_missing_ones(store, tmp_path):
    """A database keeps an infinity as the largest number that there is."""
    minimal(store, "odd", {"a": [0.8, 0.81], "b": [0.7, 0.71]})
    common = {"comparison": "odd", "study": "odd a"}
    nan, inf = float("nan"), float("inf")
    for trial, value in enumerate((nan, inf, -inf, 0.5)):
        metrics = {"best_validation_accuracy": value, "train_seconds": value, "train_loss": value}
        start(store, {"kind": "trial", **common}, {"trial": trial}, metrics)
    for seed, value in enumerate((nan, inf), start=7):
        start(store, {"kind": "final", **common}, {"seed": seed}, {"test_accuracy": value, "trainable_params": inf})
    report = reports.build_report(store, reports_dir=tmp_path, comparison="odd")
    row = report.table.set_index("strategy").loc["a"]
    assert row["test_accuracy"] == pytest.approx(0.805) and row["seeds"] == 2 and row["tuning_seconds"] == 0.5
    assert row["best_validation_accuracy"] == 0.5
    assert "2 runs of kind final are left out" in text(report)
    assert not re.search(r"\b(nan|NaN|inf)\b|e\+30[0-9]|\d{12}", text(report))


def test_labels_of_anybody_are_text(store, tmp_path):
    label = "a|b <script>alert(1)</script> =cmd('/C calc')!A0 [x](javascript:1)"
    name = "=cmd() | <script>"
    minimal(store, name, {label: [0.8, 0.81], "=1+1": [0.7, 0.71]})
    report = reports.build_report(store, reports_dir=tmp_path, comparison=name)
    assert "<script" not in text(report).replace("`", "")[: text(report).index("## Reproduce")]
    assert "a\\|b &lt;script&gt;" in text(report) and "](javascript" not in text(report).replace("\\]", "")
    assert report.path.parent.parent == tmp_path


def test_the_command_prints_labels_that_look_like_markup(store, tmp_path, capsys):
    """The console's own markup is square brackets, too."""
    for name in ("a[/x]b", "b[/x]c"):
        minimal(store, name, {"[bold]small[/x]": [0.80, 0.81], "la[/y]rge": [0.90, 0.91]})
    tags = {"study": "size", "comparison": "c[/x]d", "curve": "e[/x]f", "strategy": "la[/y]rge"}
    start(store, {"kind": "study", **tags}, {"train_size": 100}, {})
    start(store, {"kind": "final", **tags}, {"seed": 0, "train_size": 100}, {"test_accuracy": 0.8})
    for name in ("a[/x]b", ["a[/x]b", "b[/x]c"], "e[/x]f"):
        config = Config(output_dir=str(tmp_path), tracking=TrackingConfig(uri=store))
        config.report.comparison = name
        commands.report(config)
        printed = capsys.readouterr().out
        assert "la[/y]rge" in printed and (not isinstance(name, str) or name in printed)


def test_a_study_without_runs_is_a_report_that_chooses_nothing(store, tmp_path):
    minimal(store, "empty", {"a": []})
    report = reports.build_report(store, reports_dir=tmp_path, comparison="empty")
    assert report.summary.startswith("Nothing can be chosen yet")
    assert not [path for path in report.files if path.suffix == ".svg"]


def test_deleted_artifacts_leave_a_report_that_says_so(tmp_path):
    recorder = Recorder(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)
    study = recorder.study("c", "lora")
    for seed, accuracy in ((1, 0.80), (2, 0.82)):
        recorder.final("c", study, seed, accuracy, size=10)
    recorder.floor("c", "majority", 0.6)
    with_them = reports.build_report(recorder.uri, reports_dir=tmp_path)
    assert "with the variance over both" in text(with_them) and "no readable" not in text(with_them)
    shutil.rmtree(tmp_path / "art")
    without = reports.build_report(recorder.uri, reports_dir=tmp_path)
    assert without.summary.startswith("Train **lora**") and "Student's t over seeds" in text(without)
    assert "3 of 3 finals and floors have no readable predictions" in text(without)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    server = Server(tmp_path / "server")
    server.start()
    yield server.uri
    server.kill()


@pytest.mark.slow
def test_a_tracking_server_and_the_artifacts_that_it_serves(server, tmp_path):
    import mlflow

    minimal(server, "theirs", {"small": [0.80, 0.81], "large": [0.90, 0.91]})
    mlflow.set_tracking_uri(server)
    client = mlflow.MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments()]
    for run in client.search_runs(experiments, "tags.`thawline.kind` = 'final'"):
        accuracy, seed = run.data.metrics["test_accuracy"], int(run.data.params["seed"])
        client.log_text(run.info.run_id, predictions(accuracy, seed).to_csv(index=False), "predictions.csv")
    report = reports.build_report(server, reports_dir=tmp_path / "reports")
    assert report.summary.startswith("Train **large**") and "with the variance over both" in text(report)
    assert len(reports.load_comparison(server).predictions) == 4
    assert list((tmp_path / "server/files").rglob("predictions.csv"))  # they lie with the server alone
    with pytest.raises(ThawlineError, match="unknown comparison 'their': did you mean 'theirs'"):
        reports.load_comparison(server, "their")
