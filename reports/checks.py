"""Checks that warn: what a reader should know before trusting a comparison, in sentences.

One function per check: it takes the :class:`Evidence` and returns sentences of markdown, none where all is well. Each
says what was seen, by how much it passes what chance explains, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports import formats
from reports.formats import code, count, escape, floor_name, is_missing, score, score_interval, setting, signed
from reports.load import Comparison, best_trial, score_column
from reports.stats import SeedScores, crossed_components, paired_difference, pool
from reports.tables import floor_scores, per_class_table, single_class_finals, strategy_scores
from sweeper import schema

__all__ = ["CHECKS", "Evidence", "evidence_of", "find_warnings"]

FEW_STEPS = 50  # optimiser steps; fine-tuning on so few is unstable (Mosbach et al. 2021, arXiv:2006.04884)
EDGE = 0.05  # of a search space's width, on the scale that it is sampled on
LEAST_VALUES = 4  # of a space of fewer, an end is the best by chance half of the time
FEW_VALUES = 6  # and of fewer than these in 40 % of cases or more
LOSS_RISE = 0.1  # of the lowest validation loss
MISSED_RECALL, MISSED_ITEMS = 0.05, 10  # a class of so many test items is hardly ever found below this mean recall
MISSED_NAMED = 3  # of such classes
_FITTED_FLOORS = ("majority", "tfidf_logreg", "pixels_logreg")
_MAJORITY = "majority"
_ENDS_OF_MODELS = (("num_blocks", "high"),)  # a model has no more


@dataclass(frozen=True)
class Evidence:
    """What the checks look at.

    Attributes:
        comparison: as it was read.
        table: its ``tables.comparison_table``.
        scores: strategy label -> test scores.
        floors: floor name -> test score.
        confidence: of the intervals that separate a finding from chance.
    """

    comparison: Comparison
    table: pd.DataFrame
    scores: dict[str, SeedScores]
    floors: dict[str, SeedScores]
    confidence: float = 0.95

    def studies(self) -> list[pd.Series]:
        """The studies in the order of the table."""
        by_label = {str(study["label"]): study for _, study in self.comparison.studies.iterrows()}
        labels = self.table.loc[self.table["kind"] == "strategy", "strategy"]
        return [by_label[str(label)] for label in labels]

    def histories(self, study: pd.Series) -> list[pd.DataFrame]:
        """The epochs of a study's counted finals."""
        runs = self.comparison.finals(study["study"])["run_id"]
        return [self.comparison.histories[run] for run in runs if run in self.comparison.histories]


def evidence_of(comparison: Comparison, table: pd.DataFrame, confidence: float = 0.95) -> Evidence:
    """Collect what the checks look at; ``table`` is the comparison's ``tables.comparison_table``."""
    return Evidence(comparison, table, strategy_scores(comparison), floor_scores(comparison), confidence)


def find_warnings(evidence: Evidence) -> list[str]:
    """Every warning, the most serious first: what makes scores wrong, then what makes them worse than they need be."""
    return [sentence for check in CHECKS for sentence in check(evidence)]


# --- the scores mean less than they seem ---------------------------------------------------------------------------


def below_floor(evidence: Evidence) -> list[str]:
    """Finals that score below a floor, or no better than always guessing the most frequent class."""
    found = []
    shared = pool(evidence.scores).with_floor()
    for label, scores in evidence.scores.items():
        gaps = {
            name: paired_difference(scores, evidence.floors[name], confidence=evidence.confidence, pool=shared)
            for name in _FITTED_FLOORS
            if name in evidence.floors
        }
        worse = {name: gap for name, gap in gaps.items() if gap.high < 0}
        if worse:
            name = min(worse, key=lambda name: worse[name].mean)
            gap = worse[name]
            shown = score_interval(gap.mean, gap.low, gap.high, difference=True)
            found.append(
                f"{escape(label)} scores below the {floor_name(name)} floor (difference {shown}): search other "
                "learning rates, train longer, or choose a model that fits the data."
            )
        elif _MAJORITY in gaps and gaps[_MAJORITY].tie:
            gap = gaps[_MAJORITY]
            shown = score_interval(gap.mean, gap.low, gap.high, difference=True)
            found.append(
                f"{escape(label)} is not shown to be better than always guessing the most frequent class "
                f"(difference {shown}): it may have learned nothing."
            )
    return found


def collapsed(evidence: Evidence) -> list[str]:
    """Finals that predict a single class."""
    found = []
    for study in evidence.studies():
        single, read = single_class_finals(evidence.comparison, study["study"])
        if single:
            classes = dict.fromkeys(class_name(evidence.comparison, label) for label in single)
            found.append(
                f"{_of_finals(study, len(single), read)} collapsed: every test item is predicted as "
                f"{' or '.join(classes)}. Lower the learning rate, or set `trainer.class_weights=balanced`."
            )
    return found


def missed_classes(evidence: Evidence) -> list[str]:
    """Classes that a strategy's finals hardly ever find, where they do find others."""
    found = []
    for study in evidence.studies():
        if single_class_finals(evidence.comparison, study["study"])[0]:
            continue  # said as collapsed
        classes = per_class_table(evidence.comparison, str(study["label"]))
        missed = classes[(classes["recall"] < MISSED_RECALL) & (classes["support"] >= MISSED_ITEMS)]
        if len(missed):
            names = [
                f"{class_name(evidence.comparison, row['label'])} (recall {score(row['recall'])}, "
                f"{row['support']:.0f} test items)"
                for row in missed.head(MISSED_NAMED).to_dict("records")
            ]
            more = f" and {len(missed) - MISSED_NAMED} more" if len(missed) > MISSED_NAMED else ""
            found.append(
                f"{escape(study['label'])} hardly ever finds {', '.join(names)}{more}, whatever its accuracy. Choose "
                "by `study.metric=validation_macro_f1`, or set `trainer.class_weights=balanced`."
            )
    return found


def count_differs(evidence: Evidence) -> list[str]:
    """Trainable parameters that are not as many as the strategy's formula says."""
    found = []
    for study in evidence.studies():
        runs = evidence.comparison.runs[evidence.comparison.runs["study"] == study["study"]]
        expected, counted = runs[schema.EXPECTED_TRAINABLE_PARAMS], runs[schema.TRAINABLE_PARAMS]
        wrong = runs[expected.notna() & counted.notna() & (expected != counted)]
        if len(wrong):
            row = wrong.iloc[-1]
            found.append(
                f"{escape(study['label'])} trains {row[schema.TRAINABLE_PARAMS]:,.0f} parameters where the formula of "
                f"its method gives {row[schema.EXPECTED_TRAINABLE_PARAMS]:,.0f}: look at what it wraps in this model "
                "before comparing sizes."
            )
    return found


def data_warnings(evidence: Evidence) -> list[str]:
    """What was found in the data when it was loaded: duplicates between splits, a foreign domain, few rows."""
    given = evidence.comparison.data_summary.get("warnings")
    return [escape(warning, limit=400) for warning in given] if isinstance(given, list) else []


def validation_test_gap(evidence: Evidence) -> list[str]:
    """Finals whose validation and test accuracy differ by more than sampling and choosing explain.

    Sampling: both splits are samples of items or of groups of them, with the variance between items that the test
    predictions show. Groups that are smaller in the validation split weigh less there (design effect 1 + (m - 1) rho of
    groups of m items, Kish 1965); seeds are the same on both sides. Choosing: validation picked the best of n trials
    and epochs, which lifts it by E[max of n standard normals] (Blom's approximation, 1958) times what configurations
    do not share of their noise, at the most; seeds of one configuration show how much that is. Where there are no
    predictions, all noise is taken for their own.
    """
    from scipy.stats import norm

    gaps = {str(study["label"]): _gap(evidence, study) for study in evidence.studies()}
    found = []
    for study in evidence.studies():
        validation, test = gap = gaps[str(study["label"])]
        noise = None if any(map(is_missing, gap)) else _gap_noise(evidence, study)
        if noise is None:
            continue
        row = evidence.table[evidence.table["strategy"] == study["label"]].iloc[0]
        epochs = _size(evidence.comparison, study, schema.PARAM_EPOCHS)
        n = max(1.0, row["trials"]) * (1.0 if is_missing(epochs) else max(1.0, epochs))
        sampling = float(norm.ppf((1 + evidence.confidence) / 2)) * noise[0]
        choosing = max(0.0, float(norm.ppf((n - 0.375) / (n + 0.25)))) * noise[1]
        lost = validation - test
        if lost > sampling + choosing:
            why = f"sampling and the choice among {row['trials']:.0f} trials explain {score(sampling + choosing)}"
            what = "the splits may differ, or the search fitted the validation split"
        elif lost < -sampling:
            why, what = f"sampling explains {score(sampling)}", "the test split may be easier than what trials saw"
        else:
            continue
        others = [v - t for label, (v, t) in gaps.items() if label != study["label"] and not is_missing(v - t)]
        ends = dict.fromkeys(map(signed, (-max(others), -min(others)))) if others else ()
        beside = f" (others here: {' to '.join(ends)})" if ends else ""
        found.append(
            f"{escape(study['label'])}: its finals reach validation accuracy {score(validation)}, test accuracy "
            f"{score(test)}, a difference of {signed(-lost)}{beside}; {why}: {what}."
        )
    return found


def _gap(evidence: Evidence, study: pd.Series) -> tuple[float, float]:
    """Mean validation and test accuracy of a study's finals."""
    row = evidence.table[evidence.table["strategy"] == study["label"]].iloc[0]
    return float(row["validation_accuracy"]), float(row["test_accuracy"])


def _gap_noise(evidence: Evidence, study: pd.Series) -> tuple[float, float] | None:
    """Standard errors of validation less test accuracy, and of what a configuration's validation score has of its own.

    ``None`` where the size of a split is unknown.
    """
    sizes = [_size(evidence.comparison, study, of) for of in (schema.PARAM_VALIDATION_SIZE, schema.PARAM_TEST_SIZE)]
    if any(map(is_missing, sizes)):
        return None
    validation_size, test_size = sizes
    scores = evidence.scores[str(study["label"])]
    accuracy = float(scores.accuracies.mean())
    spread = accuracy * (1 - accuracy)
    if scores.correct is None:
        return math.sqrt(spread / test_size + spread / validation_size), math.sqrt(spread / validation_size)
    seen = crossed_components(
        scores.correct.to_numpy(), None if scores.groups is None else scores.groups.reindex(scores.correct.index)
    )
    item, own = seen.items + seen.residual / seen.n_seeds, seen.residual if seen.n_seeds > 1 else seen.items
    groups = evidence.comparison.data_summary.get("groups")
    held = groups.get("validation") if isinstance(groups, dict) else None
    ratio = 1.0
    if isinstance(held, int) and held > 0 and seen.n_groups < seen.n_items and spread:
        design = (seen.items + seen.residual) / spread
        rho = max(0.0, design - 1) / (seen.n_items / seen.n_groups - 1)
        ratio = (1 + rho * max(0.0, validation_size / held - 1)) / max(1.0, design)
    return math.sqrt(item / test_size + ratio * item / validation_size), math.sqrt(ratio * own / validation_size)


# --- the training did not do what was asked of it ------------------------------------------------------------------


def diverged(evidence: Evidence) -> list[str]:
    """Trials and finals whose loss was no longer finite."""
    found = []
    for study in evidence.studies():
        comparison = evidence.comparison
        finals = comparison.lost_finals(study["study"])
        lost = int((finals["state"] == schema.STATE_DIVERGED).sum())
        if lost:
            found.append(
                f"{_of_finals(study, lost, lost + len(comparison.finals(study['study'])))} diverged and "
                f"{'has' if lost == 1 else 'have'} no score: the chosen configuration is unstable, and the mean of the "
                "others is too good."
            )
        trials = comparison.trials(study["study"])
        gone = trials[trials["state"] == schema.STATE_DIVERGED]
        if len(gone):
            rates = pd.to_numeric(gone.get("learning_rate", pd.Series(dtype=float)), errors="coerce").dropna()
            ends = list(dict.fromkeys((setting(rates.min()), setting(rates.max())))) if len(rates) else []
            at = f" (learning rate{'s' * (len(ends) > 1)} {' to '.join(ends)})" if ends else ""
            which = "its only trial" if len(trials) == 1 else f"{len(gone)} of {len(trials)} trials"
            found.append(
                f"{escape(study['label'])}: {which} diverged{at}: that part of its budget "
                "bought nothing; a lower `strategy.search_space.learning_rate.high` spends it better."
            )
    return found


def not_converged(evidence: Evidence) -> list[str]:
    """Finals whose validation accuracy was still rising at the last epoch.

    Either the last epoch of the ceiling gained, on average over the finals, more than two standard errors of a
    validation accuracy, sqrt(p (1 - p) / n), and more than two standard errors over the finals; or every final kept
    that epoch, which k finals of e epochs without a trend do with probability e^-k, and it gained more than a standard
    error over the finals.
    """
    found = []
    for study in evidence.studies():
        size = _size(evidence.comparison, study, schema.PARAM_VALIDATION_SIZE)
        ceiling = _size(evidence.comparison, study, schema.PARAM_EPOCHS)
        gains, ends = [], []
        for history in evidence.histories(study):
            curve = history.set_index("epoch")[schema.VALIDATION_ACCURACY].dropna()
            if len(curve) >= 2 and curve.index[-1] == ceiling:
                gains.append(float(curve.iloc[-1] - curve.iloc[-2]))
                ends.append(float(curve.iloc[-1]))
        if not gains or is_missing(size):
            continue
        gain, end, error = sum(gains) / len(gains), sum(ends) / len(ends), _standard_error(gains)
        kept = evidence.comparison.finals(study["study"])[schema.BEST_EPOCH]
        by_chance = ceiling ** -len(kept) if (kept == ceiling).all() and len(gains) == len(kept) else 1.0
        if gain > 2 * max(math.sqrt(end * (1 - end) / size), error):
            what = "was still improving when training ended"
        elif by_chance < 1 - evidence.confidence and gain > error:
            what = f"may not have trained to the end: all {len(kept)} finals kept the last epoch allowed"
        else:
            continue
        found.append(
            f"{escape(study['label'])} {what}; epoch {ceiling:.0f} brought {100 * gain:.1f} points of validation "
            "accuracy. Its score may understate it; raise `trainer.epochs`."
        )
    return found


def overconfident(evidence: Evidence) -> list[str]:
    """Finals whose validation loss rises while their accuracy holds: they grow surer, not better."""
    found = []
    for study in evidence.studies():
        curves = [
            table
            for history in evidence.histories(study)
            if len(table := history[["epoch", schema.VALIDATION_LOSS, schema.VALIDATION_ACCURACY]].dropna()) >= 2
        ]
        size = _size(evidence.comparison, study, schema.PARAM_VALIDATION_SIZE)
        if not curves or is_missing(size):
            continue
        mean = pd.concat(curves).groupby("epoch").mean()
        loss, accuracy = mean[schema.VALIDATION_LOSS], mean[schema.VALIDATION_ACCURACY]
        best, last = loss.idxmin(), mean.index[-1]
        rises = [table[schema.VALIDATION_LOSS].iloc[-1] - table[schema.VALIDATION_LOSS].min() for table in curves]
        holds = accuracy[last] >= accuracy[best] - math.sqrt(accuracy[best] * (1 - accuracy[best]) / size)
        if holds and loss[last] > (1 + LOSS_RISE) * loss[best] and loss[last] - loss[best] > _standard_error(rises):
            found.append(
                f"{escape(study['label'])}: the mean validation loss of {_number_of(curves)} rises from "
                f"{loss[best]:.3f} (epoch {best:.0f}) to {loss[last]:.3f} (epoch {last:.0f}) while accuracy goes from "
                f"{score(accuracy[best])} to {score(accuracy[last])}: its probabilities grow too sure. Where they "
                "matter, train fewer epochs or choose by `study.metric=validation_loss`."
            )
    return found


def few_steps(evidence: Evidence) -> list[str]:
    """Finals of very few optimiser steps; strategies of equally many in one sentence."""
    labels: dict[str, list[str]] = {}
    accumulation = float(evidence.comparison.setting("trainer.gradient_accumulation_steps") or 1)
    for study in evidence.studies():
        of = (schema.PARAM_TRAIN_SIZE, schema.PARAM_BATCH_SIZE)
        train, batch = (_size(evidence.comparison, study, name) for name in of)
        epochs = evidence.comparison.finals(study["study"])[schema.EPOCHS_RUN].mean()
        if any(map(is_missing, (train, batch, epochs))) or not batch:
            continue
        steps = math.ceil(train / (batch * accumulation)) * epochs
        if steps < FEW_STEPS:
            what = f"{steps:.0f} optimiser steps only ({train:.0f} examples, batches of {setting(batch * accumulation)}"
            labels.setdefault(f"{what}, {setting(epochs)} epochs)", []).append(escape(study["label"]))
    return [
        f"{', '.join(names)} trained for {what}; with fewer than about {FEW_STEPS}, results depend on the seed: "
        "smaller batches, or more epochs."
        for what, names in labels.items()
    ]


# --- the search could have found better ----------------------------------------------------------------------------


def at_the_edge(evidence: Evidence) -> list[str]:
    """Best values at an end of their search space, where better ones may lie beyond.

    An end at 0 or 1 is one that most quantities cannot pass (a probability, a factor, a number of blocks), and is not
    told of; nor is the number of blocks that a model has. Of few values an end is easily the best by chance: it is told
    of where the second-best trial lies there, too, and never of fewer than four.
    """
    found = []
    for study in evidence.studies():
        trial = best_trial(evidence.comparison, study)
        if trial is None:
            continue
        for name, bounds in evidence.comparison.spaces.get(str(study["study"]), {}).items():
            end, low, high, few = _end(trial.get(name), bounds)
            if few and _second_best(evidence.comparison, study, trial, name, bounds) != end:
                continue
            if not end or (low if end == "low" else high) in (0, 1) or (name, end) in _ENDS_OF_MODELS:
                continue
            key = f"strategy.search_space.{name}.{'choices' if 'choices' in bounds else end}"
            found.append(
                f"{escape(study['label'])}: the best {code(name)}, {escape(setting(trial[name]))}, lies at the "
                f"{'lower' if end == 'low' else 'upper'} end of what was searched ({setting(low)} to {setting(high)}): "
                f"better values may lie beyond; widen {code(key)}."
            )
    return found


def _second_best(comparison: Comparison, study: pd.Series, best: pd.Series, name: str, bounds: dict[str, Any]) -> str:
    """The end of its space at which the best of the other complete trials has a hyperparameter, or empty text."""
    trials = comparison.trials(study["study"])
    others = trials[(trials["state"] == schema.STATE_COMPLETE) & (trials["run_id"] != best["run_id"])]
    column = score_column(study, others)
    values = pd.to_numeric(others.get(column, pd.Series(dtype=float)), errors="coerce").dropna()
    if values.empty:
        return ""
    second = values.idxmin() if column.endswith("loss") else values.idxmax()
    return _end(others.loc[second].get(name), bounds)[0]


def _end(value: Any, bounds: dict[str, Any]) -> tuple[str, float, float, bool]:
    """``low`` or ``high`` where a value lies at that end of its space, both ends, and if values are few."""
    try:
        given = float(value)
        if "choices" in bounds:
            choices = [float(choice) for choice in bounds["choices"]]
            low, high, number = min(choices), max(choices), float(len(set(choices)))
        else:
            low, high, step = float(bounds["low"]), float(bounds["high"]), float(bounds.get("step") or 0)
            number = (high - low) / step + 1 if step > 0 else math.inf
        scale: Callable[[float], float] = math.log if bounds.get("log") or "choices" in bounds else float
        place = (scale(given) - scale(low)) / (scale(high) - scale(low))
    except (ArithmeticError, KeyError, TypeError, ValueError):  # names have no ends, foreign records any shape
        return "", math.nan, math.nan, False
    end = "low" if place <= EDGE else "high" if place >= 1 - EDGE else ""
    return "" if number < LEAST_VALUES else end, low, high, number < FEW_VALUES


#: The most serious first.
CHECKS = (
    below_floor,
    collapsed,
    missed_classes,
    count_differs,
    validation_test_gap,
    data_warnings,
    diverged,
    not_converged,
    few_steps,
    at_the_edge,
    overconfident,
)


# --- what they share -----------------------------------------------------------------------------------------------


def class_name(comparison: Comparison, label: object) -> str:
    """A class as a reader knows it, as inert markdown."""
    return escape(formats.class_name(label, comparison.data_summary.get("label_names")))


def _of_finals(study: pd.Series, number: int, of: int) -> str:
    return f"{escape(study['label'])}: {count(number)} of {count(of)} finals"


def _number_of(finals: Sequence[object]) -> str:
    return f"{len(finals)} final{'s' * (len(finals) > 1)}"


def _size(comparison: Comparison, study: pd.Series, param: str) -> float:
    """A param of a study or of its runs as a number, NaN where none says it."""
    runs = comparison.runs.loc[comparison.runs["study"] == study["study"], param]
    said = pd.to_numeric(pd.concat([runs, pd.Series([study[param]], dtype=object)]), errors="coerce").dropna()
    return float(said.iloc[-1]) if len(said) else math.nan


def _standard_error(values: Sequence[float]) -> float:
    return float(pd.Series(values, dtype=float).sem()) if len(values) > 1 else 0.0
