"""A comparison: its configurations validated before the first trial, then its floors and its studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import optuna
from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape

from strategies import NotApplicable
from sweeper import schema
from sweeper.assets import cache_root, fetch
from sweeper.config import Config, check, data_name, effective_pooling, natural_direction
from sweeper.data import DataRequest, Dataset, load_dataset
from sweeper.engine import engine_problems, is_brief, make_engine
from sweeper.errors import ConfigError, StudyError
from sweeper.hub import push_problems
from sweeper.interruption import Interrupted
from sweeper.models.pretrained import timm_repository
from sweeper.models.zero_shot import check_zero_shot
from sweeper.objective import Task
from sweeper.ownership import Owner
from sweeper.plan import Plan, make_plan
from sweeper.progress import Progress
from sweeper.prompting import Prompting
from sweeper.quiet import quieten_libraries
from sweeper.references import log_floors, log_prompted, log_zero_shot
from sweeper.resume import check_resumable
from sweeper.search_space import StrategySpec, parse_strategy
from sweeper.storage import open_storage, storage_url
from sweeper.study import finished_trials, run_study
from sweeper.tracking import Tracker
from sweeper.training.domain_pretrain import is_masked
from sweeper.training.fit import TrainerSettings
from sweeper.training.precision import resolve_precision
from sweeper.training.state_store import StateStore

__all__ = ["Outcome", "Prepared", "boundary_cuts", "prepare_comparisons", "run_comparison"]


@dataclass(frozen=True)
class Outcome:
    """What a comparison came to: its name, its studies, and the errors of those that did not finish."""

    comparison: str
    studies: int
    failures: list[StudyError]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A comparison that is validated, with its model and data loaded.

    Attributes:
        configs: one for each plan.
        plans: its studies, and the references that train nothing.
        task: model and data.
        prompting: the prompted model that is a reference, or None.
    """

    configs: list[Config]
    plans: list[Plan]
    task: Task
    prompting: Prompting | None

    @property
    def curve(self) -> str:
        """What it has in common with comparisons that differ in their train split only."""
        return self.plans[0].tags[schema.TAG_CURVE]


def prepare_comparisons(
    groups: Sequence[Sequence[Config]], command: str, console: Console, *, skip_inapplicable: bool = False
) -> list[Prepared]:
    """Validate every configuration, load models and data, and check that they fit.

    Args:
        groups: composed configurations; within a group they differ in their strategy only, from group to group in
            their train size only.
        command: the command line that reproduces them.
        console: where to write.
        skip_inapplicable: leave out, with a note, strategies that do not fit the model or the number of epochs.

    Raises:
        ConfigError: every mistake of every configuration, or studies that cannot be continued.
        AssetError, DataError, StudyError: see there.
    """
    quieten_libraries()
    prepared: list[Prepared] = []
    for configs in groups:
        new = _prepare(configs, command, console, skip_inapplicable)
        if prepared:
            first = prepared[0]
            if new.curve != first.curve:
                raise ConfigError(
                    f"dataset.train_sizes: the rows to score at {len(new.task.dataset.train)} training examples are "
                    f"others than at {len(first.task.dataset.train)}",
                    "Give dataset.validation_size, so that the train size does not change the validation split.",
                )
            # Equal at every size, and held once.
            new = replace(new, task=replace(new.task, pretrained=first.task.pretrained, cache=first.task.cache))
        prepared.append(new)
    config = groups[0][0]
    studies = [plan for comparison in prepared for plan in comparison.plans if plan.spec.cls.trains]
    check_resumable(studies, _storage_url(config), config.study.resume)
    return prepared


def _prepare(configs: Sequence[Config], command: str, console: Console, skip_inapplicable: bool) -> Prepared:
    config = configs[0]
    specs = _validate(configs)
    task = _load(config, console)
    _check_wrappers(config, task)
    prompting = _prompting(config, task.dataset)
    misfits = _check_model(task, configs, specs)
    if misfits and (not skip_inapplicable or len(misfits) == len(configs)):
        raise ConfigError(list(misfits.values()), "Leave out what does not fit, or change what it names.")
    for message in misfits.values():
        console.print(f"[yellow]left out:[/yellow] {escape(message)}", highlight=False, soft_wrap=True)
    kept = [index for index in range(len(configs)) if index not in misfits]
    plans = [make_plan(configs[index], specs[index], task, command) for index in kept]
    if task.cache is not None:
        cuts = boundary_cuts([plan.spec for plan in plans if plan.spec.cls.trains], task)
        task.cache.expect(cuts, [task.train, task.validation])
    return Prepared([configs[index] for index in kept], plans, task, prompting)


def run_comparison(prepared: Prepared, tracking_uri: str, console: Console) -> Outcome:
    """Score the floors of a comparison and run its studies.

    A study that fails does not keep the others from running. A strategy that trains nothing is scored once, beside
    the floors.

    Args:
        prepared: what :func:`prepare_comparisons` found to be right.
        tracking_uri: of MLflow.
        console: where to write.

    Raises:
        StudyError: the output folder is in use, or a signal came; the same call continues.
    """
    config, plans, task = prepared.configs[0], prepared.plans, prepared.task
    studies = [plan for plan in plans if plan.spec.cls.trains]

    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    failures: list[StudyError] = []
    inline = all(is_brief(plan.spec, task) for plan in studies)
    names = [plan.study for plan in studies]
    with (
        Owner(output_dir),
        open_storage(_storage_url(config)).owned(names) as storage,
        make_engine(
            "inline" if inline else config.engine.name,
            config.engine.workers,
            config.engine.address,
            config.engine.cpus_per_worker,
            config.engine.gpus_per_worker,
        ) as engine,
        Progress(console, config.verbosity) as progress,
        Tracker(
            tracking_uri, config.tracking.experiment, output_dir, note=lambda text: progress.note(escape(text))
        ) as tracker,
    ):
        log_floors(plans[0], task.dataset, tracker, progress)
        if prepared.prompting is not None:
            log_prompted(plans[0], prepared.prompting, config, task.dataset, tracker, progress)
        for plan, own in zip(plans, prepared.configs, strict=True):
            if not plan.spec.cls.trains:
                log_zero_shot(plan, own, task, tracker, progress)
        for plan in studies:
            already = min(_finished_trials(plan, storage), plan.n_trials)
            progress.study_started(plan.strategy, plan.n_trials, plan.final_seeds, plan.epochs, already)
            try:
                run_study(
                    plan,
                    task,
                    storage=storage,
                    engine=engine,
                    tracker=tracker,
                    progress=progress,
                    models_dir=output_dir / "models",
                    checkpoints_dir=output_dir / "checkpoints",
                )
            except StudyError as error:
                failures.append(error)
            except Interrupted as interrupted:
                raise StudyError(
                    f"stopped by {interrupted}; every run is closed and nothing finished is lost",
                    "The same command continues where this one stopped.",
                ) from None
    return Outcome(plans[0].comparison, len(studies), failures)


# --- before the first trial --------------------------------------------------------------------------------------


def _validate(configs: Sequence[Config]) -> list[StrategySpec]:
    problems: list[str] = check(configs[0]) + engine_problems(configs[0].engine.name)
    if len(configs) > 1 and configs[0].study.name:
        problems.append(f"study.name={configs[0].study.name} names one study, not {len(configs)}: leave it out")
    if configs[0].hub.push is not None:
        problems += push_problems(configs[0].hub.push, private=configs[0].hub.private)
    specs: list[StrategySpec] = []
    for config in configs:
        raw = cast(dict[str, Any], OmegaConf.to_container(cast(Any, config.strategy), resolve=True))
        spec, mistakes = parse_strategy(raw, config.trainer.learning_rate)
        problems += [problem if len(configs) == 1 else f"{raw.get('name')}: {problem}" for problem in mistakes]
        if spec is not None:
            specs.append(spec)
    try:
        resolve_precision(configs[0].trainer.precision)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError(
            list(dict.fromkeys(problems)),
            "Nothing was started. conf/strategy/ and sweeper/config.py show what is allowed.",
        )
    return specs


def _load(config: Config, console: Console) -> Task:
    if config.verbosity != "quiet":
        loading = f"Loading {data_name(config.dataset)} and {config.model.name} ..."
        console.print(loading, highlight=False, markup=False, soft_wrap=True)
    model = config.model
    if model.source == "local" and not (Path(str(model.path)) / "config.json").is_file():
        raise ConfigError(
            f"model.path={model.path}: no checkpoint there (no config.json)",
            "Give a folder with config.json, weights and tokenizer files, as save_pretrained writes them.",
        )
    data = config.dataset
    asked = {field.name: getattr(data, field.name) for field in fields(DataRequest)}
    dataset = load_dataset(**{**asked, "name": data_name(data)})
    trainer = config.trainer
    settings = TrainerSettings(
        epochs=trainer.epochs,
        batch_size=trainer.batch_size,
        weight_decay=trainer.weight_decay,
        warmup_ratio=trainer.warmup_ratio,
        max_grad_norm=trainer.max_grad_norm,
        precision=trainer.precision,
        gradient_accumulation_steps=trainer.gradient_accumulation_steps,
        length_grouping=trainer.length_grouping,
        class_weights=trainer.class_weights,
        early_stopping_patience=trainer.early_stopping_patience,
        early_stopping_metric=trainer.early_stopping_metric,
        metric=config.study.metric,
        maximize=natural_direction(config.study.metric) == "maximize",
    )
    task = Task.load(
        dataset,
        _source(config),
        head=model.head,
        pooling=effective_pooling(model),
        revision=model.revision,
        settings=settings,
        max_length=data.max_length,
        image_size=data.image_size,
        augmentation=data.augmentation,
        store=_store(config),
    )
    for warning in task.summary["warnings"]:
        console.print(f"[yellow]data:[/yellow] {escape(warning)}", highlight=False, soft_wrap=True)
    return task


def boundary_cuts(specs: Sequence[StrategySpec], task: Task) -> list[str]:
    """The modules that states of frozen blocks will enter in the trials: the first above each boundary."""
    entered = [*task.pretrained.layout.blocks, "head"]
    depths: set[int] = set()
    for spec in specs:
        for configuration in spec.values_of("num_blocks"):
            depths |= task.boundaries(spec.build(configuration)[0])
    modules = dict(task.pretrained.model.named_modules())
    return [entered[depth] for depth in sorted(depths - {0}) if entered[depth] in modules]


def _store(config: Config) -> StateStore | None:
    """Where recorded states are kept, or ``None`` where nothing is recorded."""
    cache = config.cache
    folder = Path(cache.dir) if cache.dir else cache_root() / "states"
    return StateStore(folder, int(cache.max_gb * 1e9)) if cache.enabled else None


def _check_wrappers(config: Config, task: Task) -> None:
    """What the wrappers need of the data and the model is there."""
    available = len(task.dataset.unlabelled)
    problems = []
    for name, asked, size in (
        ("pseudo_label.rounds", config.pseudo_label.rounds, config.pseudo_label.size),
        ("domain_pretrain.epochs", config.domain_pretrain.epochs, config.domain_pretrain.size),
    ):
        if asked and not available:
            problems.append(f"{name}={asked}: {task.dataset.name} has no unlabelled items left")
        elif asked and size is not None and size > available:
            key = f"{name.partition('.')[0]}.size"
            problems.append(f"{key}={size} is more than the {available} unlabelled items; null takes all of them")
    if problems:
        raise ConfigError(
            problems, "Unlabelled is what the train split leaves: a lower dataset.train_size leaves more."
        )
    if config.domain_pretrain.epochs:
        is_masked(task.pretrained)


def _prompting(config: Config, dataset: Dataset) -> Prompting | None:
    """The prompted model that is asked for, if any.

    Raises:
        ConfigError: the dataset has too few items, or descriptions of other labels.
    """
    raw = cast(dict[str, Any], OmegaConf.to_container(cast(Any, config.reference.prompting), resolve=True))
    if not raw["base_url"]:
        return None
    where, labels = "reference.prompting", dataset.test.labels
    problems = _check_descriptions(config, dataset)
    if raw["max_items"] is not None and raw["max_items"] < (least := len(set(labels.tolist()))):
        problems.append(f"{where}.max_items={raw['max_items']}: must be at least {least}, one for each label of test")
    if raw["shots"] > len(dataset.train):
        problems.append(f"{where}.shots={raw['shots']}: train has {len(dataset.train)} rows")
    if problems:
        raise ConfigError(
            problems, f"Change {where}.* accordingly; {where}.base_url=null leaves the prompted model out."
        )
    return Prompting(**raw)


def _source(config: Config) -> str | Path:
    """Where the weights are: a folder, or a name on the hub."""
    model = config.model
    if model.source == "asset":
        return fetch(model.name)
    if model.source == "local":
        return str(model.path)
    return timm_repository(model.name) if model.source == "timm" else model.name


def _check_model(task: Task, configs: Sequence[Config], specs: Sequence[StrategySpec]) -> dict[int, str]:
    """Prepare the model at both ends of each search space and with each choice, so that no trial fails on a rank.

    Returns:
        Why strategies do not apply here, by their place in ``specs``.

    Raises:
        ConfigError: a value that does not fit the model.
    """
    problems: list[str] = []
    misfits: dict[int, str] = {}
    for index, (config, spec) in enumerate(zip(configs, specs, strict=True)):
        if not spec.cls.trains:
            problems += _check_descriptions(config, task.dataset)
            try:
                check_zero_shot(_source(config), task.dataset.test.inputs[0], revision=task.revision)
            except NotApplicable as error:
                misfits[index] = f"strategy={spec.cls.name}: {error}"
            continue
        if not spec.cls.pretrained and config.domain_pretrain.epochs:
            misfits[index] = f"strategy={spec.cls.name} throws away what domain_pretrain.epochs trains"
            continue
        for configuration in spec.extremes():
            try:
                task.prepare(spec.build(configuration)[0], seed=0)
            except NotApplicable as error:
                misfits[index] = f"strategy={spec.cls.name}: {error}"
            except (TypeError, ValueError) as error:
                problems.append(f"strategy={spec.cls.name}: {error}")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), "Change strategy.* or strategy.search_space.* accordingly.")
    return misfits


def _check_descriptions(config: Config, dataset: Dataset) -> list[str]:
    given = config.dataset.label_descriptions
    if given is None or set(given) == set(dataset.label_names):
        return []
    return [
        f"dataset.label_descriptions has {', '.join(given)}: must have {', '.join(dataset.label_names)}, or be null"
    ]


# --- around the studies ------------------------------------------------------------------------------------------


def _storage_url(config: Config) -> str:
    return storage_url(config.study.storage, Path(config.output_dir))


def _finished_trials(plan: Plan, storage: optuna.storages.BaseStorage) -> int:
    try:
        return len(finished_trials(optuna.load_study(study_name=plan.study, storage=storage)))
    except KeyError:
        return 0
