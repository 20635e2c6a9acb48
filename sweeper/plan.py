"""What a configuration asks for, as plain values: the names of its study and comparison, budgets, tags and params."""

from __future__ import annotations

import contextlib
import json
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from sweeper import schema
from sweeper.config import Config, effective_pooling
from sweeper.data.dataset import Dataset, Input, content, fingerprint
from sweeper.hashing import digest
from sweeper.objective import Task
from sweeper.search_space import LEARNING_RATE, StrategySpec
from sweeper.secrets import redacted
from sweeper.training.domain_pretrain import DomainPretraining
from sweeper.training.pseudo_label import PseudoLabelling
from sweeper.versions import versions

__all__ = ["Plan", "make_plan"]

#: Raised when the same configuration trains differently, so that runs before and after are not mixed.
TRAINING_VERSION = 5  # masks of the last block are of what the head reads

HASH_LENGTH = 8  # hex digits at the end of names

#: What may differ between the studies of one comparison, or grow when one is continued.
_NOT_MEASURED = (
    "cache",
    "compare",
    "dry_run",
    "engine",
    "final",
    "hub",
    "output_dir",
    "reference",
    "report",
    "tracking",
    "verbosity",
)


@dataclass(frozen=True)
class Plan:
    """One study as asked for.

    Attributes:
        study: name, unique for what is measured unless the user gave one.
        identity: hash of everything that changes what is measured.
        settings: what that is, flat, where the user gave the study its name; else the name says as much.
        comparison: name of the studies it is compared with.
        strategy: label of the strategy (its name, unless it is given one), with the wrappers around it.
        spec: its fixed values and search space.
        pseudo_label: self-training around each of its runs; 0 rounds = none.
        domain_pretrain: language modelling before all of them; 0 epochs = none.
        epochs: the most epochs of one run, over all its rounds.
        n_trials: total of completed, pruned, diverged and failed trials.
        timeout: seconds after which no trial starts, or None.
        seed: the study's.
        sampler: ``tpe``, ``random`` or ``gp``.
        pruner: ``none``, ``median``, ``hyperband`` or ``successive_halving``.
        metric: what trials are chosen by.
        maximize: whether more of it is better.
        final_seeds: number of finals.
        drift: whether finals are asked how far their features moved from the pretrained ones.
        max_failure_rate: share of failed trials above which the study stops.
        checkpoint_seconds: of training between two checkpoints of a run, or None.
        budgets: metric -> the most that a configuration may take to win; empty unless they constrain the search.
        tags: for each of its MLflow runs.
        params: likewise.
        study_tags: for its parent run: command, revision, fingerprint.
        files: artifacts of its parent run, name -> text.
    """

    study: str
    identity: str
    settings: Mapping[str, Any]
    comparison: str
    strategy: str
    spec: StrategySpec
    pseudo_label: PseudoLabelling
    domain_pretrain: DomainPretraining
    epochs: int
    n_trials: int
    timeout: float | None
    seed: int
    sampler: str
    pruner: str
    metric: str
    maximize: bool
    final_seeds: int
    drift: bool
    max_failure_rate: float
    checkpoint_seconds: float | None
    budgets: Mapping[str, float]
    tags: Mapping[str, str]
    params: Mapping[str, Any]
    study_tags: Mapping[str, str]
    files: Mapping[str, str]


def make_plan(config: Config, spec: StrategySpec, task: Task, command: str) -> Plan:
    """The plan of one composed configuration.

    The study's name holds a hash of everything that changes what is measured, the comparison's name one of what its
    studies share; neither depends on the number of trials or finals, which may grow.

    Args:
        config: composed and checked.
        spec: its strategy.
        task: its model and data, loaded.
        command: the command line that reproduces it.
    """
    dataset = task.dataset
    raw: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    measured = {key: value for key, value in raw.items() if key not in _NOT_MEASURED}
    study = measured.pop("study")
    measured["study"] = {key: study[key] for key in ("seed", "sampler", "pruner", "metric")}
    measured["training"] = TRAINING_VERSION
    budgets = _budgets(config)
    if budgets:  # else a report chooses by them, and measures nothing else
        measured["budgets"] = budgets
    measured["data"] = dataset.fingerprint
    measured["weights"] = task.pretrained.fingerprint
    measured["trainer"]["precision"] = task.settings.precision
    del measured["trainer"]["checkpoint_seconds"]
    measured["model"] = {key: value for key, value in measured["model"].items() if key != "path"}
    measured["model"]["pooling"] = effective_pooling(config.model)
    descriptions = measured["dataset"].pop("label_descriptions")
    # The rows themselves are in the fingerprint, and shifted ones no trial sees: finals name them (schema.TAG_SHIFTED).
    # Of several train sizes each comparison has one.
    for where in ("path", "validation_path", "test_path", "shifted", "train_sizes"):
        del measured["dataset"][where]
    strategy = {key: value for key, value in measured.pop("strategy").items() if key != "label"}
    wrappers = _wrappers(measured, config, dataset.unlabelled)
    if not spec.cls.trains:
        strategy["label_descriptions"], wrappers = descriptions, {}
    shared = {**measured, "trainer": {k: v for k, v in measured["trainer"].items() if k != LEARNING_RATE}}
    model = config.model.name if config.model.source != "local" else Path(str(config.model.path)).name
    prefix = f"{_slug(model)}-{_slug(dataset.name)}"
    comparison = f"{prefix}-{digest(shared, HASH_LENGTH)}"
    curve = f"{prefix}-sizes-{digest(_but_for_train(shared, dataset), HASH_LENGTH)}"
    identified = {**measured, **wrappers, "strategy": strategy}
    identity = digest(identified, HASH_LENGTH)
    label = "+".join([spec.label or spec.cls.name, *wrappers])
    # A study that was given a name is checked when it is opened; a reference has no study.
    name = (config.study.name if spec.cls.trains else None) or f"{prefix}-{_slug(label)}-{identity}"
    pseudo_label = PseudoLabelling(**raw["pseudo_label"])
    tags = {
        schema.TAG_COMPARISON: comparison,
        schema.TAG_CURVE: curve,
        schema.TAG_STUDY: name,
        schema.TAG_STRATEGY: label,
        schema.TAG_MODEL: model,
        schema.TAG_DATASET: dataset.name,
    }
    params = {
        schema.PARAM_STRATEGY: label,
        schema.PARAM_MODEL: model,
        schema.PARAM_DATASET: dataset.name,
        schema.PARAM_EPOCHS: pseudo_label.epochs(config.trainer.epochs),
        schema.PARAM_BATCH_SIZE: config.trainer.batch_size,
        schema.PARAM_TRAIN_SIZE: len(dataset.train),
        schema.PARAM_VALIDATION_SIZE: len(dataset.validation),
        schema.PARAM_TEST_SIZE: len(dataset.test),
        schema.PARAM_PRECISION: task.settings.precision,
        schema.PARAM_DEVICE: _device(),
        schema.PARAM_HEAD: config.model.head,
        schema.PARAM_POOLING: effective_pooling(config.model),
        schema.PARAM_METRIC: config.study.metric,
        schema.PARAM_SAMPLER: config.study.sampler,
        schema.PARAM_PRUNER: config.study.pruner,
    }
    return Plan(
        study=name,
        identity=identity,
        settings=_settings(identified, dataset) if config.study.name else {},
        comparison=comparison,
        strategy=label,
        spec=spec,
        pseudo_label=pseudo_label,
        domain_pretrain=DomainPretraining(**raw["domain_pretrain"]),
        epochs=pseudo_label.epochs(config.trainer.epochs),
        n_trials=config.study.n_trials,
        timeout=config.study.timeout,
        seed=config.study.seed,
        sampler=config.study.sampler,
        pruner=config.study.pruner,
        metric=config.study.metric,
        maximize=task.settings.maximize,
        final_seeds=config.final.seeds,
        drift=config.final.drift,
        max_failure_rate=config.study.max_failure_rate,
        checkpoint_seconds=config.trainer.checkpoint_seconds,
        budgets=budgets,
        tags=tags,
        params=params,
        study_tags={
            schema.TAG_COMMAND: command,
            schema.TAG_GIT: _git_revision(),
            schema.TAG_FINGERPRINT: dataset.fingerprint,
        },
        files={
            schema.ARTIFACT_CONFIG: redacted(OmegaConf.to_yaml(config, resolve=True)),
            schema.ARTIFACT_SEARCH_SPACE: spec.as_json(),
            schema.ARTIFACT_VERSIONS: json.dumps({"python": platform.python_version(), **versions()}, indent=2),
            schema.ARTIFACT_DATA_SUMMARY: json.dumps(task.summary, indent=2),
        },
    )


def _settings(identified: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """What identifies a study as flat keys, without secrets; the rows by split."""
    rows = {split: fingerprint({split: getattr(dataset, split)}) for split in ("train", "validation", "test")}
    flat: dict[str, Any] = {}

    def flatten(prefix: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                flatten(f"{prefix}{key}.", value)
            else:
                flat[f"{prefix}{key}"] = redacted(value) if isinstance(value, str) else value

    flatten("", {**identified, "data": rows})
    return flat


def _budgets(config: Config) -> dict[str, float]:
    """What constrains the search: metric -> the most of it."""
    given = {
        schema.TRAINABLE_PARAMS: config.report.max_trainable_params,
        schema.TRAIN_SECONDS: config.report.max_train_seconds,
        schema.PEAK_MEMORY_MB: config.report.max_memory_mb,
    }
    if not config.report.constrain_search:
        return {}
    return {metric: float(budget) for metric, budget in given.items() if budget is not None}


def _but_for_train(shared: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """What comparisons share that differ in their train split only: the same rows are scored."""
    scored = [
        (split.items.tolist(), split.labels.tolist(), [content(item) for item in split.inputs])
        for split in (dataset.validation, dataset.test)
    ]
    settings = {key: value for key, value in shared["dataset"].items() if key != "train_size"}
    return {**shared, "dataset": settings, "data": digest(scored, HASH_LENGTH)}


def _wrappers(measured: dict[str, Any], config: Config, unlabelled: Sequence[Input]) -> dict[str, Any]:
    """Take the wrappers out of what is measured: name -> settings and inputs of those that are on, inner one first.

    They are part of a study, as its strategy is, but not of its comparison; one that is off measures nothing.
    """
    on = {"pseudo_label": config.pseudo_label.rounds > 0, "domain_pretrain": config.domain_pretrain.epochs > 0}
    settings = {name: measured.pop(name) for name in on}
    inputs = digest([content(item) for item in unlabelled], HASH_LENGTH) if any(on.values()) else ""
    return {name: {**settings[name], "unlabelled": inputs} for name, wraps in on.items() if wraps}


def _slug(name: str) -> str:
    """A part of a name that becomes a folder: of plain characters and short; the hash at its end tells names apart."""
    return re.sub(r"[^A-Za-z0-9._]+", "_", name)[:64].strip("._") or "unnamed"


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"cpu{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    """The processor's name in brackets, as far as the system tells; without commas, which end a device's name."""
    name = platform.processor()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    return f" ({' '.join(name.replace(',', ' ').split())})" if name else ""


def _git_revision() -> str:
    """The revision of this clone, ``-dirty`` where files differ from it; ``thawline 0.1.0`` outside of one."""
    folder = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", __file__], cwd=folder, capture_output=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return _installed()
    return result.stdout.strip() if tracked.returncode == 0 else _installed()


def _installed() -> str:
    return " ".join(["thawline", *versions(("thawline",)).values()])  # none where it is copied, not installed
