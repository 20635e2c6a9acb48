"""What a report tabulates, as DataFrames of plain values (NaN where unknown); ``render`` turns them into markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from reports.formats import is_missing
from reports.load import FINISHED, Comparison, best_trial
from reports.stats import SeedScores, accuracy_interval, seed_scores
from sweeper import schema

__all__ = [
    "ACCOUNT_STATES",
    "UNEVEN",
    "accounting_table",
    "comparison_table",
    "drift_table",
    "earlier_finals",
    "floor_scores",
    "hyperparameters_table",
    "per_class_table",
    "shifted_scores",
    "shifted_table",
    "single_class_finals",
    "size_table",
    "strategy_scores",
    "uneven_finals",
]

UNEVEN = 0.25  # of the time of equal runs; what more than that is apart was not measured alike
#: Columns of the accounting table that count trials, in this order.
ACCOUNT_STATES = (
    schema.STATE_COMPLETE,
    schema.STATE_PRUNED,
    schema.STATE_DIVERGED,
    schema.STATE_FAILED,
    schema.STATE_INTERRUPTED,
    schema.STATE_RUNNING,
)
_SHIFTED_COLUMNS = (schema.SHIFTED_ACCURACY, "shifted_accuracy_low", "shifted_accuracy_high")


def strategy_scores(comparison: Comparison) -> dict[str, SeedScores]:
    """Strategy label -> the test scores of its counted finals; empty scores where there are none."""
    return {
        study["label"]: seed_scores(comparison.finals(study["study"]), comparison.predictions)
        for _, study in comparison.studies.iterrows()
    }


def floor_scores(comparison: Comparison) -> dict[str, SeedScores]:
    """Floor name -> its test score."""
    return {
        str(name): seed_scores(rows, comparison.predictions, fixed=True)
        for name, rows in comparison.floors.groupby(schema.PARAM_FLOOR)
    }


def single_class_finals(comparison: Comparison, study: str) -> tuple[list[str], int]:
    """The class of each counted final that predicts one class only where there are several, and how many were read."""
    runs = comparison.finals(study)["run_id"]
    read = [comparison.predictions[run] for run in runs if run in comparison.predictions]
    single = [table for table in read if table["prediction"].nunique() == 1 and table["label"].nunique() > 1]
    return [str(table["prediction"].iloc[0]) for table in single], len(read)


def comparison_table(comparison: Comparison, confidence: float = 0.95) -> pd.DataFrame:
    """One row per strategy, fewest trainable parameters first, then one row per floor.

    Columns: ``strategy`` (a floor's name in its row), ``kind`` (``strategy`` or ``floor``), ``trainable_params`` (of
    the stage that trains the most) with its ``_mean`` over epochs and its ``_head`` and ``_backbone`` parts,
    ``total_params``, ``trainable_pct``, ``test_accuracy`` with ``_low`` and ``_high``, ``interval_method``,
    ``test_macro_f1``, ``seeds`` (finals counted), ``seeds_asked``, ``best_validation_accuracy`` (of the winning trial),
    ``validation_accuracy`` (mean over the finals, at the epochs kept), ``train_seconds`` (mean per final) and
    ``trial_seconds`` (median of the complete trials), each with ``_least`` and ``_most``, ``tuning_seconds``,
    ``recorded_seconds`` (what recording took of the states that finals read, most of them; NaN where none were),
    ``trials`` (finished), ``stored_bytes``, ``peak_memory_mb`` (highest of the finals), ``test_samples_per_second``
    (median of the finals), ``shifted_accuracy`` with ``_low`` and ``_high`` (NaN without shifted data). Sizes come from
    the finals, from the winning trial where there are none.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    scores = strategy_scores(comparison)
    shifted = shifted_scores(comparison)
    rows = [_strategy_row(comparison, study, scores[study["label"]], confidence) for _, study in _studies(comparison)]
    for row in rows:
        score = shifted.get(str(row["strategy"]))
        given = None if score is None else accuracy_interval(score, confidence=confidence)
        values = (math.nan,) * 3 if given is None else (given.mean, given.low, given.high)
        row |= dict(zip(_SHIFTED_COLUMNS, values, strict=True))
    table = pd.DataFrame(rows)
    table = table.sort_values(["trainable_params", "strategy"], na_position="last", ignore_index=True)
    floors: list[dict[str, Any]] = []
    for name, score in floor_scores(comparison).items():
        interval = accuracy_interval(score, confidence=confidence)
        run = comparison.floors[comparison.floors[schema.PARAM_FLOOR] == name].iloc[0]
        floors.append(
            {"strategy": name, "kind": "floor", "trainable_params": 0.0 if pd.notna(run["strategy"]) else np.nan}
            | {"test_macro_f1": run[schema.TEST_MACRO_F1]}
            | {"test_accuracy": interval.mean, "test_accuracy_low": interval.low, "test_accuracy_high": interval.high}
            | {"interval_method": interval.method}
        )
    floors.sort(key=lambda row: row["test_accuracy"])
    return pd.DataFrame([*table.to_dict("records"), *floors], columns=table.columns)


def size_table(comparisons: Sequence[Comparison], confidence: float = 0.95) -> pd.DataFrame:
    """The rows of ``comparison_table`` of comparisons that differ in their train split, one after the other.

    Further columns: ``comparison`` (its name) and ``train_size``. Strategies come before floors.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    tables = [
        comparison_table(comparison, confidence).assign(comparison=comparison.name, train_size=comparison.train_size)
        for comparison in comparisons
    ]
    return pd.concat(tables, ignore_index=True).sort_values("kind", ascending=False, kind="stable", ignore_index=True)


def _studies(comparison: Comparison) -> list[tuple[object, pd.Series]]:
    """The studies, fewest trainable parameters first: every table of a report has the same order."""
    sizes = comparison.runs.groupby("study")[schema.TRAINABLE_PARAMS].max()
    studies = comparison.studies.assign(_size=comparison.studies["study"].map(sizes).astype(float))
    return list(studies.sort_values(["_size", "label"], na_position="last").drop(columns="_size").iterrows())


def _strategy_row(comparison: Comparison, study: pd.Series, scores: SeedScores, confidence: float) -> dict[str, object]:
    finals = comparison.finals(study["study"])
    trials = comparison.trials(study["study"])
    trial = best_trial(comparison, study)
    interval = accuracy_interval(scores, confidence=confidence)

    def measured(metric: str, how: str = "mean") -> float:
        """A metric over the finals, else of the winning trial, else unknown."""
        logged = finals[metric].dropna()
        if len(logged):
            return float(logged.agg(how))
        return math.nan if trial is None else float(trial[metric])

    tuning = study[schema.TUNING_SECONDS]
    spent = trials[schema.TRAIN_SECONDS].dropna()
    recorded = measured(schema.RECORDED_SECONDS, "max")
    # Which run recorded is chance, and an earlier study may have: then none of these took so long.
    longest = pd.concat([spent, finals[schema.TRAIN_SECONDS].dropna()]).max()
    elsewhere = 0.0 if math.isnan(recorded) or longest >= recorded else recorded
    tuning_seconds = float(spent.sum()) if is_missing(tuning) and len(spent) else _number(tuning)
    return {
        "strategy": study["label"],
        "kind": "strategy",
        **{metric: measured(metric) for metric in schema.SIZE_METRICS},
        "test_accuracy": interval.mean,
        "test_accuracy_low": interval.low,
        "test_accuracy_high": interval.high,
        "interval_method": interval.method,
        "test_macro_f1": float(finals[schema.TEST_MACRO_F1].mean()) if len(finals) else math.nan,
        "seeds": float(len(finals)),
        "seeds_asked": _number(study[schema.FINAL_SEEDS]),
        "best_validation_accuracy": math.nan if trial is None else float(trial[schema.BEST_VALIDATION_ACCURACY]),
        "validation_accuracy": float(finals[schema.BEST_VALIDATION_ACCURACY].mean()) if len(finals) else math.nan,
        **_spread(
            "trial_seconds", trials.loc[trials["state"] == schema.STATE_COMPLETE, schema.TRAIN_SECONDS], "median"
        ),
        **_spread("train_seconds", finals[schema.TRAIN_SECONDS], "mean"),
        "recorded_seconds": recorded,
        "tuning_seconds": tuning_seconds + elsewhere,
        "trials": float(trials["state"].isin(FINISHED).sum()),
        "peak_memory_mb": measured(schema.PEAK_MEMORY_MB, "max"),
        "test_samples_per_second": float(finals[schema.TEST_SAMPLES_PER_SECOND].median()) if len(finals) else math.nan,
    }


def _spread(name: str, values: pd.Series, how: str) -> dict[str, float]:
    """A column that sums up values, with the least and the most of them; NaN where there are none."""
    known = values.dropna().astype(float)
    ends = {f"{name}_least": float(known.min()), f"{name}_most": float(known.max())}
    return {name: float(known.agg(how)) if len(known) else math.nan} | ends


def hyperparameters_table(comparison: Comparison) -> pd.DataFrame:
    """The winning configuration of each strategy that has one.

    Columns: ``strategy``, ``trial`` (its number), ``hyperparameters`` (name -> value of what was searched),
    ``metric`` (what selected it), ``best_validation_accuracy``, ``best_validation_macro_f1``,
    ``best_validation_loss``, ``best_epoch`` (1-based), ``epochs`` (the ceiling).
    """
    columns = ["strategy", "trial", "hyperparameters", "metric", schema.BEST_VALIDATION_ACCURACY]
    columns += [schema.BEST_VALIDATION_MACRO_F1, schema.BEST_VALIDATION_LOSS, schema.BEST_EPOCH, schema.PARAM_EPOCHS]
    rows = []
    for _, study in _studies(comparison):
        trial = best_trial(comparison, study)
        if trial is None:
            continue
        names = [] if is_missing(study[schema.PARAM_SEARCHED]) else str(study[schema.PARAM_SEARCHED]).split(",")
        searched = {name.strip(): trial.get(name.strip()) for name in names}
        rows.append(
            {"strategy": study["label"], "trial": trial[schema.PARAM_TRIAL], "metric": study[schema.PARAM_METRIC]}
            | {"hyperparameters": {name: value for name, value in searched.items() if not is_missing(value)}}
            | {column: _number(trial[column]) for column in columns[4:]}
        )
    return pd.DataFrame(rows, columns=columns)


def shifted_scores(comparison: Comparison) -> dict[str, SeedScores]:
    """Strategy label -> scores on the shifted data that the newest counted final was scored on."""
    return {
        label: seed_scores(
            runs.assign(**{schema.TEST_ACCURACY: runs[schema.SHIFTED_ACCURACY], schema.PARAM_TEST_SIZE: math.nan}),
            comparison.shifted_predictions,
        )
        for label, runs in _shifted_finals(comparison).items()
    }


def shifted_table(comparison: Comparison, confidence: float = 0.95) -> pd.DataFrame:
    """The counted finals on the shifted data that the newest of them was scored on; empty where there are none.

    Columns: ``strategy``, ``shifted`` (name and fingerprint of the data), ``shifted_accuracy`` with ``_low`` and
    ``_high``, ``test_accuracy`` and ``difference`` (shifted less test), ``shifted_macro_f1``, all of them means over
    the same ``seeds`` finals.
    """
    columns = ["strategy", "shifted", *_SHIFTED_COLUMNS, schema.TEST_ACCURACY, "difference"]
    columns += [schema.SHIFTED_MACRO_F1, "seeds"]
    scores = shifted_scores(comparison)
    rows = []
    for label, runs in _shifted_finals(comparison).items():
        means = runs[[schema.SHIFTED_ACCURACY, schema.TEST_ACCURACY, schema.SHIFTED_MACRO_F1]].mean().to_dict()
        interval = accuracy_interval(scores[label], confidence=confidence)
        rows.append(
            {"strategy": label, "shifted": runs["shifted"].iloc[0], **means, "seeds": len(runs)}
            | {"difference": means[schema.SHIFTED_ACCURACY] - means[schema.TEST_ACCURACY]}
            | dict(zip(_SHIFTED_COLUMNS[1:], (interval.low, interval.high), strict=True))
        )
    return pd.DataFrame(rows, columns=columns)


def _shifted_finals(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Strategy label -> its counted finals on the newest shifted data; those without any are left out."""
    finals = {study["label"]: comparison.finals(study["study"]) for _, study in _studies(comparison)}
    scored = pd.concat([runs[runs[schema.SHIFTED_ACCURACY].notna()] for runs in finals.values()])
    if scored.empty:
        return {}
    newest = scored.sort_values("start_time")["shifted"].iloc[-1]
    same = {
        label: runs[runs[schema.SHIFTED_ACCURACY].notna() & (runs["shifted"] == newest)]
        for label, runs in finals.items()
    }
    return {label: runs for label, runs in same.items() if len(runs)}


def drift_table(comparison: Comparison) -> pd.DataFrame:
    """How far the counted finals' features moved from the pretrained ones; empty where that was not asked for.

    Columns: ``strategy``, ``drift_cka``, ``drift_cosine``, ``drift_items`` (means over ``seeds`` finals).
    """
    columns = ["strategy", schema.DRIFT_CKA, schema.DRIFT_COSINE, schema.DRIFT_ITEMS, "seeds"]
    rows = []
    for _, study in _studies(comparison):
        finals = comparison.finals(study["study"])
        asked = finals[finals[schema.DRIFT_CKA].notna()]
        if len(asked):
            rows.append({"strategy": study["label"], **asked[columns[1:-1]].mean().to_dict(), "seeds": len(asked)})
    return pd.DataFrame(rows, columns=columns)


def per_class_table(comparison: Comparison, label: str) -> pd.DataFrame:
    """What the finals of one strategy make of each class of the test split, the best one first.

    Columns: ``label`` (as predictions hold it), ``precision``, ``recall`` and ``f1`` (means over the finals; 0 where
    nothing was predicted), ``support`` (test items). Empty where no predictions were logged.
    """
    from sklearn.metrics import precision_recall_fscore_support

    study = comparison.studies.loc[comparison.studies["label"] == label, "study"].iloc[0]
    runs = comparison.finals(study)["run_id"]
    tables = [comparison.predictions[run] for run in runs if run in comparison.predictions]
    names = sorted({str(name) for table in tables for name in table["label"]})
    columns = ["precision", "recall", "f1", "support"]
    if not names:
        return pd.DataFrame(columns=["label", *columns])
    scores = [
        np.array(precision_recall_fscore_support(table["label"], table["prediction"], labels=names, zero_division=0))
        for table in tables
    ]
    found = pd.DataFrame(np.mean(scores, axis=0).T, columns=columns)
    found.insert(0, "label", names)
    return found.sort_values(["f1", "label"], ascending=[False, True], ignore_index=True)


def accounting_table(comparison: Comparison) -> pd.DataFrame:
    """What became of every trial.

    Columns: ``strategy``, ``study``, ``asked`` (``n_trials``), one count per state of ``ACCOUNT_STATES``, ``finished``
    (complete + pruned + diverged + failed), ``state`` of the study and ``study_reason``, ``unequal`` (cut short by a
    timeout, or fewer finished trials than another study), ``reasons`` (state -> {reason: how often}), ``finals_failed``
    (finals that ended without a test score) and ``finals_reasons``. Where no trial run was logged, the counts are those
    that the study itself logged.
    """
    rows = []
    for _, study in _studies(comparison):
        trials = comparison.trials(study["study"])
        states = trials["state"].where(trials["state"].isin(ACCOUNT_STATES), schema.STATE_RUNNING)
        counts = {state: int((states == state).sum()) for state in ACCOUNT_STATES}
        if trials.empty:
            counts = {state: int(_number(study.get(schema.COUNT_PREFIX + state), 0.0)) for state in ACCOUNT_STATES}
        reasons: dict[str, dict[str, int]] = {}
        for state in ACCOUNT_STATES[1:]:
            given = trials.loc[states == state, "reason"].dropna()
            if len(given):
                reasons[state] = dict(Counter(" ".join(str(reason).split()) for reason in given).most_common())
        unscored = comparison.lost_finals(study["study"])
        scored = comparison.finals(study["study"])[schema.PARAM_SEED].dropna()  # failed ones are trained again
        ended = unscored["state"].isin((schema.STATE_FAILED, schema.STATE_DIVERGED))
        failed = unscored[ended & ~unscored[schema.PARAM_SEED].isin(scored)]
        rows.append(
            {"strategy": study["label"], "study": study["study"], "asked": _number(study[schema.N_TRIALS]), **counts}
            | {"finished": sum(counts[state] for state in FINISHED)}
            | {"state": study["state"], "study_reason": study["reason"], "reasons": reasons}
            | {"finals_failed": len(failed), "finals_reasons": dict(Counter(failed["reason"].dropna()).most_common())}
        )
    table = pd.DataFrame(rows)
    short = table["finished"] < table["finished"].max()
    table["unequal"] = (table["state"] == schema.STATE_TIMEOUT) | short
    return table


def earlier_finals(comparison: Comparison) -> dict[str, int]:
    """Strategy label -> how often the test split was scored for finals that no longer count; zero is left out."""
    counts = {study["label"]: len(comparison.finals(study["study"], "earlier")) for _, study in _studies(comparison)}
    return {label: number for label, number in counts.items() if number}


def uneven_finals(comparison: Comparison) -> list[str]:
    """The strategies whose finals, of equal work an epoch, differ in time by more than ``UNEVEN``: a busy machine."""
    uneven = []
    for _, study in comparison.studies.iterrows():
        runs = comparison.finals(study["study"])
        paces = (runs[schema.TRAIN_SECONDS] / runs[schema.EPOCHS_RUN].fillna(1).clip(lower=1)).dropna()
        if len(paces) > 1 and paces.max() > (1 + UNEVEN) * paces.min() and runs[schema.TRAIN_SECONDS].max() > 1:
            uneven.append(str(study["label"]))
    return uneven


def _number(value: object, default: float = math.nan) -> float:
    if is_missing(value):
        return default
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return default
