"""The time that a dry run names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from strategies import Frozen, Gradual, Strategy
from sweeper.estimate import estimate
from sweeper.search_space import StrategySpec
from sweeper.training.pseudo_label import PseudoLabelling
from sweeper.training.state_store import StateStore
from tests.tasks import load_task


def test_recorded_states_are_counted_once_and_nothing_stays(tmp_path: Path, tiny_checkpoint: Path) -> None:
    spec = StrategySpec(Frozen, {"learning_rate": 1e-3}, {})
    store = StateStore(tmp_path / "states", 1 << 30)
    plain, cached = (load_task(tiny_checkpoint, (96, 40, 20), max_length=64, store=where) for where in (None, store))
    seconds = [estimate(task, spec, 1000, 0, PseudoLabelling(0, 0.9, None)).seconds for task in (plain, cached)]
    assert 0 < seconds[1] < seconds[0] / 2
    assert not list(tmp_path.rglob("values.bin"))


def test_states_that_will_not_fit_are_counted_in_every_epoch(tmp_path: Path, tiny_checkpoint: Path) -> None:
    spec = StrategySpec(Frozen, {"learning_rate": 1e-3}, {})
    seconds = []
    for room in (1 << 30, 1000):  # of 96 lines; the states of one line take 128 bytes
        task = load_task(tiny_checkpoint, (96, 40, 20), max_length=64, store=StateStore(tmp_path / str(room), room))
        seconds.append(estimate(task, spec, 1000, 0, PseudoLabelling(0, 0.9, None)).seconds)
    assert seconds[0] < seconds[1] / 2


@pytest.mark.parametrize("strategy", [Frozen(), Gradual(num_blocks="0,1,2")], ids=["frozen", "gradual"])
def test_one_step_is_enough(tmp_path: Path, tiny_checkpoint: Path, strategy: Strategy) -> None:
    fields = {field.name: getattr(strategy, field.name) for field in dataclasses.fields(strategy)}
    spec = StrategySpec(type(strategy), {"learning_rate": 1e-3, **fields}, {})
    task = load_task(tiny_checkpoint, (12, 20, 20), max_length=24, store=StateStore(tmp_path, 1 << 30), epochs=3)
    assert estimate(task, spec, 10, 1, PseudoLabelling(0, 0.9, None)).seconds > 0
