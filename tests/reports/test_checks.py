"""The checks: each one warns of what it is for, and a sound comparison gives no warning at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import reports
from reports.checks import evidence_of, find_warnings
from reports.tables import accounting_table, comparison_table
from sweeper import schema
from tests.reports.conftest import EQUAL, FAILURES, HOSTILE, KNOWN, SINGLE, Recorder, predictions

SOUND, WRONG = "c-sound", "c-wrong"
SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "rank": {"choices": [4, 8, 16, 32]},
    "dropout": {"low": 0.0, "high": 0.3},
    "alpha_ratio": {"low": 2, "high": 4, "step": 1},
}
#: Rises and levels out; the loss falls.
LEVEL = {"validation_accuracy": [0.70, 0.79, 0.80], "validation_loss": [0.60, 0.50, 0.49]}


def study(
    recorder: Recorder,
    comparison: str,
    strategy: str,
    *,
    accuracy: float = 0.80,
    validation: float = 0.80,
    curves: dict[str, list[float]] = LEVEL,
    rate: float = 1e-3,
    rank: int = 8,
    batch: int = 32,
    expected: int = 5_000,
    table: Any = None,
    diverged: bool = False,
    warnings: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (1000, 1001),
    kept: float = 2.0,
) -> None:
    """A study of two trials and two finals with nothing wrong but what is asked for; ``kept`` is their epoch."""
    name = recorder.study(
        comparison,
        strategy,
        summary={"warnings": list(warnings), "label_names": ["rotten", "fresh"]},
        artifacts={schema.ARTIFACT_SEARCH_SPACE: json.dumps(SPACE)},
    )
    searched = {"learning_rate": rate, "rank": rank, "dropout": 0.0, "alpha_ratio": 4}
    for number in range(2):
        state = schema.STATE_DIVERGED if diverged and number == 0 else schema.STATE_COMPLETE
        recorder.trial(comparison, name, number, score=validation - 0.01 * (number != 1), params=searched, state=state)
    for seed in seeds:
        artifacts = {} if table is None else {schema.ARTIFACT_PREDICTIONS: table.to_csv(index=False)}
        run = recorder.final(
            comparison,
            name,
            seed,
            accuracy,
            size=5_000,
            params={schema.PARAM_EPOCHS: 3, schema.PARAM_BATCH_SIZE: batch},
            metrics={
                schema.BEST_VALIDATION_ACCURACY: validation,
                schema.EPOCHS_RUN: 3.0,
                schema.BEST_EPOCH: kept,
                schema.EXPECTED_TRAINABLE_PARAMS: expected,
            },
            artifacts=artifacts,
        )
        recorder.epochs(run, **curves)
    if diverged:
        recorder.log(
            schema.KIND_FINAL,
            comparison,
            study=name,
            strategy=strategy,
            state=schema.STATE_DIVERGED,
            params={schema.PARAM_SEED: 1002},
        )


def warnings_of(recorder: Recorder, comparison: str) -> list[str]:
    loaded = reports.load_comparison(recorder.uri, comparison)
    return find_warnings(evidence_of(loaded, comparison_table(loaded)))


@pytest.fixture(scope="module")
def found(recorder: Recorder) -> list[str]:
    """The warnings of a comparison in which every check has something to find."""
    single = predictions(0.62, 0).assign(label=["1"] * 1240 + ["0"] * 760, prediction="1")
    blind = single.assign(prediction=["1"] * 1240 + ["0"] * 10 + ["1"] * 750)
    study(recorder, WRONG, "poor", accuracy=0.68, validation=0.68)
    study(recorder, WRONG, "blind", accuracy=0.625, validation=0.62, table=blind)
    study(recorder, WRONG, "collapsed", accuracy=0.62, validation=0.62, table=single)
    study(recorder, WRONG, "miscounted", expected=4_990, rate=9.9e-3)
    study(recorder, WRONG, "gap", validation=0.86, batch=512)
    study(recorder, WRONG, "easier", validation=0.70)
    study(recorder, WRONG, "unstable", diverged=True)
    study(recorder, WRONG, "rising", curves={**LEVEL, "validation_accuracy": [0.60, 0.70, 0.75]}, rank=32)
    study(recorder, WRONG, "short", seeds=(1000, 1001, 1002), kept=3.0)  # one in 27 of what has no trend
    loss = [0.50, 0.49, 0.60]
    study(recorder, WRONG, "sure", curves={**LEVEL, "validation_loss": loss}, warnings=("12 texts | <i> twice.",))
    recorder.floor(WRONG, "majority", 0.62)
    recorder.floor(WRONG, "tfidf_logreg", 0.72)
    return warnings_of(recorder, WRONG)


@pytest.mark.parametrize(
    ("begins", "says"),
    [
        ("poor scores below", "TF-IDF + logistic regression floor (difference \N{MINUS SIGN}0.040 ["),
        ("collapsed: 2 of 2 finals collapsed", "every test item is predicted as fresh"),
        ("blind hardly ever finds rotten (recall 0.013, 760 test items)", "`study.metric=validation_macro_f1`"),
        ("miscounted trains 5,000 parameters", "its method gives 4,990"),
        (
            "gap: its finals reach validation accuracy 0.860, test accuracy 0.800",
            "the choice among 2 trials explain 0.0",
        ),
        ("short may not have trained to the end: all 3 finals kept the last epoch", "epoch 3 brought 1.0 points"),
        ("easier: its finals reach validation accuracy 0.700", "the test split may be easier"),
        ("unstable: 1 of 3 finals diverged", "has no score"),
        ("unstable: 1 of 2 trials diverged", "diverged (learning rate 0.001): that part"),
        ("rising was still improving", "epoch 3 brought 5.0 points"),
        ("gap trained for 6 optimiser steps only", "batches of 512, 3 epochs"),
        ("miscounted: the best `learning_rate`, 0.0099", "`strategy.search_space.learning_rate.high`"),
        (
            "rising: the best `rank`, 32",
            "(4 to 32): better values may lie beyond; widen `strategy.search_space.rank.choices`",
        ),
        (
            "sure: the mean validation loss of 2 finals rises from 0.490 (epoch 2) to",
            "accuracy goes from 0.790 to 0.800",
        ),
        ("12 texts \\| &lt;i&gt;", "twice."),
    ],
)
def test_what_is_wrong_is_said(found: list[str], begins: str, says: str) -> None:
    said = [sentence for sentence in found if sentence.startswith(begins)]
    assert len(said) == 1, found
    assert says in said[0]


def test_nothing_else_is_said_and_the_most_serious_comes_first(found: list[str]) -> None:
    places = [next(i for i, s in enumerate(found) if word in s) for word in ("poor", "2 of 2", "12 texts", "`rank`")]
    assert places == sorted(places) and places[0] == 0
    assert len(found) == 17  # those above, and that the collapsed one and the blind one score below TF-IDF


def test_a_sound_comparison_has_no_warnings(recorder: Recorder) -> None:
    study(recorder, SOUND, "lora")
    study(recorder, SOUND, "full", accuracy=0.79, validation=0.82)  # within sampling and choosing
    recorder.floor(SOUND, "majority", 0.62)
    recorder.floor(SOUND, "tfidf_logreg", 0.72)
    assert warnings_of(recorder, SOUND) == []


def test_a_diverged_final_of_an_older_winner_is_not_one_of_the_chosen_configuration(recorder: Recorder) -> None:
    study(recorder, "c-grown", "lora")
    for winner, seed in (("old", 1000), ("c1", 1002)):
        recorder.log(
            schema.KIND_FINAL,
            "c-grown",
            study="minilm-review_lines-lora-c-grown",
            strategy="lora",
            state=schema.STATE_DIVERGED,
            tags={schema.TAG_WINNER: winner},
            params={schema.PARAM_SEED: seed},
        )
    (said,) = warnings_of(recorder, "c-grown")
    assert said.startswith("lora: 1 of 3 finals diverged and has no score")
    assert list(accounting_table(reports.load_comparison(recorder.uri, "c-grown"))["finals_failed"]) == [1]


def test_an_end_of_few_values_and_a_small_last_gain_may_be_chance(recorder: Recorder) -> None:
    """Of four values an end needs the second-best trial, too; a gain needs two standard errors, here 3.6 points."""
    rises = {**LEVEL, "validation_accuracy": [0.70, 0.775, 0.80]}
    study(recorder, "c-chance", "lora", rank=32, curves=rises, kept=3.0)  # both finals keep it: one in 9
    searched = {"learning_rate": 1e-3, "rank": 8, "dropout": 0.0, "alpha_ratio": 4}
    recorder.trial("c-chance", "minilm-review_lines-lora-c-chance", 2, score=0.795, params=searched)
    assert warnings_of(recorder, "c-chance") == []


def test_no_better_than_the_most_frequent_class_is_said_at_the_top_of_the_report(
    recorder: Recorder, tmp_path: Path
) -> None:
    study(recorder, "c-majority", "lora", accuracy=0.625, validation=0.625)
    recorder.floor("c-majority", "majority", 0.62)
    report = reports.build_report(recorder.uri, reports_dir=tmp_path, comparison="c-majority")
    (said,) = report.warnings
    assert said.startswith("lora is not shown to be better than always guessing")
    text = report.path.read_text(encoding="utf-8")
    assert text.index("## Warnings") < text.index(f"- {said}") < text.index("## Result")


def test_records_that_lack_everything_are_no_reason_to_warn(uri: str) -> None:
    """Foreign runs: no epochs, no spaces, no sizes. A check that cannot look stays silent."""
    for name in (KNOWN, EQUAL, SINGLE, FAILURES, HOSTILE):
        loaded = reports.load_comparison(uri, name)
        said = find_warnings(evidence_of(loaded, comparison_table(loaded)))
        assert [s for s in said if "duplicate texts" not in s and "diverged" not in s] == []
