"""Self-training on a tiny model: what joins the train split, what is kept, what it costs, when it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strategies import Frozen, Full
from sweeper.data.encoding import EncodedSplit
from sweeper.objective import Run, Task
from sweeper.search_space import StrategySpec
from sweeper.training import pseudo_label
from sweeper.training.pseudo_label import PseudoLabelling, Round, self_train
from sweeper.training.recorder import EpochRecord
from tests.tasks import load_task, validation_loss

EPOCHS = 2
SPEC = StrategySpec(Full, {"learning_rate": 3e-3}, {})


@pytest.fixture(scope="module")
def task(tiny_checkpoint: Path) -> Task:
    return load_task(
        tiny_checkpoint, (48, 40, 60), max_length=24, epochs=EPOCHS, metric="validation_loss", maximize=False
    )


@dataclasses.dataclass
class Watched:
    """A run with what was seen on the way: the train split of each training, the epochs and the rounds."""

    run: Run
    trained_on: list[list[dict[str, Any]]]
    trained: list[Run]
    epochs: list[EpochRecord]
    rounds: list[Round]
    sizes: list[dict[str, float]]


@pytest.fixture
def watch(task: Task, monkeypatch: pytest.MonkeyPatch) -> Any:
    original = Task.run

    def watched(
        rounds: int, threshold: float, *, spec: StrategySpec = SPEC, task: Task = task, size: int = 60
    ) -> Watched:
        trained_on, trained, epochs, done, sizes = [], [], [], [], []

        def recording(self: Task, *args: Any, **kwargs: Any) -> Run:
            trained_on.append(self.train.examples)
            result = original(self, *args, **kwargs)
            trained.append(dataclasses.replace(result))
            return result

        monkeypatch.setattr(Task, "run", recording)
        run = self_train(
            task,
            spec,
            {},
            settings=PseudoLabelling(rounds=rounds, threshold=threshold, size=size),
            unlabelled=task.unlabelled(size, seed=1),
            seed=7,
            on_epoch=epochs.append,
            on_round=done.append,
            on_sizes=sizes.append,
        )
        return Watched(run, trained_on, trained, epochs, done, sizes)

    return watched


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that change in every round, whatever the model predicts."""
    calls: list[int] = []

    def label(logits: np.ndarray, unlabelled: EncodedSplit, threshold: float) -> dict[int, int]:
        calls.append(1)
        return {row: row % 2 for row in range(20 * len(calls))}

    monkeypatch.setattr(pseudo_label, "_label", label)


def probabilities(run: Run, split: EncodedSplit) -> torch.Tensor:
    """One example at a time, so that it shares no code with what is tested."""
    run.model.eval()
    with torch.no_grad():
        rows = [run.model(**{k: torch.tensor([v]) for k, v in example.items()}).logits[0] for example in split.examples]
    return torch.stack(rows).softmax(-1)


def ids(examples: Sequence[dict[str, Any]]) -> set[tuple[int, ...]]:
    return {tuple(example["input_ids"]) for example in examples}


def test_confident_predictions_join_the_train_split_with_their_label(task: Task, watch: Any) -> None:
    settings = dataclasses.replace(task.settings, epochs=12, metric="validation_macro_f1", maximize=True)
    task = dataclasses.replace(task, settings=settings)  # a teacher that predicts both classes
    unlabelled = task.unlabelled(60, seed=1)
    expected, classes = probabilities(task.run(SPEC, {}, seed=7), unlabelled).max(-1)
    ordered = expected.sort().values
    above = 20 + int((ordered[21:40] - ordered[20:39]).argmax()) + 1  # where no item is near the threshold
    threshold = float(ordered[above - 1 : above + 1].mean())
    seen = watch(1, threshold, task=task)
    labelled = seen.trained_on[1][48:]
    assert seen.trained_on[0] == seen.trained_on[1][:48] == task.train.examples
    assert len(labelled) == 60 - above == seen.rounds[0].labelled
    confident = [row for row in range(60) if expected[row] >= threshold]
    assert ids(labelled) == ids([unlabelled.examples[row] for row in confident])
    assert [example["labels"] for example in labelled] == classes[confident].tolist()
    assert 0 < sum(classes[confident].tolist()) < len(confident), "the test needs both classes"


def test_nothing_of_validation_and_test_is_ever_labelled(task: Task, watch: Any) -> None:
    seen = watch(1, 0.0, size=400)
    held_out = ids(task.validation.examples) | ids(task.test.examples)
    assert len(seen.trained_on[1]) == 48 + 400
    assert not ids(seen.trained_on[1]) & held_out


def test_epochs_go_on_over_the_rounds_and_the_best_of_all_is_kept(task: Task, growing: None, watch: Any) -> None:
    seen = watch(2, 0.5)
    assert [record.epoch for record in seen.epochs] == [1, 2, 3, 4, 5, 6]
    assert seen.run.fit.history == seen.epochs
    best = min(seen.epochs, key=lambda record: record.validation_loss)
    assert seen.run.fit.best == best
    assert seen.run.metrics()["best_epoch"] == best.epoch
    assert validation_loss(task, seen.run) == pytest.approx(best.validation_loss, rel=1e-5), "its weights are kept"
    assert len(seen.sizes) == 1
    assert seen.rounds == [Round(1, 20), Round(2, 40)]
    assert [len(examples) for examples in seen.trained_on] == [48, 68, 88]


@pytest.mark.parametrize("round_of_the_best", [0, 1, 2])
def test_the_best_round_wins_wherever_it_is(
    task: Task, growing: None, monkeypatch: pytest.MonkeyPatch, round_of_the_best: int
) -> None:
    original, runs = Task.run, []

    def better_once(self: Task, *args: Any, **kwargs: Any) -> Run:
        run = original(self, *args, **kwargs)
        run.fit = dataclasses.replace(
            run.fit,
            best=dataclasses.replace(run.fit.best, validation_loss=0.1 if len(runs) == round_of_the_best else 0.2),
        )
        runs.append(run)
        return run

    monkeypatch.setattr(Task, "run", better_once)
    unlabelled = task.unlabelled(60, seed=1)
    kept = self_train(
        task, SPEC, {}, settings=PseudoLabelling(2, 0.5, None), unlabelled=unlabelled, seed=7, on_epoch=lambda _: None
    )
    assert len(runs) == 3
    assert kept is runs[round_of_the_best]
    assert kept.fit.best.epoch in range(EPOCHS * round_of_the_best + 1, EPOCHS * (round_of_the_best + 1) + 1)


def test_an_epochs_number_does_not_depend_on_early_stopping(task: Task, watch: Any) -> None:
    settings = dataclasses.replace(
        task.settings, epochs=5, early_stopping_patience=1, early_stopping_metric="validation_accuracy"
    )
    still = StrategySpec(Frozen, {"learning_rate": 1e-12}, {})
    seen = watch(1, 0.0, spec=still, task=dataclasses.replace(task, settings=settings))
    assert [record.epoch for record in seen.epochs] == [1, 2, 6, 7]
    assert seen.run.metrics()["epochs_run"] == 4


def test_a_round_that_adds_nothing_says_so_and_is_the_last(watch: Any) -> None:
    seen = watch(3, 0.999999)
    assert seen.rounds == [Round(1, 0, "pseudo-label round 1 added nothing: no item reaches 0.999999")]
    assert len(seen.trained_on) == 1
    still = watch(3, 0.0, spec=StrategySpec(Frozen, {"learning_rate": 1e-12}, {}))
    assert [(done.number, done.labelled) for done in still.rounds] == [(1, 60), (2, 60)]
    assert "the same labels as in the round before" in still.rounds[1].ended
    assert len(still.trained_on) == 2


def test_all_trainings_are_paid_for(watch: Any) -> None:
    seen = watch(1, 0.0)
    seconds = seen.run.metrics()["train_seconds"]
    assert seconds > sum(run.fit.train_seconds for run in seen.trained)
    assert seen.run.metrics()["epochs_run"] == 2 * EPOCHS


@pytest.mark.slow
def test_the_same_seed_gives_the_same_rounds(task: Task, watch: Any) -> None:
    sure = probabilities(task.run(SPEC, {}, seed=7), task.unlabelled(60, seed=1)).amax(-1)
    first, second = (watch(1, float(sure.median())) for _ in range(2))
    assert 0 < first.rounds[0].labelled < 60
    assert first.rounds == second.rounds
    assert [r.validation_loss for r in first.epochs] == [r.validation_loss for r in second.epochs]


def test_no_rounds_are_a_plain_run(task: Task, watch: Any) -> None:
    seen, plain = watch(0, 0.0), task.run(SPEC, {}, seed=7)
    assert seen.rounds == []
    assert [r.validation_loss for r in seen.epochs] == [r.validation_loss for r in plain.fit.history]


def test_a_sample_of_the_unlabelled_lies_inside_a_larger_one(task: Task) -> None:
    few, more = (task.unlabelled(size, seed=3) for size in (20, 50))
    assert len(few) == 20 and len(more) == 50
    assert ids(few.examples) < ids(more.examples)
    assert ids(few.examples) != ids(task.unlabelled(20, seed=4).examples)
    assert all("labels" not in example for example in more.examples)
