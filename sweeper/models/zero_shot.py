"""Zero-shot classification: how well each label's description fits an item, by the pretrained model alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from strategies import NotApplicable
from sweeper.data.images import StoredImage
from sweeper.models.classifier import pool, without_pooler
from sweeper.models.preprocessing import preprocessing_of

__all__ = ["check_zero_shot", "zero_shot"]

BATCH_SIZE = 64
#: Cosine similarities lie close together; sentence-transformers trains with this scale. It changes no prediction.
SCALE = 20.0


def check_zero_shot(source: str | Path, item: Any, *, revision: str | None = None) -> None:
    """Whether :func:`zero_shot` can score items like this one.

    Raises:
        NotApplicable: an image model without a text tower or its tokenizer; pairs of texts.
    """
    if isinstance(item, tuple):
        raise NotApplicable("it compares one text with the labels' descriptions, and these items are pairs of texts")
    if not isinstance(item, StoredImage):
        return
    at = {"revision": revision or "main", "trust_remote_code": False}
    config = AutoConfig.from_pretrained(source, **at)
    if not hasattr(MODEL_MAPPING.get(type(config), None), "get_text_features"):
        raise NotApplicable(f"it needs a text tower beside the image tower, as CLIP has; {config.model_type} has none")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **at)
        words = len(tokenizer) > len(tokenizer.all_special_ids)  # without files, transformers makes an empty one
    except (OSError, ValueError):
        words = False
    if not words:
        raise NotApplicable("it needs the tokenizer of the text tower, which this checkpoint lacks")


def zero_shot(
    source: str | Path,
    items: Sequence[Any],
    descriptions: Sequence[str],
    *,
    modality: str,
    pooling: str = "mean",
    max_length: int = 128,
    revision: str | None = None,
) -> torch.Tensor:
    """Probabilities (items, descriptions) without any training.

    A model of natural language inference takes the item as premise and the description as hypothesis (Yin et al.
    2019, arXiv:1909.00161). Any other text model compares its sentence vectors by their cosine, which means something
    where the model was trained to embed sentences. A model with an image and a text tower compares the vectors of
    both (Radford et al. 2021, section 3.1, arXiv:2103.00020).

    Args:
        source: a folder with a checkpoint, or a name on the hub.
        items: texts, or stored images; what :func:`check_zero_shot` accepts.
        descriptions: one for each label.
        modality: ``text`` or ``image``.
        pooling: how token states become a sentence vector: ``mean``, ``first`` or ``max``; ``native`` means ``mean``.
        max_length: tokens of a text.
        revision: a commit or tag on the hub.
    """
    at = {"revision": revision or "main", "trust_remote_code": False}
    config = AutoConfig.from_pretrained(source, **at)
    if modality == "image":
        return _two_towers(source, items, descriptions, at)
    if any(str(label).lower().startswith("entail") for label in (config.id2label or {}).values()):
        return _inference(source, items, descriptions, at)
    return _sentence_vectors(source, items, descriptions, "mean" if pooling == "native" else pooling, max_length, at)


def _inference(source: Any, texts: Sequence[str], descriptions: Sequence[str], at: dict[str, Any]) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(source, **at)
    tokenizer = AutoTokenizer.from_pretrained(source, **at)
    classify = pipeline("zero-shot-classification", model=model, tokenizer=tokenizer, batch_size=BATCH_SIZE)
    results = classify(list(texts), candidate_labels=list(descriptions), hypothesis_template="{}")
    rows = [dict(zip(result["labels"], result["scores"], strict=True)) for result in results]
    return torch.tensor([[row[description] for description in descriptions] for row in rows])


def _sentence_vectors(
    source: Any, texts: Sequence[str], descriptions: Sequence[str], pooling: str, max_length: int, at: dict[str, Any]
) -> torch.Tensor:
    config = AutoConfig.from_pretrained(source, **at)
    model = AutoModel.from_pretrained(source, **without_pooler(config.model_type), **at).eval().to(_device())
    tokenizer = AutoTokenizer.from_pretrained(source, **at)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    limit = min(max_length, tokenizer.model_max_length)

    def embed(batch: Sequence[str]) -> torch.Tensor:
        tokens = tokenizer(list(batch), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        tokens = tokens.to(model.device)
        states = model(**tokens).last_hidden_state
        return pool(pooling, states, attention_mask=tokens["attention_mask"])

    return _similarity(_in_batches(embed, texts), _in_batches(embed, descriptions))


def _two_towers(
    source: Any, images: Sequence[StoredImage], descriptions: Sequence[str], at: dict[str, Any]
) -> torch.Tensor:
    model = AutoModel.from_pretrained(source, **at).eval().to(_device())
    tokenizer = AutoTokenizer.from_pretrained(source, **at)
    from transformers import AutoImageProcessor  # brings torchvision, which takes seconds

    preprocessing = preprocessing_of(AutoImageProcessor.from_pretrained(source, **at))

    def embed_images(batch: Sequence[StoredImage]) -> torch.Tensor:
        # One after the other: decoded, a batch of photographs is several GB.
        pixels = preprocessing.normalise(torch.stack([preprocessing.geometry(image.open()) for image in batch]))
        return _pooled(model.get_image_features(pixel_values=pixels.to(model.device)))

    def embed_texts(batch: Sequence[str]) -> torch.Tensor:
        # SigLIP was trained on texts padded to the full length; it changes nothing for CLIP.
        length = model.config.text_config.max_position_embeddings
        tokens = tokenizer(list(batch), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return _pooled(model.get_text_features(**tokens.to(model.device)))

    return _similarity(_in_batches(embed_images, images), _in_batches(embed_texts, descriptions))


def _pooled(features: Any) -> torch.Tensor:
    return features if isinstance(features, torch.Tensor) else features.pooler_output


@torch.no_grad()
def _in_batches(embed: Any, items: Sequence[Any]) -> torch.Tensor:
    """Vectors of length 1, shape (items, features)."""
    parts = [embed(items[start : start + BATCH_SIZE]) for start in range(0, len(items), BATCH_SIZE)]
    return torch.nn.functional.normalize(torch.cat(parts).float(), dim=-1)


def _similarity(items: torch.Tensor, descriptions: torch.Tensor) -> torch.Tensor:
    return (SCALE * items @ descriptions.T).softmax(-1).cpu()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
