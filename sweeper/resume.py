"""Whether a study may be continued: what ``study.resume`` says, and whether it measures what it was made to measure."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna

from sweeper.errors import ConfigError, StudyError
from sweeper.plan import Plan
from sweeper.storage import existing_storage

__all__ = ["check_resumable", "claim"]

SHOWN = 10  # differences; more are counted
_LENGTH = 80  # characters of a value

#: Attributes of a study in Optuna.
_IDENTITY, _SETTINGS = "identity", "settings"
#: What a fingerprint or a version stands for.
_WORDS = {
    "data.train": "the rows of the train split are others",
    "data.validation": "the rows of the validation split are others",
    "data.test": "the rows of the test split are others",
    "weights": "the weights of the model are others",
    "pseudo_label.unlabelled": "the unlabelled items are others",
    "domain_pretrain.unlabelled": "the unlabelled texts are others",
    "training": "this version trains the same settings differently",
}


def check_resumable(plans: Sequence[Plan], url: str, resume: str) -> None:
    """Look at all studies before the first trial; nothing is created.

    Args:
        plans: of the studies that are to be run.
        url: of the storage.
        resume: ``auto`` continues a study that exists and creates another; ``never`` wants each to be new, ``require``
            each to exist.

    Raises:
        ConfigError: what is wrong, for all studies at once.
        StudyError: the storage cannot be opened.
    """
    storage = existing_storage(url)
    known = {study.study_name: study for study in storage.get_all_studies()} if storage is not None else {}
    problems, hints = [], []
    for plan in plans:
        found = known.get(plan.study)
        if found is None and resume == "require":
            close = difflib.get_close_matches(plan.study, known, n=5, cutoff=0.3)
            there = f"near it are {', '.join(close)}" if close else f"of its {len(known)} studies none has such a name"
            problems.append(f"study.resume=require: there is no study {plan.study} in {url}; {there}")
            hints.append("Give the settings, the name or the storage it was made with, or study.resume=auto.")
        elif found is not None and resume == "never":
            problems.append(f"study.resume=never: the study {plan.study} exists already in {url}")
            hints.append(
                "study.resume=auto continues it; another study.name, study.seed or output_dir makes a new one."
            )
        elif found is not None and storage is not None and (told := _difference(plan, _attributes(storage, found))):
            problems.append(told)
            hints.append(_HINT)
    if problems:
        raise ConfigError(problems, " ".join(dict.fromkeys(hints)))


def claim(study: optuna.Study, plan: Plan) -> None:
    """Record what a new study measures.

    Raises:
        StudyError: it exists, and measures something else.
    """
    if told := _difference(plan, study.user_attrs):
        raise StudyError(told, _HINT)
    study.set_user_attr(_IDENTITY, plan.identity)
    if plan.settings:
        study.set_user_attr(_SETTINGS, _stored(plan.settings))


_HINT = "Leave study.name out, choose another one, or give the settings that it was made with."


def _attributes(storage: optuna.storages.BaseStorage, study: Any) -> Mapping[str, Any]:
    return storage.get_study_user_attrs(study._study_id)


def _difference(plan: Plan, attributes: Mapping[str, Any]) -> str:
    """How a study differs from the plan of its name, as text; empty where it does not."""
    if attributes.get(_IDENTITY, plan.identity) == plan.identity:
        return ""
    before, now = attributes.get(_SETTINGS), _stored(plan.settings)
    lines = list(_changes(before, now)) if before and now else []
    if not lines:
        return f"study.name={plan.study} belongs to a study of another model, dataset, strategy or trainer setting"
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"and {len(lines) - SHOWN} more"]
    return f"study.name={plan.study} belongs to a study of other settings:" + "".join(f"\n    {line}" for line in lines)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*before, *now}, key=lambda key: (key in _WORDS, key)):
        was, given = (_shown(settings, key) for settings in (before, now))
        if was != given:
            yield _WORDS.get(key) or f"{key} was {was}, now {given}"


def _shown(settings: Mapping[str, Any], key: str) -> str:
    if key not in settings:
        return "not set"
    value = settings[key]
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]}..."


def _stored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from the storage: lists for tuples, numbers of the same kind."""
    return dict(json.loads(json.dumps(settings, default=str)))
