"""Recorded states: the same training, without what lies below the boundary being computed again."""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.distributions import IntDistribution

from strategies import STRATEGIES as REGISTERED
from strategies import Adapter, Frozen, Full, Gradual, Lora, LpFt, Partial, Strategy
from sweeper.comparison import boundary_cuts as cuts
from sweeper.data import load_dataset
from sweeper.data.tokenize import TextEncoder
from sweeper.objective import Task
from sweeper.search_space import StrategySpec
from sweeper.training.boundary_cache import BoundaryCache
from sweeper.training.state_store import StateStore
from tests.tasks import SETTINGS, load_task

MODELS = {
    "encoder": ("bert", "text", "linear"),
    "encoder-mlp": ("bert", "text", "mlp"),
    "encoder-native": ("bert", "text", "native"),
    "decoder": ("gpt2", "text", "linear"),
    "relative-positions": ("deberta", "text", "linear"),
    "cnn": ("resnet", "image", "linear"),
    "vit": ("vit-timm", "image", "native"),
}
QUICK = {"encoder": "lora-last", "cnn": "gradual"}  # besides frozen and partial; the slow tests run all of them
STRATEGIES = {
    "frozen": Frozen(),
    "partial": Partial(num_blocks=1),
    "gradual": Gradual(num_blocks="0,1,2"),
    "lp_ft": LpFt(),
    "lora-last": Lora(rank=4, num_blocks=1, targets="all-linear"),
    "adapter-last": Adapter(num_blocks=1),
}


@pytest.fixture(scope="module")
def tasks(
    request: pytest.FixtureRequest,
    checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Task, Task]:
    """The same task without and with recorded states."""
    kind, modality, head = MODELS[request.param]
    name = "review_lines" if modality == "text" else "digits"
    dataset = load_dataset(name, modality=modality, train_size=24, validation_size=20, test_size=20)
    settings = dataclasses.replace(SETTINGS, epochs=3, batch_size=8)
    store = StateStore(tmp_path_factory.mktemp("states"), 1 << 30)
    pooling = "native" if head == "native" else "mean"
    plain, cached = (
        Task.load(
            dataset,
            checkpoint(kind),
            head=head,
            pooling=pooling,
            revision=None,
            max_length=24,
            settings=settings,
            store=where,
        )
        for where in (None, store)
    )
    for task in (plain, cached):  # the Trainer draws a number now and then, so that dropout of a lone head differs
        for module in task.pretrained.model.get_submodule(task.pretrained.layout.head[0]).modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    return plain, cached


def spec(strategy: Strategy) -> StrategySpec:
    fields = {field.name: getattr(strategy, field.name) for field in dataclasses.fields(strategy)}
    return StrategySpec(type(strategy), {"learning_rate": 3e-3, **fields}, {})


@pytest.mark.parametrize(
    ("tasks", "name"),
    [
        pytest.param(model, name, marks=() if name in ("frozen", "partial", QUICK.get(model)) else pytest.mark.slow)
        for model in MODELS
        for name in STRATEGIES
    ],
    indirect=["tasks"],
    scope="module",
)
def test_training_is_the_same_and_the_first_block_never_runs(
    tasks: tuple[Task, Task], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, cached = tasks
    strategy = STRATEGIES[name]
    if isinstance(strategy, Adapter) and not hasattr(plain.pretrained.model, "add_adapters"):
        pytest.skip("a plain checkpoint carries no adapters")
    expected = plain.run(spec(strategy), {}, seed=1)
    cached.run(spec(strategy), {}, seed=1)  # records
    ran: list[int] = []
    block = cached.pretrained.layout.blocks[0]

    class Watching(type(strategy)):  # type: ignore[misc]
        def prepare(self, model: Any, layout: Any) -> Any:
            model = super().prepare(model, layout)
            leaf = next(part for part in model.get_submodule(block).modules() if not list(part.children()))
            leaf.register_forward_hook(lambda module, args, output: ran.append(len(output)))
            return model

    watched = dataclasses.replace(spec(strategy), cls=Watching)
    run = cached.run(watched, {}, seed=1)
    # Rounding grows over the steps of a whole CNN with batch norm, which lp_ft ends with.
    exact = 1e-3 if isinstance(strategy, LpFt) else 1e-4
    for ours, theirs in zip(run.fit.history, expected.fit.history, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=exact)
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=exact)
        assert ours.validation_accuracy == theirs.validation_accuracy
    np.testing.assert_allclose(cached.predict(run, cached.test), plain.predict(expected, plain.test), atol=10 * exact)
    if name != "lp_ft":  # its second stage trains everything
        assert not ran, "the first block computed something"


@pytest.mark.slow
@pytest.mark.parametrize("tasks", ["encoder"], indirect=True, scope="module")
@pytest.mark.parametrize("name", sorted(name for name, cls in REGISTERED.items() if cls.trains))
def test_every_strategy_trains_the_same_with_a_store(tasks: tuple[Task, Task], name: str) -> None:
    """Those that train everything, or change what enters the first block, must not take what others recorded."""
    plain, cached = tasks
    cached.run(spec(Frozen()), {}, seed=1)  # something lies there
    expected, run = (task.run(spec(REGISTERED[name]()), {}, seed=1) for task in (plain, cached))
    for ours, theirs in zip(run.fit.history, expected.fit.history, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-3)
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-3)


@pytest.fixture
def stored(tmp_path: Path, tiny_checkpoint: Path) -> Callable[..., Task]:
    """Loads the same small task with a store in the same folder, as another process would."""

    def load(max_bytes: int = 1 << 30, **changes: Any) -> Task:
        store = StateStore(tmp_path / "states", max_bytes)
        return load_task(tiny_checkpoint, (24, 20, 20), **{"max_length": 24, **changes}, store=store)

    return load


def entries(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_ino for path in folder.glob("states/*/values.bin")}


def test_what_is_recorded_is_found_by_the_next_process(stored: Any, tmp_path: Path) -> None:
    stored().run(spec(Frozen()), {}, seed=1)
    first = entries(tmp_path)
    assert len(first) == 2, "train and validation"
    stored().run(spec(Frozen()), {}, seed=2)
    assert entries(tmp_path) == first


@pytest.mark.parametrize("change", [{"max_length": 12}, {"pooling": "max"}, {"precision": "bf16"}], ids=str)
def test_other_inputs_and_precisions_are_recorded_anew(stored: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    stored().run(spec(Frozen()), {}, seed=1)
    first = entries(tmp_path)
    stored(**change).run(spec(Frozen()), {}, seed=1)
    assert len(entries(tmp_path)) == 4
    assert first.items() < entries(tmp_path).items()


def test_speed_is_that_of_the_whole_model_and_a_recording_is_known_by_what_it_took(stored: Any) -> None:
    task = stored()
    first, second = (task.run(spec(Frozen()), {}, seed=seed) for seed in (0, 1))
    assert (
        first.metrics()["recorded_seconds"] == second.metrics()["recorded_seconds"] > 0
    )  # also where it was read only
    seen: list[int] = []
    block = second.model.get_submodule(task.pretrained.layout.blocks[0])
    block.register_forward_hook(lambda module, inputs, output: seen.append(1))
    predicted = task.predict(second, task.test)
    assert not seen and len(predicted)
    assert task.score_test(second).metrics["test_samples_per_second"] > 0
    assert len(seen) == 2 * -(-len(task.test) // task.encoder.evaluation_batch_size)  # two passes


def test_a_damaged_entry_is_recorded_again(stored: Any, tmp_path: Path) -> None:
    expected = stored().run(spec(Frozen()), {}, seed=1)
    for path in tmp_path.glob("states/*/values.bin"):
        path.write_bytes(b"\x00" * path.stat().st_size)
    run = stored().run(spec(Frozen()), {}, seed=1)
    assert [r.validation_loss for r in run.fit.history] == [r.validation_loss for r in expected.fit.history]


def test_what_does_not_fit_runs_uncached(stored: Any, tmp_path: Path) -> None:
    expected = stored().run(spec(Partial(num_blocks=1)), {}, seed=1)
    (tmp_path / "states").rename(tmp_path / "elsewhere")
    run = stored(max_bytes=1000).run(spec(Partial(num_blocks=1)), {}, seed=1)
    assert entries(tmp_path) == {}
    assert run.fit.best.validation_loss == pytest.approx(expected.fit.best.validation_loss, rel=1e-4)


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "states").write_text("a file, where a folder is needed")
    store = StateStore(tmp_path / "states", 1 << 30)
    task = load_task(tiny_checkpoint, (24, 20, 20), max_length=24, store=store)
    expected = load_task(tiny_checkpoint, (24, 20, 20), max_length=24).run(spec(Frozen()), {}, seed=1)
    run = task.run(spec(Frozen()), {}, seed=1)
    assert run.fit.best.validation_loss == pytest.approx(expected.fit.best.validation_loss, rel=1e-4)


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    store = StateStore(tmp_path, 3000)
    for key in ("a", "b", "c"):
        with store.building(key), store.writing(key, (10, 25), torch.float32, None, lambda: 1.0) as states:
            for row in range(10):
                states[row].fill_(float(row))
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"a", "b", "c"}
    assert StateStore(tmp_path, 3000).read("a") is not None  # used now
    with store.building("d"), store.writing("d", (10, 25), torch.float32, None, lambda: 1.0) as states:
        states[0].fill_(0.0)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"a", "c", "d"}
    assert not store.fits(3001)


def test_entries_under_way_and_what_killed_processes_left_count(tmp_path: Path) -> None:
    store = StateStore(tmp_path, 3000)

    def writing(key: str) -> Any:
        return store.writing(key, (10, 25), torch.float32, None, lambda: 1.0)

    left = tmp_path / ".left.new"
    left.mkdir()
    (left / "values.bin").write_bytes(bytes(2500))
    with store.building("a"), store.building("b"), store.building("c"), store.building("d"), writing("a"):
        assert not left.exists()
        with writing("b"), writing("c"), pytest.raises(OSError, match="max_gb"), writing("d"):
            pass
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"a", "b", "c"}
    assert store.read("a") is not None and store.read("b") is not None
    with store.building("d"), writing("d"):
        pass
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"a", "b", "d"}, "a run reads two"


def test_offsets_that_changed_are_damage_too(tmp_path: Path) -> None:
    with StateStore(tmp_path, 3000).writing("a", (4, 5), torch.float32, np.array([0, 1, 4]), lambda: 1.0) as states:
        states.values.fill_(0.0)
    assert StateStore(tmp_path, 3000).read("a") is not None
    record = tmp_path / "a" / "record.json"
    record.write_text(record.read_text().replace("[0, 1, 4]", "[0, 3, 4]"))
    assert StateStore(tmp_path, 3000).read("a") is None
    assert not record.exists()


def test_who_waits_for_another_process_can_be_stopped(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    held, other = (StateStore(tmp_path, 3000) for _ in range(2))
    with held.building("a"), pytest.raises(KeyboardInterrupt), other.building("a", stop):
        pass


@pytest.mark.parametrize("kind", ["llama", "deberta"])
def test_what_all_blocks_read_beside_the_states_is_computed(
    kind: str, checkpoint: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = load_dataset("review_lines", modality="text", train_size=24, validation_size=20, test_size=20)
    arguments = {"head": "linear", "pooling": "mean", "revision": None, "max_length": 24, "settings": SETTINGS}
    store = StateStore(tmp_path, 1 << 30)
    runs = []
    for where in (None, store):
        task = Task.load(dataset, checkpoint(kind), **arguments, store=where)
        torch.manual_seed(0)
        with torch.no_grad():  # so that attention, and positions in it, matter
            for parameter in task.pretrained.model.get_submodule("backbone").parameters():
                parameter.mul_(1 + 5 * torch.rand(()) if parameter.ndim == 1 else 30.0)
        runs.append(task.run(spec(Partial(num_blocks=2)), {}, seed=1))
    assert store.read(next(path.name for path in tmp_path.iterdir() if path.is_dir())) is not None, caplog.text
    plain, cached = ([epoch.validation_loss for epoch in run.fit.history] for run in runs)
    assert cached == pytest.approx(plain, rel=1e-3)


def test_balanced_classes_have_the_same_validation_loss_either_way(tmp_path: Path, tiny_checkpoint: Path) -> None:
    settings = dataclasses.replace(SETTINGS, class_weights="balanced")
    plain, cached = (
        dataclasses.replace(
            load_task(tiny_checkpoint, (24, 100, 20), max_length=24, store=store),
            settings=settings,  # more rows than one batch of the evaluation has
        ).run(spec(Frozen()), {}, seed=1)
        for store in (None, StateStore(tmp_path, 1 << 30))
    )
    for ours, theirs in zip(cached.fit.history, plain.fit.history, strict=True):
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-5)


def test_augmented_images_are_never_read_from_recorded_states(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    dataset = load_dataset("digits", modality="image", train_size=24, validation_size=20, test_size=20)
    arguments = {"head": "linear", "pooling": "mean", "revision": None, "settings": SETTINGS}
    losses = {}
    for augmentation in ("none", "strong"):
        for store in (None, StateStore(tmp_path / augmentation, 1 << 30)):
            task = Task.load(dataset, checkpoint("resnet"), **arguments, augmentation=augmentation, store=store)
            run = task.run(spec(Frozen()), {}, seed=1)
            losses[augmentation, store is None] = [epoch.train_loss for epoch in run.fit.history]
    assert losses["strong", False] == pytest.approx(losses["strong", True], rel=1e-4)
    assert losses["none", False] == pytest.approx(losses["none", True], rel=1e-4)
    kept = {folder.name: len(list(folder.glob("*/values.bin"))) for folder in tmp_path.iterdir()}
    assert kept == {"none": 2, "strong": 1}, "of the validation split, which is not augmented"


def test_changed_weights_below_the_boundary_are_computed(stored: Any, tmp_path: Path) -> None:
    task = stored()
    model, _ = task.prepare(Frozen(), 0)
    assert isinstance(task.cache, BoundaryCache)
    with task.cache.attached(model, task.validation) as attached:
        assert attached is not None
    with torch.no_grad():
        next(parameter for name, parameter in model.named_parameters() if "layer.2" in name).add_(1e-3)
    with task.cache.attached(model, task.validation) as attached:
        assert attached is None
    full, _ = task.prepare(Full(), 0)
    with task.cache.attached(full, task.validation) as attached:
        assert attached is None


def test_a_model_is_given_back_as_it_was(stored: Any) -> None:
    task = stored()
    model, _ = task.prepare(Partial(num_blocks=1), 0)
    batch = task.encoder.blank(2, 6)
    before = model.eval()(**batch).logits
    with task.cache.attached(model, task.validation) as attached:
        assert attached is not None
        assert torch.equal(model(**batch).logits, before), "a batch without states is computed"
    assert torch.equal(model(**batch).logits, before)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def _build(folder: str, barrier: Any, results: Any) -> None:
    store = StateStore(Path(folder), 1 << 20)
    barrier.wait()
    with store.building("key"):
        if store.read("key") is None:
            results.put("built")
            with store.writing("key", (4, 2), torch.float32, None, lambda: 1.0) as states:
                for row in range(4):
                    states[row].fill_(float(row))
    states = StateStore(Path(folder), 1 << 20).read("key")
    results.put("read" if states is not None and float(states[3][1]) == 3.0 else "wrong")


def test_two_processes_that_need_the_same_build_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_build, args=(str(tmp_path), barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(results.get(timeout=10) for _ in range(3)) == ["built", "read", "read"]


def test_several_depths_are_recorded_in_one_pass(stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depths = StrategySpec(Partial, {"learning_rate": 3e-3}, {"num_blocks": IntDistribution(1, 2)})
    expected = {number: stored().run(depths, {"num_blocks": number}, seed=1) for number in (1, 2)}
    shutil.rmtree(tmp_path / "states")
    task = stored()
    task.cache.expect(cuts([spec(Frozen()), depths], task), [task.train, task.validation])
    task.run(spec(Frozen()), {}, seed=1)
    assert len(entries(tmp_path)) == 2 * 3, "of two splits what enters the head and each of the last two blocks"

    def compute(self: Any, *_: Any) -> float:
        raise AssertionError("recorded again")

    monkeypatch.setattr(BoundaryCache, "_record", compute)
    for number, whole in expected.items():
        again = task.run(depths, {"num_blocks": number}, seed=1)
        losses = [[epoch.train_loss for epoch in run.fit.history] for run in (again, whole)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_depths_that_nobody_asked_for_take_no_more_than_half_of_the_store(stored: Any, tmp_path: Path) -> None:
    task = stored(max_bytes=20_000)
    task.cache.expect(task.pretrained.layout.blocks[1:], [task.train, task.validation])
    task.run(spec(Frozen()), {}, seed=1)
    assert 0 < len(entries(tmp_path)) <= 2


def test_features_as_wide_as_a_text_is_long_are_no_states_of_tokens(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, cached = (
        load_task(tiny_checkpoint, (24, 20, 20), max_length=64, store=store)
        for store in (None, StateStore(tmp_path, 1 << 30))
    )
    width = cached.pretrained.model.get_submodule("head").in_features
    lengths = np.sort(cached.train.lengths)
    last = int(np.flatnonzero(lengths == width)[-1])  # a batch that ends here is as long as a feature is wide
    assert lengths[0] < width
    monkeypatch.setattr(TextEncoder, "evaluation_batch_size", last + 1)
    runs = [task.run(spec(Frozen()), {}, seed=1) for task in (plain, cached)]
    first, second = ([epoch.train_loss for epoch in run.fit.history] for run in runs)
    assert first == pytest.approx(second, rel=1e-4)
