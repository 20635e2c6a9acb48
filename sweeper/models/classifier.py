"""A pretrained backbone with a pooling and a head of our choice, as a custom model in the sense of transformers.

This file imports nothing of the project: ``save_pretrained`` copies it beside the weights, so that
``AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)``, or
``AutoModelForImageClassification`` for images, loads a saved model anywhere.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from .additions import WithAdditions

__all__ = ["HEADS", "POOLINGS", "Classifier", "ClassifierConfig", "build_head", "pool", "pooled", "without_pooler"]

HEADS = ("linear", "mlp")
POOLINGS = ("mean", "first", "max", "native")


class ClassifierConfig(PretrainedConfig):
    """Configuration of a :class:`Classifier`.

    Args:
        backbone: the pretrained model's own configuration, as a dict with its ``model_type``.
        head: ``linear`` or ``mlp``.
        pooling: how the backbone's output becomes one vector; see :func:`pool`.
        features: length of that vector.
        adapters: written by :meth:`~sweeper.models.additions.WithAdditions.add_adapters`.
        virtual_tokens: written by :meth:`~sweeper.models.additions.WithAdditions.add_virtual_tokens`.
        kwargs: the usual ones, ``id2label`` and ``label2id`` among them.
    """

    model_type = "thawline-classifier"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        head: str = "linear",
        pooling: str = "mean",
        features: int = 0,
        adapters: dict[str, Any] | None = None,
        virtual_tokens: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone or {}
        self.head = head
        self.pooling = pooling
        self.features = features
        self.adapters = adapters
        self.virtual_tokens = virtual_tokens
        super().__init__(**kwargs)


class Classifier(WithAdditions, PreTrainedModel):
    """``backbone`` -> pooling -> ``head``: token ids (batch, tokens) or pixels to logits (batch, labels)."""

    config_class = ClassifierConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss below is a mean over the batch that it is given

    def __init__(self, config: ClassifierConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if backbone is None:
            model_type = config.backbone["model_type"]
            settings = CONFIG_MAPPING[model_type].from_dict(config.backbone)
            pooler = {} if config.pooling == "native" else without_pooler(model_type)
            backbone = AutoModel.from_config(settings, **pooler)
        self.backbone = backbone
        self.head = build_head(config.head, config.features, len(config.id2label or {}))
        self.main_input_name = backbone.main_input_name
        if self.main_input_name == "pixel_values":
            self._auto_class = "AutoModelForImageClassification"  # instead of the class's own, given below
        self.post_init()
        self.rebuild_additions()  # after post_init, by which the backbone would initialise what lies inside it

    def _init_weights(self, module: nn.Module) -> None:
        """Keep the initialisation that torch gives; the backbone initialises itself."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,  # (batch, tokens)
        attention_mask: torch.Tensor | None = None,  # (batch, tokens), 1 where there is a token
        token_type_ids: torch.Tensor | None = None,  # (batch, tokens)
        pixel_values: torch.Tensor | None = None,  # (batch, channels, height, width)
        labels: torch.Tensor | None = None,  # (batch,)
    ) -> SequenceClassifierOutput:
        """Logits (batch, labels), and the cross-entropy against ``labels`` where they are given."""
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "pixel_values": pixel_values,
        }
        inputs = {name: tensor for name, tensor in given.items() if tensor is not None}
        outputs = self.run_backbone(inputs)
        logits = self.head(_pool_outputs(self.backbone, self.config.pooling, outputs, attention_mask))
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


def pooled(backbone: PreTrainedModel, pooling: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Run a backbone and pool its output to one vector each (batch, features).

    Raises:
        ValueError: the pooling is unknown or does not fit what the backbone puts out.
    """
    return _pool_outputs(backbone, pooling, backbone(**inputs), inputs.get("attention_mask"))


def _pool_outputs(backbone: Any, pooling: str, outputs: Any, attention_mask: torch.Tensor | None) -> torch.Tensor:
    return pool(
        pooling,
        outputs.last_hidden_state,
        native=getattr(outputs, "pooler_output", None),
        attention_mask=attention_mask,
        decoder=_is_decoder(backbone.config),
        channels_last=str(getattr(getattr(backbone, "timm_model", None), "output_fmt", "")) == "NHWC",
    )


def pool(
    kind: str,
    states: torch.Tensor,
    *,
    native: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    decoder: bool = False,
    channels_last: bool = False,
) -> torch.Tensor:
    """Make one vector of a backbone's output: (batch, features).

    Args:
        kind: ``mean`` and ``max`` over the unmasked tokens, or over the positions of a map; the ``first`` token; or
            ``native``, what the backbone itself pools. A decoder without a pooler natively gives its last unmasked
            token, whichever side the padding is on, as transformers' sequence classifiers do.
        states: the last hidden state, tokens (batch, tokens, features) or a map (batch, channels, height, width).
        native: the backbone's own pooled output, (batch, features) or with trailing dimensions of 1.
        attention_mask: (batch, tokens), 1 where there is a token; None = everywhere.
        decoder: whether each token sees only those before it.
        channels_last: whether a map is (batch, height, width, channels).

    Raises:
        ValueError: an unknown ``kind``, ``first`` for a map, or ``native`` where there is no pooler.
    """
    if kind not in POOLINGS:
        raise ValueError(f"pooling={kind!r}: allowed are {', '.join(POOLINGS)}")
    if kind == "native" and native is not None:
        return native.flatten(1)
    if states.ndim == 4:
        if kind in ("first", "native"):
            lacks = "first token" if kind == "first" else "pooler"
            raise ValueError(
                f"pooling={kind!r}: this backbone puts out a map, without a {lacks}; allowed are mean, max"
            )
        positions = states.flatten(1, 2) if channels_last else states.flatten(2).transpose(1, 2)
        return positions.mean(1) if kind == "mean" else positions.amax(1)
    if kind == "first":
        return states[:, 0]
    if attention_mask is None:
        attention_mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
    if kind == "native":
        if not decoder:
            raise ValueError("pooling='native': this backbone has no pooler; allowed are mean, first, max")
        order = torch.arange(states.shape[1], device=states.device)
        last = (attention_mask.bool() * order).argmax(1)
        return states[torch.arange(states.shape[0], device=states.device), last]
    mask = attention_mask.unsqueeze(-1)
    if kind == "mean":
        mask = mask.to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1).clamp(min=1)
    return states.masked_fill(mask == 0, torch.finfo(states.dtype).min).amax(1)


def without_pooler(model_type: str) -> dict[str, Any]:
    """Arguments that leave out a pooler which nothing reads, where the architecture has one."""
    classes: Any = MODEL_MAPPING[CONFIG_MAPPING[model_type]]
    model_class = classes[0] if isinstance(classes, tuple) else classes
    return {"add_pooling_layer": False} if "add_pooling_layer" in signature(model_class).parameters else {}


def _is_decoder(config: PretrainedConfig) -> bool:
    """Encoders such as BERT can be asked to generate, too; only decoders have no masked language model."""
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING


AutoConfig.register(ClassifierConfig.model_type, ClassifierConfig, exist_ok=True)
ClassifierConfig.register_for_auto_class()
Classifier.register_for_auto_class("AutoModelForSequenceClassification")
