"""Train a head on recorded features: what the Trainer does, without its overhead, where a step takes microseconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainingArguments, get_linear_schedule_with_warmup

__all__ = ["train_head"]

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def train_head(
    model: nn.Module,
    head: nn.Module,
    groups: list[dict[str, Any]],
    arguments: TrainingArguments,
    *,
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor],
    batches: Callable[[], Iterator[list[int]]],
    loss: Loss,
    score: Callable[[torch.Tensor, torch.Tensor], dict[str, float]],
    autocast: Callable[[], AbstractContextManager[Any]],
    callback: TrainerCallback,
) -> None:
    """AdamW with warm-up, linear decay, clipping and accumulation, an evaluation after each epoch.

    Args:
        model: that the head belongs to, for the callback.
        head: features (batch, width) to logits (batch, classes).
        groups: its parameters, for the optimiser.
        arguments: of a Trainer that would do the same.
        train: features (examples, width) and labels (examples,).
        validation: likewise.
        batches: the rows of each batch of an epoch, anew for every epoch.
        loss: of logits and labels.
        score: metrics of logits and labels, ``eval_loss`` not among them.
        autocast: the precision of the forward pass.
        callback: told what the Trainer would tell it; may raise to end the run, or set ``should_training_stop``.
    """
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, fused=True)
    accumulation = arguments.gradient_accumulation_steps
    per_epoch = math.ceil(math.ceil(len(train[0]) / arguments.train_batch_size) / accumulation)
    steps = math.ceil(arguments.num_train_epochs * per_epoch)
    schedule = get_linear_schedule_with_warmup(optimizer, arguments.get_warmup_steps(steps), steps)
    parameters = [parameter for group in groups for parameter in group["params"]]
    state: Any = None
    control = TrainerControl()
    callback.on_train_begin(arguments, state, control)
    for _ in range(int(arguments.num_train_epochs)):
        callback.on_epoch_begin(arguments, state, control)
        head.train()
        order, losses = list(batches()), []
        for start in range(0, len(order), accumulation):
            parts = order[start : start + accumulation]
            total = torch.zeros((), device=train[0].device)
            for rows in parts:
                with autocast():
                    logits = head(train[0][rows])
                value = loss(logits, train[1][rows]) / len(parts)
                value.backward()
                total += value.detach()
            nn.utils.clip_grad_norm_(parameters, arguments.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(total)
            callback.on_step_end(arguments, state, control)
        callback.on_epoch_end(arguments, state, control)
        callback.on_log(arguments, state, control, logs={"loss": float(torch.stack(losses).mean())})
        head.eval()
        with torch.no_grad(), autocast():
            logits = head(validation[0]).float()
        metrics = {"eval_loss": float(loss(logits, validation[1])), **score(logits, validation[1])}
        callback.on_evaluate(arguments, state, control, metrics=metrics, model=model)
        if control.should_training_stop:
            return
