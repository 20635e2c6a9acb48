"""Pretrained text models: loaded once per process, copied and given a fresh head for each trial."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from strategies.base import Layout
from sweeper.errors import ConfigError
from sweeper.models.classifier import TextClassifier, TextClassifierConfig, without_pooler
from sweeper.models.layout import find_layout

__all__ = ["PretrainedText", "load_text_model"]


@dataclass(frozen=True)
class PretrainedText:
    """A pretrained classifier whose head is not trained yet, with its tokenizer and layout.

    ``fingerprint`` changes with the weights: a hash of the files of a folder, the commit of a hub model.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    layout: Layout
    fingerprint: str

    def fresh(self, seed: int) -> PreTrainedModel:
        """A copy with a head initialised from ``seed``; the backbone's weights are the pretrained ones."""
        model = copy.deepcopy(self.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name in self.layout.head:
                _initialise(model, model.get_submodule(name))
        return model


def load_text_model(
    source: str | Path, *, head: str, pooling: str, label_names: Sequence[str], revision: str | None = None
) -> PretrainedText:
    """Load a checkpoint through transformers.

    Args:
        source: a folder with a transformers checkpoint, or a name on the hub.
        head: ``linear``, ``mlp``, or ``native``, the head of the architecture's own classifier.
        pooling: ``mean``, ``first``, ``max`` or ``native``; a native head brings its own.
        label_names: the classes in the order of their ids; they go into the checkpoint as ``id2label``.
        revision: a commit or tag on the hub.

    Raises:
        ConfigError: the checkpoint cannot be read, or pooling and head do not fit the architecture.
    """
    id2label = dict(enumerate(label_names))
    labels: dict[str, Any] = {
        "num_labels": len(id2label),
        "id2label": id2label,
        "label2id": {v: k for k, v in id2label.items()},
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or "main")
        config = AutoConfig.from_pretrained(source, revision=revision or "main")
        if config.model_type == TextClassifierConfig.model_type:
            raise ValueError("it is a classifier that was trained here; name the encoder it was trained from")
        if head == "native":
            model = AutoModelForSequenceClassification.from_pretrained(
                source, revision=revision or "main", dtype=torch.float32, ignore_mismatched_sizes=True, **labels
            )
        else:
            pooler = {} if pooling == "native" else without_pooler(config.model_type)
            body = AutoModel.from_pretrained(source, revision=revision or "main", dtype=torch.float32, **pooler)
            settings = TextClassifierConfig(backbone=body.config.to_dict(), head=head, pooling=pooling, **labels)
            model = TextClassifier(settings, body)
        with torch.no_grad():  # a pooling or a padding that does not work shows here, not in the first trial
            model.eval()(**tokenizer(["a", "a b"], padding=True, return_tensors="pt"))
    except (OSError, ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"model {str(source)!r} cannot be loaded: {first_line}",
            "Give a folder with config.json, weights and tokenizer (model.path), or a hub name within reach.",
        ) from error
    backbone = model.base_model_prefix
    heads = tuple(
        name for name, part in model.named_children() if name != backbone and any(True for _ in part.parameters())
    )
    return PretrainedText(model.eval(), tokenizer, find_layout(model, backbone, heads), _fingerprint(source, config))


def _fingerprint(source: str | Path, config: PretrainedConfig) -> str:
    folder = Path(source)
    if not folder.is_dir():
        return str(getattr(config, "_commit_hash", None) or source)
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.suffix in (".json", ".safetensors", ".bin"):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _initialise(model: PreTrainedModel, head: nn.Module) -> None:
    """Give every layer of the head new weights, by the architecture's own rule where the head is native."""
    for module in head.modules():
        if isinstance(model, TextClassifier):
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        else:
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False  # type: ignore[attr-defined]
            model._init_weights(module)
