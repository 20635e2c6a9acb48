"""A run that was interrupted ends as the uninterrupted one; what a disk did to a checkpoint costs no more than that."""

from __future__ import annotations

import dataclasses
import errno
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from strategies import Full, Gradual, Lora, LpFt, Strategy
from sweeper.data import load_dataset
from sweeper.objective import Run, Task
from sweeper.search_space import StrategySpec
from sweeper.training import checkpoints as module
from sweeper.training.checkpoints import Checkpoints
from sweeper.training.domain_pretrain import DomainPretraining, pretrain_language_model
from sweeper.training.pseudo_label import PseudoLabelling, self_train
from sweeper.training.recorder import EpochRecord
from sweeper.training.state_store import StateStore
from tests.cli import command, runs
from tests.cli import run as run_command
from tests.tasks import SETTINGS, load_task


class Stop(BaseException):
    """What ends a process between two steps."""


@pytest.fixture(scope="module")
def task(tiny_checkpoint: Path) -> Task:
    return load_task(tiny_checkpoint, (44, 40, 20), max_length=24, epochs=2, batch_size=8)


def spec(cls: type[Strategy] = Full, **fixed: object) -> StrategySpec:
    return StrategySpec(cls, {"learning_rate": 3e-3, **fixed}, {})


def stopping(steps: float) -> Callable[[], None]:
    """What a run calls between steps; raises after so many."""
    left = steps

    def on_step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stop

    return on_step


def run(task: Task, spec: StrategySpec, checkpoints: Checkpoints | None, steps: float = float("inf")) -> Run:
    """One run, or what there is of it after so many steps, those of evaluations among them."""
    return task.run(spec, {}, seed=3, on_step=stopping(steps), checkpoints=checkpoints)


def in_parts(folder: Path, attempt: Callable[[Checkpoints], Any], *, at_least: int = 2) -> Any:
    """What the last of several attempts comes to, each in the place of a process that was interrupted."""
    for number in range(1, 100):
        try:
            done = attempt(Checkpoints(folder, seconds=0))
        except Stop:
            continue
        assert number >= at_least
        return done
    raise AssertionError("no attempt came further than the one before")


def assert_same(one: Run, other: Run) -> None:
    """The weights, and the epochs but for their speed."""
    torch.testing.assert_close(
        [*one.model.state_dict().values()], [*other.model.state_dict().values()], rtol=1e-5, atol=1e-7
    )
    epochs, others = ([dataclasses.asdict(record) for record in run.fit.history] for run in (one, other))
    for epoch in (*epochs, *others):
        assert epoch.pop("train_samples_per_second") > 0
    assert epochs == [pytest.approx(epoch, rel=1e-5) for epoch in others]


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        (spec(), {"gradient_accumulation_steps": 2}),
        pytest.param(spec(), {"early_stopping_patience": 1, "epochs": 4}, marks=pytest.mark.slow),
        pytest.param(spec(Lora, rank=2, dropout=0.3), {"length_grouping": False}, marks=pytest.mark.slow),
        pytest.param(spec(Gradual), {"epochs": 4}, marks=pytest.mark.slow),
    ],
    ids=["accumulation", "early stopping", "lora with dropout", "gradual"],
)
def test_an_interrupted_run_ends_as_the_uninterrupted_one(
    task: Task, tmp_path: Path, strategy: StrategySpec, settings: dict[str, Any]
) -> None:
    task = dataclasses.replace(task, settings=dataclasses.replace(task.settings, **settings))
    whole = run(task, strategy, None)
    reported: list[list[EpochRecord]] = []

    def attempt(checkpoints: Checkpoints) -> Run:
        reported.append([])
        return task.run(
            strategy, {}, seed=3, on_epoch=reported[-1].append, on_step=stopping(5), checkpoints=checkpoints
        )

    resumed = in_parts(tmp_path, attempt)
    assert_same(resumed, whole)
    told = [dataclasses.replace(record, replayed=False) for record in reported[-1]]
    assert told == resumed.fit.history, "a retry is told of all epochs"
    assert resumed.fit.train_seconds > resumed.fit.resumed_seconds > 0


@pytest.mark.slow
def test_augmented_images_go_on_with_the_crops_that_they_would_have_had(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    dataset = load_dataset("digits", modality="image", train_size=20, validation_size=20, test_size=20)
    task = Task.load(
        dataset,
        checkpoint("efficientnet"),
        head="linear",
        pooling="mean",
        revision=None,
        settings=dataclasses.replace(SETTINGS, epochs=3, batch_size=6),
        augmentation="strong",
    )
    whole = run(task, spec(), None)
    assert_same(in_parts(tmp_path, lambda checkpoints: run(task, spec(), checkpoints, steps=7)), whole)


@pytest.mark.slow
def test_a_stage_on_recorded_features_is_not_trained_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    store = StateStore(tmp_path / "states", 1 << 30)
    task = load_task(tiny_checkpoint, (44, 40, 20), max_length=24, epochs=3, batch_size=8, store=store)
    strategy = spec(LpFt, probe_share=0.67)
    whole = run(task, strategy, None)
    # The head's two epochs in the first attempt: 12 steps; a step more is in the next stage.
    assert_same(in_parts(tmp_path / "c", lambda checkpoints: run(task, strategy, checkpoints, steps=13)), whole)


@pytest.mark.slow
def test_rounds_that_ended_are_not_trained_again(task: Task, tmp_path: Path) -> None:
    unlabelled = task.unlabelled(30, seed=1)

    def labelled(checkpoints: Checkpoints | None, steps: float = float("inf")) -> Run:
        settings = PseudoLabelling(rounds=1, threshold=0.5, size=30)
        done = self_train(
            task,
            spec(),
            {},
            settings=settings,
            unlabelled=unlabelled,
            seed=3,
            on_step=stopping(steps),
            checkpoints=checkpoints,
        )
        assert len(done.fit.history) == 4, "the test needs a round"
        return done

    assert_same(in_parts(tmp_path, lambda checkpoints: labelled(checkpoints, steps=8)), labelled(None))


@pytest.mark.slow
def test_domain_pretraining_goes_on_with_its_masks(tiny_checkpoint: Path, tmp_path: Path) -> None:
    task = load_task(tiny_checkpoint, (24, 16, 16), max_length=24)
    settings = DomainPretraining(epochs=2, learning_rate=3e-3, batch_size=8, mask_probability=0.15, size=30)

    def pretrain(checkpoints: Checkpoints | None, steps: float = float("inf")) -> tuple[Any, Any]:
        examples = task.unlabelled(30, seed=1)
        return pretrain_language_model(
            task, examples, settings, seed=2, on_step=stopping(steps), checkpoints=checkpoints
        )

    whole, done = pretrain(None)
    model, resumed = in_parts(tmp_path, lambda checkpoints: pretrain(checkpoints, steps=3))
    torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=1e-5, atol=1e-7)
    assert resumed.losses == pytest.approx(done.losses, rel=1e-5)


# --- the files ---------------------------------------------------------------------------------------------------


def written(folder: Path, numbers: int = 3, key: str = "a") -> list[Path]:
    checkpoints = Checkpoints(folder, seconds=0, key=key)
    for number in range(1, numbers + 1):
        checkpoints.save(number=number, weights=torch.full((1000,), float(number)))
    return sorted(folder.iterdir())


def test_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    assert len(written(tmp_path)) == 2
    assert Checkpoints(tmp_path, seconds=0, key="a").load()["number"] == 3  # type: ignore[index]


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_of_a_damaged_one_the_previous_is_read(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    newest = written(tmp_path)[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content[: len(content) // 2] if damage == "truncated" else content)
    checkpoints = Checkpoints(tmp_path, seconds=0, key="a")
    assert checkpoints.load()["number"] == 2  # type: ignore[index]
    assert f"{newest} is damaged" in caplog.text
    checkpoints.save(number=4)
    assert checkpoints.load() == {"number": 4} and len([*tmp_path.iterdir()]) == 2


def test_one_of_other_settings_is_passed_over(
    tmp_path: Path, task: Task, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    original = Checkpoints.load
    monkeypatch.setattr(Checkpoints, "load", lambda self: loaded.append(original(self)) or loaded[-1])
    other = dataclasses.replace(task, settings=dataclasses.replace(task.settings, weight_decay=0.5))
    for each in (task, other):
        with pytest.raises(Stop):
            run(each, spec(), Checkpoints(tmp_path, seconds=0), steps=2)
    assert loaded == [None, None]
    assert "is of other settings, versions or data" in caplog.text


def test_what_a_stranger_wrote_is_not_executed(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    path = tmp_path / "new.pt"
    torch.save({"key": "", "state": Malicious()}, path)
    path.rename(tmp_path / f"000001-{module._digest(path)}.pt")
    assert Checkpoints(tmp_path, seconds=0).load() is None
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = written(tmp_path)

    class Full:
        """A file on a disk that fills up; closing, syncing and the rest are the file's."""

        def __init__(self, file: Any) -> None:
            self._file, self._room = file, 2000

        def write(self, content: Any) -> int:
            if (length := memoryview(content).nbytes) > self._room:
                raise OSError(errno.ENOSPC, "No space left on device")
            self._room -= length
            return int(self._file.write(content))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

    original = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode="r": Full(original(path, mode)))
    Checkpoints(tmp_path, seconds=0, key="a").save(weights=torch.zeros(10_000))
    monkeypatch.undo()
    assert "No space left on device" in caplog.text and "training goes on" in caplog.text
    assert sorted(tmp_path.iterdir()) == before


# --- the command -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_sweep_goes_on_within_its_trial(tmp_path: Path, tiny_checkpoint: Path) -> None:
    arguments = [
        *("sweep", "strategy=full", "model=local", f"model.path={tiny_checkpoint}", "study.n_trials=1"),
        *("dataset.train_size=160", "dataset.validation_size=40", "dataset.test_size=40", "dataset.max_length=32"),
        *("trainer.epochs=3", "trainer.batch_size=8", "trainer.precision=fp32", "final.seeds=0"),
        *("strategy.search_space.learning_rate=null", "trainer.learning_rate=1e-3"),
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_command(whole, *arguments)
    folder = killed / "checkpoints"
    process = subprocess.Popen(
        command(killed, *arguments, "trainer.checkpoint_seconds=0.1"), stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not [*folder.glob("*/trial-0/*/*.pt")] and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "went on from a checkpoint" in run_command(killed, *arguments)
    assert not [*folder.rglob("*.pt")]
    (study,) = optuna.load_study(study_name=None, storage=f"sqlite:///{whole / 'optuna.db'}").trials
    first, second = optuna.load_study(study_name=None, storage=f"sqlite:///{killed / 'optuna.db'}").trials
    assert (first.user_attrs["state"], second.user_attrs["state"]) == ("interrupted", "complete")
    assert second.intermediate_values == pytest.approx(study.intermediate_values, rel=1e-5)
    losses = [runs(output, kind="trial", state="complete")["metrics.validation_loss"] for output in (killed, whole)]
    assert losses[0].tolist() == pytest.approx(losses[1].tolist(), rel=1e-5)
