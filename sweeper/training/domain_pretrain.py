"""Language modelling on a dataset's unlabelled texts, before any strategy: the backbone gets to know the domain."""

from __future__ import annotations

import copy
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
)

from sweeper.data.encoding import EncodedSplit
from sweeper.errors import ConfigError
from sweeper.files import inside, replaced
from sweeper.hashing import digest
from sweeper.models.classifier import without_pooler
from sweeper.models.pretrained import Pretrained
from sweeper.objective import Task
from sweeper.training.batches import ShuffledBatches
from sweeper.training.checkpoints import Checkpoints
from sweeper.training.seeds import set_seed

__all__ = ["DomainPretraining", "LanguageModelling", "domain_pretrain", "is_masked", "pretrain_language_model"]

FOLDER = "domain_pretrain"
WARMUP_RATIO = 0.06  # then linear decay
WEIGHT_DECAY = 0.01
_RECORD = "domain_pretrain.json"


@dataclass(frozen=True)
class DomainPretraining:
    """How the backbone is trained; the keys of ``DomainPretrainConfig`` in ``sweeper/config.py``."""

    epochs: int
    learning_rate: float
    batch_size: int
    mask_probability: float
    size: int | None


@dataclass(frozen=True)
class LanguageModelling:
    """What it took: ``losses`` are the means over the predicted tokens of each epoch's steps, in nats.

    ``resumed_seconds`` of the seconds an earlier process spent, up to the checkpoint from which another one went on.
    """

    seconds: float
    losses: list[float]
    texts: int
    resumed_seconds: float = 0.0


def domain_pretrain(
    task: Task,
    settings: DomainPretraining,
    *,
    seed: int,
    models_dir: Path,
    on_start: Callable[[int], None] = lambda texts: None,
    on_step: Callable[[], None] = lambda: None,
    checkpoints: Checkpoints | None = None,
) -> tuple[Task, LanguageModelling]:
    """The task with its backbone trained further, as a language model, on the dataset's unlabelled texts.

    Task-adaptive pretraining, after Gururangan et al. (2020), "Don't stop pretraining", arXiv:2004.10964. An encoder
    learns to restore masked tokens: of the share ``mask_probability`` that is chosen, 80 % are masked, 10 % replaced
    by another token and 10 % kept (BERT). A decoder learns to predict the next token. The loss is the mean
    cross-entropy over those tokens,

        L = -1/|M| * sum_(t in M) log p(x_t | the rest of x that the model sees).

    The language model's head is the checkpoint's own where it has one. Sentence encoders such as MiniLM have none: a
    new head is initialised from the seed, with its output matrix tied to the token embeddings. The head is dropped
    afterwards; the backbone alone goes into the task, and a pooler that language modelling does not train stays.

    The backbone is saved in ``models_dir/domain_pretrain/<hash>``, a plain checkpoint, and found there again by what
    it depends on: weights, texts, settings and seed. So it is trained once, however often a study is resumed, and
    studies that share it, in one comparison, train it together.

    Args:
        task: model and data.
        settings: with at least one epoch.
        seed: of the texts that are chosen, a new head, masks, order and dropout.
        models_dir: where the trained backbone is kept.
        on_start: called with the number of texts, before training only.
        on_step: called between steps; may raise to end the training (interruption).
        checkpoints: from whose newest the training goes on.

    Raises:
        ConfigError: the model is no language model.
        StudyError: the loss is not finite.
    """
    masked = is_masked(task.pretrained)
    examples = task.unlabelled(settings.size, seed)
    measured = [task.pretrained.fingerprint, list(examples.examples), asdict(settings), task.settings.precision]
    key = digest([*measured, masked, seed], 12)
    folder = inside(models_dir / FOLDER, key)
    if not (folder / _RECORD).is_file():
        on_start(len(examples))
        model, done = pretrain_language_model(
            task, examples, settings, seed=seed, on_step=on_step, checkpoints=checkpoints and checkpoints.of(key)
        )
        with replaced(folder) as fresh:
            model.base_model.save_pretrained(fresh)
            task.pretrained.processor.save_pretrained(fresh)
            (fresh / _RECORD).write_text(json.dumps(asdict(done), indent=2))
    done = LanguageModelling(**json.loads((folder / _RECORD).read_text()))
    pretrained = _with_backbone(task.pretrained, folder, key)
    cache = task.cache and task.cache.of(pretrained)
    return replace(task, pretrained=pretrained, cache=cache, backbone_trained=True), done


def is_masked(pretrained: Pretrained) -> bool:
    """Whether the backbone is trained to restore masked tokens; otherwise to predict the next one.

    Raises:
        ConfigError: transformers knows it as neither an encoder nor a decoder of text.
    """
    config = _backbone(pretrained).config
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and pretrained.processor.mask_token is not None:
        return True
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    raise ConfigError(
        f"domain_pretrain.epochs: the model is of type {config.model_type}, and transformers has neither a masked nor "
        "a causal language model of it",
        "Choose an encoder or a decoder of text, or set domain_pretrain.epochs=0.",
    )


def pretrain_language_model(
    task: Task,
    examples: EncodedSplit,
    settings: DomainPretraining,
    *,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
    checkpoints: Checkpoints | None = None,
) -> tuple[Any, LanguageModelling]:
    """Train the task's checkpoint as a language model; returns it with its head.

    Args:
        task: says which checkpoint, its tokenizer and the precision.
        examples: tokenised texts without labels.
        settings: see :class:`DomainPretraining`.
        seed: of a new head, masks, order and dropout.
        on_step: called between steps; may raise.
        checkpoints: of this model, texts, settings and seed.

    Raises:
        StudyError: the loss is not finite.
    """
    from sweeper.training.trainer import LossWatch, ResumableTrainer, training_arguments

    masked = is_masked(task.pretrained)
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    set_seed(seed)
    model = auto.from_pretrained(
        task.source, revision=task.revision or "main", dtype=torch.float32, trust_remote_code=False
    )
    watch = LossWatch(on_step)
    masks = _Masks(
        DataCollatorForLanguageModeling(
            task.pretrained.processor, mlm=masked, mlm_probability=settings.mask_probability, seed=seed
        ),
        seed,
    )
    order = torch.Generator().manual_seed(seed)
    state = [*model.parameters(), *model.buffers()]
    started, resumed_seconds = time.perf_counter(), 0.0
    if checkpoints is not None:
        checkpoints = checkpoints.holding(
            weights=lambda: [tensor.detach() for tensor in state],
            losses=lambda: watch.losses,
            masks=masks.state,
            seconds=lambda: resumed_seconds + time.perf_counter() - started,
        )
    saved = None if checkpoints is None else checkpoints.load()
    if saved is not None:
        with torch.no_grad():
            for tensor, earlier in zip(state, saved["weights"], strict=True):
                tensor.copy_(earlier)
        watch.losses = saved["losses"]
        masks.restore(saved["masks"], saved["training"]["step"])
        order.set_state(saved["order"])
        resumed_seconds = saved["seconds"]
    trainer = ResumableTrainer(
        sampler=ShuffledBatches(
            settings.batch_size,
            lengths=[len(example["input_ids"]) for example in examples.examples],
            generator=order,
        ),
        checkpoints=checkpoints,
        resumed=saved,
        model=model,
        args=training_arguments(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            warmup_ratio=WARMUP_RATIO,
            weight_decay=WEIGHT_DECAY,
            precision=task.settings.precision,
            seed=seed,
        ),
        train_dataset=examples.examples,
        data_collator=masks,
        compute_loss_func=_masked_loss if masked else _causal_loss,
        callbacks=[watch],
    )
    trainer.start()
    seconds = resumed_seconds + time.perf_counter() - started
    return model, LanguageModelling(seconds, watch.losses, len(examples), resumed_seconds)


class _Masks:
    """A collator whose draws can be taken up again where a step left them: the Trainer asks for a batch in advance."""

    def __init__(self, collator: DataCollatorForLanguageModeling, seed: int) -> None:
        self._collator = collator
        self._generator = collator.generator = torch.Generator().manual_seed(seed)  # as the collator makes it
        self._calls = 0
        self._states: deque[torch.Tensor] = deque(maxlen=2)

    def __call__(self, examples: Sequence[Any]) -> Any:
        batch = self._collator(examples)
        self._calls += 1
        self._states.append(self._generator.get_state())
        return batch

    def state(self) -> tuple[int, list[torch.Tensor]]:
        """The number of batches so far, and the generator's states after the last two."""
        return self._calls, list(self._states)

    def restore(self, state: tuple[int, list[torch.Tensor]], batches: int) -> None:
        """Go on after so many batches, the last or the one before it."""
        calls, states = state
        self._calls = batches
        self._generator.set_state(states[batches - calls - 1])


def _masked_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Mean cross-entropy of logits (batch, tokens, vocabulary) against labels (batch, tokens), -100 = not predicted.

    0 where no token is predicted (a batch of short texts may have no mask), for which the models' own loss is NaN.
    """
    total = cross_entropy(outputs.logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp(min=1)


def _causal_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """The same, of each token against the one after it."""
    outputs.logits = outputs.logits[:, :-1]
    return _masked_loss(outputs, labels[:, 1:])


def _with_backbone(pretrained: Pretrained, folder: Path, key: str) -> Pretrained:
    """A copy of the pretrained classifier with the weights of the backbone in ``folder``."""
    trained = replace(pretrained, model=copy.deepcopy(pretrained.model), fingerprint=f"{pretrained.fingerprint}+{key}")
    backbone = _backbone(trained)
    pooler = without_pooler(backbone.config.model_type)  # not saved; a new one would replace the pretrained one
    weights = AutoModel.from_pretrained(folder, dtype=torch.float32, **pooler).state_dict()
    if unknown := backbone.load_state_dict(weights, strict=False).unexpected_keys:
        raise ValueError(f"the classifier's backbone has no {', '.join(unknown)}")
    return trained


def _backbone(pretrained: Pretrained) -> Any:
    return pretrained.model.get_submodule(pretrained.layout.backbone)
