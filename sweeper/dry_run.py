"""``DRY_RUN=1``: what would run, and how long it would take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import optuna
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from sweeper.comparison import Prepared
from sweeper.config import Config
from sweeper.estimate import estimate, estimate_pretraining
from sweeper.progress import duration
from sweeper.prompting import prompted_name
from sweeper.secrets import redacted

__all__ = ["print_dry_run"]


def print_dry_run(comparisons: Sequence[Prepared], console: Console) -> None:
    """Say what would run, and how long: what is configured, the search spaces, a table of each comparison.

    Of the configuration only the choices and what differs from them, so that the rest stays on the screen.
    """
    first = comparisons[0]
    chosen = _choices()
    _line(console, f"configuration: {' '.join(chosen)} (the same command with --cfg=job prints all of it)")
    for difference in _differences(first.configs[0], chosen):
        _line(console, f"  {redacted(difference)}")
    for plan in first.plans:
        if plan.spec.cls.trains:
            _line(console, f"search space of {plan.strategy}:")
            for name, distribution in plan.spec.space.items():
                _line(console, f"  {name:<18} {_describe(distribution)}")
            if fixed := ", ".join(f"{name} {_shown(value)}" for name, value in plan.spec.fixed.items()):
                _line(console, f"  {'fixed:':<18} {fixed}")
    seconds = sum(_print_estimate(prepared, console) for prepared in comparisons)
    if len(comparisons) > 1:
        sizes = ", ".join(f"{len(prepared.task.dataset.train):,}" for prepared in comparisons)
        _line(console, f"at train sizes {sizes}: about {duration(seconds)} in all")


def _choices() -> list[str]:
    """What is chosen of each group, as overrides; strategies aside, which are shown one by one."""
    choices = HydraConfig.get().runtime.choices
    return [
        f"{group}={name}"
        for group, name in reversed(choices.items())
        if name is not None and group.partition("/")[0] not in ("hydra", "strategy", "experiment")
    ]


def _differences(config: Config, chosen: list[str]) -> list[str]:
    """``key=value`` of what differs from those choices alone."""
    given, usual = (
        cast(dict[str, Any], OmegaConf.to_container(cast(Any, whole), resolve=True))
        for whole in (config, compose("config", overrides=chosen))
    )
    for key in ("strategy", "compare", "dry_run"):
        del given[key]
    return list(_differing(given, usual))


def _differing(given: Mapping[str, Any], usual: Any, prefix: str = "") -> Iterator[str]:
    for key, value in given.items():
        default = usual.get(key, MISSING) if isinstance(usual, Mapping) else MISSING
        if isinstance(value, Mapping) and value:
            yield from _differing(value, default, f"{prefix}{key}.")
        elif value != default:
            yield f"{prefix}{key}={_shown(value)}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _print_estimate(prepared: Prepared, console: Console) -> float:
    """The studies of a comparison with their sizes and times; returns seconds, of all of them."""
    plans, task, prompting = prepared.plans, prepared.task, prepared.prompting

    def line(text: str) -> None:
        _line(console, text)

    studies = [plan for plan in plans if plan.spec.cls.trains]
    line(f"\n{plans[0].comparison}: nothing is started, on {len(task.dataset.train):,} training examples")
    for plan in plans:
        if not plan.spec.cls.trains:
            line(f"{plan.strategy} trains nothing: it is scored once")
    if prompting is not None:
        items = min(prompting.max_items or len(task.dataset.test), len(task.dataset.test))
        line(f"{prompted_name(prompting, len(task.dataset.test))}: {items} requests to {prompting.base_url}")
    if not studies:
        return 0.0
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("strategy", "trainable", "of", "time, about"):
        table.add_column(column, justify="left" if column == "strategy" else "right", no_wrap=True)
    pretraining = 0.0
    if domain := plans[0].domain_pretrain.epochs:
        pretraining = estimate_pretraining(task, plans[0].domain_pretrain)
        line(f"domain pretraining, {domain} epochs once for all: about {duration(pretraining)}, charged to each study")
    if rounds := plans[0].pseudo_label.rounds:
        line(f"pseudo-labelling, {rounds} rounds in each trial and final: the time if every unlabelled item joins")
    total_seconds = pretraining
    for plan in studies:
        guess = estimate(task, plan.spec, plan.n_trials, plan.final_seeds, plan.pseudo_label)
        total_seconds += guess.seconds
        low, high = guess.trainable_params
        trainable = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        table.add_row(
            plan.strategy.replace("+", "\n+"),
            trainable,
            f"{guess.total_params:,}",
            duration(guess.seconds + pretraining),
        )
    console.print(table)
    line(
        f"{plans[0].n_trials} trials and {plans[0].final_seeds} finals each, without pruning: "
        f"about {duration(total_seconds)} in all, from a few timed steps."
    )
    return total_seconds


def _describe(distribution: optuna.distributions.BaseDistribution) -> str:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return f"one of {', '.join(map(str, distribution.choices))}"
    bounds = f"{distribution.low:g} to {distribution.high:g}"  # type: ignore[attr-defined]
    return f"{bounds}, log scale" if distribution.log else bounds  # type: ignore[attr-defined]
