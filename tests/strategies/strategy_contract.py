"""The contract of ``strategies/base.py`` as checks; ``test_contract.py`` runs them over every strategy and model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from strategies import (
    Prefix,
    Prompt,
    QLora,
    Scratch,
    Strategy,
    boundary,
    count_parameters,
    enter_stage,
    prefix_modules,
)
from sweeper.models.classifier import Classifier
from sweeper.models.pretrained import Pretrained

__all__ = [
    "CHECKS",
    "check_count_is_that_of_the_closed_form",
    "check_groups_partition_the_trainables",
    "check_head_always_trains",
    "check_only_trainables_move",
    "check_prefix_computes_the_same_in_training",
    "check_save_and_reload_agree",
    "check_stages_train_what_they_say",
    "check_starts_as_the_pretrained_model",
]

RATE = 1e-2


def inputs(pretrained: Pretrained) -> dict[str, torch.Tensor]:
    """A batch of three labelled texts, padded, or of three images of noise."""
    if pretrained.modality == "text":
        batch = pretrained.processor(
            ["a triumph from the first frame to the last", "dull", "neither good nor bad"],
            padding=True,
            return_tensors="pt",
        )
    else:
        noise = np.random.default_rng(0).integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)
        batch = pretrained.processor(list(noise), return_tensors="pt")
    return {**batch, "labels": torch.tensor([1, 0, 1])}


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's logits without dropout, shape (3, 2)."""
    model.eval()
    with torch.no_grad():
        return model(**batch).logits


def prepared(strategy: Strategy, pretrained: Pretrained, seed: int = 0) -> nn.Module:
    """A fresh model, prepared."""
    torch.manual_seed(seed)
    return strategy.prepare(pretrained.fresh(seed), pretrained.layout)


def steps(strategy: Strategy, model: Any, pretrained: Pretrained, number: int = 3) -> None:
    """Train a few steps by the strategy's own groups."""
    optimizer = torch.optim.AdamW(strategy.param_groups(model, pretrained.layout, RATE, 0.01))
    model.train()
    for _ in range(number):
        model(**inputs(pretrained)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def check_groups_partition_the_trainables(strategy: Strategy, pretrained: Pretrained) -> None:
    """Each trainable parameter is in exactly one group, and nothing else is in any."""
    model = prepared(strategy, pretrained)
    groups = strategy.param_groups(model, pretrained.layout, RATE, 0.01)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trainable
    assert all(group["lr"] > 0 for group in groups)
    undecayed = [p for group in groups if group["weight_decay"] == 0 for p in group["params"]]
    assert all(parameter.numel() == max(parameter.shape) for parameter in undecayed)


def check_only_trainables_move(strategy: Strategy, pretrained: Pretrained) -> None:
    """After a few steps the trainable parameters differ and all the others are bit for bit the same."""
    model = prepared(strategy, pretrained)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    steps(strategy, model, pretrained)
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        # Embeddings move row by row; a row that no text of the batch uses does not.
        unused = name.endswith(("word_embeddings.weight", "position_embeddings.weight", "wte.weight", "wpe.weight"))
        assert moved == parameter.requires_grad or (unused and not moved), name


def check_head_always_trains(strategy: Strategy, pretrained: Pretrained) -> None:
    """Every parameter of the head trains, and is counted as head."""
    model = prepared(strategy, pretrained)
    head = [p for name, p in model.named_parameters() if pretrained.layout.is_head(name)]
    assert head
    assert all(parameter.requires_grad for parameter in head)
    counts = count_parameters(model, pretrained.layout)
    assert counts["head"] == sum(parameter.numel() for parameter in head)
    assert counts["trainable"] == counts["head"] + counts["backbone"] <= counts["total"]


def check_count_is_that_of_the_closed_form(strategy: Strategy, pretrained: Pretrained) -> None:
    """What trains outside of the head is as many parameters as the strategy's formula gives, where it has one."""
    expected = strategy.closed_form_params(pretrained.fresh(0), pretrained.layout)
    if expected is not None:
        assert count_parameters(prepared(strategy, pretrained), pretrained.layout)["backbone"] == expected


def check_starts_as_the_pretrained_model(strategy: Strategy, pretrained: Pretrained) -> None:
    """Preparing changes no output: adapters start as the identity.

    By design ``scratch`` starts anew, ``prompt`` and ``prefix`` change the input, and ``qlora`` starts nearby.
    """
    batch = inputs(pretrained)
    started, pretrained_logits = (
        logits(model, batch) for model in (prepared(strategy, pretrained, 1), pretrained.fresh(1))
    )
    if isinstance(strategy, Scratch | Prompt | Prefix):
        assert started.isfinite().all()
        assert not torch.allclose(started, pretrained_logits)
    elif isinstance(strategy, QLora):
        nearby = 0.2 * (pretrained_logits.abs().max() + 0.1)
        torch.testing.assert_close(started, pretrained_logits, atol=float(nearby), rtol=0)
    else:
        torch.testing.assert_close(started, pretrained_logits)


def check_prefix_computes_the_same_in_training(strategy: Strategy, pretrained: Pretrained) -> None:
    """The prefix ends where the first trainable parameter is, and in eval mode puts out the same every time."""
    model = prepared(strategy, pretrained)
    prefix = prefix_modules(model, pretrained.layout)
    assert not any(parameter.requires_grad for module in prefix for parameter in module.parameters())
    depth = boundary(model, pretrained.layout)
    if depth < len(pretrained.layout.blocks):
        assert any(
            parameter.requires_grad and pretrained.layout.depth(name) in (0, depth + 1)
            for name, parameter in model.named_parameters()
        )
    model.train()
    outputs: list[torch.Tensor] = []
    for module in prefix:
        module.eval()
        module.register_forward_hook(lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    for _ in range(2):
        model(**inputs(pretrained))
    half = len(outputs) // 2
    for first, second in zip(outputs[:half], outputs[half:], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def check_stages_train_what_they_say(strategy: Strategy, pretrained: Pretrained) -> None:
    """In every stage the head trains and nothing else than the stage's parts moves; together they train everything."""
    model: Any = prepared(strategy, pretrained)
    layout = pretrained.layout
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    seen: set[str] = set()
    for stage in strategy.stages(layout):
        enter_stage(model, stage, trained)
        now = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert {name for name in trained if layout.is_head(name)} <= now <= trained
        assert not any(p.requires_grad for module in prefix_modules(model, layout) for p in module.parameters())
        seen |= now
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        groups = strategy.param_groups(model, layout, RATE * stage.learning_rate_factor, 0.01)
        optimizer = torch.optim.AdamW(groups)
        model.train()
        model(**inputs(pretrained)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved <= now
        assert any(layout.is_head(name) for name in moved)
    assert seen == trained


def check_save_and_reload_agree(strategy: Strategy, pretrained: Pretrained, folder: Any) -> None:
    """Merged equals unmerged, and what transformers reloads gives the same logits and label names."""
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    model: Any = prepared(strategy, pretrained)
    steps(strategy, model, pretrained)
    batch = inputs(pretrained)
    trained = logits(model, batch)
    assert not torch.allclose(trained, logits(pretrained.fresh(0), batch), atol=1e-4)
    merged: Any = strategy.merge(model)
    torch.testing.assert_close(logits(merged, batch), trained, atol=1e-5, rtol=1e-4)
    pretrained.save(merged, folder)
    auto: Any = AutoModelForSequenceClassification if pretrained.modality == "text" else AutoModelForImageClassification
    reloaded = auto.from_pretrained(folder, trust_remote_code=isinstance(pretrained.model, Classifier))
    torch.testing.assert_close(logits(reloaded, batch), trained, atol=1e-5, rtol=1e-4)
    assert reloaded.config.id2label == {0: "rotten", 1: "fresh"}


#: Every check but saving, which needs a folder.
CHECKS = (
    check_count_is_that_of_the_closed_form,
    check_groups_partition_the_trainables,
    check_head_always_trains,
    check_only_trainables_move,
    check_prefix_computes_the_same_in_training,
    check_stages_train_what_they_say,
    check_starts_as_the_pretrained_model,
)
