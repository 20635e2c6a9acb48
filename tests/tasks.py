"""A task on a tiny checkpoint: what every test of a training run begins with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from sweeper.data import load_dataset
from sweeper.objective import Run, Task
from sweeper.training.fit import TrainerSettings
from sweeper.training.state_store import StateStore

__all__ = ["SETTINGS", "load_task", "validation_loss"]

SETTINGS = TrainerSettings(
    epochs=1,
    batch_size=16,
    weight_decay=0.01,
    warmup_ratio=0.1,
    max_grad_norm=1.0,
    precision="fp32",
    gradient_accumulation_steps=1,
    length_grouping=True,
    class_weights="none",
    early_stopping_patience=0,
    early_stopping_metric="validation_loss",
    metric="validation_accuracy",
    maximize=True,
)


def load_task(
    checkpoint: Path,
    sizes: tuple[int, int, int],
    *,
    max_length: int,
    head: str = "linear",
    pooling: str = "mean",
    store: StateStore | None = None,
    **settings: Any,
) -> Task:
    """The checkpoint on review lines; ``sizes`` are of train, validation and test, ``settings`` of the trainer."""
    train, validation, test = sizes
    dataset = load_dataset("review_lines", train_size=train, validation_size=validation, test_size=test)
    return Task.load(
        dataset,
        checkpoint,
        head=head,
        pooling=pooling,
        revision=None,
        max_length=max_length,
        settings=dataclasses.replace(SETTINGS, **settings),
        store=store,
    )


def validation_loss(task: Task, run: Run) -> float:
    """The loss of a trained model on the validation split, computed anew."""
    logits = torch.from_numpy(task.predict(run, task.validation))
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(task.dataset.validation.labels)))
