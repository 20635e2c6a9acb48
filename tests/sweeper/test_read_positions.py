"""The last block computes only what the head reads: the same logits and gradients, from fewer products."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from strategies import Adapter, BitFit, Dora, Frozen, Full, Ia3, Lora, Partial, Prefix, Prompt, Strategy
from sweeper.data import load_dataset
from sweeper.objective import Task
from sweeper.training.read_positions import Known, only_read_positions
from sweeper.training.state_store import StateStore
from tests.sweeper.test_boundary_cache import spec
from tests.tasks import SETTINGS

Checkpoint = Callable[[str], Path]
#: Kind of checkpoint -> modality, head, pooling, and how many layers of its last block read one position.
ONE_POSITION = {
    "bert": ("text", "linear", "first", 3),
    "distilbert": ("text", "native", "native", 3),
    "roberta": ("text", "native", "native", 3),
    "deberta-v3": ("text", "linear", "first", 3),
    "electra": ("text", "linear", "first", 3),
    "gpt2": ("text", "linear", "native", 3),
    "llama": ("text", "linear", "native", 4),
    "phi": ("text", "linear", "native", 3),  # attention and feed-forward read the same states
    "vit": ("image", "linear", "first", 3),
    "vit-timm": ("image", "native", "native", 3),
    "clip": ("image", "linear", "native", 3),
}
ALL_POSITIONS = {
    "bert": ("text", "linear", "mean"),
    "electra": ("text", "linear", "max"),
    "gpt2": ("text", "native", "native"),  # its own rule for the last token: the last that is not its padding token
    "llama": ("text", "native", "native"),
    "resnet": ("image", "linear", "mean"),
    "convnext": ("image", "native", "native"),
    "swin": ("image", "native", "native"),
    "siglip": ("image", "linear", "native"),
}


def load(
    folder: Path, modality: str, head: str, pooling: str, *, max_length: int = 24, store: StateStore | None = None
) -> Task:
    name = "review_lines" if modality == "text" else "digits"
    return Task.load(
        load_dataset(name, modality=modality, train_size=24, validation_size=20, test_size=20),
        folder,
        head=head,
        pooling=pooling,
        revision=None,
        max_length=max_length,
        settings=dataclasses.replace(SETTINGS, epochs=2, batch_size=8),
        store=store,
    )


def watched(monkeypatch: pytest.MonkeyPatch, module: str) -> list[tuple[str, ...]]:
    """What is narrowed where a module of training asks for it, each time."""
    found: list[tuple[str, ...]] = []

    @contextlib.contextmanager
    def noting(*args: Any) -> Iterator[None]:
        with only_read_positions(*args) as layers:
            found.append(layers)
            yield

    monkeypatch.setattr(f"sweeper.training.{module}.only_read_positions", noting)
    return found


def gradients(model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of a batch, and the gradients of its loss."""
    model.zero_grad()
    outputs = model(**batch)
    outputs.loss.backward()
    return outputs.logits.detach(), {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def compare(task: Task, strategy: Strategy, *, random: bool = False) -> tuple[str, ...]:
    """The layers that compute one position; logits and gradients are the same, and the hooks gone behind it."""
    model, _ = task.prepare(strategy, seed=1)
    for name, parameter in model.named_parameters():
        if random and "lora_B" in name:  # at zero, nothing of what lies before it has a gradient
            torch.nn.init.normal_(parameter, std=0.1)
    batch = task.encoder.collate([task.train.examples[row] for row in range(12)])
    model.eval()
    logits, expected = gradients(model, batch)
    sizes: list[int] = []
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    with only_read_positions(model, task.pretrained.layout, task.encoder, task.validation, {}) as layers:
        assert not model.training
        for name in layers:
            model.get_submodule(name).register_forward_hook(lambda _, args, out: sizes.append(out.shape[1]))
        lean_logits, found = gradients(model, batch)
    assert len(sizes) == len(layers) and set(sizes) <= {1}
    assert hooks == [len(module._forward_pre_hooks) for module in model.modules()]
    torch.testing.assert_close(lean_logits, logits, atol=1e-5, rtol=1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: name + text)
    return layers


@pytest.mark.parametrize("strategy", [Full(), Lora(rank=2, targets="all-linear")], ids=lambda one: one.name)
@pytest.mark.parametrize("kind", ONE_POSITION)
def test_logits_and_gradients_are_the_same(checkpoint: Checkpoint, kind: str, strategy: Strategy) -> None:
    modality, head, pooling, number = ONE_POSITION[kind]
    layers = compare(load(checkpoint(kind), modality, head, pooling), strategy, random=True)
    assert len(layers) == number, layers


@pytest.mark.parametrize(
    "strategy",
    [
        *(Lora(rank=2, num_blocks=1), Dora(rank=2, targets="all-linear"), Ia3(), BitFit(), Frozen()),
        *(Adapter(), Prompt(num_tokens=3), Prefix(num_tokens=2)),
    ],
    ids=lambda one: one.name,
)
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_whatever_a_strategy_adds(checkpoint: Checkpoint, kind: str, strategy: Strategy) -> None:
    assert len(compare(load(checkpoint(kind), *ONE_POSITION[kind][:3]), strategy)) >= 3


def test_adapters_that_begin_at_zero_are_narrowed_as_they_are_later(checkpoint: Checkpoint) -> None:
    task = load(checkpoint("bert"), "text", "linear", "first")
    strategy = Lora(rank=2, targets="all-linear", num_blocks=1)
    assert compare(task, strategy) == compare(task, strategy, random=True)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_padding_on_either_side(checkpoint: Checkpoint, kind: str, side: str) -> None:
    task = load(checkpoint(kind), *ONE_POSITION[kind][:3])
    task.pretrained.processor.padding_side = side
    assert len(compare(task, Full())) == 3


def test_texts_of_one_token_show_nothing(checkpoint: Checkpoint) -> None:
    task = load(checkpoint("gpt2"), *ONE_POSITION["gpt2"][:3], max_length=1)
    assert compare(task, Full()) == ()


def test_texts_of_one_length_do(checkpoint: Checkpoint) -> None:
    task = load(checkpoint("gpt2"), *ONE_POSITION["gpt2"][:3], max_length=4)
    assert len(compare(task, Full())) == 3


def test_texts_of_one_length_show_what_padding_changes(checkpoint: Checkpoint) -> None:
    """Where no text is padded, one is, so that attention does not do without its mask."""
    task = load(checkpoint("gpt2"), *ONE_POSITION["gpt2"][:3], max_length=4)
    model, _ = task.prepare(Full(), seed=1)
    masks: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, args, given: masks.append(given["attention_mask"]), with_kwargs=True)
    with only_read_positions(model, task.pretrained.layout, task.encoder, task.validation, {}):
        pass
    assert masks and not any(bool(mask.all()) for mask in masks)


@pytest.mark.parametrize("kind", ALL_POSITIONS)
def test_where_the_head_reads_all_positions_they_are_computed(checkpoint: Checkpoint, kind: str) -> None:
    task = load(checkpoint(kind), *ALL_POSITIONS[kind])
    model, _ = task.prepare(Full(), seed=1)
    with only_read_positions(model, task.pretrained.layout, task.encoder, task.validation, {}) as layers:
        assert layers == ()


@pytest.mark.parametrize(("part", "narrowed"), [("output", 1), ("output.dense", 0)])
def test_what_checks_its_shapes_is_left_alone(checkpoint: Checkpoint, part: str, narrowed: int) -> None:
    task = load(checkpoint("bert"), "text", "linear", "first")
    model, _ = task.prepare(Full(), seed=1)

    def insist(_: object, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert all(states.shape[1] > 1 for states in (*args, output))

    model.get_submodule(f"{task.pretrained.layout.blocks[-1]}.{part}").register_forward_hook(insist)
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    model.train()
    with only_read_positions(model, task.pretrained.layout, task.encoder, task.validation, {}) as layers:
        assert len(layers) == narrowed
        assert model.training
    assert hooks == [len(module._forward_pre_hooks) for module in model.modules()]


def test_memory_that_runs_out_changes_nothing(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load(checkpoint("bert"), "text", "linear", "first")
    model, _ = task.prepare(Full(), seed=1)
    known: Known = {}

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr(torch.autograd, "grad", fail)
        with only_read_positions(model, task.pretrained.layout, task.encoder, task.validation, known) as layers:
            assert layers == ()
    with only_read_positions(model, task.pretrained.layout, task.encoder, task.validation, known) as layers:
        assert layers


def test_later_trials_know_what_the_first_found(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load(checkpoint("bert"), "text", "linear", "first")
    passes: list[str] = []
    gradients_of = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *args, **given: passes.append("") or gradients_of(*args, **given)
    )
    for strategy, probes in ((Partial(num_blocks=1), 1), (Partial(num_blocks=1), 1), (Prompt(num_tokens=3), 2)):
        task.run(spec(strategy), {}, seed=len(passes))
        assert len(passes) == probes
    # Behind three other tokens, the first token of a text stands elsewhere.
    assert {found.where for found in task.data.read_positions.values() if found} == {0, 3}
    task.run(spec(Prompt(num_tokens=5)), {}, seed=1)
    assert {found.where for found in task.data.read_positions.values() if found} == {0, 3, 5}


def test_images_that_change_every_epoch_run_the_last_block(checkpoint: Checkpoint, tmp_path: Path) -> None:
    task = load(checkpoint("vit"), "image", "linear", "first", store=StateStore(tmp_path, 1 << 30))
    task.run(spec(Frozen()), {}, seed=1)
    assert not task.data.read_positions  # it is recorded once, by the model that all share
    augmented = dataclasses.replace(task, encoder=dataclasses.replace(task.encoder, augmentation="light"))
    augmented.run(spec(Frozen()), {}, seed=1)
    assert [len(found.layers) for found in augmented.data.read_positions.values() if found] == [3]


@pytest.mark.parametrize(("strategy", "narrowed"), [(Frozen(), True), (Partial(num_blocks=1), False)])
def test_a_recording_is_narrowed_where_it_runs_the_last_block(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: Strategy, narrowed: bool
) -> None:
    tried = watched(monkeypatch, "boundary_cache")
    task = load(checkpoint("bert"), "text", "linear", "first", store=StateStore(tmp_path, 1 << 30))
    task.run(spec(strategy), {}, seed=1)
    assert [len(layers) for layers in tried] == ([3, 3] if narrowed else [])  # train and validation


@pytest.mark.parametrize(("kind", "strategy"), [("bert", Partial(num_blocks=1)), ("gpt2", Prompt(num_tokens=3))])
def test_a_run_is_the_same(
    checkpoint: Checkpoint, kind: str, strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load(checkpoint(kind), *ONE_POSITION[kind][:3])
    for module in task.pretrained.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # its masks are of other shapes
    used = watched(monkeypatch, "fit")
    run = task.run(spec(strategy), {}, seed=1)
    monkeypatch.setattr("sweeper.training.read_positions._candidates", lambda *_: {})
    expected = task.run(spec(strategy), {}, seed=1)
    assert used[0] and not used[1]
    for ours, theirs in zip(run.fit.history, expected.fit.history, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-4)
