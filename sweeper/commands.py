"""The commands behind ``make sweep``, ``make compare`` and ``make report``: configurations in, a report out."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import reports
from reports.formats import duration, floor_name
from sweeper.config import Config
from sweeper.errors import StudyError, ThawlineError
from sweeper.files import written
from sweeper.forking import worker_context
from sweeper.quiet import quick_imports
from sweeper.secrets import redacted
from sweeper.winners import model_folder, note_chosen

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["report", "run", "tracking_uri"]


def run(configs: Sequence[Config], command: str, *, skip_inapplicable: bool = False) -> list[reports.Report]:
    """Run a study for each configuration and write one report over them.

    With ``dataset.train_sizes``, a comparison and its report for each size, and one over all sizes; every comparison is
    validated before the first trial.

    Args:
        configs: composed configurations that differ in their strategy only.
        command: the command line that reproduces them.
        skip_inapplicable: leave out strategies that do not fit the model.

    Returns:
        The reports that were written, the one over train sizes last.

    Raises:
        ThawlineError: see :func:`sweeper.comparison.run_comparison`; the first error of a study, or of an upload to the
            hub, once the report of the others is written.
    """
    if configs[0].engine.name == "processes" and not configs[0].dry_run and any(map(_needs_workers, configs)):
        worker_context()  # the workers' imports, beside ours
    with quick_imports():
        from sweeper.comparison import prepare_comparisons, run_comparison  # reports do without torch
        from sweeper.dry_run import print_dry_run

    config, console = configs[0], Console()
    sizes = config.dataset.train_sizes
    groups = [[_with_train_size(item, size) for item in configs] for size in sizes] if sizes else [configs]
    comparisons = prepare_comparisons(groups, command, console, skip_inapplicable=skip_inapplicable)
    if config.dry_run:
        print_dry_run(comparisons, console)
        return []
    failures: list[ThawlineError] = []
    reported = []
    for prepared in comparisons:
        outcome = run_comparison(prepared, tracking_uri(config), console)
        failures += outcome.failures
        if outcome.studies == 0:
            _say("Nothing is trained: name another strategy beside it to compare.", console)
        elif config.final.seeds == 0:
            _say("No finals, no test scores, no report: a higher final.seeds adds them.", console)
        elif len(outcome.failures) < outcome.studies:
            try:
                _send_waiting(config, console)
            except StudyError as error:
                failures.append(error)
                continue
            reported.append(_build_report(config, outcome.comparison))
            _print_report(reported[-1], config, console)
            try:
                _hand_over(reported[-1], config, console)
            except ThawlineError as error:
                if failures:  # only the first one ends the command
                    _say(f"Warning: {error}", console)
                failures.append(error)
    if sizes and reported:
        reported.append(_build_size_report(config, comparisons[0].curve))
        _print_size_report(reported[-1], config, console)
    for failure in failures:
        raise failure
    return reported


def _needs_workers(config: Config) -> bool:
    """Whether a study may not be brief (:func:`sweeper.engine.is_brief`), as far as its configuration tells."""
    return config.strategy.get("name") != "frozen" or not config.cache.enabled


def _with_train_size(config: Config, size: int) -> Config:
    config = copy.deepcopy(config)
    config.dataset.train_size, config.dataset.train_sizes = size, None
    return config


def report(config: Config) -> None:
    """Rebuild a report from MLflow alone: of a comparison, of a curve over train sizes, or of several in one summary.

    Raises:
        ThawlineError: the store cannot be read, or lacks what waits for it, or there is no such comparison.
    """
    _send_waiting(config, Console())
    names = _names(config.report.comparison)
    if len(names) > 1 or names == [reports.ALL]:
        _print_summary(_build_summary(config, names), config, Console())
        return
    name = names[0] if names else None
    if name is not None and reports.is_curve(tracking_uri(config), name):
        _print_size_report(_build_size_report(config, name), config, Console())
        return
    built = _build_report(config, name)
    _print_report(built, config, Console())
    _hand_over(built, config, Console())


def _send_waiting(config: Config, console: Console) -> None:
    """Send to MLflow what an earlier command could not; a report without it would be of something else."""
    from sweeper.tracking import send_waiting

    send_waiting(
        tracking_uri(config),
        config.tracking.experiment,
        Path(config.output_dir),
        note=lambda text: _say(text, console),
    )


def _names(comparison: Any) -> list[str]:
    """``report.comparison`` as names: one, several in a list, or none for the newest."""
    if comparison is None:
        return []
    given = [comparison] if isinstance(comparison, str | int) else comparison
    return list(dict.fromkeys(str(name) for name in given))


def _build_report(config: Config, comparison: str | None) -> reports.Report:
    return reports.build_report(
        tracking_uri(config), comparison=comparison, repository=config.hub.push, **_reporting(config)
    )


def _build_size_report(config: Config, curve: str) -> reports.Report:
    return reports.build_size_report(tracking_uri(config), curve=curve, **_reporting(config))


def _build_summary(config: Config, names: Sequence[str]) -> reports.Report:
    return reports.build_summary(tracking_uri(config), comparisons=names, **_reporting(config))


def _reporting(config: Config) -> dict[str, Any]:
    """What all reports are told."""
    given = config.report
    rule = reports.Rule(given.delta, given.max_trainable_params, given.max_train_seconds, given.max_memory_mb)
    return {"reports_dir": Path(config.output_dir) / "reports", "confidence": given.confidence, "rule": rule}


def _print_title(report: reports.Report, what: str, console: Console) -> None:
    console.print(f"\n[bold]{escape(report.comparison)}[/bold], {what}", highlight=False, soft_wrap=True)


def _print_summary(report: reports.Report, config: Config, console: Console) -> None:
    _print_title(report, "ranks on the test splits", console)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("strategy", "mean rank", "wins", "ties", "losses", "chosen", "comparisons"):
        table.add_column(column, justify="left" if column == "strategy" else "right", overflow="fold", min_width=4)
    for row in report.table.to_dict("records"):
        rank = "" if math.isnan(row["mean_rank"]) else f"{row['mean_rank']:.2f}"
        counts = (str(row[column]) for column in ("wins", "ties", "losses", "chosen", "comparisons"))
        table.add_row(_strategy(row["strategy"]), rank, *counts)
    console.print(table)
    _print_files(report, config, console)


def _print_size_report(report: reports.Report, config: Config, console: Console) -> None:
    sizes = sorted(report.table["train_size"].unique())
    _print_title(report, "test accuracy by train size", console)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("strategy", overflow="fold", min_width=8)
    for size in sizes:
        table.add_column(f"{size:,.0f}", justify="right")
    for (kind, name), rows in report.table.groupby(["kind", "strategy"], sort=False):
        cells = {row["train_size"]: row for row in rows.to_dict("records")}
        shown = _floor(name) if kind == "floor" else _strategy(name)
        table.add_row(shown, *(_accuracy(cells[size]) if size in cells else "" for size in sizes))
    console.print(table)
    _print_files(report, config, console)


def _print_files(report: reports.Report, config: Config, console: Console) -> None:
    """The answer and where it was written; what was written is logged to MLflow, where that is possible."""
    from sweeper.tracking import log_report

    _say(report.summary.replace("**", ""), console)
    if report.warnings:
        console.print(f"Warnings:  {len(report.warnings)}, at the top of the report", highlight=False, soft_wrap=True)
    pages = [path for path in report.files if path.suffix in (".md", ".html", ".json")]
    others = [path.name for path in report.files if path not in pages]
    for i, path in enumerate(pages):
        _say(f"{'' if i else 'Report:':<10} {path}", console)
    if others:
        _say(f"{'':<10} beside it: {', '.join(others)}", console)
    _say(f"MLflow UI: {_ui_command(config)}", console)
    try:
        log_report(tracking_uri(config), report.run_id, report.files)
    except StudyError as error:
        _say(f"Warning: {error}", console)


def _hand_over(report: reports.Report, config: Config, console: Console) -> None:
    """Put its card beside each model; note where the chosen one lies, add it to MLflow's registry, and upload it.

    Raises:
        ThawlineError: it cannot be uploaded, which ``hub.push`` asks for, or nothing was chosen.
    """
    for folder in Path(config.output_dir, "models").glob("*/"):  # no path is made of a name in records
        if folder.name in report.cards:
            written(folder / "README.md", report.cards[folder.name])
    if report.chosen is None:
        note_chosen(Path(config.output_dir), report.comparison, None)
    else:
        _note_chosen(report, config, console, *report.chosen)
    if config.hub.push is not None:
        _push(report, config, console)


def _note_chosen(report: reports.Report, config: Config, console: Console, study: str, run_id: str) -> None:
    """Say where the chosen model lies, note it for the commands that use one, and add it to MLflow's registry."""
    folder = model_folder(Path(config.output_dir), study)
    saved = folder.is_dir()  # else the runs were made elsewhere
    note_chosen(Path(config.output_dir), report.comparison, study if saved else None)
    if not saved:
        return
    _say(f"Model:     {folder}", console)
    _say(f"{'':<10} thawline predict{_where(config)} ...", console)
    if not config.tracking.register:
        return
    from sweeper.registry import ALIAS, register  # takes a second

    try:
        number = register(tracking_uri(config), folder, report.comparison, run_id)
    except StudyError as error:
        _say(f"Warning: {error}", console)
    else:
        _say(f"{'':<10} models:/{report.comparison}@{ALIAS} in MLflow's registry, version {number}", console)


def _push(report: reports.Report, config: Config, console: Console) -> None:
    """Upload the chosen model with its card."""
    from sweeper.hub import push_model

    repository, private = str(config.hub.push), config.hub.private
    if report.chosen is None:
        raise ThawlineError(
            f"hub.push={repository}: nothing was chosen, so nothing is uploaded",
            "The report says why; change report.*.",
        )
    folder = model_folder(Path(config.output_dir), report.chosen[0])
    _say(f"Uploading: {folder}", console)
    url = push_model(folder, repository, private=private, comparison=report.comparison)
    _say(f"Hub:       {url}{' (private)' if private else ''}", console)


def _say(text: str, console: Console) -> None:
    """A line as it is, however wide, so that paths can be copied."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _accuracy(row: Mapping[str, Any]) -> str:
    return "" if math.isnan(row["test_accuracy"]) else f"{row['test_accuracy']:.3f}\n{_interval(row)}".strip()


def _print_report(report: reports.Report, config: Config, console: Console) -> None:
    _print_title(report, "test split", console)
    table = Table(box=box.SIMPLE_HEAD)
    interval = f"{config.report.confidence:.0%} interval"
    columns = ("strategy", "parameters", "test accuracy", interval, "tuning +\nfinals")
    for column in columns:  # long names are folded, numbers never
        name = column == "strategy"
        table.add_column(column, justify="left" if name else "right", no_wrap=not name, overflow="fold", min_width=8)
    for row in report.table.to_dict("records"):
        table.add_row(*_row(row))
    console.print(table)
    if shifted := _shifted(report.table):
        _say(f"Shifted:   {shifted}", console)
    _print_files(report, config, console)


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["kind"] == "floor":
        size = "" if math.isnan(row["trainable_params"]) else f"{row['trainable_params']:,.0f}"
        return (_floor(row["strategy"]), size, f"{row['test_accuracy']:.3f}", _interval(row), "")
    tested = not math.isnan(row["test_accuracy"])
    seconds = [row["tuning_seconds"], row["train_seconds"] * row["seeds"]]
    return (
        _strategy(row["strategy"]),
        "" if math.isnan(row["trainable_params"]) else f"{row['trainable_params']:,.0f}",
        f"{row['test_accuracy']:.3f}" if tested else "no final",
        _interval(row) if tested else "",
        duration(sum(value for value in seconds if not math.isnan(value))),
    )


def _strategy(label: object) -> str:
    """A label as text that rich does not read as markup, wrappers on lines of their own: 80 columns are few."""
    return escape(str(label).replace("+", "\n+"))


def _floor(name: object) -> str:
    return escape(floor_name(str(name), short=True))


def _shifted(table: pd.DataFrame) -> str:
    """Accuracies on the shifted data with their intervals, empty text where there are none."""
    scored = table[table["shifted_accuracy"].notna()].to_dict("records")
    return "; ".join(f"{row['strategy']} {row['shifted_accuracy']:.3f} {_interval(row, 'shifted')}" for row in scored)


def _interval(row: Mapping[str, Any], split: str = "test") -> str:
    low, high = row[f"{split}_accuracy_low"], row[f"{split}_accuracy_high"]
    return "" if math.isnan(low) else f"[{low:.3f}, {high:.3f}]"


def _where(config: Config) -> str:
    """The flag by which other commands find the output folder; empty for the usual one."""
    return "" if config.output_dir == "outputs" else f" --output-dir {quote(config.output_dir)}"


def _ui_command(config: Config) -> str:
    if config.tracking.uri is None:
        return f"thawline ui{_where(config)}"
    uri = redacted(config.tracking.uri)
    if uri.startswith("http"):
        return uri
    return f"MLFLOW_DISABLE_TELEMETRY=true python -m mlflow ui --backend-store-uri {uri} --host 127.0.0.1"


def tracking_uri(config: Config) -> str:
    """MLflow's address: the one that is asked for, or the database in ``output_dir``."""
    return config.tracking.uri or f"sqlite:///{Path(config.output_dir) / 'mlflow.db'}"
