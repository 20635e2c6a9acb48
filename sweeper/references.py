"""What a comparison is held against, each scored once: floors, zero-shot, a prompted model; floor runs of MLflow."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, cast

import numpy as np
from rich.markup import escape

from strategies import ZeroShot
from sweeper import schema
from sweeper.config import Config, effective_pooling
from sweeper.data import Dataset
from sweeper.data.floors import FLOORS, FloorResult, floors, score_floor
from sweeper.hashing import digest
from sweeper.models.zero_shot import zero_shot
from sweeper.objective import Task, predictions_table
from sweeper.plan import Plan
from sweeper.progress import Progress
from sweeper.prompting import Prompting, ask_dataset, prompted_name
from sweeper.tracking import Tracker

__all__ = ["log_floors", "log_prompted", "log_zero_shot"]


def log_floors(plan: Plan, dataset: Dataset, tracker: Tracker, progress: Progress) -> None:
    """Score the floors of a comparison once."""
    complete = {schema.TAG_KIND: schema.KIND_FLOOR, schema.TAG_STATE: schema.STATE_COMPLETE}
    if len(tracker.find({schema.TAG_COMPARISON: plan.comparison, **complete})) >= len(FLOORS[dataset.modality]):
        return
    running = {schema.TAG_KIND: schema.KIND_FLOOR, schema.TAG_STATE: schema.STATE_RUNNING}
    tracker.close_interrupted(tracker.find({schema.TAG_COMPARISON: plan.comparison, **running}))
    features = {"text": "TF-IDF", "image": "raw pixels"}[dataset.modality]
    progress.note(f"Scoring the floors: majority class, logistic regression on {features} ...")
    tags = {key: value for key, value in plan.tags.items() if key not in (schema.TAG_STUDY, schema.TAG_STRATEGY)}
    for floor in floors(dataset):
        _log_floor(plan, floor, tags, dataset, tracker)


def _log_floor(
    plan: Plan,
    floor: FloorResult,
    tags: Mapping[str, str],
    dataset: Dataset,
    tracker: Tracker,
    more: Mapping[str, Any] | None = None,
    more_metrics: Mapping[str, float] | None = None,
) -> None:
    params = {key: plan.params[key] for key in (schema.PARAM_MODEL, schema.PARAM_DATASET, schema.PARAM_TRAIN_SIZE)}
    params |= {schema.PARAM_FLOOR: floor.name, **(more or {})}
    run_id = tracker.start(schema.KIND_FLOOR, f"floor {floor.name}", tags, params)
    predictions = predictions_table(dataset.test, floor.predictions, floor.probabilities)
    tracker.log_table(run_id, schema.ARTIFACT_PREDICTIONS, predictions)
    metrics = {
        schema.TEST_ACCURACY: floor.test_accuracy,
        schema.TEST_MACRO_F1: floor.test_macro_f1,
        schema.TRAINABLE_PARAMS: floor.trainable_params,
        schema.TRAIN_SECONDS: floor.seconds,
        **(more_metrics or {}),
    }
    if floor.validation_accuracy is not None:
        metrics[schema.VALIDATION_ACCURACY] = floor.validation_accuracy
    tracker.finish(run_id, schema.STATE_COMPLETE, metrics=metrics)


def log_zero_shot(plan: Plan, config: Config, task: Task, tracker: Tracker, progress: Progress) -> None:
    """Score a strategy that trains nothing, once, as a floor of its comparison."""
    if _is_newest_reference(plan.tags, tracker):
        return
    tracker.close_interrupted(tracker.open_runs(plan.study))
    progress.note(f"Scoring {plan.strategy} ...")
    started = time.perf_counter()
    dataset = task.dataset
    described = config.dataset.label_descriptions
    given = dict(described or {name: name for name in dataset.label_names})
    template = cast(ZeroShot, plan.spec.build({})[0]).sentence(
        names_of_images=dataset.modality == "image" and not described
    )
    probabilities = zero_shot(
        task.source,
        [*dataset.validation.inputs, *dataset.test.inputs],
        [template.replace("{}", given[name]) for name in dataset.label_names],
        modality=config.model.modality,
        pooling=effective_pooling(config.model),
        max_length=config.dataset.max_length,
        revision=task.revision,
    )
    validation, test = probabilities[: len(dataset.validation)], probabilities[len(dataset.validation) :]
    right = validation.argmax(-1).numpy() == dataset.validation.labels
    highest, predictions = test.max(-1)
    result = score_floor(plan.strategy, dataset, float(right.mean()), 0, started, predictions.numpy(), highest.numpy())
    texts = {"template": template, "descriptions": json.dumps(given)}
    _log_floor(plan, result, plan.tags, dataset, tracker, texts)
    progress.note(f"{plan.strategy}: test accuracy {result.test_accuracy:.4f}")


def log_prompted(
    plan: Plan, settings: Prompting, config: Config, dataset: Dataset, tracker: Tracker, progress: Progress
) -> None:
    """Ask a prompted model, once, as a floor of the comparison."""
    described = config.dataset.label_descriptions
    descriptions = None if described is None else dict(described)
    name = prompted_name(settings, len(dataset.test))
    how = ("concurrency", "timeout", "api_key_variable")  # changes no answer
    identity = {key: value for key, value in asdict(settings).items() if key not in how}
    identity |= {"comparison": plan.comparison, "seed": config.dataset.seed, "descriptions": descriptions}
    tags = {
        **plan.tags,
        schema.TAG_STUDY: f"{plan.comparison}-prompted-{digest(identity, 8)}",
        schema.TAG_STRATEGY: name,
    }
    if _is_newest_reference(tags, tracker):
        return
    tracker.close_interrupted(tracker.open_runs(tags[schema.TAG_STUDY]))
    progress.note(f"Scoring {escape(name)} at {escape(settings.base_url)} ...")
    started = time.perf_counter()
    answers = ask_dataset(
        dataset,
        settings,
        descriptions=descriptions,
        seed=config.dataset.seed,
        on_answer=lambda done, total: progress.items(name, done, total),
    )
    asked = replace(dataset, test=answers.test)
    unknown = np.full(len(answers.test), np.nan)
    result = score_floor(name, asked, None, 0, started, answers.predictions, unknown)
    params = {
        schema.PARAM_PROMPTED_MODEL: settings.model,
        schema.PARAM_SHOTS: settings.shots,
        "instruction": settings.instruction,
        "descriptions": json.dumps(descriptions),
    }
    metrics = {
        schema.PROMPTED_ITEMS: len(answers.test),
        schema.PROMPTED_UNPARSED: answers.unparsed,
        schema.PROMPTED_CUT: answers.cut,
    }
    _log_floor(plan, result, tags, asked, tracker, params, metrics)
    unparsed = f", {answers.unparsed} answers without one clear label count as wrong" if answers.unparsed else ""
    of = f" on {len(answers.test)} of {len(dataset.test)} items" if len(answers.test) < len(dataset.test) else ""
    progress.note(f"{escape(name)}: test accuracy {result.test_accuracy:.4f}{of}{unparsed}")


def _is_newest_reference(tags: Mapping[str, str], tracker: Tracker) -> bool:
    """Whether it is scored, and nothing else under its name has been since, of which a report takes the newest."""
    complete = {schema.TAG_STATE: schema.STATE_COMPLETE, schema.TAG_COMPARISON: tags[schema.TAG_COMPARISON]}
    mine = tracker.find({**complete, schema.TAG_STUDY: tags[schema.TAG_STUDY]})
    return bool(mine) and mine[:1] == tracker.find({**complete, schema.TAG_STRATEGY: tags[schema.TAG_STRATEGY]})[:1]
