"""A text encoder with a pooling and a head of our choice, as a custom model in the sense of transformers.

This file imports nothing of the project: ``save_pretrained`` copies it beside the weights, so that
``AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)`` loads a saved model anywhere.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .additions import WithAdditions

__all__ = ["HEADS", "POOLINGS", "TextClassifier", "TextClassifierConfig", "build_head", "pool", "without_pooler"]

HEADS = ("linear", "mlp")
POOLINGS = ("mean", "first", "max", "native")


class TextClassifierConfig(PretrainedConfig):
    """Configuration of a :class:`TextClassifier`.

    Args:
        backbone: the pretrained encoder's own configuration, as a dict with its ``model_type``.
        head: ``linear`` or ``mlp``.
        pooling: how token states become one vector: ``mean`` and ``max`` over the unmasked tokens, ``first`` token,
            or ``native``, the backbone's own pooler.
        adapters: written by :meth:`~sweeper.models.additions.WithAdditions.add_adapters`.
        virtual_tokens: written by :meth:`~sweeper.models.additions.WithAdditions.add_virtual_tokens`.
        kwargs: the usual ones, ``id2label`` and ``label2id`` among them.
    """

    model_type = "thawline-text-classifier"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        head: str = "linear",
        pooling: str = "mean",
        adapters: dict[str, Any] | None = None,
        virtual_tokens: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone or {}
        self.head = head
        self.pooling = pooling
        self.adapters = adapters
        self.virtual_tokens = virtual_tokens
        super().__init__(**kwargs)


class TextClassifier(WithAdditions, PreTrainedModel):
    """``backbone`` -> pooling -> ``head``: token ids (batch, tokens) to logits (batch, labels)."""

    config_class = TextClassifierConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True

    def __init__(self, config: TextClassifierConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if backbone is None:
            settings = dict(config.backbone)
            pooler = {} if config.pooling == "native" else without_pooler(settings["model_type"])
            backbone = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings), **pooler)
        self.backbone = backbone
        self.head = build_head(config.head, _hidden_size(backbone.config), len(config.id2label or {}))
        self.post_init()
        self.rebuild_additions()  # after post_init, by which the backbone would initialise what lies inside it

    def _init_weights(self, module: nn.Module) -> None:
        """Keep the initialisation that torch gives; the backbone initialises itself."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,  # (batch, tokens)
        attention_mask: torch.Tensor | None = None,  # (batch, tokens), 1 where there is a token
        token_type_ids: torch.Tensor | None = None,  # (batch, tokens)
        labels: torch.Tensor | None = None,  # (batch,)
    ) -> SequenceClassifierOutput:
        """Logits (batch, labels), and the cross-entropy against ``labels`` where they are given."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        outputs = self.run_backbone(inputs)
        logits = self.head(pool(self.config.pooling, outputs, attention_mask))
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def build_head(kind: str, features: int, labels: int) -> nn.Module:
    """``linear``: one layer. ``mlp``: dropout 0.2, 256 units, ReLU, dropout 0.2, then the layer.

    Raises:
        ValueError: any other ``kind``.
    """
    if kind == "linear":
        return nn.Linear(features, labels)
    if kind == "mlp":
        return nn.Sequential(
            nn.Dropout(0.2), nn.Linear(features, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, labels)
        )
    raise ValueError(f"head={kind!r}: allowed are {', '.join(HEADS)}")


def pool(kind: str, outputs: Any, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Token states (batch, tokens, features) of the backbone's ``outputs`` to one vector each (batch, features).

    Raises:
        ValueError: an unknown ``kind``, or ``native`` with a backbone that has no pooler.
    """
    states = outputs.last_hidden_state
    if kind == "first":
        return states[:, 0]
    if kind == "native":
        if getattr(outputs, "pooler_output", None) is None:
            raise ValueError("pooling='native': this backbone has no pooler; allowed are mean, first, max")
        return outputs.pooler_output
    mask = torch.ones_like(states[..., :1]) if attention_mask is None else attention_mask.unsqueeze(-1)
    if kind == "mean":
        mask = mask.to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1).clamp(min=1)
    if kind == "max":
        return states.masked_fill(mask == 0, torch.finfo(states.dtype).min).amax(1)
    raise ValueError(f"pooling={kind!r}: allowed are {', '.join(POOLINGS)}")


def _hidden_size(config: PretrainedConfig) -> int:
    return int(getattr(config, "hidden_size", None) or config.dim)


def without_pooler(model_type: str) -> dict[str, Any]:
    """Arguments that leave out a pooler which nothing reads, where the architecture has one."""
    classes: Any = MODEL_MAPPING[CONFIG_MAPPING[model_type]]
    model_class = classes[0] if isinstance(classes, tuple) else classes
    return {"add_pooling_layer": False} if "add_pooling_layer" in signature(model_class).parameters else {}


AutoConfig.register(TextClassifierConfig.model_type, TextClassifierConfig, exist_ok=True)
TextClassifierConfig.register_for_auto_class()
TextClassifier.register_for_auto_class("AutoModelForSequenceClassification")
