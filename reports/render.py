"""Write the report of one comparison: markdown and HTML with figures, JSON and CSV, rebuilt from MLflow alone.

Design choices: the same records give the same bytes (no clock, nothing drawn); all logged text passes through
``reports.formats`` before it meets markdown; a reader sees the old report or the new one, never half of one.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from reports import formats
from reports.checks import evidence_of, find_warnings
from reports.classes import MOST_LABELS, class_counts_markdown, class_order, per_class_markdown
from reports.exports import write_exports
from reports.files import report_folder, write_pages
from reports.load import Comparison, load_comparison
from reports.model_card import model_cards
from reports.plots import report_figures
from reports.reproduce import places, train_command
from reports.rules_of_thumb import rules_markdown, try_rules
from reports.stats import METHOD_CROSSED, METHOD_NONE, METHOD_SCORE, METHOD_T, SeedScores, check_confidence, pool
from reports.tables import (
    ACCOUNT_STATES,
    UNEVEN,
    accounting_table,
    comparison_table,
    drift_table,
    earlier_finals,
    hyperparameters_table,
    shifted_table,
    strategy_scores,
    uneven_finals,
)
from reports.verdict import Rule, Verdict, judge_comparison
from sweeper import schema

__all__ = ["REPORT_NAME", "Report", "build_report"]

REPORT_NAME = "report"
_MOST_REASONS = 4  # per state and strategy, the others are counted
_STATES = {schema.STATE_PRUNED: "pruned, with the score reached", schema.STATE_INTERRUPTED: "interrupted and repeated"}
_FEW_LABELS = 6  # are named where the data are introduced
_PACKAGES = ("python", "torch", "transformers", "peft", "timm", "optuna", "mlflow", "datasets", "accelerate")


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        path: of ``report.md``.
        comparison: name of the comparison.
        table: the comparison table as plain values (``tables.comparison_table``).
        summary: the answer, a short paragraph of markdown.
        files: all that was written: the markdown, the HTML page, the figures, and the files for programs.
        run_id: the MLflow run of the newest study, where the files are logged.
        chosen: the chosen strategy's study and its MLflow run; ``None`` where nothing can be chosen.
        warnings: what the checks found, sentences of markdown, the most serious first.
        cards: the model card of each study with a test score, by the study's name.
    """

    path: Path
    comparison: str
    table: pd.DataFrame
    summary: str
    files: tuple[Path, ...] = ()
    run_id: str = ""
    warnings: tuple[str, ...] = ()
    chosen: tuple[str, str] | None = None
    cards: Mapping[str, str] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        """The whole page, for notebooks: in a frame, so that its style and the notebook's keep apart."""
        page = html.escape(self.path.with_suffix(".html").read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40em; border: 1px solid #ccc"></iframe>'


def build_report(
    tracking_uri: str,
    *,
    reports_dir: Path,
    comparison: str | None = None,
    confidence: float = 0.95,
    rule: Rule | None = None,
    repository: str | None = None,
) -> Report:
    """Read one comparison from MLflow and write ``<reports_dir>/<comparison>/``: ``report.md`` and all beside it.

    Args:
        tracking_uri: MLflow's address, e.g. ``sqlite:///outputs/mlflow.db``.
        reports_dir: folder of all reports; created when missing. A comparison whose name is no safe folder name gets
            a similar one with a hash.
        comparison: its name; the newest by default.
        confidence: of all intervals, between 0 and 1.
        rule: what may be chosen; ``reports.verdict.Rule()`` by default.
        repository: ``user/name`` on the hub, which model cards name.

    Raises:
        ThawlineError: the store cannot be read, nothing is recorded, the comparison is unknown, or its folder is
            a link that leads out of ``reports_dir``.
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    check_confidence(confidence)
    loaded = load_comparison(tracking_uri, comparison)
    table = comparison_table(loaded, confidence)
    accounting = accounting_table(loaded)
    scores = strategy_scores(loaded)
    verdict = judge_comparison(loaded, table, confidence, rule)

    folder = report_folder(Path(reports_dir), loaded.name)
    drawings = report_figures(loaded, table, chosen=verdict.chosen, confidence=confidence)
    warnings = find_warnings(evidence_of(loaded, table, confidence))
    context = _context(loaded, table, accounting, verdict, scores, confidence, rule or Rule()) | {"warnings": warnings}
    pages = write_pages(
        folder, REPORT_NAME, "report.md.j2", context, drawings=drawings, strategies=list(loaded.studies["label"])
    )
    tables = {
        "comparison": table,
        "hyperparameters": hyperparameters_table(loaded),
        "shifted": shifted_table(loaded, confidence),
        "drift": drift_table(loaded),
        "accounting": accounting,
    }
    figures = [path.name for path in pages[2:]]
    exports = write_exports(
        folder,
        loaded,
        verdict=verdict,
        rule=rule,
        warnings=warnings,
        tables=tables,
        confidence=confidence,
        figures=figures,
    )
    newest = str(loaded.studies["run_id"].iloc[-1])
    picked = loaded.studies[loaded.studies["label"] == verdict.chosen]
    return Report(
        path=pages[0],
        comparison=loaded.name,
        table=table,
        summary=verdict.summary,
        files=(*pages, *exports),
        run_id=newest,
        warnings=tuple(warnings),
        chosen=None if picked.empty else (str(picked["study"].iloc[-1]), str(picked["run_id"].iloc[-1])),
        cards=model_cards(loaded, table, verdict, warnings, context, confidence=confidence, repository=repository),
    )


# --- what the template shows -------------------------------------------------------------------------------------


def _context(
    loaded: Comparison,
    table: pd.DataFrame,
    accounting: pd.DataFrame,
    verdict: Verdict,
    scores: dict[str, SeedScores],
    confidence: float,
    rule: Rule,
) -> dict[str, Any]:
    newest = loaded.studies["start_time"].max()
    shifted = shifted_table(loaded, confidence)
    rules = rules_markdown(try_rules([(loaded, table)], confidence, rule.delta))
    commands = _texts(loaded.studies["command"])
    alone = train_command(loaded, verdict.chosen)
    config = _config(loaded, verdict.chosen)
    return {
        "name": loaded.name,
        "options": rule.options(confidence),
        "title": loaded.title,
        "n_strategies": len(loaded.studies),
        "recorded": f"{newest:%Y-%m-%d}" if pd.notna(newest) else "",
        "summary": verdict.summary,
        "about": _about(loaded, table),
        "comparison_table": _comparison_markdown(table, verdict, confidence),
        "cost_table": _cost_markdown(table, verdict),
        "cost_notes": _cost_notes(loaded, table),
        "hyperparameters_table": _hyperparameters_markdown(loaded, hyperparameters_table(loaded)),
        "shifted_table": _shifted_markdown(shifted, table, verdict, confidence),
        "shifted": _one(shifted["shifted"]).rpartition(" ")[0],
        "accounting_table": _accounting_markdown(accounting),
        "accounting_notes": _accounting_notes(loaded, accounting),
        "floors_notes": _floors_notes(loaded),
        "measured": _measured(loaded, table, verdict, scores, confidence, rule),
        "data": _data(loaded),
        "classes_table": class_counts_markdown(loaded.data_summary, class_order(loaded)),
        "drift_table": _drift_markdown(drift_table(loaded), verdict),
        "classes_of": verdict.chosen,
        "per_class_table": "" if verdict.chosen is None else per_class_markdown(loaded, verdict.chosen),
        "test_looks": _test_looks(loaded),
        "rules_table": rules[0],
        "rules_untried": rules[1],
        "notes": list(loaded.notes),
        "commands": formats.fence("\n".join(commands), "bash") if commands else "",
        "train_command": formats.fence(alone, "bash") if alone else "",
        "places": list(places(loaded, verdict.chosen)),
        "installed": loaded.installed,
        "revisions": _texts(loaded.studies["git_revision"]),
        "versions": _versions(loaded.versions),
        "config": formats.fence(config, "yaml") if config.strip() else "",
        "config_is_chosen": bool(config) and verdict.chosen is not None,
    }


def _strategies(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [dict(row) for _, row in table[table["kind"] == "strategy"].iterrows()]


def _name(label: str, verdict: Verdict) -> str:
    return f"**{formats.escape(label)}**" if label == verdict.chosen else formats.escape(label)


def _comparison_markdown(table: pd.DataFrame, verdict: Verdict, confidence: float) -> str:
    header = ["strategy", "trainable", "share", "head + backbone", f"test accuracy [{100 * confidence:g} %]"]
    header += ["against the best", "macro-F1", "validation accuracy", "finals"]
    rows = []
    for row in _strategies(table):
        label = str(row["strategy"])
        against = formats.MISSING
        if label == verdict.best:
            against = "best"
        elif label in verdict.differences:
            gap = verdict.differences[label]
            shown = formats.score_interval(gap.mean, gap.low, gap.high, difference=True)
            against = f"tie, {shown}" if gap.tie else shown
        if label in verdict.over_budget:
            against = "over budget" if against == formats.MISSING else f"{against}, over budget"
        head, backbone = row["trainable_params_head"], row["trainable_params_backbone"]
        parts = f"{formats.count(head)} + {formats.count(backbone)}"
        rows.append(
            [
                _name(label, verdict),
                _trainable(row),
                formats.percent(row["trainable_pct"]),
                formats.MISSING if pd.isna(head) or pd.isna(backbone) else parts,
                formats.accuracy(row),
                against if len(verdict.differences) or verdict.over_budget else formats.MISSING,
                formats.score(row["test_macro_f1"]),
                formats.score(row["validation_accuracy"]),
                _of(row["seeds"], row["seeds_asked"]),
            ]
        )
    for row in (dict(floor) for _, floor in table[table["kind"] == "floor"].iterrows()):
        name = f"*{formats.escape(formats.floor_name(str(row['strategy'])))}*"
        blank = [formats.MISSING] * 2
        size = formats.count(row["trainable_params"])
        rows.append([name, size, *blank, formats.accuracy(row), blank[0], formats.score(row["test_macro_f1"]), *blank])
    return formats.markdown_table(header, rows)


def _shifted_markdown(shifted: pd.DataFrame, table: pd.DataFrame, verdict: Verdict, confidence: float) -> str:
    if shifted.empty:
        return ""
    asked = {str(row["strategy"]): row["seeds"] for row in _strategies(table)}
    rows = [
        [
            _name(str(row["strategy"]), verdict),
            formats.score_interval(*(row[f"{schema.SHIFTED_ACCURACY}{end}"] for end in ("", "_low", "_high"))),
            formats.score(row[schema.TEST_ACCURACY]),
            formats.signed(row["difference"]),
            formats.score(row[schema.SHIFTED_MACRO_F1]),
            _of(row["seeds"], asked[str(row["strategy"])]),
        ]
        for _, row in shifted.iterrows()
    ]
    header = ["strategy", f"shifted accuracy [{100 * confidence:g} %]", "test accuracy", "difference"]
    return formats.markdown_table([*header, "shifted macro-F1", "seeds"], rows)


def _drift_markdown(drift: pd.DataFrame, verdict: Verdict) -> str:
    rows = [
        [
            _name(str(row["strategy"]), verdict),
            formats.score(row[schema.DRIFT_CKA]),
            formats.score(row[schema.DRIFT_COSINE]),
            f"{row[schema.DRIFT_ITEMS]:.0f}",
            f"{row['seeds']:.0f}",
        ]
        for _, row in drift.iterrows()
    ]
    return formats.markdown_table(["strategy", "linear CKA", "mean cosine", "inputs", "seeds"], rows)


def _test_looks(loaded: Comparison) -> str:
    """How often the test split was looked at, in a sentence."""
    finals = loaded.runs[loaded.runs["kind"] == schema.KIND_FINAL]
    numbers = {
        "finals": int((finals["use"] == "counted").sum()),
        "earlier finals, which are not used": sum(earlier_finals(loaded).values()),
        "floors and references": loaded.floor_looks,
    }
    said = ", ".join(f"{number} by {who}" for who, number in numbers.items() if number)
    total = sum(numbers.values())
    times = "time" if total == 1 else "times"
    return f"The test split was scored {total} {times} in this comparison: {said}." if total else ""


def _trainable(row: dict[str, Any]) -> str:
    """Parameters of the largest stage, and their mean over the epochs where the stages differ."""
    peak, mean = row["trainable_params"], row["trainable_params_mean"]
    differs = pd.notna(mean) and pd.notna(peak) and mean < 0.995 * peak
    return f"{formats.count(peak)} (mean {formats.count(mean)})" if differs else formats.count(peak)


def _cost_markdown(table: pd.DataFrame, verdict: Verdict) -> str:
    header = ["strategy", "tuning", "trials", "per trial", "training per final", "stored beside the pretrained model"]
    header += ["peak memory", "inference"]
    rows = [
        [
            _name(str(row["strategy"]), verdict),
            formats.duration(row["tuning_seconds"]),
            f"{row['trials']:.0f}",
            _range(row, "trial_seconds"),
            _range(row, "train_seconds"),
            formats.size(row["stored_bytes"]),
            formats.size(row["peak_memory_mb"] * 1e6),
            _rate(row["test_samples_per_second"]),
        ]
        for row in _strategies(table)
    ]
    return formats.markdown_table(header, rows)


def _range(row: dict[str, Any], column: str) -> str:
    """A time with the least and the most that it is made of, and a mark where recorded states were read."""
    shown, *ends = (formats.duration(row[f"{column}{end}"]) for end in ("", "_least", "_most"))
    mark = "" if pd.isna(row["recorded_seconds"]) or shown == formats.MISSING else " †"
    return (shown if len({shown, *ends}) == 1 else f"{shown} ({ends[0]} to {ends[1]})") + mark


def _cost_notes(loaded: Comparison, table: pd.DataFrame) -> list[str]:
    """What the costs count, and how far they can be trusted, as sentences of markdown."""
    rows = _strategies(table)
    notes = []
    tuning = sum(row["tuning_seconds"] for row in rows if not pd.isna(row["tuning_seconds"]))
    finals = sum(row["train_seconds"] * row["seeds"] for row in rows if not pd.isna(row["train_seconds"]))
    if tuning or finals:
        notes.append(
            f"In all: tuning {formats.duration(tuning)}, finals {formats.duration(finals)}, of training and "
            "its evaluations alone. Tuning counts every trial, per trial is the median of the complete ones."
        )
    if recorded := [row for row in rows if not pd.isna(row["recorded_seconds"])]:
        took = ", ".join(f"{formats.escape(r['strategy'])} {formats.duration(r['recorded_seconds'])}" for r in recorded)
        notes.append(
            f"† Trained on what its frozen part puts out, recorded once for all runs ({took}); that counts as tuning, "
            "whichever run or earlier study did it."
        )
    if uneven := uneven_finals(loaded):
        names = formats.joined([formats.escape(label) for label in uneven])
        notes.append(
            f"Equal finals of {names} differ by more than {100 * UNEVEN:.0f} % in time: the machine "
            "was busy with something else, and such differences between strategies mean nothing."
        )
    total = table["total_params"].min()
    meanings = {
        schema.STORED_BYTES: f"The pretrained model itself takes {formats.size(4 * total)} in float32.",
        schema.PEAK_MEMORY_MB: "Memory: of the whole process, or on a GPU what it allocates.",
        schema.TEST_SAMPLES_PER_SECOND: "Inference: from text or image to class, the whole model, adapters not merged; "
        "the median of the finals. Strategies that add nothing to the model infer equally fast: where these differ, "
        "the machine did something else.",
    }
    known = [text for column, text in meanings.items() if table[column].notna().any() and formats.MISSING not in text]
    return [*notes, " ".join(known)] if known else notes


def _rate(items_per_second: float) -> str:
    return formats.MISSING if formats.is_missing(items_per_second) else f"{formats.count(items_per_second)} items/s"


def _hyperparameters_markdown(loaded: Comparison, table: pd.DataFrame) -> str:
    header = ["strategy", "best values (of what was searched)", "validation accuracy of this trial", "macro-F1", "loss"]
    header += ["best epoch", "trial"]
    studies = dict(zip(loaded.studies["label"], loaded.studies["study"], strict=True))
    rows = []
    for row in (dict(series) for _, series in table.iterrows()):
        space = loaded.spaces.get(str(studies[row["strategy"]]), {})
        values = ", ".join(
            f"{formats.code(k)} = {formats.escape(formats.setting(v))}{_searched(space.get(k, {}))}"
            for k, v in row["hyperparameters"].items()
        )
        rows.append(
            [
                formats.escape(row["strategy"]),
                values or formats.MISSING,
                formats.score(row[schema.BEST_VALIDATION_ACCURACY]),
                formats.score(row[schema.BEST_VALIDATION_MACRO_F1]),
                formats.score(row[schema.BEST_VALIDATION_LOSS]),
                _of(row[schema.BEST_EPOCH], row[schema.PARAM_EPOCHS], always=True),
                formats.setting(row["trial"]),
            ]
        )
    return formats.markdown_table(header, rows, left=2)


def _searched(bounds: dict[str, Any]) -> str:
    """`` (0.001 to 0.1, log)``, or nothing where the space is unknown."""
    if isinstance(choices := bounds.get("choices"), list):
        return f" ({', '.join(formats.escape(formats.setting(choice)) for choice in choices)})"
    if formats.is_missing(bounds.get("low")) or formats.is_missing(bounds.get("high")):
        return ""
    how = (
        ", log" if bounds.get("log") else "" if formats.is_missing(bounds.get("step")) else f", step {bounds['step']:g}"
    )
    return f" ({formats.setting(bounds['low'])} to {formats.setting(bounds['high'])}{how})"


def _accounting_markdown(table: pd.DataFrame) -> str:
    header = ["strategy", "asked", *ACCOUNT_STATES, "budget"]
    rows = []
    equal = not table["unequal"].any()
    for row in (dict(series) for _, series in table.iterrows()):
        budget = "cut short by timeout" if row["state"] == schema.STATE_TIMEOUT else "unequal"
        rows.append(
            [
                formats.escape(row["strategy"]),
                formats.setting(row["asked"]),
                *(str(row[state]) for state in ACCOUNT_STATES),
                formats.MISSING if equal else f"**{budget}**" if row["unequal"] else "full",
            ]
        )
    running = 2 + ACCOUNT_STATES.index(schema.STATE_RUNNING)
    if all(cells[running] == "0" for cells in rows):
        header.pop(running)
        for cells in rows:
            cells.pop(running)
    header = [f"{name} (repeated)" if name == schema.STATE_INTERRUPTED else name for name in header]
    return formats.markdown_table(header, rows)


def _accounting_notes(loaded: Comparison, table: pd.DataFrame) -> list[str]:
    """Reasons of what did not complete, one line per strategy and state, then what became of the finals."""
    notes = []
    for row in (dict(series) for _, series in table.iterrows()):
        label = formats.escape(row["strategy"])
        notes += [f"{label}, {_STATES.get(state, state)}: {_reasons(given)}" for state, given in row["reasons"].items()]
        ended_well = row["state"] in (schema.STATE_RUNNING, schema.STATE_COMPLETE)
        if not ended_well and not formats.is_missing(row["study_reason"]):
            notes.append(f"{label}, the study itself is {row['state']}: {formats.escape(row['study_reason'])}")
        elif row["state"] in (schema.STATE_RUNNING, schema.STATE_INTERRUPTED, schema.STATE_FAILED):
            notes.append(f"{label}: the state of the study is {row['state']}; the counts are those recorded so far")
        if row["finals_failed"]:
            why = f": {_reasons(row['finals_reasons'])}" if row["finals_reasons"] else ""
            ended = "1 final ended" if row["finals_failed"] == 1 else f"{row['finals_failed']} finals ended"
            notes.append(f"{label}: {ended} without a test score{why}")
        notes += [f"{label}: {sentence}" for sentence in _smaller_batches(loaded, row["study"])]
    for label, number in earlier_finals(loaded).items():
        looks = "1 earlier final was" if number == 1 else f"{number} earlier finals were"
        notes.append(
            f"{formats.escape(label)}: {looks} scored on the test split too (of an older winner, or repeated); "
            "not used above, but the test split has been looked at that much more often"
        )
    return notes


def _smaller_batches(loaded: Comparison, study: str) -> list[str]:
    """That runs took fewer examples at once than a batch has, because memory ran out."""
    trained = pd.concat([loaded.trials(study), loaded.finals(study)])
    at_once, asked = trained[schema.MICRO_BATCH_SIZE], pd.to_numeric(trained[schema.PARAM_BATCH_SIZE], errors="coerce")
    fewer = at_once[at_once < asked]
    if fewer.empty:
        return []
    runs = "memory ran out in 1 run, which" if len(fewer) == 1 else f"memory ran out in {len(fewer)} runs, which"
    return [
        f"{runs} took {fewer.min():.0f} examples of a batch of {asked.max():.0f} at once; a step is still one of the "
        "whole batch, but batch norms that train see the smaller ones"
    ]


def _reasons(given: dict[str, int]) -> str:
    shown = [
        f"{formats.escape(reason)} ({number} times)" if number > 1 else formats.escape(reason)
        for reason, number in given.items()
    ]
    if len(shown) <= _MOST_REASONS + 1:  # "and 1 more" would hide a reason and save nothing
        return "; ".join(shown)
    more = sum(list(given.values())[_MOST_REASONS:])
    return f"{'; '.join(shown[:_MOST_REASONS])}; and {more} with other reasons"


def _floors_notes(loaded: Comparison) -> list[str]:
    """How prompted models were asked, a sentence each."""
    lines = []
    for _, row in loaded.floors[loaded.floors[schema.PROMPTED_ITEMS].notna()].iterrows():
        model, shots = formats.code(row[schema.PARAM_PROMPTED_MODEL]), f"{row[schema.PARAM_SHOTS]:.0f}"
        lines.append(
            f"{formats.escape(row[schema.PARAM_FLOOR])}: {model} was asked about {row[schema.PROMPTED_ITEMS]:.0f} test "
            f"items, with {shots} examples from train in the prompt. {row[schema.PROMPTED_UNPARSED]:.0f} answers "
            f"without one clear label count as wrong; {row[schema.PROMPTED_CUT]:.0f} texts were cut. What such a model "
            "was trained on is often unknown, and may hold these items."
        )
    return lines


def _about(loaded: Comparison, table: pd.DataFrame) -> str:
    """The model, the classes and how much of the data was trained on, in a sentence of markdown, as far as known."""
    parts = []
    model, total = formats.different(loaded.studies["model"]), table["total_params"].min()
    if model and pd.notna(total):
        parts.append(f"{formats.escape(model)}, pretrained, has {formats.count(total)} parameters")
    names = loaded.data_summary.get("label_names")
    dataset = formats.different(loaded.studies["dataset"])
    if dataset and isinstance(names, list) and names:
        described = loaded.setting("dataset.label_descriptions")
        described = described if isinstance(described, dict) else {}
        shown = [
            formats.escape(name) + (f" ({formats.escape(described[name])})" if described.get(name) else "")
            for name in names[:MOST_LABELS]
        ]
        listed = f": {', '.join(shown)}" if len(names) <= _FEW_LABELS else ""
        parts.append(f"{formats.escape(dataset)} has {len(names)} classes{listed}")
    return f"{'; '.join(parts)}." if parts else ""


def _config(loaded: Comparison, chosen: str | None) -> str:
    """The configuration of the chosen strategy's study, else the newest one's."""
    study = loaded.studies.loc[loaded.studies["label"] == chosen, "study"]
    return loaded.configs.get(str(study.iloc[0]), loaded.config) if len(study) else loaded.config


def _sizes(loaded: Comparison, records: pd.DataFrame) -> list[str]:
    """How much of each split was used, and that the ranking at other sizes was not measured."""
    pools = loaded.data_summary.get("pool_sizes")
    pools = pools if isinstance(pools, dict) else {}
    sizes = []
    of_train: tuple[int, int] | None = None
    for split, column in (
        ("train", schema.PARAM_TRAIN_SIZE),
        ("validation", schema.PARAM_VALIDATION_SIZE),
        ("test", schema.PARAM_TEST_SIZE),
    ):
        texts = _texts(records[column])
        if not texts:
            continue
        shown, whole = ", ".join(texts), pools.get(split)
        if len(texts) == 1 and texts[0].isdecimal():
            shown = f"{int(texts[0]):,}"
            if isinstance(whole, int) and whole > int(texts[0]):
                shown += f" of {whole:,}"
                of_train = (int(texts[0]), whole) if split == "train" else of_train
        sizes.append(f"{shown} {split}")
    if not sizes:
        return []
    lines = [f"Splits: {', '.join(sizes)} items."]
    if of_train is not None:
        lines.append(
            f"Train is a part of what there is (`dataset.train_size={of_train[0]}`); how strategies rank on more was "
            f"not measured, `dataset.train_sizes=[{of_train[0]},{of_train[1]}]` does."
        )
    return lines


def _measured(
    loaded: Comparison,
    table: pd.DataFrame,
    verdict: Verdict,
    scores: dict[str, SeedScores],
    confidence: float,
    rule: Rule,
) -> list[str]:
    """How the numbers came about, one sentence per line of markdown."""
    records = pd.concat([loaded.studies, loaded.runs], ignore_index=True)
    lines = _sizes(loaded, records)
    if verdict.chosen is not None and verdict.differences:
        lines.append(
            "Chosen is the strategy with the fewest trainable parameters within "
            f"{'1 point' if rule.delta == 0.01 else f'{100 * rule.delta:g} points'} of the best (`report.delta`): "
            "shown by the interval of its difference, or, where that is a tie, as measured."
        )
    metric = _one(loaded.studies[schema.PARAM_METRIC])
    lines.append(
        f"Trials saw train and validation only{f', and were chosen by {formats.code(metric)}' if metric else ''}; "
        "the validation scores of winners are therefore optimistic."
    )
    finals = loaded.runs[(loaded.runs["kind"] == schema.KIND_FINAL) & (loaded.runs["use"] == "counted")]
    if len(finals):
        lines.append("Each final chose its epoch on validation and was scored once on the test split.")
        used = {frozenset(group[schema.PARAM_SEED].dropna().astype(int)) for _, group in finals.groupby("study")}
        seeds = ", ".join(map(str, sorted(frozenset().union(*used))))
        if seeds:
            same = ", the same for every strategy" if len(used) == 1 and len(verdict.differences) else ""
            lines.append(f"Seeds of the finals: {seeds}{same}.")
    methods = dict.fromkeys(table.loc[table["test_accuracy"].notna(), "interval_method"])
    lines += [_METHODS[method].format(confidence=f"{100 * confidence:g} %") for method in methods]
    if any(scores[label].groups is not None for label in scores):
        lines.append("Test items of one group are drawn together.")
    if verdict.differences:
        counted = _counted([scores[label] for label in (*verdict.differences, str(verdict.best))])
        lines.append(
            "Strategies are told apart by the intervals of their differences, paired by seed and as far as predictions "
            f"allow by test item, not by whether the intervals of scores overlap.{counted} They hold for all pairs "
            "of strategies at once (studentized range; that to a floor stands for itself), and are ties when they "
            "contain zero."
        )
    if len(finals):
        lines.append("No interval covers other training rows, or what another search would have found.")
    sized = table.loc[(table["kind"] == "strategy") & (table["seeds"] > 0), "seeds"]
    if len(sized) and sized.min() < 5:
        lines.append("With so few seeds, the spread between seeds is known only roughly.")
    lines += _settings(loaded)
    shared = []
    for what, column in (
        ("Epoch ceiling", schema.PARAM_EPOCHS),
        ("Batch size", schema.PARAM_BATCH_SIZE),
        ("Sampler", schema.PARAM_SAMPLER),
        ("Pruner", schema.PARAM_PRUNER),
        ("Head", schema.PARAM_HEAD),
        ("Pooling", schema.PARAM_POOLING),
        ("Device", schema.PARAM_DEVICE),
        ("Precision", schema.PARAM_PRECISION),
    ):
        value = _one(records[column])
        if value:
            shared.append(f"{what}: {formats.escape(value)}.")
    return [*lines, " ".join(shared)] if shared else lines


def _counted(scores: Sequence[SeedScores]) -> str:
    """What the intervals of differences do not know of seeds, if anything."""
    if not pool({str(number): score for number, score in enumerate(scores)}).degrees:
        return " They count the test items alone, because the strategies have less than two seeds in common."
    if min(len(score.accuracies) for score in scores) == 1:
        return " For a strategy with one final, the spread between seeds is that of the others."
    return ""


def _settings(loaded: Comparison) -> list[str]:
    """What of the configuration decides how inputs are read and weighed, where it applies to them."""
    lines = []
    length = loaded.setting("dataset.max_length")
    image = loaded.data_summary.get("modality", loaded.setting("model.modality")) == "image"
    if not image and not formats.is_missing(length):
        cut = loaded.data_summary.get("truncated")
        none = " (none was)" if isinstance(cut, dict) and cut and not any(cut.values()) else ""
        lines.append(f"Texts are cut at {formats.setting(length)} tokens{none}.")
    for what, key, default in (
        *(
            (("Augmentation", "dataset.augmentation", ""), ("Image size", "dataset.image_size", "the model's own"))
            * image
        ),
        ("Class weights in the loss", "trainer.class_weights", ""),
    ):
        value = loaded.setting(key)
        if not formats.is_missing(value) or (default and loaded.settings):
            shown = default if formats.is_missing(value) else formats.setting(value)
            lines.append(f"{what}: {formats.escape(shown)}.")
    source = loaded.data_summary.get("source")
    columns = source.get("columns") if isinstance(source, dict) else None
    if isinstance(columns, dict):
        shown = ", ".join(f"{formats.escape(what)} {formats.code(name)}" for what, name in columns.items() if name)
        lines.append(f"Columns: {shown}.")
    return lines


_METHODS = {
    METHOD_CROSSED: "Intervals ({confidence}) of scores: what other seeds and other test items would give (Wilson's, "
    "with the variance over both).",
    METHOD_T: "Intervals ({confidence}) without logged predictions: Student's t over seeds, blind to the test items.",
    METHOD_SCORE: "Intervals ({confidence}) of a single score: Wilson's over test items, blind to seeds.",
    METHOD_NONE: "Scores without an interval: one seed, and neither predictions nor a test size were logged.",
}


def _data(loaded: Comparison) -> list[str]:
    lines = []
    prints = _texts(loaded.studies["data_fingerprint"])
    if prints:
        lines.append(f"Fingerprint: {', '.join(formats.code(value) for value in prints)}.")
    sizes = loaded.data_summary.get("sizes")
    logged = pd.concat([loaded.studies, loaded.runs])[schema.PARAM_TRAIN_SIZE].notna().any()
    if isinstance(sizes, dict) and sizes and not logged:  # else among what was measured
        shown = ", ".join(f"{formats.setting(number)} {formats.escape(split)}" for split, number in sizes.items())
        lines.append(f"Items: {shown}.")
    for what, key in (
        ("Groups of items (those that share a source) that stay in one split", "groups"),
        ("Texts cut at the maximal length", "truncated"),
    ):
        counts = loaded.data_summary.get(key)
        if isinstance(counts, dict) and any(counts.values()):
            shown = ", ".join(f"{number} {formats.escape(split)}" for split, number in counts.items() if number)
            lines.append(f"{what}: {shown}.")
    return lines


def _versions(versions: dict[str, str]) -> str:
    first = [package for package in _PACKAGES if package in versions]
    ordered = first + sorted(set(versions) - set(first))
    return ", ".join(f"{formats.escape(package)} {formats.escape(versions[package])}" for package in ordered)


def _of(number: float, asked: float, *, always: bool = False) -> str:
    """``3``, or ``2 of 3`` where fewer than asked (or ``always``)."""
    if formats.is_missing(number):
        return formats.MISSING
    if formats.is_missing(asked) or (asked <= number and not always):
        return f"{number:.0f}"
    return f"{number:.0f} of {asked:.0f}"


def _texts(column: pd.Series) -> list[str]:
    """The different texts of a column in order, without what is missing."""
    return list(dict.fromkeys(formats.setting(value) for value in column if not formats.is_missing(value)))


def _one(column: pd.Series) -> str:
    """The value of a column that should have one; several are joined by commas, none is empty text."""
    return ", ".join(_texts(column))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
