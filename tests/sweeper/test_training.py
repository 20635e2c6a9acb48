"""One training run on a tiny model: what is kept, what stops it, what it reports."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

from strategies import Dora, Frozen, Full, Gradual, Layout, Lora, LpFt, Partial, Stage, Strategy
from sweeper.data.tokenize import TextEncoder
from sweeper.objective import Task
from sweeper.search_space import StrategySpec
from sweeper.training.batches import ShuffledBatches
from sweeper.training.fit import stage_epochs
from sweeper.training.precision import frozen_weights_cast, resolve_precision
from sweeper.training.recorder import Diverged, EpochRecord, EpochRecorder, scores
from tests.tasks import load_task, validation_loss


@pytest.fixture(scope="module")
def task(tiny_checkpoint: Path) -> Task:
    return load_task(tiny_checkpoint, (64, 40, 60), max_length=48, epochs=3)


def spec(cls: type[Strategy] = Full, rate: float = 1e-3, **fixed: object) -> StrategySpec:
    return StrategySpec(cls, {"learning_rate": rate, **fixed}, {})


def with_settings(task: Task, **changes: object) -> Task:
    return dataclasses.replace(task, settings=dataclasses.replace(task.settings, **changes))  # type: ignore[arg-type]


def test_the_best_epochs_weights_are_kept(task: Task) -> None:
    losses: list[float] = []
    run = with_settings(task, metric="validation_loss", maximize=False, epochs=5).run(
        spec(rate=3e-2), {}, seed=0, on_epoch=lambda record: losses.append(record.validation_loss)
    )
    best = losses.index(min(losses)) + 1
    assert run.fit.best.epoch == best
    assert best < 5, "the test needs a run that gets worse after its best epoch"
    assert validation_loss(task, run) == pytest.approx(min(losses), rel=1e-5)


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


def test_a_loss_that_explodes_ends_the_run(task: Task) -> None:
    recorder = EpochRecorder(nn.Linear(2, 2), task.settings, 64, (), lambda record: None, lambda: None)
    recorder.epoch_ends(0.7, {"loss": 900.0, "accuracy": 0.5, "macro_f1": 0.5})
    with pytest.raises(Diverged, match=r"validation_loss is 2e\+04 after epoch 2"):
        recorder.epoch_ends(0.7, {"loss": 2e4, "accuracy": 0.5, "macro_f1": 0.5})


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


@dataclass(frozen=True)
class WatchedPartial(Partial):
    """Notes of each block, and of each training step, whether it ran in training mode."""

    name: ClassVar[str] = "watched"
    seen: ClassVar[list[tuple[int, bool]]] = []

    def prepare(self, model: nn.Module, layout: Layout) -> nn.Module:
        self.seen.clear()
        for depth, name in enumerate(layout.blocks, start=1):
            note = functools.partial(self._note, model, depth)
            model.get_submodule(name).register_forward_hook(note)
        return super().prepare(model, layout)

    def _note(self, model: nn.Module, depth: int, block: nn.Module, *_: object) -> None:
        if model.training:
            self.seen.append((depth, block.training))


def test_dropout_below_the_boundary_is_off_and_above_it_on(task: Task) -> None:
    task.run(spec(WatchedPartial, num_blocks=1), {}, seed=0)
    assert set(WatchedPartial.seen) == {(1, False), (2, False), (3, False), (4, True)}


@dataclass(frozen=True)
class WatchedGradual(Gradual):
    """Notes what trains at the first step of each epoch."""

    name: ClassVar[str] = "watched_gradual"
    rates: ClassVar[list[dict[str, float]]] = []

    def param_groups(
        self, model: nn.Module, layout: Layout, learning_rate: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        groups = super().param_groups(model, layout, learning_rate, weight_decay)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.rates.append({names[id(p)]: group["lr"] for group in groups for p in group["params"]})
        return groups


def test_a_gradual_run_unfreezes_stage_by_stage_and_keeps_the_best_epoch_of_all(task: Task) -> None:
    WatchedGradual.rates.clear()
    losses: list[float] = []
    settings = with_settings(task, epochs=5, metric="validation_loss", maximize=False)
    run = settings.run(
        spec(WatchedGradual, rate=1e-2, epoch_shares="1,1,3"),
        {},
        seed=0,
        on_epoch=lambda record: losses.append(record.validation_loss),
    )
    head, upper, everything = WatchedGradual.rates
    assert set(head) == {"head.weight", "head.bias"}
    assert {name.split(".")[3] for name in upper if "layer." in name} == {"2", "3"}
    assert set(everything) == {name for name, _ in run.model.named_parameters()}
    for rates, expected in ((head, 1e-2), (upper, 1e-3), (everything, 1e-4)):
        assert all(rate == pytest.approx(expected) for rate in rates.values())
    assert [record.epoch for record in run.fit.history] == [1, 2, 3, 4, 5]
    assert run.fit.best.validation_loss == min(losses)
    assert validation_loss(task, run) == pytest.approx(min(losses), rel=1e-5)
    sizes = {name: parameter.numel() for name, parameter in run.model.named_parameters()}
    counts = [sum(sizes[name] for name in stage) for stage in (head, upper, everything)]
    assert run.sizes["trainable_params"] == counts[2] == sum(sizes.values())
    assert run.sizes["trainable_params_mean"] == pytest.approx((counts[0] + counts[1] + 3 * counts[2]) / 5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_early_best_epoch_brings_back_what_later_stages_trained(task: Task, precision: str) -> None:
    """The backbone of a run whose best epoch is the probe's is the pretrained one again."""
    settings = with_settings(task, epochs=2, metric="validation_loss", maximize=False, precision=precision)
    run = settings.run(spec(LpFt, rate=3e-2, probe_lr_multiplier=0.3), {}, seed=0)
    assert run.fit.best.epoch == 1, "the test needs a fine-tuning that does harm"
    pretrained = dict(task.pretrained.model.named_parameters())
    for name, parameter in run.model.named_parameters():
        if not name.startswith("head."):
            torch.testing.assert_close(parameter, pretrained[name], rtol=0, atol=0)


def test_early_stopping_ends_a_stage_and_not_the_run(task: Task) -> None:
    settings = with_settings(task, epochs=8, early_stopping_patience=1, early_stopping_metric="validation_accuracy")
    run = settings.run(spec(LpFt, rate=1e-12, probe_share=0.5), {}, seed=0)
    assert len(run.fit.history) == 4  # two of each stage


@pytest.mark.parametrize(
    ("shares", "epochs", "expected"),
    [
        ((1,), 3, [3]),
        ((1, 1, 1), 3, [1, 1, 1]),
        ((5, 5, 10), 20, [5, 5, 10]),
        ((5, 5, 10), 3, [1, 1, 1]),
        ((1, 2), 2, [1, 1]),
        ((1, 2), 4, [1, 3]),
        ((0.01, 0.99), 10, [1, 9]),
        ((1, 1, 10), 6, [1, 1, 4]),
    ],
)
def test_stages_divide_whole_epochs(shares: tuple[float, ...], epochs: int, expected: list[int]) -> None:
    assert stage_epochs([Stage(share) for share in shares], epochs) == expected


def test_fewer_epochs_than_stages_is_an_error(task: Task) -> None:
    with pytest.raises(ValueError, match=r"trainer\.epochs=2: must be at least 3, one for each stage"):
        with_settings(task, epochs=2).prepare(Gradual(), seed=0)


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
    text = task.dataset.test.inputs[row]
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


@pytest.mark.parametrize("length_grouping", [True, False])
def test_every_strategy_sees_the_examples_in_the_same_order(
    task: Task, monkeypatch: pytest.MonkeyPatch, length_grouping: bool
) -> None:
    collate = TextEncoder.collate

    def batches(cls: type[Strategy]) -> list[list[int]]:
        seen: list[list[int]] = []

        def recording(self: TextEncoder, examples: list[dict[str, object]]) -> object:
            if len(examples) == task.settings.batch_size:
                seen.append([hash(tuple(example["input_ids"])) for example in examples])  # type: ignore[arg-type]
            return collate(self, examples)

        monkeypatch.setattr(TextEncoder, "collate", recording)
        with_settings(task, epochs=2, length_grouping=length_grouping).run(spec(cls), {}, seed=4)
        return seen

    assert batches(Frozen) == batches(Full) == batches(LpFt)


def test_batches_of_similar_length_come_in_random_order() -> None:
    lengths = torch.randint(1, 100, (812,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = ShuffledBatches(8, lengths=lengths, generator=torch.Generator().manual_seed(0))
    first, second = list(sampler), list(sampler)
    assert sorted(first) == list(range(812))
    assert first != second
    batches = [[lengths[index] for index in first[start : start + 8]] for start in range(0, 808, 8)]
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 15, "lengths in a batch are alike"
    rises = sum(max(later) > max(earlier) for earlier, later in itertools.pairwise(batches))
    assert 0.35 < rises / (len(batches) - 1) < 0.65, "batches go neither up nor down"


def test_a_native_heads_loss_does_not_grow_with_accumulation(tiny_checkpoint: Path) -> None:
    accumulated = {"head": "native", "pooling": "native", "batch_size": 8, "gradient_accumulation_steps": 4}
    native = load_task(tiny_checkpoint, (32, 16, 16), max_length=48, **accumulated)
    assert native.run(spec(Full, rate=1e-6), {}, seed=0).fit.best.train_loss == pytest.approx(0.69, abs=0.15)


@pytest.mark.parametrize("cls", [Lora, Dora, Partial])
def test_frozen_weights_in_low_precision_change_nothing(
    task: Task, cls: type[Strategy], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, object] = {"num_blocks": 2} if cls is Partial else {"rank": 4}
    low = with_settings(task, precision="bf16", epochs=2)
    first = low.run(spec(cls, rate=1e-2, **fields), {}, seed=0)
    assert {parameter.dtype for parameter in first.model.parameters()} == {torch.float32}
    monkeypatch.setattr("sweeper.training.fit.frozen_weights_cast", lambda model, precision, trained: nullcontext())
    second = low.run(spec(cls, rate=1e-2, **fields), {}, seed=0)
    assert first.fit.best.metrics() | {"train_samples_per_second": 0} == second.fit.best.metrics() | {
        "train_samples_per_second": 0
    }


def test_frozen_weights_are_held_in_low_precision_while_they_are_needed(task: Task) -> None:
    model, _ = task.prepare(Lora(rank=4), seed=0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with frozen_weights_cast(model, "bf16", trained):
        held = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.bfloat16}
    assert held
    assert all(name.endswith("weight") and "lora" not in name and "head" not in name for name in held)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_models_share_what_their_strategy_leaves_alone(task: Task) -> None:
    """So that a trial of a head costs no copy of the backbone; what is saved is a copy again."""
    pretrained = dict(task.pretrained.model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in pretrained.items()}
    for _ in range(2):
        run = task.run(spec(Partial, rate=1e-2, num_blocks=1), {}, seed=0)
    shared = {name for name, value in run.model.named_parameters() if value.data_ptr() == pretrained[name].data_ptr()}
    trained = {name for name, value in run.model.named_parameters() if value.requires_grad}
    assert shared == set(pretrained) - trained
    assert all(torch.equal(pretrained[name], value) for name, value in before.items())


def test_merging_a_saved_model_leaves_the_pretrained_one_alone(task: Task, tmp_path: Path) -> None:
    before = {name: value.detach().clone() for name, value in task.pretrained.model.named_parameters()}
    for seed in range(2):
        run = task.run(spec(Lora, rate=1e-1, rank=4), {}, seed=seed)
        task.save(run, tmp_path / str(seed))
    assert all(torch.equal(value, before[name]) for name, value in task.pretrained.model.named_parameters())


def test_macro_f1_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    for classes in (2, 3, 7):
        logits = generator.normal(size=(40, classes))
        labels = generator.integers(0, classes - 1, 40)  # one class is never labelled
        expected = f1_score(labels, logits.argmax(-1), average="macro", zero_division=0)
        assert scores(logits, labels)["macro_f1"] == pytest.approx(expected)
