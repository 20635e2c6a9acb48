"""A report for programs: what it says as JSON, its comparison and all trials as CSV (``docs/report_files.md``)."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reports.files import replace_file
from reports.formats import different, is_missing
from reports.load import Comparison
from sweeper import schema

__all__ = ["COMPARISON_NAME", "RESULTS_NAME", "RESULTS_SCHEMA", "TRIALS_NAME", "defused", "plain", "write_exports"]

#: Rises when a key is renamed or changes its meaning; new keys may appear at any time.
RESULTS_SCHEMA = "1"
RESULTS_NAME, COMPARISON_NAME, TRIALS_NAME = "results.json", "comparison.csv", "trials.csv"
#: With these a spreadsheet begins a formula; the wide ones are what an Asian keyboard types (OWASP, CSV injection).
_FORMULA = tuple("=+-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}"
                 "\N{FULLWIDTH COMMERCIAL AT}")  # fmt: skip
_STUDY_COLUMNS = [
    *("study", "strategy", "state", "reason", "configuration", "command", "git_revision", "data_fingerprint", "run_id"),
    *(schema.PARAM_METRIC, schema.PARAM_SEARCHED),
]
_FINAL_COLUMNS = [
    *(schema.PARAM_SEED, "configuration", "run_id", schema.TEST_ACCURACY, schema.TEST_MACRO_F1, schema.TEST_LOSS),
    *(schema.BEST_EPOCH, schema.TRAIN_SECONDS),
]
_TRIAL_METRICS = [
    *(schema.BEST_VALIDATION_ACCURACY, schema.BEST_VALIDATION_MACRO_F1, schema.BEST_VALIDATION_LOSS),
    *(schema.BEST_EPOCH, schema.EPOCHS_RUN, schema.TRAIN_SECONDS, *schema.SIZE_METRICS),
]


def write_exports(
    folder: Path,
    comparison: Comparison,
    *,
    verdict: Any,
    rule: Any,
    warnings: Sequence[str] = (),
    tables: Mapping[str, pd.DataFrame],
    confidence: float,
    figures: Sequence[str] = (),
) -> tuple[Path, ...]:
    """Write ``results.json``, ``comparison.csv`` and ``trials.csv``; the same records give the same bytes.

    Args:
        folder: of the report.
        comparison: of ``load_comparison``.
        verdict: the report's answer, a dataclass.
        rule: by which it was chosen, a dataclass.
        warnings: what the report warns of, sentences of markdown.
        tables: the report's tables by name; that of the name ``comparison`` also becomes the CSV.
        confidence: of the intervals.
        figures: names of the figures' files.

    Raises:
        ThawlineError: a file cannot be written.
    """
    newest = comparison.studies["start_time"].max()
    content = {
        "schema": RESULTS_SCHEMA,
        "comparison": comparison.name,
        "model": different(comparison.studies["model"]) or None,
        "dataset": different(comparison.studies["dataset"]) or None,
        "train_size": comparison.train_size,
        "recorded": newest,
        "confidence": confidence,
        "rule": rule,
        "verdict": verdict,
        "warnings": list(warnings),
        "tables": {**tables, "finals": _finals(comparison)},
        "studies": comparison.studies[["label", *_STUDY_COLUMNS]],
        "importances": comparison.importances,
        "data": comparison.data_summary,
        "notes": list(comparison.notes),
        "versions": comparison.versions,
        "config": comparison.config,
        "figures": list(figures),
    }
    text = json.dumps(plain(content), indent=1, allow_nan=False) + "\n"
    results = folder / RESULTS_NAME
    replace_file(results, lambda path: path.write_text(text, encoding="utf-8"))
    written = [results]
    for name, table in ((COMPARISON_NAME, tables["comparison"]), (TRIALS_NAME, _trials(comparison))):
        written.append(folder / name)
        _write_csv(folder / name, table)
    return tuple(written)


def plain(value: Any) -> Any:
    """A value as JSON knows it: tables as lists of rows, what is missing or infinite as ``null``, times in ISO 8601."""
    if isinstance(value, pd.DataFrame):
        return [plain(row) for row in value.to_dict("records")]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (value if isinstance(value, list | tuple) else sorted(value))]
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)


def defused(value: Any) -> Any:
    """Text that a spreadsheet would run, with an apostrophe before it; numbers and other text as they are."""
    risky = isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA)
    return f"'{value}" if risky else value


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    safe = table.rename(columns=defused)
    for column in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[column]):
            safe[column] = safe[column].astype(object).map(defused)
    # All text is quoted: where a spreadsheet takes semicolons for columns, one in a text must not begin a cell.
    text = safe.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    replace_file(path, lambda target: target.write_text(text, encoding="utf-8"))


def _finals(comparison: Comparison) -> pd.DataFrame:
    """The counted finals of every strategy, by seed."""
    tables = [
        comparison.finals(study["study"])[list(_FINAL_COLUMNS)].assign(strategy=study["label"])
        for _, study in comparison.studies.iterrows()
    ]
    finals = pd.concat(tables)[["strategy", *_FINAL_COLUMNS]]
    return finals.astype({schema.PARAM_SEED: "Int64", schema.BEST_EPOCH: "Int64"})


def _trials(comparison: Comparison) -> pd.DataFrame:
    """Every counted trial: its state, what was sampled and what came of it; columns without a value are left out."""
    searched = [
        name.strip()
        for names in comparison.studies[schema.PARAM_SEARCHED]
        if not is_missing(names)
        for name in str(names).split(",")
    ]
    tables = [
        comparison.trials(study["study"]).assign(label=study["label"]) for _, study in comparison.studies.iterrows()
    ]
    trials = pd.concat(tables)
    fixed = ["label", "study", schema.PARAM_TRIAL, "state", "reason"]
    columns = [*fixed, *searched, *_TRIAL_METRICS, "start_time", "run_id"]
    present = [
        name for name in dict.fromkeys(columns) if name in trials and (name in fixed or trials[name].notna().any())
    ]
    return trials[present].astype({schema.PARAM_TRIAL: "Int64"}).rename(columns={"label": "strategy"})
