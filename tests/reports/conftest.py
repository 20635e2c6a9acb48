"""A real MLflow store with synthetic comparisons of known truth, logged by ``sweeper.schema`` as the engine does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sweeper import schema
from tests.cli import give_database

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

KNOWN, EQUAL, SINGLE, FAILURES, HOSTILE = "c-known", "c-equal", "c-single", "c-failures", "../../it's <b>&|"
SPLITS = {schema.PARAM_TRAIN_SIZE: 1000, schema.PARAM_VALIDATION_SIZE: 500, schema.PARAM_TEST_SIZE: 2000}


def predictions(
    accuracy: float, seed: int, n_items: int = 2000, names: tuple[str, str] = ("fresh", "NA")
) -> pd.DataFrame:
    """Predictions with exactly this accuracy; items share their difficulty across strategies, groups are films."""
    easy = np.random.default_rng(0).random(n_items)
    noisy = easy + 0.35 * np.random.default_rng(seed).random(n_items)
    right = np.zeros(n_items, dtype=bool)
    right[np.argsort(noisy)[: round(accuracy * n_items)]] = True
    labels = np.where(np.arange(n_items) % 2, *names)
    other = np.where(np.arange(n_items) % 2, *reversed(names))
    return pd.DataFrame(
        {
            "item": [f"i{i}" for i in range(n_items)],
            "group": [f"film {i // 20}" for i in range(n_items)],
            "label": labels,
            "prediction": np.where(right, labels, other),
            "probability": 0.9,
        }
    )


@dataclass
class Recorder:
    """Logs runs as the engine does; every call is one run, each later than the one before."""

    uri: str
    folder: Path
    experiment: str = ""
    clock: int = 1_700_000_000_000

    def __post_init__(self) -> None:
        from mlflow import MlflowClient

        if self.uri == f"sqlite:///{self.folder / 'mlflow.db'}":
            give_database(self.folder)
        self.client = MlflowClient(self.uri)
        self.experiment = self.client.create_experiment("thawline", artifact_location=(self.folder / "art").as_uri())

    def log(
        self,
        kind: str,
        comparison: str,
        *,
        study: str | None = None,
        strategy: str | None = None,
        state: str = schema.STATE_COMPLETE,
        tags: dict[str, str] | None = None,
        params: dict[str, Any] | None = None,
        metrics: dict[str, float] | None = None,
        artifacts: dict[str, str] | None = None,
    ) -> str:
        from mlflow.entities import Metric, Param

        self.clock += 1000
        given = {
            schema.TAG_SCHEMA: schema.SCHEMA_VERSION,
            schema.TAG_KIND: kind,
            schema.TAG_COMPARISON: comparison,
            schema.TAG_STUDY: study,
            schema.TAG_STATE: state,
            schema.TAG_STRATEGY: strategy,
            schema.TAG_MODEL: "minilm",
            schema.TAG_DATASET: "review_lines",
            **(tags or {}),
        }
        run = self.client.create_run(
            self.experiment, start_time=self.clock, tags={k: v for k, v in given.items() if v is not None}
        )
        run_id = run.info.run_id
        if params or metrics:
            now = int(time.time() * 1000)
            self.client.log_batch(
                run_id,
                metrics=[Metric(k, v, now, 0) for k, v in (metrics or {}).items()],
                params=[Param(k, str(v)) for k, v in (params or {}).items()],
            )
        for name, text in (artifacts or {}).items():
            self.client.log_text(run_id, text, name)
        if state != schema.STATE_RUNNING:
            self.client.set_terminated(run_id, schema.MLFLOW_STATUS[state], end_time=self.clock + 500)
        return run_id

    def study(self, comparison: str, strategy: str, *, winner: str | None = "c1", name: str = "", **more: Any) -> str:
        """A study run; returns the study's name."""
        study = name or f"minilm-review_lines-{strategy}-{comparison.strip('./')[:9]}"
        tags = {
            schema.TAG_COMMAND: f"make sweep STRATEGY={strategy} TRIALS=4",
            schema.TAG_GIT: "0a1b2c3",
            schema.TAG_FINGERPRINT: "sha256:feed",
            schema.TAG_WINNER: winner,
        }
        params = {
            schema.PARAM_METRIC: "validation_accuracy",
            schema.PARAM_SAMPLER: "tpe",
            schema.PARAM_PRUNER: "median",
            schema.PARAM_SEARCHED: "learning_rate,rank",
            **SPLITS,
        }
        summary = {
            "sizes": {"train": 1000, "validation": 500, "test": 2000},
            "truncated": {"train": 7, "test": 0},
            "groups": {"train": 300, "validation": None, "test": 100},
            "class_counts": {
                "train": {"fresh": 620, "rot|ten <script>": 380},
                "test": {"fresh": 1000, "rot|ten <script>": 1000},
            },
            "warnings": ["12 duplicate texts | dropped"],
        }
        self.log(
            schema.KIND_STUDY,
            comparison,
            study=study,
            strategy=strategy,
            tags=tags | more.pop("tags", {}),
            params=params | more.pop("params", {}),
            metrics={schema.TUNING_SECONDS: 72.0, schema.N_TRIALS: 4.0, schema.FINAL_SEEDS: 3.0}
            | more.pop("metrics", {}),
            artifacts={
                schema.ARTIFACT_CONFIG: f"strategy: {strategy}\n",
                schema.ARTIFACT_VERSIONS: json.dumps({"torch": "2.15.0", "python": "3.11.7"}),
                schema.ARTIFACT_DATA_SUMMARY: json.dumps(summary | more.pop("summary", {})),
            }
            | more.pop("artifacts", {}),
            **more,
        )
        return study

    def trial(self, comparison: str, study: str, number: int, *, score: float = 0.7, **more: Any) -> str:
        strategy = study.split("-")[2]
        state = more.get("state", schema.STATE_COMPLETE)
        metrics = {schema.TRAIN_SECONDS: 18.0}
        if state == schema.STATE_COMPLETE:
            metrics |= {schema.BEST_VALIDATION_ACCURACY: score, schema.BEST_EPOCH: 2.0}
        params = {
            schema.PARAM_TRIAL: number,
            schema.PARAM_EPOCHS: 4,
            "learning_rate": 3.123e-4 * (number + 1),
            "rank": 8,
        }
        params |= {schema.PARAM_DEVICE: "cpu", schema.PARAM_PRECISION: "fp32"} | more.pop("params", {})
        return self.log(
            schema.KIND_TRIAL, comparison, study=study, strategy=strategy, params=params, metrics=metrics, **more
        )

    def final(
        self,
        comparison: str,
        study: str,
        seed: int,
        accuracy: float,
        *,
        size: int,
        winner: str = "c1",
        logged: bool = True,
        params: dict[str, Any] | None = None,
        metrics: dict[str, float] | None = None,
        artifacts: dict[str, str] | None = None,
        **more: Any,
    ) -> str:
        metrics = {
            schema.TEST_ACCURACY: accuracy,
            schema.TEST_MACRO_F1: accuracy - 0.01,
            schema.TRAIN_SECONDS: 20.0,
            schema.TRAINABLE_PARAMS: size,
            schema.TRAINABLE_PARAMS_HEAD: min(size, 770),
            schema.TRAINABLE_PARAMS_BACKBONE: max(0, size - 770),
            schema.TOTAL_PARAMS: 22_700_000,
            schema.TRAINABLE_PCT: 100 * size / 22_700_000,
            schema.STORED_BYTES: 4 * size,
            **(metrics or {}),
        }
        table = predictions(accuracy, seed * 7 + len(study))
        return self.log(
            schema.KIND_FINAL,
            comparison,
            study=study,
            strategy=study.split("-")[2],
            tags={schema.TAG_WINNER: winner} | more.pop("tags", {}),
            params={schema.PARAM_SEED: seed, schema.PARAM_TRIAL: 1, **SPLITS, **(params or {})},
            metrics=metrics,
            artifacts=({schema.ARTIFACT_PREDICTIONS: table.to_csv(index=False)} if logged else {}) | (artifacts or {}),
            **more,
        )

    def epochs(self, run_id: str, **curves: Sequence[float]) -> None:
        """Log metrics epoch by epoch, the first one as epoch 1."""
        from mlflow.entities import Metric

        points = [
            Metric(name, value, self.clock, epoch)
            for name, values in curves.items()
            for epoch, value in enumerate(values, start=1)
        ]
        self.client.log_batch(run_id, metrics=points)

    def floor(self, comparison: str, name: str, accuracy: float) -> str:
        return self.log(
            schema.KIND_FLOOR,
            comparison,
            params={schema.PARAM_FLOOR: name, **SPLITS},
            metrics={schema.TEST_ACCURACY: accuracy, schema.TEST_MACRO_F1: accuracy - 0.02},
            artifacts={schema.ARTIFACT_PREDICTIONS: predictions(accuracy, 99).to_csv(index=False)},
        )


def _record_known(recorder: Recorder) -> None:
    """frozen is clearly worse; lora and full have equal scores; something of every kind went wrong in lora."""
    for strategy, size, scores in (
        ("full", 22_700_000, (0.812, 0.806, 0.815)),
        ("frozen", 770, (0.7515, 0.7505, 0.7525)),
        ("lora", 148_226, (0.8115, 0.8085, 0.811)),
    ):
        study = recorder.study(KNOWN, strategy)
        states = [schema.STATE_COMPLETE] * 4
        if strategy == "lora":
            states[2:] = [schema.STATE_PRUNED, schema.STATE_DIVERGED]
        for number, state in enumerate(states):
            reason = {schema.TAG_REASON: "loss | is <script>alert(1)</script>\nnan"} if state != "complete" else {}
            recorder.trial(KNOWN, study, number, score=0.70 + 0.02 * (number == 1), state=state, tags=reason)
        for seed, score in enumerate(scores, start=1000):
            recorder.final(KNOWN, study, seed, score, size=size)
    recorder.floor(KNOWN, "majority", 0.62)
    recorder.floor(KNOWN, "tfidf_logreg", 0.72)


def _record_equal(recorder: Recorder) -> None:
    """Three strategies with one true accuracy; one of them trains nothing; one was cut short by its timeout."""
    for strategy, size, score in (("zero", 0, 0.80), ("prompt", 5_000, 0.8035), ("bitfit", 40_000, 0.798)):
        timeout = strategy == "bitfit"
        state = schema.STATE_TIMEOUT if timeout else schema.STATE_COMPLETE
        study = recorder.study(EQUAL, strategy, state=state)
        for number in range(3 if timeout else 4):
            recorder.trial(EQUAL, study, number)
        for seed in (1000, 1001):
            recorder.final(EQUAL, study, seed, score + 0.001 * (seed - 1000), size=size)


def _record_single(recorder: Recorder) -> None:
    """One strategy whose study grew: finals of an older winner, a repeated one, a failed one."""
    study = recorder.study(SINGLE, "lora", winner="new")
    for number in range(2):
        recorder.trial("c-before-it-grew", study, number, score=0.7 + 0.1 * number)
    recorder.trial(SINGLE, study, 2, state=schema.STATE_INTERRUPTED, tags={schema.TAG_REASON: "SIGTERM"})
    recorder.trial(SINGLE, study, 2)
    recorder.trial(SINGLE, study, 2)  # the same trial, mirrored twice
    for seed in (1000, 1001, 1002):
        recorder.final("c-before-it-grew", study, seed, 0.99, size=148_226, winner="old")
    for seed, score in ((1000, 0.99), (1000, 0.80), (1001, 0.81)):
        recorder.final(SINGLE, study, seed, score, size=148_226, winner="new", logged=False)
    recorder.log(
        schema.KIND_FINAL,
        SINGLE,
        study=study,
        strategy="lora",
        state=schema.STATE_FAILED,
        tags={schema.TAG_WINNER: "new", schema.TAG_REASON: "out of memory"},
        params={schema.PARAM_SEED: 1002},
    )
    recorder.floor(SINGLE, "tfidf_logreg", 0.72)


def _record_failures(recorder: Recorder) -> None:
    study = recorder.study(FAILURES, "full", winner=None, state=schema.STATE_FAILED)
    for number in range(2):
        recorder.trial(FAILURES, study, number, state=schema.STATE_FAILED, tags={schema.TAG_REASON: "out of memory"})
    recorder.log(schema.KIND_TRIAL, FAILURES, study=study, strategy="full", state=schema.STATE_RUNNING)


def _record_hostile(recorder: Recorder) -> None:
    study = recorder.study(HOSTILE, "a|b <img src=x> $x$ `c`", name="m-d-a|b <img src=x> $x$ `c`-1", winner="c1")
    recorder.trial(HOSTILE, study, 0, params={"rank": "`|x"})
    recorder.final(HOSTILE, study, 1000, 0.8, size=10)


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """The one store of these tests; comparisons are recorded in this order, so HOSTILE is the newest."""
    folder = tmp_path_factory.mktemp("mlflow")
    recorder = Recorder(f"sqlite:///{folder / 'mlflow.db'}", folder)
    for record in (_record_known, _record_equal, _record_single, _record_failures, _record_hostile):
        record(recorder)
    return recorder


@pytest.fixture(scope="session")
def uri(recorder: Recorder) -> str:
    return recorder.uri
