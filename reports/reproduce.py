"""How to get what a report is about again: the command that trains the choice alone, and where things lie."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from reports.formats import code, escape, hydra_quoted, is_missing
from reports.load import Comparison, best_trial, parsed_config
from sweeper import schema

__all__ = ["places", "train_command"]

_ENGINE = ["python", "-m", "sweeper"]
_LEARNING_RATE = "learning_rate"
#: Of the command that was run: what names several strategies or sizes, or says where and how long to search.
_REPLACED = re.compile(
    r"(strategy|compare|study\.(n_trials|timeout|name)|dataset\.train_sizes?|tracking\.uri|output_dir|dry_run|hub\.\w+)="
)
_BARE = re.compile(r"[A-Za-z0-9_./-]+")


def train_command(comparison: Comparison, label: str | None) -> str:
    """The command that trains the winning configuration of one strategy, with full precision and without a search.

    It is made of the command that was logged, without what names other strategies, and of the winning trial's values.
    It writes to a folder of its own, else the new study would join the comparison. Empty text where no trial won, or
    the study was not run by ``python -m sweeper``.
    """
    study = _study(comparison, label)
    trial = None if study is None else best_trial(comparison, study)
    if study is None or trial is None or is_missing(study["command"]):
        return ""
    config = parsed_config(comparison.configs.get(str(study["study"]), ""))
    try:
        words = shlex.split(str(study["command"]))
    except ValueError:  # an open quote, in a foreign record
        return ""
    if words[:3] != _ENGINE or not isinstance(config.get("strategy"), dict):
        return ""
    strategy = config["strategy"]
    names = "" if is_missing(study[schema.PARAM_SEARCHED]) else str(study[schema.PARAM_SEARCHED])
    searched = [name.strip() for name in names.split(",") if name.strip()]
    values = {name: trial.get(name) for name in searched}
    if not str(strategy.get("name", "")) or any(map(is_missing, values.values())):
        return ""
    kept = [word for word in words[4:] if not _REPLACED.match(word) and not _is_value(word, searched)]
    kept = [word for word in kept if word not in ("-m", "--multirun")]
    given = [f"strategy={_text(strategy['name'])}"]
    if any(word.startswith(("experiment=", "compare=", "strategy.")) for word in words):
        kept = [word for word in kept if not word.startswith("strategy.")]
        given += _fixed(strategy, searched)
    for name, value in values.items():
        given.append(f"{'trainer' if name == _LEARNING_RATE else 'strategy'}.{name}={_text(value)}")
        given.append(f"strategy.search_space.{name}=null")
    sized = any(word.startswith(("experiment=", "dataset.train_size")) for word in words)
    if sized and isinstance(config.get("dataset"), dict):
        given += [f"dataset.train_size={_text(config['dataset'].get('train_size'))}", "dataset.train_sizes=null"]
    folder = re.sub(r"[^A-Za-z0-9._-]+", "_", str(label))
    given += ["study.n_trials=1", f"output_dir={_text(f'{_output_dir(config)}/only_{folder}')}"]
    return shlex.join([*_ENGINE, "sweep", *kept, *given])


def places(comparison: Comparison, label: str | None) -> Iterator[str]:
    """Where the records and the weights lie, as sentences of markdown; nothing of what was not run by the engine."""
    study = _study(comparison, label)
    config = comparison.settings if study is None else parsed_config(comparison.configs.get(str(study["study"]), ""))
    if not config.get("output_dir"):
        return
    folder = _output_dir(config)
    if study is not None:
        weights = code(f"{folder}/models/{study['study']}")
        yield f"Weights of the best final of {escape(label)} on validation, a complete model: {weights}."
    tracking = config.get("tracking")
    uri = tracking.get("uri") if isinstance(tracking, Mapping) else None
    mlflow = code(uri or f"sqlite:///{folder}/mlflow.db")
    yield f"Records: MLflow at {mlflow}, trials in {code(f'{folder}/optuna.db')}; paths from where the command was run."


def _study(comparison: Comparison, label: str | None) -> pd.Series | None:
    rows = comparison.studies[comparison.studies["label"] == label]
    return None if rows.empty else rows.iloc[0]


def _output_dir(config: Mapping[str, Any]) -> str:
    return str(config.get("output_dir") or "outputs").rstrip("/")


def _is_value(word: str, searched: list[str]) -> bool:
    """Whether a word of the command says something of a hyperparameter that the winner's value replaces."""
    key = word.partition("=")[0].lstrip("+~")
    return key == "trainer.learning_rate" or any(
        key in (f"strategy.{name}", f"strategy.search_space.{name}") or key.startswith(f"strategy.search_space.{name}.")
        for name in searched
    )


def _fixed(strategy: Mapping[str, Any], searched: list[str]) -> list[str]:
    """The values that were not searched, as an experiment or an entry of ``compare`` may have set them."""
    values = {
        name: value
        for name, value in strategy.items()
        if name not in ("name", "search_space", *searched) and value is not None and not isinstance(value, Mapping)
    }
    space = strategy.get("search_space")
    off = [name for name, bounds in space.items() if bounds is None] if isinstance(space, Mapping) else []
    return [
        *(f"strategy.{name}={_text(value)}" for name, value in values.items()),
        *(f"++strategy.search_space.{name}=null" for name in off if name not in searched),
    ]


def _text(value: Any) -> str:
    """A value as Hydra reads it."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) else hydra_quoted(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return json.dumps(value)
