"""The real command line, Optuna and MLflow on a tiny budget: what a user types, and what is there afterwards."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import mlflow
import optuna
import pandas as pd
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tests.cli import TINY_SWEEP, command, piped, run, runs

TINY = [
    *TINY_SWEEP,
    "trainer.epochs=2",
    "final.seeds=2",
    "study.n_trials=3",
    "study.pruner=none",
]


def trials(output: Path) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{output / 'optuna.db'}"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> list[str]:
    return [*TINY, f"model.path={tiny_checkpoint}"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> tuple[Path, str]:
    """A finished sweep of three trials and two finals."""
    output = tmp_path_factory.mktemp("swept")
    return output, run(output, "sweep", "strategy=lora", *tiny)


def test_a_sweep_ends_with_its_table_report_and_next_step(swept: tuple[Path, str]) -> None:
    output, text = swept
    assert re.search(r"lora +[\d,]+ +0\.\d{3} +\[0\.\d{3}, 0\.\d{3}\]", text), text
    assert f"MLflow UI: thawline ui --output-dir {output}" in text
    path = Path(re.search(r"Report: +(\S+)", text).group(1))  # type: ignore[union-attr]
    assert path.is_relative_to(output)
    assert path.read_text().startswith("# ")
    files = {
        "accuracy_vs_parameters.svg",
        "confusion.svg",
        "report.html",
        "results.json",
        "comparison.csv",
        "trials.csv",
    }
    assert files <= {file.name for file in path.parent.iterdir()}
    assert f"{path.with_suffix('.html')}" in text and "Warning:" not in text
    (study,) = runs(output, kind="study")["run_id"]
    logged = mlflow.MlflowClient(f"sqlite:///{output / 'mlflow.db'}").list_artifacts(study, "report")
    assert {Path(file.path).name for file in logged} == {file.name for file in path.parent.iterdir()}
    assert "\x1b[" not in text, "no colours where nobody watches"


def test_a_trial_has_one_number_on_the_terminal_in_optuna_mlflow_and_the_report(swept: tuple[Path, str]) -> None:
    output, text = swept
    shown = re.findall(r"trial (\d+) \((\d)/3\) .* score (0\.\d+)", text)
    assert [(number, position) for number, position, _ in shown] == [("0", "1"), ("1", "2"), ("2", "3")], text
    assert [f"{trial.value:.4f}" for trial in trials(output)] == [score for _, _, score in shown]
    logged = runs(output, kind="trial").set_index("tags.mlflow.runName")["metrics.best_validation_accuracy"]
    assert {f"lora trial 00{number}": float(score) for number, _, score in shown} == logged.round(4).to_dict()
    (table,) = output.glob("reports/*/trials.csv")
    rows = pd.read_csv(table).set_index("trial")["best_validation_accuracy"]
    assert {int(number): float(score) for number, _, score in shown} == rows.round(4).to_dict()


def test_mlflow_holds_a_parent_and_its_children_by_the_schema(swept: tuple[Path, str]) -> None:
    output, _ = swept
    (parent,) = runs(output, kind="study").to_dict("records")
    children = runs(output, study=parent["tags.thawline.study"])
    children = children[children["run_id"] != parent["run_id"]]
    assert Counter(children["tags.thawline.kind"]) == {"trial": 3, "final": 2}
    assert set(children["tags.mlflow.parentRunId"]) == {parent["run_id"]}
    assert set(children["status"]) == {"FINISHED"}
    for key in ("train_loss", "validation_loss", "validation_accuracy", "train_samples_per_second", "train_seconds"):
        assert children[f"metrics.{key}"].notna().all(), key
    for key in ("trainable_params", "total_params", "trainable_pct", "peak_memory_mb", "stored_bytes", "best_epoch"):
        assert (children[f"metrics.{key}"] > 0).all(), key
    parts = children["metrics.trainable_params_head"] + children["metrics.trainable_params_backbone"]
    assert (parts == children["metrics.trainable_params"]).all()
    for key in ("learning_rate", "rank", "alpha_ratio", "strategy", "seed", "trial"):
        assert children[f"params.{key}"].notna().all(), key
    finals = children[children["tags.thawline.kind"] == "final"]
    assert finals["metrics.test_accuracy"].between(0, 1).all()
    assert children[children["tags.thawline.kind"] == "trial"]["metrics.test_accuracy"].isna().all()
    assert set(finals["params.seed"]).isdisjoint(set(children["params.seed"]) - set(finals["params.seed"]))


def test_epochs_are_steps(swept: tuple[Path, str]) -> None:
    output, _ = swept
    child = runs(output, kind="trial")["run_id"][0]
    history = mlflow.MlflowClient().get_metric_history(child, "validation_accuracy")
    assert [point.step for point in history] == [1, 2]


def test_the_study_run_carries_config_versions_and_data(swept: tuple[Path, str]) -> None:
    output, _ = swept
    parent = mlflow.get_run(runs(output, kind="study")["run_id"][0])
    names = {item.path for item in mlflow.MlflowClient().list_artifacts(parent.info.run_id)}
    assert {"config.yaml", "versions.json", "data_summary.json"} <= names
    contexts = {item.tags[0].value for item in parent.inputs.dataset_inputs}
    assert contexts == {"train", "validation", "test"}
    assert parent.data.tags["thawline.command"].startswith("python -m sweeper sweep strategy=lora")
    assert parent.data.metrics["trials_complete"] == 3


def test_the_best_validation_score_is_retrained(swept: tuple[Path, str]) -> None:
    output, _ = swept
    best = max(trials(output), key=lambda trial: trial.value or 0)
    assert set(runs(output, kind="final")["params.trial"]) == {str(best.number)}


def test_the_same_command_again_trains_nothing(swept: tuple[Path, str], tiny: list[str]) -> None:
    output, _ = swept
    before = runs(output)
    text = run(output, "sweep", "strategy=lora", *tiny)
    assert "3 of them finished earlier" in text
    assert runs(output)["run_id"].tolist() == before["run_id"].tolist()
    assert len(trials(output)) == 3


def test_the_winner_is_saved_with_its_label_names(swept: tuple[Path, str]) -> None:
    (folder,) = (swept[0] / "models").glob("*/")
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    assert model.config.id2label == {0: "rotten", 1: "fresh"}
    assert not [name for name, _ in model.named_parameters() if "lora" in name], "merged"
    classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    assert classify("a triumph")[0]["label"] in ("rotten", "fresh")


def test_report_is_rebuilt_from_mlflow_alone(swept: tuple[Path, str], tmp_path: Path) -> None:
    output, text = swept
    path = Path(re.search(r"Report: +(\S+)", text).group(1))  # type: ignore[union-attr]
    before = path.read_text()
    path.unlink()
    name = path.parent.name
    run(output, "report", f"report.comparison={name}")
    assert path.read_text() == before
    wrong = run(output, "report", f"report.comparison={name}x", status=2)
    assert f"unknown comparison '{name}x'" in wrong


def test_a_study_grows_and_repeats_nothing(swept: tuple[Path, str], tiny: list[str]) -> None:
    output, _ = swept
    run(output, "sweep", "strategy=lora", *tiny, "study.n_trials=5", "verbosity=quiet")
    drawn = [trial.params["learning_rate"] for trial in trials(output)]
    assert len(drawn) == len(set(drawn)) == 5
    (parent,) = runs(output, kind="study").to_dict("records")
    assert parent["metrics.trials_complete"] == 5
    assert parent["metrics.n_trials"] == 5


def test_ctrl_c_closes_everything_and_the_same_command_goes_on(tmp_path: Path, tiny: list[str]) -> None:
    arguments = ["sweep", "strategy=full", *tiny, "trainer.epochs=12", "study.n_trials=2", "final.seeds=1"]
    process = piped(tmp_path, *arguments, "verbosity=verbose")
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if "epoch 3/12" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 2, text + rest
    assert "stopped by SIGINT" in rest
    assert "Traceback" not in rest

    assert "RUNNING" not in set(runs(tmp_path)["status"])
    (parent,) = runs(tmp_path, kind="study").to_dict("records")
    assert parent["tags.thawline.state"] == "interrupted"
    (interrupted,) = trials(tmp_path)
    assert interrupted.state is optuna.trial.TrialState.FAIL

    text = run(tmp_path, *arguments)
    finished = [trial for trial in trials(tmp_path) if trial.state is optuna.trial.TrialState.COMPLETE]
    assert len(finished) == 2, "the interrupted trial does not count"
    assert [trial.number for trial in finished] == [1, 2] and "trial 1 (1/2)" in text and "trial 2 (2/2)" in text
    assert finished[0].params == interrupted.params, "it is tried again"
    assert len({trial.params["learning_rate"] for trial in finished}) == 2
    assert "RUNNING" not in set(runs(tmp_path)["status"])
    (parent,) = runs(tmp_path, kind="study").to_dict("records")
    assert parent["tags.thawline.state"] == "complete"
    assert parent["metrics.trials_interrupted"] == 1


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_running_after_the_next(tmp_path: Path, tiny: list[str]) -> None:
    arguments = ["sweep", "strategy=frozen", *tiny, "study.n_trials=2", "final.seeds=1"]
    process = piped(tmp_path, *arguments, "verbosity=verbose", "trainer.epochs=40")
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 2/40" in line:
            break
    process.kill()
    process.wait(timeout=30)
    assert [trial.state.name for trial in trials(tmp_path)] == ["RUNNING"]  # MLflow is told within a second or two
    run(tmp_path, *arguments, "trainer.epochs=40")
    assert "RUNNING" not in set(runs(tmp_path)["status"])
    assert Counter(trial.state.name for trial in trials(tmp_path)) == {"FAIL": 1, "COMPLETE": 2}


@pytest.mark.slow
def test_one_process_owns_the_output_folder(tmp_path: Path, tiny: list[str]) -> None:
    first = piped(tmp_path, "sweep", "strategy=full", *tiny, "trainer.epochs=2000", "verbosity=verbose")
    try:
        assert first.stdout is not None
        for line in first.stdout:
            if "epoch 1/2000" in line:
                break
        text = run(tmp_path, "sweep", "strategy=lora", *tiny, status=2)
        assert f"is in use by process {first.pid}" in text
        assert "output_dir=<folder>" in text
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=60)  # reads on: a full pipe would hold the process up
        assert first.returncode == 2


def test_diverged_trials_are_counted_and_the_study_says_what_to_do(tmp_path: Path, tiny: list[str]) -> None:
    space = "strategy.search_space.learning_rate={low: 1.0e+29, high: 1.0e+30}"
    text = run(tmp_path, "sweep", "strategy=full", *tiny, space, "trainer.max_grad_norm=1e30", status=2)
    assert "no trial of bert-review_lines-full-" in text
    assert "3 diverged: " in text
    assert "Search lower learning rates" in text
    assert runs(tmp_path, state="diverged")["tags.thawline.reason"].str.contains("loss is nan after epoch 1").all()
    assert len(runs(tmp_path, state="diverged", kind="trial")) == 3
    assert "RUNNING" not in set(runs(tmp_path)["status"])


def test_compare_writes_one_report_over_studies_of_equal_budgets(tmp_path: Path, tiny: list[str]) -> None:
    text = run(tmp_path, "compare", "strategy=frozen,full", *tiny, "study.n_trials=1", "final.seeds=1")
    studies = runs(tmp_path, kind="study")
    assert studies["tags.thawline.strategy"].tolist() == ["frozen", "full"]
    (comparison,) = set(studies["tags.thawline.comparison"])
    (report,) = (tmp_path / "reports").iterdir()
    assert report.name == comparison
    assert text.count("Report:") == 1
    seeds = runs(tmp_path, kind="final").groupby("tags.thawline.strategy")["params.seed"].apply(set)
    assert seeds["frozen"] == seeds["full"], "finals are paired by their seeds"
    assert len(runs(tmp_path, kind="floor")) == 2


@pytest.mark.slow
def test_zero_shot_is_a_reference_row_that_is_scored_once(tmp_path: Path, tiny: list[str]) -> None:
    small = [*tiny, "study.n_trials=1", "final.seeds=1"]
    text = run(tmp_path, "compare", "strategy=zero_shot,frozen", *small)
    assert re.search(r"zero-shot +0 +0\.\d{3} +\[0\.\d{3}, 0\.\d{3}\]", text), text
    (scored,) = runs(tmp_path, strategy="zero_shot").to_dict("records")
    assert scored["tags.thawline.kind"] == "floor"
    assert scored["metrics.trainable_params"] == 0
    (report,) = (tmp_path / "reports").glob("*/report.md")
    assert "| *zero-shot* | 0 |" in report.read_text()
    others = run(tmp_path, "sweep", "strategy=zero_shot", *small, "strategy.template='this } is {}'")
    assert "name another strategy beside it" in others
    assert "zero_shot: test accuracy" in others, "another template is another reference"
    assert len(runs(tmp_path, strategy="zero_shot")) == 2


def test_a_strategy_that_does_not_apply_is_named_before_anything_starts(tmp_path: Path, tiny: list[str]) -> None:
    text = run(tmp_path, "compare", "strategy=frozen,adapter,gradual", *tiny, "model.head=native", status=2)
    assert "error: 2 mistakes:" in text
    assert "strategy=adapter: " in text and "model.head=linear or mlp" in text
    assert "strategy=gradual: trainer.epochs=2: must be at least 3, one for each stage" in text
    assert not (tmp_path / "optuna.db").exists()


@pytest.mark.slow
def test_compare_checks_every_strategy_before_the_first_trial(tmp_path: Path, tiny: list[str]) -> None:
    text = run(tmp_path, "compare", "strategy=frozen,partial", *tiny, status=2)
    assert "strategy=partial: num_blocks=6: the model has 4 blocks" in text
    assert not (tmp_path / "optuna.db").exists()
    mended = "strategy.search_space.num_blocks.high=4"
    text = run(tmp_path, "compare", "strategy=frozen,partial", *tiny, mended, "dry_run=true")
    assert re.search(r"frozen +66 ", text) and re.search(r"partial +[\d,]+ to [\d,]+ ", text), text


def test_bad_input_gives_one_error_before_anything_starts(tmp_path: Path, tiny: list[str]) -> None:
    started = time.monotonic()
    text = run(tmp_path / "never", "sweep", "strategy=lorra", "study.n_trials=0", "trainer.epoch=3", status=2)
    assert text.startswith("error: 3 mistakes:")
    assert "Traceback" not in text
    assert time.monotonic() - started < 30
    text = run(tmp_path / "never", "sweep", "strategy=lora", *tiny, "strategy.rank=8", status=2)
    assert "strategy.rank=8 is fixed and searched at once" in text
    assert not (tmp_path / "never" / "optuna.db").exists()


def test_dry_run_shows_what_would_run_and_starts_nothing(tmp_path: Path, tiny: list[str]) -> None:
    text = run(tmp_path, "sweep", "strategy=lora", *tiny, "dry_run=true")
    for words in (
        "0.0003 to 0.005, log scale",
        "nothing is started",
        "trainable",
        "3 trials and 2 finals",
        "  study.n_trials=3\n",
        "  dataset.train_size=",
        "dataset=review_lines",
        "dropout 0.05",
    ):
        assert words in text, text
    for words in ("study.timeout", "label_descriptions", "search_space:"):
        assert words not in text, "what follows from the choices is left out"
    assert len(text.splitlines()) < 50 and text.rstrip().endswith("in all, from a few timed steps."), text
    whole = run(tmp_path, "sweep", "strategy=lora", *tiny, "dry_run=true", "--cfg=job")
    assert "  timeout: null\n" in whole and "nothing is started" not in whole
    assert not (tmp_path / "optuna.db").exists()
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.slow
def test_hydras_own_multirun_works(tmp_path: Path, tiny: list[str]) -> None:
    run(tmp_path, "-m", "strategy=frozen", "study.seed=1,2", *tiny, "study.n_trials=1", "final.seeds=1")
    assert len(runs(tmp_path, kind="study")) == 2


@pytest.mark.slow
def test_studies_go_side_by_side_through_hydras_joblib(tmp_path: Path, tiny: list[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path / 'hydra'}"]
    arguments = [*launcher, "strategy=frozen,zero_shot", *tiny, "study.n_trials=1", "final.seeds=1"]
    subprocess.run(command(tmp_path / "${hydra:job.num}", *arguments), check=True, timeout=250)
    assert list(runs(tmp_path / "0", kind="final")["tags.thawline.strategy"]) == ["frozen"]
    assert list(runs(tmp_path / "1", kind="floor", strategy="zero_shot")["tags.thawline.state"]) == ["complete"]


@pytest.mark.slow
def test_studies_are_jobs_of_submitit(tmp_path: Path, tiny: list[str]) -> None:
    """On this machine as on Slurm, whose own settings are composed and not sent."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    given = [*tiny, "study.n_trials=1", "final.seeds=1", f"hydra.sweep.dir={tmp_path / 'hydra'}"]
    local = ["-m", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10", "strategy=frozen,bitfit"]
    subprocess.run(command(tmp_path / "${hydra:job.num}", *local, *given), check=True, timeout=250)
    for number, strategy in enumerate(("frozen", "bitfit")):
        assert list(runs(tmp_path / str(number), kind="final")["tags.thawline.strategy"]) == [strategy]
    slurm = ["hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=2", "strategy=full"]
    composed = run(tmp_path / "slurm", *slurm, *given, "--cfg=hydra")
    assert "gpus_per_node: 2" in composed and "SlurmLauncher" in composed


@pytest.mark.timeout(600)
def test_the_real_thing_on_embedded_weights_and_data(tmp_path: Path) -> None:
    """MiniLM on review lines through `experiment=smoke`, by a user in another folder."""
    text = run(tmp_path / "outputs", "compare", "strategy=frozen,lora,partial,full", "experiment=smoke", cwd=tmp_path)
    (report,) = (tmp_path / "outputs" / "reports").glob("*/report.md")
    page = report.read_text()
    for strategy in ("frozen", "lora", "partial", "full"):
        assert re.search(rf"\|[^|\n]*{strategy}[^|\n]*\|", page), strategy
        assert strategy in text
    assert "TF-IDF" in page
    assert "python -m sweeper compare" in page
    finals = runs(tmp_path / "outputs", kind="final")
    sizes = finals.groupby("params.strategy")["metrics.trainable_params"].first()
    assert sizes["frozen"] == 770
    assert sizes["full"] == 22_566_146
    assert len(runs(tmp_path / "outputs", kind="floor")) == 2


def test_help_names_commands_and_options_and_loads_nothing_heavy() -> None:
    code = "import sys; from sweeper.__main__ import main; main(); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    for name in ("compare", "strategy=", "lora", "minilm", "review_lines", "--cfg job"):
        assert name in done.stdout
