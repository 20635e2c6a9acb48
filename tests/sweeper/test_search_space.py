"""The declared search space becomes Optuna's, and every mistake in it is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from strategies import Full, Lora, Partial
from sweeper.search_space import parse_strategy

RATE = {"low": 1e-5, "high": 1e-3, "log": True}


def lora(**space: Any) -> dict[str, Any]:
    return {"name": "lora", "search_space": {"learning_rate": RATE, **space}}


def mistakes(raw: dict[str, Any], rate: float | None = None) -> str:
    spec, found = parse_strategy(raw, rate)
    assert (spec is None) == bool(found)
    return "\n".join(found)


def test_kinds_follow_the_fields_types() -> None:
    spec, found = parse_strategy(
        lora(rank={"low": 4, "high": 64, "log": True}, dropout={"low": 0, "high": 0.1}, targets={"choices": ["query"]}),
        None,
    )
    assert not found
    assert spec is not None
    assert spec.space == {
        "learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
        "rank": IntDistribution(4, 64, log=True),
        "dropout": FloatDistribution(0.0, 0.1),
        "targets": CategoricalDistribution(["query"]),
    }


def test_a_field_that_may_be_null_is_still_a_whole_number() -> None:
    raw = {"name": "adapter", "search_space": {"learning_rate": RATE, "num_blocks": {"low": 1, "high": 6}}}
    spec, found = parse_strategy(raw, None)
    assert not found
    assert spec is not None
    assert spec.space["num_blocks"] == IntDistribution(1, 6)
    raw["search_space"]["num_blocks"] = {"low": 1, "high": 2.5}  # type: ignore[index]
    assert "must be whole numbers" in mistakes(raw)


def test_null_takes_a_field_out_of_the_space_and_a_fixed_value_stays() -> None:
    spec, found = parse_strategy({"name": "lora", "rank": 8, "alpha": None, "search_space": {"rank": None}}, 1e-3)
    assert not found
    assert spec is not None
    assert spec.space == {}
    assert spec.build({}) == (Lora(rank=8), 1e-3)


def test_build_joins_fixed_and_searched_values() -> None:
    raw = {
        "name": "partial",
        "head_lr_multiplier": 10.0,
        "search_space": {"learning_rate": RATE, "num_blocks": {"low": 1, "high": 6}},
    }
    spec, _ = parse_strategy(raw, None)
    assert spec is not None
    assert spec.build({"learning_rate": 1e-4, "num_blocks": 3}) == (Partial(3, head_lr_multiplier=10.0), 1e-4)
    assert spec.corners() == [{"learning_rate": 1e-5, "num_blocks": 1}, {"learning_rate": 1e-3, "num_blocks": 6}]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"name": "lorra"}, "strategy.name=lorra: did you mean 'lora'"),
        (lora(rnk={"low": 1, "high": 2}), "strategy.search_space.rnk: did you mean 'rank'"),
        (
            {**lora(rank={"low": 1, "high": 2}), "rank": 8},
            "strategy.rank=8 is fixed and searched at once: add strategy.search_space.rank=null",
        ),
        (lora(rank={"low": 8, "high": 8}), "low=8 must be below high=8"),
        (lora(rank={"low": 8}), "strategy.search_space.rank: high not given"),
        (lora(rank={"low": 1.5, "high": 8}), "must be whole numbers"),
        (lora(rank={"low": 4, "high": 64, "choices": [4]}), "choices excludes high, low"),
        (lora(rank={"choices": []}), "must be a list of at least one value"),
        (lora(rank={"minimum": 4}), "strategy.search_space.rank.minimum: allowed: choices, high, log, low, step"),
        (lora(rank=8), "must be null, {low, high, log, step} or {choices}"),
        (lora(dropout={"low": 0, "high": 0.1, "log": True}), "low=0 must be above 0 where log=true"),
        (lora(dropout={"low": 0.1, "high": 0.2, "log": True, "step": 0.1}), "exclude each other"),
        (lora(rank={"low": "a", "high": "b"}), "must be numbers"),
        (lora(rank={"low": 0, "high": 8}), "rank=0: must be at least 1"),
        ({**lora(), "rank": 4.5}, "strategy.rank=4.5: must be a whole number"),
        ({**lora(), "rank": "abc"}, "strategy.rank=abc: must be a whole number"),
        ({**lora(), "targets": True}, "strategy.targets=True: must be a name"),
        (lora(rank={"choices": [4, 0, 8]}), "rank=0: must be at least 1"),
        (lora(rank={"choices": [4, "x"]}), "strategy.search_space.rank.choices: x: must be a whole number"),
        (
            {"name": "full", "search_space": {"learning_rate": {"low": -1, "high": 1}}},
            "learning_rate=-1.0: must be above 0",
        ),
        ({"name": "lora", "search_space": {}}, "no learning rate: set trainer.learning_rate"),
    ],
)
def test_mistakes_are_named(raw: dict[str, Any], words: str) -> None:
    assert words in mistakes(raw)


def test_a_rate_that_is_fixed_and_searched_names_both_keys() -> None:
    assert "trainer.learning_rate=0.001 is fixed and searched at once" in mistakes(lora(), rate=1e-3)


def test_several_mistakes_come_together() -> None:
    raw = {
        "name": "full",
        "rnk": 3,
        "search_space": {"learning_rate": {"low": 1, "high": 0}, "depth": {"low": 1, "high": 2}},
    }
    spec, found = parse_strategy(raw, None)
    assert spec is None
    assert len(found) == 3


def test_every_searched_value_is_a_field() -> None:
    spec, _ = parse_strategy({"name": "full", "search_space": {"learning_rate": RATE}}, None)
    assert spec is not None
    assert spec.cls is Full


def test_json_of_a_space_holds_what_was_declared() -> None:
    raw = lora(rank={"low": 4, "high": 64, "log": True}, targets={"choices": ["query", "value"]})
    spec, _ = parse_strategy(raw, None)
    assert spec is not None
    space = json.loads(spec.as_json())
    assert space["learning_rate"] == RATE
    assert space["rank"] == {"low": 4, "high": 64, "log": True, "step": 1}
    assert space["targets"] == {"choices": ["query", "value"]}
