"""What becomes of a run that does not fit into memory."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from strategies import Full, Layout
from sweeper.objective import Run, Task
from sweeper.search_space import StrategySpec
from sweeper.training.recorder import EpochRecord
from sweeper.training.state_store import StateStore
from tests.tasks import load_task


@dataclass(frozen=True)
class Limited(Full):
    """Everything trains without dropout, as long as no more than ``limit`` examples go through the model at once."""

    name: ClassVar[str] = "limited"
    limit: ClassVar[int] = 0
    from_pass: ClassVar[int] = 0  # earlier passes have room for all
    passes: ClassVar[int] = 0
    refused: ClassVar[list[int]] = []

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        type(self).passes = 0
        model = super().prepare(model, layout)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.register_forward_pre_hook(self._check, with_kwargs=True)
        return model

    def _check(self, model: nn.Module, _: object, inputs: dict[str, Any]) -> None:
        size = len(inputs["input_ids"])
        type(self).passes += 1
        if self.passes >= self.from_pass and size > self.limit:
            self.refused.append(size)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def limited(monkeypatch: pytest.MonkeyPatch, limit: int, from_pass: int = 0) -> None:
    monkeypatch.setattr(Limited, "limit", limit)
    monkeypatch.setattr(Limited, "from_pass", from_pass)
    monkeypatch.setattr(Limited, "refused", [])


@pytest.fixture(scope="module")
def task(tiny_checkpoint: Path) -> Task:
    """Steps of 2 batches of 8, the last of an epoch incomplete; classes that weigh differently."""
    settings = {"batch_size": 8, "gradient_accumulation_steps": 2, "class_weights": "balanced", "epochs": 2}
    return load_task(tiny_checkpoint, (44, 30, 21), max_length=48, **settings)


def trained(task: Task, **arguments: Any) -> Run:
    return task.run(StrategySpec(Limited, {"learning_rate": 3e-4}, {}), {}, seed=0, **arguments)


def test_a_run_that_does_not_fit_gives_the_result_of_one_that_does(
    task: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Even where memory runs out late, after an epoch was told of."""
    task = dataclasses.replace(task, micro_batch_sizes={})
    limited(monkeypatch, 64)
    whole = trained(task)
    limited(monkeypatch, 3, from_pass=9)
    told: list[EpochRecord] = []
    with caplog.at_level(logging.WARNING):
        parts = trained(task, on_epoch=told.append)
    assert Limited.refused[:2] == [8, 4], "the micro-batch is halved again and again"
    assert parts.metrics()["micro_batch_size"] == 2 and whole.metrics()["micro_batch_size"] == 8
    assert "out of memory with 8 examples at once" in caplog.text

    assert [record.epoch for record in told] == [1, 2], "each epoch is told of once"
    for one, other in zip(whole.fit.history, parts.fit.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.validation_loss == pytest.approx(other.validation_loss, rel=1e-4)
        assert one.validation_accuracy == other.validation_accuracy
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(task.predict(whole, task.test), task.predict(parts, task.test), atol=1e-3)


@pytest.mark.slow
def test_the_next_trial_does_not_run_out_of_memory_again(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    task = dataclasses.replace(task, micro_batch_sizes={})
    limited(monkeypatch, 4)
    for each in (task, dataclasses.replace(task)):  # pseudo-labelling makes such copies
        trained(each)
    assert Limited.refused.count(8) == 1, "a batch has 8 examples; evaluations have more and halve their own"


def test_one_example_that_does_not_fit_ends_the_run(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        trained(dataclasses.replace(task, micro_batch_sizes={}))
    assert Limited.refused == [8, 4, 2, 1]


def test_states_are_recorded_in_batches_that_fit(
    task: Task, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are those that a large batch gives."""
    features = []
    for limit in (64, 5):
        loaded = load_task(tiny_checkpoint, (44, 30, 21), max_length=48, store=StateStore(tmp_path / str(limit), 10**9))
        limited(monkeypatch, limit)
        loaded.pretrained.model.register_forward_pre_hook(Limited()._check, with_kwargs=True)
        assert loaded.cache is not None
        states = loaded.cache.states("head", loaded.train, lambda: None)
        assert states is not None
        features.append(states.values.clone())
    torch.testing.assert_close(features[0], features[1], rtol=1e-4, atol=1e-5)
