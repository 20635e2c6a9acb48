"""The last block computes only what the head reads: the same logits and gradients, from fewer products."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from strategies import Full, Lora, Partial, Prompt, Strategy
from sweeper.data import load_dataset
from sweeper.objective import Task
from sweeper.training import fit as fitting
from sweeper.training.read_positions import only_read_positions
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
    "vit": ("image", "linear", "first", 3),
    "vit-timm": ("image", "native", "native", 3),
    "clip": ("image", "linear", "native", 3),
}
ALL_POSITIONS = {
    "bert": ("text", "linear", "mean"),
    "electra": ("text", "linear", "max"),
    "resnet": ("image", "linear", "mean"),
    "convnext": ("image", "native", "native"),
    "swin": ("image", "native", "native"),
    "siglip": ("image", "linear", "native"),
}


def load(folder: Path, modality: str, head: str, pooling: str, **settings: object) -> Task:
    name = "review_lines" if modality == "text" else "digits"
    return Task.load(
        load_dataset(name, modality=modality, train_size=24, validation_size=20, test_size=20),
        folder,
        head=head,
        pooling=pooling,
        revision=None,
        max_length=24,
        settings=dataclasses.replace(SETTINGS, **{"epochs": 2, "batch_size": 8, **settings}),
    )


@pytest.mark.parametrize("strategy", [Full(), Lora(rank=2, targets="all-linear")], ids=lambda one: one.name)
@pytest.mark.parametrize("kind", ONE_POSITION)
def test_logits_and_gradients_are_the_same(checkpoint: Checkpoint, kind: str, strategy: Strategy) -> None:
    modality, head, pooling, number = ONE_POSITION[kind]
    task = load(checkpoint(kind), modality, head, pooling)
    model, _ = task.prepare(strategy, seed=1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # at zero, nothing of what lies before it has a gradient
            torch.nn.init.normal_(parameter, std=0.1)
    model.eval()
    batch = task.encoder.collate([task.train.examples[row] for row in range(12)])
    sizes: list[int] = []

    def gradients() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        outputs = model(**batch)
        outputs.loss.backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return outputs.logits.detach(), found

    logits, expected = gradients()
    with only_read_positions(model, task.pretrained.layout, task.encoder, task.validation) as layers:
        for name in layers:
            model.get_submodule(name).register_forward_hook(lambda _, args, out: sizes.append(out.shape[1]))
        lean_logits, found = gradients()
    plain = [name for name in layers if "lora_" not in name]
    assert len(plain) == number, layers
    assert sizes and set(sizes) == {1}
    torch.testing.assert_close(lean_logits, logits, atol=1e-5, rtol=1e-4)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: name + text)
    after, _ = gradients()
    torch.testing.assert_close(after, logits)
    assert set(sizes[-len(layers) :]) != {1}, "the hooks are still there"


@pytest.mark.parametrize("kind", ALL_POSITIONS)
def test_where_the_head_reads_all_positions_they_are_computed(checkpoint: Checkpoint, kind: str) -> None:
    task = load(checkpoint(kind), *ALL_POSITIONS[kind])
    model, _ = task.prepare(Full(), seed=1)
    with only_read_positions(model, task.pretrained.layout, task.encoder, task.validation) as layers:
        assert layers == ()


@pytest.mark.parametrize(("kind", "strategy"), [("bert", Partial(num_blocks=1)), ("gpt2", Prompt(num_tokens=3))])
def test_a_run_is_the_same(
    checkpoint: Checkpoint, kind: str, strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load(checkpoint(kind), *ONE_POSITION[kind][:3])
    for module in task.pretrained.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # its masks are of other shapes
    used: list[tuple[str, ...]] = []

    def watched(*args: object) -> object:
        context = only_read_positions(*args)  # type: ignore[arg-type]

        class Noting:
            def __enter__(self) -> None:
                used.append(context.__enter__())

            def __exit__(self, *error: object) -> None:
                context.__exit__(*error)  # type: ignore[arg-type]

        return Noting()

    monkeypatch.setattr(fitting, "only_read_positions", watched)
    run = task.run(spec(strategy), {}, seed=1)
    monkeypatch.setattr("sweeper.training.read_positions._install", lambda *_: ())
    expected = task.run(spec(strategy), {}, seed=1)
    assert used[0] and not used[1]
    for ours, theirs in zip(run.fit.history, expected.fit.history, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-4)
