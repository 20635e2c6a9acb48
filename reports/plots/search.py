"""Figures of a search: the score of every trial against what was searched, and what mattered."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from reports.formats import is_missing, score, setting
from reports.load import Comparison, best_trial, score_column
from reports.plots.canvas import (
    CHOSEN,
    GRID,
    INK,
    MUTED,
    PAPER,
    POINT,
    Drawing,
    Look,
    legend_handle,
    listed,
    panels,
    short,
    style_axes,
)
from reports.plots.matrix import draw_matrix
from sweeper import schema

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["importance_figure", "learning_rate_figure", "structure_figure"]

LEARNING_RATE = "learning_rate"
_MOST_SETTINGS = 12  # more different values than this are not a structure but a scale
_MOST_TIPS = 600  # marks that answer to the pointer; each costs about 200 bytes


def learning_rate_figure(comparison: Comparison, order: Sequence[str]) -> Drawing | None:
    """Validation score of the trials against learning rate, a panel for each strategy that searched it.

    Complete trials are filled, pruned ones hollow at the last score that they reached, those that diverged or failed
    are crosses at the lower edge, which says nothing of their score; a diamond is the trial that won. Interrupted
    trials were repeated and are left out. Dotted lines are the limits of what was searched.

    Args:
        comparison: of ``load_comparison``.
        order: strategy labels, in the order of the report's tables.

    Returns:
        ``None`` where no strategy has two complete trials at different rates.
    """
    shown = []
    for study in _studies(comparison, order):
        trials = _scored(comparison, study)
        if LEARNING_RATE not in trials:
            continue
        trials = trials[pd.to_numeric(trials[LEARNING_RATE], errors="coerce") > 0]
        complete = trials[trials["state"] == schema.STATE_COMPLETE]
        if complete["score"].notna().sum() > 1 and complete[LEARNING_RATE].nunique() > 1:
            shown.append((study, trials.assign(learning_rate=trials[LEARNING_RATE].astype(float))))
    if not shown:
        return None
    metric = _metric(shown[0][0])
    title = f"Learning rate: {metric} of each trial"
    figure, axes = panels(len(shown), title, share_x=False)
    drawing = Drawing("learning_rate", figure)
    tips = sum(len(trials) for _, trials in shown) <= _MOST_TIPS
    said = []
    for axis, (study, trials) in zip(axes, shown, strict=True):
        won = best_trial(comparison, study)
        winner = math.nan if won is None else won[schema.PARAM_TRIAL]
        axis.set_xscale("log")
        for number, rate, value, state in trials[[schema.PARAM_TRIAL, LEARNING_RATE, "score", "state"]].itertuples(
            index=False
        ):
            tip = f"{study['label']}, trial {setting(number)}, {state}: {score(value)} at {rate:.2e}" if tips else ""
            drawing.mark(_point(axis, rate, value, state, number == winner), study["label"], tip)
        style_axes(axis, str(study["label"]), small=True)
        best = trials[trials[schema.PARAM_TRIAL] == winner]
        if len(best):
            equal = _equal_best(trials, best["score"].iloc[0])
            rates = [f"{rate:.1e}" for rate in dict.fromkeys([*best[LEARNING_RATE], *equal[LEARNING_RATE]])]
            said.append(f"{study['label']} {score(best['score'].iloc[0])} at {' and '.join(rates)}")
        _rates(axis, trials[LEARNING_RATE], comparison.spaces.get(str(study["study"]), {}).get(LEARNING_RATE, {}))
    low = 0.16 / figure.get_figheight()
    figure.supxlabel("learning rate (log scale)", x=0.095, y=low, ha="left", va="center", fontsize=9, color=INK)
    _key(drawing, {state for _, trials in shown for state in trials["state"]})
    drawing.alt = f"{metric.capitalize()} of each trial against learning rate, by strategy. Best: {listed(said, 18)}."
    return drawing


def structure_figure(comparison: Comparison, order: Sequence[str], look: Mapping[str, Look]) -> Drawing | None:
    """Validation score of the trials against what shapes a strategy: rank, blocks, reduction and the like.

    There is a panel for each searched field that takes whole values, names or a few values; strategies are told apart
    by colour and mark. Pruned trials are hollow, the winner of a strategy has a ring.

    Returns:
        ``None`` where nothing of that kind was searched, or one value only was tried.
    """
    fields: dict[str, list[tuple[str, pd.DataFrame]]] = {}
    allowed: dict[str, set[Any]] = {}  # choices, whether they were tried or not
    for study in _studies(comparison, order):
        trials = _scored(comparison, study)
        trials = trials[trials["state"].isin((schema.STATE_COMPLETE, schema.STATE_PRUNED)) & trials["score"].notna()]
        won = best_trial(comparison, study)
        trials = trials.assign(won=trials[schema.PARAM_TRIAL] == (math.nan if won is None else won[schema.PARAM_TRIAL]))
        for field in _searched(study):
            if field != LEARNING_RATE and field in trials:
                known = trials.loc[[i for i, value in trials[field].items() if not is_missing(value)]]
                if len(known):
                    choices = comparison.spaces.get(str(study["study"]), {}).get(field, {}).get("choices")
                    known_choices = choices if isinstance(choices, list) else []
                    allowed.setdefault(field, set()).update(
                        c for c in known_choices if isinstance(c, int | float | str)
                    )
                    fields.setdefault(field, []).append((str(study["label"]), known))
    fields = {field: given for field, given in fields.items() if _is_structure([v for _, t in given for v in t[field]])}
    if not fields:
        return None
    metric = _metric(comparison.studies.iloc[0])
    names = list(dict.fromkeys(name for given in fields.values() for name, _ in given))
    lines = math.ceil(len(names) / 5)
    figure, axes = panels(len(fields), f"Structure: {metric} of each trial", height=2.4, legend=lines, share_x=False)
    drawing = Drawing("structure", figure)
    tips = sum(len(trials) for given in fields.values() for _, trials in given) <= _MOST_TIPS
    said = []
    for axis, (field, given) in zip(axes, fields.items(), strict=True):
        values = sorted({v for _, trials in given for v in trials[field]} | allowed[field], key=_by_number)
        places = {value: i for i, value in enumerate(values)}
        for i, (name, trials) in enumerate(given):
            shift = 0.0 if len(given) == 1 else 0.5 * (i / (len(given) - 1) - 0.5)
            columns = [schema.PARAM_TRIAL, field, "score", "state", "won"]
            for number, value, reached, state, won in trials[columns].itertuples(index=False):
                at, color = places[value] + shift, look[name].color
                pruned = {"mfc": "none", "mec": color, "mew": 0.9} if state == schema.STATE_PRUNED else {}
                style: dict[str, Any] = {"color": color, "ms": 5.5, "mec": PAPER, "mew": 0.6, "clip_on": False} | pruned
                (point,) = axis.plot(at, reached, look[name].marker, **style)
                tip = f"{name}, trial {setting(number)}, {state}: {score(reached)} at {field} {setting(value)}"
                drawing.mark(point, name, tip if tips else "")
                if won:
                    (ring,) = axis.plot(at, reached, "o", mfc="none", mec=CHOSEN, ms=11, mew=1.4, clip_on=False)
                    drawing.mark(ring, name)
            complete = trials[trials["state"] == schema.STATE_COMPLETE]
            if len(complete):
                top = complete["score"].min() if metric.endswith("loss") else complete["score"].max()
                best = [setting(value) for value in dict.fromkeys(_equal_best(complete, top)[field])]
                said.append(f"{name} {score(top)} at {field} {' and '.join(best)}")
        style_axes(axis, field, small=True)
        step = math.ceil(len(values) / _MOST_SETTINGS)
        ticks = list(range(0, len(values), step))
        crowded = sum(len(setting(values[i])) for i in ticks) > 60 / min(len(fields), 4)
        axis.set_xticks(ticks, [short(setting(values[i]), 12) for i in ticks], parse_math=False,
                        rotation=30 if crowded else 0, ha="right" if crowded else "center")  # fmt: skip
        axis.set_xlim(-0.6, len(values) - 0.4)
        for i in range(len(values) - 1):
            axis.axvline(i + 0.5, color=GRID, lw=0.6, zorder=0)
    figure.legend(
        handles=[legend_handle(look[name], name) for name in names], loc="lower center", ncols=min(5, len(names)),
        frameon=False, fontsize=8, labelcolor=INK, handletextpad=0.1, columnspacing=1.2,
        bbox_to_anchor=(0.5, 0.26 / figure.get_figheight()), borderaxespad=0,
    )  # fmt: skip
    states = {state for given in fields.values() for _, trials in given for state in trials["state"]}
    _key(drawing, states, winner="\N{LARGE CIRCLE} the winner")
    drawing.alt = f"{metric.capitalize()} of each trial against {listed(list(fields))}."
    drawing.alt += f" Best: {listed(said, 12)}."
    return drawing


def importance_figure(comparison: Comparison, order: Sequence[str]) -> Drawing | None:
    """How much of the variation of the score each searched hyperparameter explains, as logged by the engine.

    Returns:
        ``None`` where no study logged importances.
    """
    shares = {
        str(study["label"]): comparison.importances[study["study"]]
        for study in _studies(comparison, order)
        if comparison.importances.get(study["study"])
    }
    names = list(dict.fromkeys(name for given in shares.values() for name in given))
    if not names:
        return None
    names.sort(key=lambda name: -sum(given.get(name, 0.0) for given in shares.values()))
    cells = [[given.get(name, math.nan) for name in names] for given in shares.values()]
    texts = [["" if math.isnan(share) else f"{100 * share:.0f} %" for share in row] for row in cells]
    drawing = draw_matrix(
        "importance", cells, texts, list(shares), names,
        title="Which hyperparameter mattered: share of the score's variation",
        down="", across="", series=list(shares),
    )  # fmt: skip
    first = [
        f"{label} {max(given, key=lambda k: given[k])} {100 * max(given.values()):.0f} %"
        for label, given in shares.items()
    ]
    drawing.alt = f"Hyperparameter importance by strategy. Most important: {listed(first, 18)}."
    return drawing


def _studies(comparison: Comparison, order: Sequence[str]) -> list[pd.Series]:
    found = {str(study["label"]): study for _, study in comparison.studies.iterrows()}
    return [found[label] for label in order if label in found]


def _searched(study: pd.Series) -> list[str]:
    names = study[schema.PARAM_SEARCHED]
    return [] if is_missing(names) else [name.strip() for name in str(names).split(",") if name.strip()]


def _scored(comparison: Comparison, study: pd.Series) -> pd.DataFrame:
    """The counted trials of a study with the column ``score``: what they are chosen by, as far as it was logged."""
    trials = comparison.trials(study["study"])
    column = score_column(study, trials)
    values = pd.to_numeric(trials.get(column, pd.Series(math.nan, index=trials.index)), errors="coerce")
    last = column.removeprefix("best_")  # of a trial that was stopped, the last epoch's
    if last in trials:
        values = values.fillna(pd.to_numeric(trials[last], errors="coerce"))
    trials = trials.assign(score=values)
    return trials[~trials["state"].isin((schema.STATE_INTERRUPTED, schema.STATE_RUNNING))]


def _metric(study: pd.Series) -> str:
    name = study[schema.PARAM_METRIC]
    return (schema.VALIDATION_ACCURACY if is_missing(name) else str(name)).replace("_", " ")


def _is_structure(values: Sequence[Any]) -> bool:
    """Whole numbers or names, or a few values of any kind, and more than one of them."""
    different = set(values)
    whole = all(isinstance(v, str) or float(v).is_integer() for v in different)
    return len(different) > 1 and (len(different) <= _MOST_SETTINGS or whole)


def _by_number(value: Any) -> tuple[bool, float, str]:
    return (isinstance(value, str), 0.0 if isinstance(value, str) else float(value), str(value))


def _point(axis: Axes, rate: float, value: float, state: str, won: bool) -> Any:
    if state not in (schema.STATE_COMPLETE, schema.STATE_PRUNED) or is_missing(value):
        return axis.plot(rate, 0.035, "x", color=MUTED, ms=5, mew=1.2, transform=axis.get_xaxis_transform())[0]
    if state == schema.STATE_PRUNED:
        return axis.plot(rate, value, "o", mfc="none", color=MUTED, ms=4.5, mew=0.9)[0]
    color, marker, size = (CHOSEN, "D", 6.5) if won else (POINT, "o", 5)
    return axis.plot(rate, value, marker, color=color, ms=size, mec=PAPER, mew=0.7, zorder=4 if won else 3)[0]


def _rates(axis: Axes, rates: pd.Series, bounds: Mapping[str, Any]) -> None:
    """A logarithmic axis as wide as what was searched, whose limits are drawn, with two to four labels."""
    limits = [bounds[end] for end in ("low", "high") if isinstance(bounds.get(end), int | float) and bounds[end] > 0]
    for limit in limits:
        axis.axvline(limit, color=MUTED, lw=0.9, ls=":", zorder=1)
    low, high = math.log10(min([*limits, *rates])), math.log10(max([*limits, *rates]))
    margin = 0.08 * max(high - low, 0.5)
    axis.set_xlim(10 ** (low - margin), 10 ** (high + margin))
    powers = range(math.ceil(low - margin), math.floor(high + margin) + 1)
    ticks = [10.0**power for power in powers][:: max(1, math.ceil(len(powers) / 4))]
    if len(ticks) < 2:
        ticks = sorted({10**low, 10**high})
    exact = [
        f"{tick:.0e}" if math.isclose(float(f"{tick:.0e}"), tick, rel_tol=1e-3) else f"{tick:.1e}" for tick in ticks
    ]
    axis.set_xticks(ticks, [label.replace("e-0", "e-") for label in exact])
    axis.set_xticks([], minor=True)


def _equal_best(trials: pd.DataFrame, best: float) -> pd.DataFrame:
    """The complete trials that reached the best score."""
    return trials[(trials["state"] == schema.STATE_COMPLETE) & (trials["score"] == best)]


def _key(drawing: Drawing, states: Collection[str], winner: str = "\N{BLACK DIAMOND} the winner") -> None:
    parts = [winner]
    if schema.STATE_PRUNED in states:
        parts.append("hollow: pruned, score when stopped")
    if set(states) - {schema.STATE_COMPLETE, schema.STATE_PRUNED}:
        parts.append("\N{MULTIPLICATION SIGN} diverged or failed: no score")
    drawing.figure.text(0.985, 0.16 / drawing.figure.get_figheight(), "   ".join(parts), fontsize=8, color=MUTED,
                        ha="right", va="center")  # fmt: skip
