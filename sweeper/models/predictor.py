"""A saved classifier at work: texts or images in, labels with calibrated scores out.

Like ``classifier.py`` it needs nothing of the project but the files beside it: MLflow stores them with a registered
model, which then loads where this project is not installed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from .additions import max_positions
from .classifier import Classifier
from .preprocessing import Preprocessing, preprocessing_of, upright

__all__ = ["EXAMPLES", "FORMAT", "MANIFEST", "Manifest", "Predictor", "columns"]

MANIFEST = "thawline.json"
FORMAT = 1
#: An input of each modality, as a table holds it: a grey image of one pixel.
EXAMPLES = {
    "text": "An example.",
    "image": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==",
}
NO_LIMIT = 1_000_000  # tokens; a tokenizer that knows no limit says 1e30


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a saved model's own files do not say: ``thawline.json`` beside them.

    Attributes:
        modality: ``text`` or ``image``.
        pairs: whether each text is a pair.
        max_length: tokens at which texts were cut in training; ``None`` for images.
        temperature: what logits are divided by before softmax, so that scores are calibrated.
        calibration: how the temperature was found: items, expected calibration error before and after.
        strategy: its name and fields.
        base: the pretrained model: ``source``, ``revision``, ``head``, ``pooling``.
        adapter: the folder of peft's adapter alone, where the strategy has one.
        training: learning rate, seed, best epoch.
        versions: of the packages that trained it.
        format: raised when the meaning of a field changes.
    """

    modality: str
    pairs: bool = False
    max_length: int | None = None
    temperature: float = 1.0
    calibration: dict[str, float] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def read(cls, folder: str | Path) -> Manifest | None:
        """That of a folder; ``None`` where it has none, as other checkpoints.

        Raises:
            ValueError: it is damaged, or of a later format.
        """
        path = Path(folder, MANIFEST)
        if not path.is_file():
            return None
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["format"] > FORMAT:
                raise ValueError(f"{path} has format {stored['format']}, this version reads up to {FORMAT}")
            return cls(**{part.name: stored[part.name] for part in fields(cls) if part.name in stored})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    @classmethod
    def of(cls, folder: str | Path) -> Manifest:
        """That of a folder, or what can be told of a checkpoint without one.

        Raises:
            ValueError: it is damaged, or of a later format.
        """
        texts = Path(folder, "tokenizer_config.json").is_file()
        return cls.read(folder) or cls(modality="text" if texts else "image")

    def write(self, folder: str | Path) -> None:
        """Write it into a folder."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False)
        Path(folder, MANIFEST).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True, eq=False)
class Predictor:
    """A classifier with what prepares its inputs.

    Attributes:
        model: in eval mode, on the device where it computes.
        processor: its tokenizer or image processor.
        manifest: how it was trained.
        labels: names of the classes, in the order of the logits.
    """

    model: PreTrainedModel
    processor: Any
    manifest: Manifest
    labels: tuple[str, ...]

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> Predictor:
        """Read a model that a sweep saved, or any classification checkpoint of transformers in a folder.

        Code that lies in the folder is never run: the classes are those of this package and of transformers.

        Args:
            folder: with ``config.json``, weights and a tokenizer or image processor.
            device: ``cpu``, ``cuda``, ...; ``None`` = a GPU where there is one.

        Raises:
            OSError, ValueError: the folder holds no such model, or is damaged.
        """
        if not Path(folder, "config.json").is_file():
            raise OSError(f"{folder} holds no saved model (no config.json)")
        settings, _ = PretrainedConfig.get_config_dict(folder)
        manifest = Manifest.of(folder)
        texts = manifest.modality == "text"
        auto: Any = AutoModelForSequenceClassification if texts else AutoModelForImageClassification
        own = settings.get("model_type") == Classifier.config_class.model_type
        model: Any = (Classifier if own else auto).from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        processor: Any
        if texts:
            processor = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        else:
            from transformers import AutoImageProcessor  # brings torchvision, which takes seconds

            processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        names = tuple(str(name) for _, name in sorted(model.config.id2label.items()))
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        return cls(model, processor, manifest, names)

    def encode(self, inputs: Sequence[Any]) -> dict[str, torch.Tensor]:
        """A batch as the model reads it: token ids and masks (batch, tokens), or ``pixel_values``.

        Args:
            inputs: texts, pairs of texts (tuples), or images: of PIL, or the bytes or the path of a file.
        """
        if self.manifest.modality == "image":
            pixels = [self._preprocessing.geometry(_image(item)) for item in inputs]
            return {"pixel_values": self._preprocessing.normalise(torch.stack(pixels))}
        parts = list(zip(*inputs, strict=True)) if isinstance(inputs[0], tuple) else [inputs]
        limit = self.max_tokens
        cut: dict[str, Any] = {} if limit is None else {"truncation": True, "max_length": limit}
        encoded = self.processor(*map(list, parts), padding=True, return_tensors="pt", **cut)
        accepted = signature(self.model.forward).parameters
        return {name: tensor for name, tensor in encoded.items() if name in accepted}

    @property
    def max_tokens(self) -> int | None:
        """Where texts are cut; ``None`` = nowhere."""
        positions = max_positions(getattr(self.model, "backbone", self.model))
        virtual = (getattr(self.model.config, "virtual_tokens", None) or {"number": 0})["number"]
        known = (self.manifest.max_length, positions and positions - virtual)
        limit = min([self.processor.model_max_length, *(length for length in known if length)])
        return int(limit) if limit < NO_LIMIT else None

    @cached_property
    def _preprocessing(self) -> Preprocessing:
        return preprocessing_of(self.processor)

    def logits(self, inputs: Sequence[Any], batch_size: int = 32) -> np.ndarray:
        """Logits of each input, not calibrated: float32 (inputs, labels).

        Args:
            inputs: see :meth:`encode`; they are sorted by length into batches, and the answer is in their order.
            batch_size: inputs at a time.
        """
        found = np.empty((len(inputs), len(self.labels)), dtype=np.float32)
        # Texts of like length pad each other little.
        order = sorted(range(len(inputs)), key=lambda row: _length(inputs[row]))
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = self.encode([inputs[row] for row in rows])
                outputs = self.model(**{name: tensor.to(self.model.device) for name, tensor in batch.items()})
                found[rows] = outputs.logits.float().cpu().numpy()
        return found

    def probabilities(self, inputs: Sequence[Any], batch_size: int = 32) -> np.ndarray:
        """Calibrated probability of each label for each input: (inputs, labels)."""
        return _softmax(self.logits(inputs, batch_size) / self.manifest.temperature)

    def predict(self, inputs: Sequence[Any], batch_size: int = 32) -> pd.DataFrame:
        """The likeliest ``label`` of each input, and its calibrated ``score``."""
        probabilities = self.probabilities(inputs, batch_size)
        best = probabilities.argmax(-1)
        return pd.DataFrame(
            {
                "label": [self.labels[place] for place in best],
                "score": probabilities[np.arange(len(best)), best].astype(float),
            }
        )


def columns(manifest: Manifest) -> tuple[str, ...]:
    """The columns of a table that a packed model reads."""
    if manifest.modality == "image":
        return ("image",)
    return ("text", "text_pair") if manifest.pairs else ("text",)


def _image(item: Any) -> Image.Image:
    if isinstance(item, Image.Image):
        return upright(item)
    with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
        return upright(image)


def _length(item: Any) -> int:
    if isinstance(item, tuple):
        return sum(map(len, item))
    return len(item) if isinstance(item, str) else 0


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(-1, keepdims=True))
