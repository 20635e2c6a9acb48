"""The chosen model in MLflow's registry: once for each set of weights, under an alias that follows the choice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from strategies import STRATEGIES
from sweeper.errors import StudyError
from sweeper.models.predictor import Predictor
from sweeper.objective import Task
from sweeper.registry import ALIAS, register
from sweeper.search_space import StrategySpec
from tests.cli import TINY_SWEEP, give_database, run
from tests.tasks import load_task


@pytest.fixture(scope="module")
def task(tiny_checkpoint: Path) -> Task:
    return load_task(tiny_checkpoint, (32, 24, 24), max_length=30)


def save(task: Task, folder: Path, seed: int) -> Path:
    spec = StrategySpec(STRATEGIES["frozen"], {"learning_rate": 1e-2}, {})
    task.save(task.run(spec, {}, seed=seed), folder)
    return folder


def test_a_model_is_registered_once_and_the_alias_follows_the_choice(task: Task, tmp_path: Path) -> None:
    give_database(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("thawline", (tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment, tags={"thawline.study": "a-study"}).info.run_id
    client.set_terminated(run_id, end_time=1234)
    first, second = save(task, tmp_path / "first", 0), save(task, tmp_path / "second", 1)
    assert register(uri, first, "a-comparison", run_id) == "1"
    assert register(uri, second, "a-comparison", run_id) == "2"
    assert register(uri, first, "a-comparison", run_id) == "1"
    assert client.get_model_version_by_alias("a-comparison", ALIAS).version == 1
    assert client.get_run(run_id).info.end_time == 1234, "the run is as it was"
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model(f"models:/a-comparison@{ALIAS}")
    assert model.metadata.signature is not None and model.metadata.saved_input_example_info is not None
    texts = list(task.dataset.test.inputs)
    found, expected = model.predict([{"text": text} for text in texts]), Predictor.load(first).predict(texts)
    assert found["label"].tolist() == expected["label"].tolist()
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-6)


def test_a_store_that_takes_no_model_is_said_and_the_model_stays(task: Task, tmp_path: Path) -> None:
    folder = save(task, tmp_path / "model", 0)
    (tmp_path / "mlflow.db").write_text("no database")
    with pytest.raises(StudyError, match=r"was not registered in MLflow at sqlite.*\n?") as raised:
        register(f"sqlite:///{tmp_path / 'mlflow.db'}", folder, "a-comparison", "0123")
    assert "tracking.register=false" in raised.value.hint
    assert Predictor.load(folder).labels


@pytest.mark.slow
def test_a_sweep_registers_what_it_chose_and_the_scoring_server_answers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tiny = [*TINY_SWEEP, f"model.path={tiny_checkpoint}", "study.n_trials=1", "trainer.epochs=1", "final.seeds=1"]
    given = ["sweep", "strategy=frozen", *tiny, "tracking.register=true"]
    assert "@chosen in MLflow's registry, version 1" in run(tmp_path, *given)
    assert "@chosen in MLflow's registry, version 1" in run(tmp_path, *given), "the same weights again"
    command = [sys.executable, "-m", "sweeper", "serve", "--output-dir", str(tmp_path), "--port", "5917"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            body = json.dumps({"dataframe_records": [{"text": "a triumph"}, {"text": ""}]}).encode()
            request = urllib.request.Request(
                "http://127.0.0.1:5917/invocations", body, {"Content-Type": "application/json"}
            )
            for _ in range(120):
                try:
                    with urllib.request.urlopen(request, timeout=30) as response:
                        answer = json.load(response)
                    break
                except OSError:
                    assert server.poll() is None, "the server ended"
                    time.sleep(1)
        finally:
            server.terminate()
    assert server.wait(60) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(request, timeout=5)
    labels = [row["label"] for row in answer["predictions"]]
    assert labels == Predictor.load(next((tmp_path / "models").glob("*/"))).predict(["a triumph", ""])["label"].tolist()
