"""transformers' Trainer, subclassed: checkpoints; and for stages a strategy's groups, epochs recorded.

It imports what few runs need, peft among it, which takes seconds: whoever trains heads alone does without.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput

from sweeper.errors import StudyError
from sweeper.training.batches import ShuffledBatches
from sweeper.training.checkpoints import Checkpoints
from sweeper.training.micro_batches import Halving, batch_parts
from sweeper.training.recorder import EpochRecorder, scores
from sweeper.training.replicas import SHARE, OwnPart, Replicas
from sweeper.training.seeds import generator_states, set_generator_states

__all__ = ["LossWatch", "ResumableTrainer", "StageTrainer", "training_arguments"]

Loss = Callable[..., torch.Tensor]


class ResumableTrainer(Trainer):
    """Writes checkpoints when they are due, and goes on from one, in the middle of an epoch too.

    The Trainer's own are written in place and hold the whole model; when they are made, and how the examples that were
    trained on are skipped, is the Trainer's.

    Args:
        sampler: gives the order of the examples.
        checkpoints: hold what is not the Trainer's, the weights among it; ``None`` = none are written.
        resumed: a checkpoint that was written here; its owner has restored the weights and the order.
        callbacks: of the Trainer.
        kwargs: likewise.
    """

    def __init__(
        self,
        *,
        sampler: ShuffledBatches,
        checkpoints: Checkpoints | None,
        resumed: Mapping[str, Any] | None,
        callbacks: Sequence[TrainerCallback],
        **kwargs: Any,
    ) -> None:
        super().__init__(callbacks=[*callbacks, *([] if checkpoints is None else [_Due(checkpoints)])], **kwargs)
        self.remove_callback(PrinterCallback)
        self._sampler = sampler
        self._checkpoints = checkpoints
        self._resumed = resumed

    def start(self) -> None:
        """Train, from where the checkpoint was written if there is one."""
        if self._resumed is None:
            self.train()
            return
        with tempfile.TemporaryDirectory() as folder:  # the Trainer reads where it stands from a file
            step = self._resumed["training"]["step"]
            state = TrainerState(global_step=step, train_batch_size=self._train_batch_size)
            state.save_to_json(f"{folder}/{TRAINER_STATE_NAME}")
            self.train(resume_from_checkpoint=folder)

    def _get_train_sampler(self, train_dataset: Any = None) -> ShuffledBatches:
        # Its own generator: from the global one dropout draws too, and each strategy another number of times.
        return self._sampler

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self._checkpoints is None or self.control.should_training_stop:
            return
        within_epoch = self.state.global_step % _steps_of_an_epoch(self.state)
        optimizer, scheduler, scaler = self._stateful()
        self._checkpoints.save(
            order=self._sampler.drawn_from if within_epoch else self._sampler.generator.get_state(),
            generators=generator_states(),
            training={
                "step": self.state.global_step,
                "steps_of_an_epoch": _steps_of_an_epoch(self.state),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "loss": self._tr_loss,
                "last_logged": self._globalstep_last_logged,
            },
        )

    def _stateful(self) -> tuple[Any, Any, Any]:
        """Optimiser, schedule, and in fp16 what scales the loss."""
        return self.optimizer, self.lr_scheduler, getattr(self.accelerator, "scaler", None)

    def _load_from_checkpoint(self, *_: Any) -> None:
        """Weights are the owner's."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._resumed is not None:
            optimizer, scheduler, _ = self._stateful()
            optimizer.load_state_dict(self._resumed["training"]["optimizer"])
            scheduler.load_state_dict(self._resumed["training"]["scheduler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self._resumed is not None and (scaler := self._resumed["training"]["scaler"]) is not None:
            self.accelerator.scaler.load_state_dict(scaler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # The last that the Trainer restores, after it has skipped examples: the loss since the last epoch too.
        if self._resumed is not None:
            self._tr_loss = self._resumed["training"]["loss"].to(self.args.device)
            self._globalstep_last_logged = self._resumed["training"]["last_logged"]
            set_generator_states(self._resumed["generators"])


class _Due(TrainerCallback):
    """Asks the Trainer for a checkpoint when one is due; at the end of an epoch, after its evaluation."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % _steps_of_an_epoch(state):
            control.should_save = self._checkpoints.due()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = state.global_step < state.max_steps and self._checkpoints.due()


def _steps_of_an_epoch(state: Any) -> int:
    return int(state.max_steps // state.num_train_epochs)


class StageTrainer(ResumableTrainer):
    """Trains one stage and scores the validation split after each epoch.

    Args:
        groups: of the optimiser, as a strategy makes them.
        recorder: told of each epoch.
        loss: of logits and labels, instead of the model's own.
        weigh: the weight of some labels in the mean that a loss is.
        micro_batch_size: examples of a batch that go through the model at once.
        processes: that train together.
        own_part: reads the batches, where there are several.
        kwargs: of the resumable Trainer.
    """

    def __init__(
        self,
        *,
        groups: list[dict[str, Any]],
        recorder: EpochRecorder,
        loss: Loss | None,
        weigh: Callable[[torch.Tensor], torch.Tensor],
        micro_batch_size: int,
        processes: Replicas,
        own_part: OwnPart | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            compute_metrics=lambda prediction: scores(
                np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
            ),
            compute_loss_func=None if loss is None else lambda outputs, labels, **_: loss(outputs.logits, labels),
            callbacks=[_Recording(recorder)],
            **kwargs,
        )
        if loss is not None:
            self.loss_is_scaled_for_ga = False  # it is a mean over each batch, of which several make a step
        self._groups = groups
        self._loss = loss
        self._weigh = weigh
        self._micro_batch_size = micro_batch_size
        self._processes = processes
        self._own_part = own_part
        self._share: Any = 1.0  # of the batch's loss, that of the part under way
        self._evaluation = Halving(self.args.eval_batch_size)
        # Architectures that take loss arguments would otherwise be trusted to divide by the accumulated batches.
        self.model_accepts_loss_kwargs = False

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over the strategy's groups."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self._groups, lr=self.args.learning_rate, fused=True)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """The gradients of a batch, from as many passes and processes as it takes; the loss is the batch's own mean."""
        own, losses = inputs.pop(SHARE, 1.0), []
        for part, share in batch_parts(inputs, self._micro_batch_size, self._weigh):
            self._share = share * own
            losses.append(super().training_step(model, part, num_items_in_batch))
        self._share = 1.0
        loss = torch.stack(losses).sum()
        if self._processes.size > 1:
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            self._processes.sum([loss, *(gradients if self.accelerator.sync_gradients else [])])
        return loss

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, of a part of a batch as a share of the batch's."""
        loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        return loss if isinstance(loss, tuple) else loss * self._share

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """The Trainer's, in halves where memory runs out; without a loss."""

        def predict(rows: Sequence[int]) -> tuple[Any, Any]:
            part = {name: tensor[rows[0] : rows[-1] + 1] for name, tensor in inputs.items()}
            results: Any = super(StageTrainer, self).prediction_step(model, part, prediction_loss_only, ignore_keys)
            return results[1:]

        parts = [part for _, part in self._evaluation.over(range(len(inputs["labels"])), predict)]
        logits, labels = zip(*parts, strict=True)
        return None, torch.cat(logits), torch.cat(labels)

    def get_train_dataloader(self) -> DataLoader:
        """The Trainer's; where there are several processes, of row numbers, of which each reads its own part."""
        if self._own_part is None:
            return super().get_train_dataloader()
        rows: Any = range(len(self._sampler))
        loader: DataLoader = self.accelerator.prepare(
            DataLoader(
                rows,
                self._train_batch_size,
                sampler=self._sampler,
                collate_fn=self._own_part,
                pin_memory=self.args.dataloader_pin_memory,
            )
        )
        return loader

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The Trainer's, in the first process, whose scores the others take over.

        The loss is that of all examples at once: a mean over batches is another one where classes weigh differently.
        """

        def scored() -> tuple[dict[str, float], int]:
            output: Any = super(StageTrainer, self).evaluation_loop(*args, **kwargs)
            logits, labels = (torch.from_numpy(np.asarray(found)) for found in (output.predictions, output.label_ids))
            loss = (self._loss or functional.cross_entropy)(logits.float(), labels)
            return {**output.metrics, "eval_loss": float(loss)}, output.num_samples

        metrics, rows = self._processes.of_first(scored)
        nobody_reads = np.empty(0)
        return EvalLoopOutput(predictions=nobody_reads, label_ids=None, metrics=metrics, num_samples=rows)

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler:
        # Whatever the Trainer would do: scores are of all examples in their order.
        return SequentialSampler(eval_dataset)


class _Recording(TrainerCallback):
    """Tells a recorder what happens."""

    def __init__(self, recorder: EpochRecorder) -> None:
        self._recorder = recorder
        self._train_loss = float("nan")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._recorder.stage_begins()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._recorder.epoch_begins()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._recorder.epoch_trained()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._recorder.on_step()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._recorder.on_step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._train_loss = float(logs["loss"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        validation = {name.removeprefix("eval_"): value for name, value in kwargs["metrics"].items()}
        control.should_training_stop = self._recorder.epoch_ends(self._train_loss, validation)


class LossWatch(TrainerCallback):
    """Keep each epoch's loss, end a training whose loss is not finite, let the caller look in between two steps."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        self.losses: list[float] = []
        self._on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the caller look."""
        self._on_step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Keep an epoch's loss.

        Raises:
            StudyError: it is not finite.
        """
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            if not math.isfinite(self.losses[-1]):
                raise StudyError(
                    f"domain pretraining diverged: its loss is {logs['loss']} after epoch {len(self.losses)}",
                    "Lower domain_pretrain.learning_rate and run the command again.",
                )


def training_arguments(
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    warmup_ratio: float,
    weight_decay: float,
    precision: str,
    seed: int,
    **more: Any,
) -> TrainingArguments:
    """Warm-up and linear decay, a loss per epoch, and nothing written, reported or drawn by the Trainer itself.

    Args:
        epochs: how many.
        batch_size: examples of a step.
        learning_rate: peak rate.
        warmup_ratio: part of all steps.
        weight_decay: AdamW's.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        seed: of the order of the data and of dropout.
        more: further arguments of transformers' ``TrainingArguments``.
    """
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is written there
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=warmup_ratio,
        weight_decay=weight_decay,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        **more,
    )
    if arguments.n_gpu > 1:  # a run trains on one device: a batch is as large as it was asked for, wherever it trains
        arguments._n_gpu = 1
    return arguments
