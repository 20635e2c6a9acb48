"""One training run on a tiny model: what is kept, what stops it, what it reports."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from strategies import Frozen, Full, Lora, Strategy
from sweeper.data import load_dataset
from sweeper.objective import Task
from sweeper.search_space import StrategySpec
from sweeper.training.trainer import Diverged, EpochRecord, TrainerSettings, resolve_precision

SETTINGS = TrainerSettings(
    epochs=3,
    batch_size=16,
    weight_decay=0.01,
    warmup_ratio=0.1,
    max_grad_norm=1.0,
    precision="fp32",
    gradient_accumulation_steps=1,
    length_grouping=True,
    early_stopping_patience=0,
    early_stopping_metric="validation_loss",
    metric="validation_accuracy",
    maximize=True,
)


@pytest.fixture(scope="module")
def task(tiny_checkpoint: Path) -> Task:
    dataset = load_dataset("review_lines", train_size=64, validation_size=40, test_size=60)
    return Task.load(
        dataset, tiny_checkpoint, head="linear", pooling="mean", revision=None, max_length=48, settings=SETTINGS
    )


def spec(cls: type[Strategy] = Full, rate: float = 1e-3, **fixed: object) -> StrategySpec:
    return StrategySpec(cls, {"learning_rate": rate, **fixed}, {})


def with_settings(task: Task, **changes: object) -> Task:
    return dataclasses.replace(task, settings=dataclasses.replace(task.settings, **changes))  # type: ignore[arg-type]


def test_the_best_epochs_weights_are_kept(task: Task) -> None:
    losses: list[float] = []
    run = with_settings(task, metric="validation_loss", maximize=False, epochs=5).run(
        spec(rate=3e-2), {}, seed=3, on_epoch=lambda record: losses.append(record.validation_loss)
    )
    best = losses.index(min(losses)) + 1
    assert run.fit.best.epoch == best
    assert best < 5, "the test needs a run that gets worse after its best epoch"
    rescored = run.fit.trainer.evaluate()
    assert rescored["eval_loss"] == pytest.approx(min(losses), rel=1e-5)


def test_the_first_of_equal_epochs_is_the_best(task: Task) -> None:
    run = task.run(spec(Frozen, rate=1e-12), {}, seed=0)
    assert len({record.validation_accuracy for record in run.fit.history}) == 1
    assert run.fit.best.epoch == 1


@pytest.mark.parametrize("patience", [1, 2])
def test_early_stopping_counts_epochs_without_improvement(task: Task, patience: int) -> None:
    stopping = with_settings(
        task, epochs=8, early_stopping_patience=patience, early_stopping_metric="validation_accuracy"
    )
    assert len(stopping.run(spec(Frozen, rate=1e-12), {}, seed=0).fit.history) == 1 + patience


def test_a_loss_that_is_not_finite_ends_the_run(task: Task) -> None:
    with pytest.raises(Diverged, match="loss is nan after epoch 1"):
        with_settings(task, max_grad_norm=1e30).run(spec(rate=1e30), {}, seed=0)


def test_the_same_seed_gives_the_same_run_and_another_does_not(task: Task) -> None:
    def history(seed: int) -> list[float]:
        run = task.run(spec(Lora, rate=1e-2, rank=4), {}, seed=seed)
        return [record.validation_loss for record in run.fit.history]

    assert history(1) == history(1)
    assert history(1) != history(2)


def test_accumulation_makes_the_same_effective_batch(task: Task) -> None:
    whole = with_settings(task, length_grouping=False, epochs=1)
    halves = with_settings(whole, batch_size=8, gradient_accumulation_steps=2)
    first, second = (each.run(spec(Frozen, rate=1e-2), {}, seed=5) for each in (whole, halves))
    torch.testing.assert_close(first.model.head.weight, second.model.head.weight, atol=1e-4, rtol=1e-3)


def test_dropout_below_the_boundary_is_off_and_above_it_on(task: Task) -> None:
    run = task.run(spec(Frozen), {}, seed=0)
    run.model.train()
    batch = {key: torch.tensor([value]) for key, value in task.train.examples[0].items() if key != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(run.model(**batch).logits, run.model(**batch).logits, rtol=0, atol=0)
    full = task.run(spec(Full), {}, seed=0)
    full.model.train()
    with torch.no_grad():
        assert not torch.equal(full.model(**batch).logits, full.model(**batch).logits)


def test_epochs_are_reported_in_order_and_may_end_the_run(task: Task) -> None:
    class Stop(Exception):
        pass

    seen: list[EpochRecord] = []

    def stop_at_two(record: EpochRecord) -> None:
        seen.append(record)
        if record.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        task.run(spec(), {}, seed=0, on_epoch=stop_at_two)
    assert [record.epoch for record in seen] == [1, 2]
    assert all(math.isfinite(value) for record in seen for value in record.metrics().values())


def test_test_predictions_are_in_the_order_of_the_split(task: Task) -> None:
    run = task.run(spec(), {}, seed=0)
    scores = task.score_test(run)
    assert scores.predictions["item"].tolist() == task.dataset.test.items.tolist()
    assert scores.predictions["label"].tolist() == task.dataset.test.labels.tolist()
    assert scores.metrics["test_accuracy"] == pytest.approx(
        (scores.predictions["label"] == scores.predictions["prediction"]).mean()
    )
    model = run.model.eval()
    row = 7
    text = task.dataset.test.texts[row]
    batch = task.pretrained.processor([text], return_tensors="pt", truncation=True, max_length=48)
    with torch.no_grad():
        expected = model(**batch).logits.softmax(-1)
    assert scores.predictions["prediction"][row] == int(expected.argmax())
    assert scores.predictions["probability"][row] == pytest.approx(float(expected.max()), abs=1e-4)


def test_fp16_needs_a_cuda_device() -> None:
    assert resolve_precision("fp32") == "fp32"
    assert resolve_precision("auto") in ("bf16", "fp32")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"trainer\.precision=fp16 needs a CUDA device; allowed here are"):
            resolve_precision("fp16")


def test_mixed_precision_agrees_with_full_precision(task: Task) -> None:
    full = task.run(spec(Frozen, rate=1e-2), {}, seed=0)
    mixed = with_settings(task, precision="bf16").run(spec(Frozen, rate=1e-2), {}, seed=0)
    torch.testing.assert_close(full.model.head.weight, mixed.model.head.weight, atol=2e-2, rtol=5e-2)
    assert full.model.head.weight.dtype == mixed.model.head.weight.dtype == torch.float32


def test_every_strategy_sees_the_examples_in_the_same_order(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    collate = task._collate()

    def batches(cls: type[Strategy]) -> list[list[int]]:
        seen: list[list[int]] = []

        def recording(examples: list[dict[str, object]]) -> object:
            if len(examples) == task.settings.batch_size:
                seen.append([hash(tuple(example["input_ids"])) for example in examples])  # type: ignore[arg-type]
            return collate(examples)

        monkeypatch.setattr(Task, "_collate", lambda self: recording)
        with_settings(task, epochs=2).run(spec(cls), {}, seed=4)
        return seen

    assert batches(Frozen) == batches(Full)


def test_a_native_heads_loss_does_not_grow_with_accumulation(tiny_checkpoint: Path) -> None:
    dataset = load_dataset("review_lines", train_size=32, validation_size=16, test_size=16)
    settings = dataclasses.replace(SETTINGS, epochs=1, batch_size=8, gradient_accumulation_steps=4)
    native = Task.load(
        dataset, tiny_checkpoint, head="native", pooling="native", revision=None, max_length=48, settings=settings
    )
    assert native.run(spec(Full, rate=1e-6), {}, seed=0).fit.best.train_loss == pytest.approx(0.69, abs=0.15)
