"""The search space that a strategy's YAML declares, as Optuna distributions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_args, get_type_hints

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from strategies import STRATEGIES, Strategy
from sweeper.errors import near_matches
from sweeper.names import text_problem

__all__ = ["LEARNING_RATE", "StrategySpec", "parse_strategy"]

LEARNING_RATE = "learning_rate"
_BOUNDS = ("low", "high", "log", "step", "choices")


@dataclass(frozen=True)
class StrategySpec:
    """A strategy with the values that are fixed and the ones that are searched.

    Attributes:
        cls: the strategy's class.
        fixed: field -> value; ``learning_rate`` may be among them.
        space: field -> distribution, in the YAML's order.
        label: what tables call it instead of its name, or None.
    """

    cls: type[Strategy]
    fixed: dict[str, Any]
    space: dict[str, BaseDistribution]
    label: str | None = None

    def build(self, searched: Mapping[str, Any]) -> tuple[Strategy, float]:
        """The strategy and the learning rate of one configuration; 0 for a strategy that trains nothing.

        Raises:
            ValueError: a value that the strategy does not allow.
        """
        values = {**self.fixed, **searched}
        rate = float(values.pop(LEARNING_RATE, 0.0))
        return self.cls(**values), rate

    def corners(self) -> list[dict[str, Any]]:
        """The configurations with every searched value at its lowest, and at its highest (or first and last choice)."""
        ends = {
            name: (d.choices[0], d.choices[-1]) if isinstance(d, CategoricalDistribution) else (d.low, d.high)  # type: ignore[attr-defined]
            for name, d in self.space.items()
        }
        return [{name: pair[index] for name, pair in ends.items()} for index in (0, 1)]

    def as_json(self) -> str:
        """The space as JSON: field -> ``low``, ``high``, ``log`` and ``step``, or ``choices``."""
        named = {
            name: {key: value for key in _BOUNDS if (value := getattr(distribution, key, None)) is not None}
            for name, distribution in self.space.items()
        }
        return json.dumps(named, indent=2)

    def values_of(self, field: str) -> list[dict[str, Any]]:
        """The lowest configuration with every value of one field in turn; that alone where it is not searched."""
        lowest, distribution = self.corners()[0], self.space.get(field)
        if isinstance(distribution, CategoricalDistribution):
            values: Sequence[Any] = distribution.choices
        elif isinstance(distribution, IntDistribution):
            values = range(distribution.low, distribution.high + 1, distribution.step)
        else:
            return [lowest]
        return [{**lowest, field: value} for value in values]

    def extremes(self) -> list[dict[str, Any]]:
        """Both corners, and the lowest with every choice of every categorical field in turn; each once."""
        lowest, highest = self.corners()
        choices = [
            {**lowest, name: choice}
            for name, distribution in self.space.items()
            if isinstance(distribution, CategoricalDistribution)
            for choice in distribution.choices
        ]
        found: list[dict[str, Any]] = []
        for configuration in (lowest, highest, *choices):
            if configuration not in found:
                found.append(configuration)
        return found


def parse_strategy(raw: Mapping[str, Any], learning_rate: float | None) -> tuple[StrategySpec | None, list[str]]:
    """Read ``strategy.*`` of the configuration; ``learning_rate`` is ``trainer.learning_rate``.

    Returns:
        The specification, or None, and every mistake as one line.
    """
    name = str(raw.get("name"))
    if name not in STRATEGIES:
        return None, [f"strategy.name={name}: {near_matches(name, STRATEGIES)}"]
    cls = STRATEGIES[name]
    hints = get_type_hints(cls)
    allowed = {f.name: hints[f.name] for f in fields(cls)}
    given = {key: value for key, value in raw.items() if key not in ("name", "label", "search_space")}
    declared = {key: value for key, value in (raw.get("search_space") or {}).items() if not _is_empty(value)}
    fixed = {key: _joined(value, allowed.get(key)) for key, value in given.items() if value is not None}
    if learning_rate is not None:
        fixed[LEARNING_RATE] = learning_rate

    problems = [f"strategy.{key}: {near_matches(key, allowed)}" for key in given if key not in allowed]
    searchable = {**allowed, LEARNING_RATE: float}
    space: dict[str, BaseDistribution] = {}
    for key, bounds in declared.items():
        where = f"strategy.search_space.{key}"
        if key not in searchable:
            problems.append(f"{where}: {near_matches(key, searchable)}")
        elif key in fixed:
            owner = "trainer" if key == LEARNING_RATE else "strategy"
            problems.append(
                f"{owner}.{key}={fixed[key]} is fixed and searched at once: add {where}=null, or do not fix it"
            )
        else:
            distribution, mistakes = _distribution(where, bounds, searchable[key])
            problems += mistakes
            if distribution is not None:
                space[key] = distribution
    for key, value in fixed.items():
        if key in searchable and (mistake := _type_mistake(value, searchable[key])):
            problems.append(f"strategy.{key}={value}: {mistake}")
    if not cls.trains and (searched := [*declared, *({LEARNING_RATE} & set(fixed))]):
        problems.append(f"strategy={name} trains nothing: {', '.join(searched)} cannot be set or searched")
    if cls.trains and LEARNING_RATE not in fixed and LEARNING_RATE not in declared:
        problems.append("no learning rate: set trainer.learning_rate, or strategy.search_space.learning_rate")
    label = raw.get("label")
    if label is not None and not (isinstance(label, str) and label.strip()):
        problems.append(f"strategy.label={label}: must be a name, or null for the strategy's own")
    elif label is not None and (problem := text_problem(label)):
        problems.append(f"strategy.label={label!r}: {problem}")
    unset = [f.name for f in fields(cls) if f.default is MISSING and f.name not in {*fixed, *declared}]
    problems += [f"strategy.{key} has no value: set it, or strategy.search_space.{key}" for key in unset]
    if problems:
        return None, problems

    spec = StrategySpec(cls, fixed, space, label)
    for configuration in spec.extremes():
        try:
            _, rate = spec.build(configuration)
        except ValueError as error:
            problems.append(f"strategy={name}: {error}")
        else:
            if rate <= 0 and cls.trains:
                problems.append(f"strategy={name}: learning_rate={rate}: must be above 0")
    return (None if problems else spec), list(dict.fromkeys(problems))


def _is_empty(bounds: Any) -> bool:
    """Whether a declared dimension searches nothing: null itself, or with no value but ``log: false``."""
    return bounds is None or (isinstance(bounds, Mapping) and all(map(_is_unset, bounds.values())))


def _is_unset(value: Any) -> bool:
    return value is None or value is False  # 0 is a bound


def _joined(value: Any, kind: Any) -> Any:
    """What a field of text holds for a list, or for a list of one number: the parts separated by commas."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number and (kind is str or str in get_args(kind)) else value


def _is_whole(kind: Any) -> bool:
    kinds = get_args(kind) or (kind,)
    return int in kinds and float not in kinds


def _type_mistake(value: Any, kind: Any) -> str:
    kinds = get_args(kind) or (kind,)
    if bool in kinds:
        return "" if isinstance(value, bool) else "must be true or false"
    if _is_whole(kind):
        return "" if isinstance(value, int) and not isinstance(value, bool) else "must be a whole number"
    if float in kinds:
        return "" if isinstance(value, int | float) and not isinstance(value, bool) else "must be a number"
    return "" if str not in kinds or isinstance(value, str) else "must be a name"


def _distribution(where: str, bounds: Any, kind: Any) -> tuple[BaseDistribution | None, list[str]]:
    if not isinstance(bounds, Mapping):
        return None, [f"{where}={bounds}: must be null, {{low, high, log, step}} or {{choices}}"]
    given = {key: value for key, value in bounds.items() if not _is_unset(value)}
    if unknown := [key for key in given if key not in _BOUNDS]:
        return None, [f"{where}.{key}: {near_matches(str(key), _BOUNDS)}" for key in unknown]
    if "choices" in given:
        if others := sorted(set(given) - {"choices"}):
            return None, [f"{where}: choices excludes {', '.join(others)}; set one or the other to null"]
        if not isinstance(given["choices"], list | tuple) or not given["choices"]:
            return None, [f"{where}.choices={given['choices']}: must be a list of at least one value"]
        choices = [_joined(choice, kind) for choice in given["choices"]]
        if mistakes := [f"{where}.choices: {choice}: {m}" for choice in choices if (m := _type_mistake(choice, kind))]:
            return None, mistakes
        return CategoricalDistribution(choices), []
    if missing := [key for key in ("low", "high") if key not in given]:
        return None, [f"{where}: {' and '.join(missing)} not given"]
    low, high, log, step = given["low"], given["high"], bool(given.get("log", False)), given.get("step")
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (low, high)):
        return None, [f"{where}: low={low} and high={high} must be numbers"]
    if not low < high:
        return None, [f"{where}: low={low} must be below high={high}; for one value, fix it and set {where}=null"]
    if log and low <= 0:
        return None, [f"{where}: low={low} must be above 0 where log=true"]
    if log and step is not None:
        return None, [f"{where}: step={step} and log=true exclude each other"]
    if _is_whole(kind) and not all(float(value).is_integer() for value in (low, high, step or 1)):
        return None, [f"{where}: low, high and step must be whole numbers"]
    try:
        if _is_whole(kind):
            return IntDistribution(int(low), int(high), log=log, step=int(step or 1)), []
        return FloatDistribution(float(low), float(high), log=log, step=None if step is None else float(step)), []
    except ValueError as error:
        return None, [f"{where}: {error}"]
