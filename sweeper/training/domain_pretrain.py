"""Language modelling on a dataset's unlabelled texts, before any strategy: the backbone gets to know the domain."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
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
    """What it took: ``losses`` are the means over the predicted tokens of each epoch's steps, in nats."""

    seconds: float
    losses: list[float]
    texts: int


def domain_pretrain(
    task: Task,
    settings: DomainPretraining,
    *,
    seed: int,
    models_dir: Path,
    on_start: Callable[[int], None] = lambda texts: None,
    on_step: Callable[[], None] = lambda: None,
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
        model, done = pretrain_language_model(task, examples, settings, seed=seed, on_step=on_step)
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
) -> tuple[Any, LanguageModelling]:
    """Train the task's checkpoint as a language model; returns it with its head.

    Args:
        task: says which checkpoint, its tokenizer and the precision.
        examples: tokenised texts without labels.
        settings: see :class:`DomainPretraining`.
        seed: of a new head, masks, order and dropout.
        on_step: called between steps; may raise.

    Raises:
        StudyError: the loss is not finite.
    """
    from sweeper.training.trainer import LanguageModelTrainer, LossWatch, training_arguments

    masked = is_masked(task.pretrained)
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    set_seed(seed)
    model = auto.from_pretrained(
        task.source, revision=task.revision or "main", dtype=torch.float32, trust_remote_code=False
    )
    watch = LossWatch(on_step)
    trainer = LanguageModelTrainer(
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
        data_collator=DataCollatorForLanguageModeling(
            task.pretrained.processor, mlm=masked, mlm_probability=settings.mask_probability, seed=seed
        ),
        compute_loss_func=_masked_loss if masked else _causal_loss,
        callbacks=[watch],
    )
    started = time.perf_counter()
    trainer.train()
    return model, LanguageModelling(time.perf_counter() - started, watch.losses, len(examples))


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
