"""Several comparisons that differ in their train split: one table, one figure, rebuilt from MLflow alone."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pandas as pd

from reports import formats
from reports.files import report_folder, write_pages
from reports.load import Comparison, load_curve, newest_run
from reports.plots import size_figure
from reports.render import Report
from reports.rules_of_thumb import rules_markdown, try_rules
from reports.stats import check_confidence
from reports.tables import size_table
from reports.verdict import Rule, Verdict, judge_comparison
from sweeper import schema

__all__ = ["REPORT_NAME", "build_size_report"]

REPORT_NAME = "data_size"


def build_size_report(
    tracking_uri: str, *, reports_dir: Path, curve: str, confidence: float = 0.95, rule: Rule | None = None
) -> Report:
    """Read a curve over train sizes from MLflow and write ``<reports_dir>/<curve>/data_size.md`` and all beside it.

    Args:
        tracking_uri: MLflow's address.
        reports_dir: folder of all reports; created when missing.
        curve: its name, the tag ``thawline.curve`` of its comparisons.
        confidence: of all intervals, between 0 and 1.
        rule: what may be chosen; ``reports.verdict.Rule()`` by default.

    Returns:
        The report; its table is that of ``tables.size_table``.

    Raises:
        ThawlineError: the store cannot be read, holds no such curve, or the folder cannot be written.
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    check_confidence(confidence)
    comparisons = load_curve(tracking_uri, curve)
    table = size_table(comparisons, confidence)
    verdicts = {
        comparison.name: judge_comparison(
            comparison, table[table["comparison"] == comparison.name].reset_index(drop=True), confidence, rule
        )
        for comparison in comparisons
    }
    chosen = {name: verdict.chosen for name, verdict in verdicts.items()}
    folder = report_folder(Path(reports_dir), curve)
    model, dataset = (
        formats.different(value for comparison in comparisons for value in comparison.studies[column])
        for column in ("model", "dataset")
    )
    title = f"{model} on {dataset}" if model and dataset else curve
    drawing = size_figure(table, title=f"{title}: what more training data buys", confidence=confidence)
    tables = [(comparison, table[table["comparison"] == comparison.name]) for comparison in comparisons]
    rules = rules_markdown(try_rules(tables, confidence, (rule or Rule()).delta))
    summary = _summary([(comparison.train_size, verdicts[comparison.name]) for comparison in comparisons])
    context = {
        "name": curve,
        "installed": all(comparison.installed for comparison in comparisons),
        "title": title,
        "summary": summary,
        "table": _markdown(table, comparisons, chosen, confidence),
        "rules_table": rules[0],
        "rules_untried": rules[1],
        "comparisons": [
            (formats.setting(comparison.train_size), comparison.name, _budget(comparison)) for comparison in comparisons
        ],
        "commands": formats.fence("\n".join(_commands(comparisons)), "bash") if _commands(comparisons) else "",
        "confidence": f"{100 * confidence:g} %",
    }
    drawings = [] if drawing is None else [drawing]
    files = write_pages(folder, REPORT_NAME, "data_size.md.j2", context, drawings=drawings)
    return Report(files[0], curve, table, summary, files, newest_run(comparisons))


def _summary(choices: list[tuple[float, Verdict]]) -> str:
    """The choice at each size, equal ones that follow each other together; before it, where no choice beats a floor."""
    known = [(size, verdict.chosen) for size, verdict in choices if verdict.chosen is not None]
    if not known:
        return "Nothing can be chosen yet: no strategy has a test score."
    parts = []
    for label, group in groupby(known, key=lambda pair: pair[1]):
        sizes = [formats.setting(size) for size, _ in group]
        span = f"at {sizes[0]}" if len(sizes) == 1 else f"from {sizes[0]} to {sizes[-1]}"
        parts.append(f"{span} training examples **{formats.escape(label)}**")
    answer = f"To choose: {', '.join(parts)}; the report of each size says why."
    unproven = [formats.setting(size) for size, verdict in choices if verdict.unproven]
    if not unproven:
        return answer
    return f"**Nothing is shown to beat the strongest floor with {formats.joined(unproven)} examples.** {answer}"


def _markdown(
    table: pd.DataFrame, comparisons: list[Comparison], chosen: dict[str, str | None], confidence: float
) -> str:
    """A row for each comparison, a column for each strategy and floor."""
    names = list(dict.fromkeys(zip(table["kind"], table["strategy"], strict=True)))
    header = [f"train size [{100 * confidence:g} %]"]
    header += [f"*{_floor(name)}*" if kind == "floor" else formats.escape(name) for kind, name in names]
    rows = []
    for comparison in comparisons:
        own = table[table["comparison"] == comparison.name]
        cells = {(row["kind"], row["strategy"]): row for _, row in own.iterrows()}
        row = [formats.setting(comparison.train_size)]
        for key in names:
            given = cells.get(key)
            shown = formats.MISSING if given is None else formats.accuracy(given)
            won = key == ("strategy", chosen[comparison.name])
            row.append(f"**{shown}**" if won else shown)
        rows.append(row)
    return formats.markdown_table(header, rows)


def _floor(name: str) -> str:
    return formats.escape(formats.floor_name(name, short=True))


def _budget(comparison: Comparison) -> str:
    """Trials and finals of the studies, as far as they are known."""
    trials, finals = (
        " or ".join(dict.fromkeys(formats.setting(value) for value in sorted(comparison.studies[column].dropna())))
        for column in (schema.N_TRIALS, schema.FINAL_SEEDS)
    )
    return f"trials {trials}, finals {finals} for each strategy" if trials and finals else ""


def _commands(comparisons: list[Comparison]) -> list[str]:
    given = pd.concat([comparison.studies["command"] for comparison in comparisons]).dropna()
    return [str(command) for command in dict.fromkeys(given)]
