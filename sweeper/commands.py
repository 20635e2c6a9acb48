"""The commands behind ``make sweep``, ``make compare`` and ``make report``: configurations in, a report out."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from reports import Report, build_report
from reports.formats import duration, floor_name
from sweeper.config import Config

__all__ = ["report", "run"]


def run(configs: Sequence[Config], command: str, *, skip_inapplicable: bool = False) -> None:
    """Run a study for each configuration and write one report over them.

    Args:
        configs: composed configurations that differ in their strategy only.
        command: the command line that reproduces them.
        skip_inapplicable: leave out strategies that do not fit the model.

    Raises:
        ThawlineError: see :func:`sweeper.comparison.run_comparison`; the first error of a study, once the report of
            the others is written.
    """
    # Where it is installed, peft imports bitsandbytes, which advises of an optional kernel on every start.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from sweeper.comparison import run_comparison  # imports torch, which rebuilding a report does without

    config, console = configs[0], Console()
    outcome = run_comparison(configs, command, _tracking_uri(config), console, skip_inapplicable=skip_inapplicable)
    if outcome is None:
        return
    if outcome.studies == 0:
        console.print("Nothing is trained: name another strategy beside it to compare.", highlight=False)
    elif len(outcome.failures) < outcome.studies:
        _print_report(_build_report(config, outcome.comparison), config, console)
    for failure in outcome.failures:
        raise failure


def report(config: Config) -> None:
    """Rebuild the report of ``report.comparison`` from MLflow alone.

    Raises:
        ConfigError: there is no such comparison.
    """
    _print_report(_build_report(config, config.report.comparison), config, Console())


def _build_report(config: Config, comparison: str | None) -> Report:
    return build_report(
        _tracking_uri(config),
        reports_dir=Path(config.output_dir) / "reports",
        comparison=comparison,
        confidence=config.report.confidence,
    )


def _print_report(report: Report, config: Config, console: Console) -> None:
    console.print(f"\n[bold]{report.comparison}[/bold], test split", highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    columns = ("strategy", "parameters", "test accuracy", f"{config.report.confidence:.0%} interval", "time")
    for column in columns:  # long names are folded, numbers never
        name = column == "strategy"
        table.add_column(column, justify="left" if name else "right", no_wrap=not name, overflow="fold", min_width=8)
    for row in report.table.to_dict("records"):
        table.add_row(*_row(row))
    console.print(table)
    console.print(report.summary.replace("**", ""), highlight=False, markup=False, soft_wrap=True)
    console.print(f"Report:    {report.path}", highlight=False, soft_wrap=True)
    console.print(f"MLflow UI: {_ui_command(config)}", highlight=False, soft_wrap=True)


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["kind"] == "floor":
        size = "" if math.isnan(row["trainable_params"]) else f"{row['trainable_params']:,.0f}"
        return (floor_name(row["strategy"], short=True), size, f"{row['test_accuracy']:.3f}", _interval(row), "")
    tested = not math.isnan(row["test_accuracy"])
    seconds = [row["tuning_seconds"], row["train_seconds"] * row["seeds"]]
    return (
        str(row["strategy"]).replace("+", "\n+"),  # wrappers on lines of their own: 80 columns are few
        "" if math.isnan(row["trainable_params"]) else f"{row['trainable_params']:,.0f}",
        f"{row['test_accuracy']:.3f}" if tested else "no final",
        _interval(row) if tested else "",
        duration(sum(value for value in seconds if not math.isnan(value))),
    )


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row["test_accuracy_low"], row["test_accuracy_high"]
    return "" if math.isnan(low) else f"[{low:.3f}, {high:.3f}]"


def _ui_command(config: Config) -> str:
    uri = _tracking_uri(config)
    if uri == "sqlite:///outputs/mlflow.db":
        return "make ui"
    return uri if uri.startswith("http") else f"python -m mlflow ui --backend-store-uri {uri} --host 127.0.0.1"


def _tracking_uri(config: Config) -> str:
    return config.tracking.uri or f"sqlite:///{Path(config.output_dir) / 'mlflow.db'}"
