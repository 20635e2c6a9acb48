"""Images: where they are stored, and how they become what a model reads."""

from __future__ import annotations

import hashlib
import io
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from sweeper.data.encoding import EncodedSplit
from sweeper.errors import DataError
from sweeper.files import reserved
from sweeper.hashing import digest
from sweeper.models.preprocessing import BROKEN, Preprocessing, upright

__all__ = ["AUGMENTATIONS", "ImageEncoder", "StoredImage", "unreadable"]

AUGMENTATIONS: Final = ("none", "light", "strong")


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image that is decoded when it is needed.

    Attributes:
        source: a file, the bytes of one, what gives the bytes when it is called, or uint8 pixels of shape
            (height, width) or (height, width, 3).
        name: what people know it by; the file's path by default.
    """

    source: Path | bytes | Callable[[], bytes] | np.ndarray
    name: str = ""

    def __str__(self) -> str:
        return self.name or (str(self.source) if isinstance(self.source, Path) else "image")

    def open(self) -> Image.Image:
        """Decode it: RGB, upright, transparent parts white.

        Raises:
            OSError: the file is missing or no image; further errors of PIL where one is damaged.
        """
        return upright(self._image())

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height as stored, read without decoding."""
        if isinstance(self.source, np.ndarray):
            return self.source.shape[1], self.source.shape[0]
        with self._image() as image:
            return image.size

    def digest(self) -> str:
        """16 hex digits of a sha256 over the stored bytes or pixels."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        if isinstance(self.source, Path):
            with self.source.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        if isinstance(self.source, np.ndarray):
            stored = self.source.tobytes() + str(self.size).encode()
        else:
            stored = self.source() if callable(self.source) else self.source
        return hashlib.sha256(stored).hexdigest()[:16]

    def _image(self) -> Image.Image:
        if isinstance(self.source, np.ndarray):
            return Image.fromarray(self.source)
        stored = self.source() if callable(self.source) else self.source
        return Image.open(stored if isinstance(stored, Path) else io.BytesIO(stored))


def unreadable(images: Sequence[StoredImage]) -> dict[int, str]:
    """Why images cannot be decoded, by their place; each is decoded once, on all cores."""

    def problem(image: StoredImage) -> str:
        try:
            image.open()
        except BROKEN as error:
            return str(error) or type(error).__name__
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return {place: message for place, message in enumerate(threads.map(problem, images)) if message}


def _decoded(image: StoredImage) -> Image.Image:
    """An image that could be read when the data were loaded.

    Raises:
        DataError: it cannot be read any more.
    """
    try:
        return image.open()
    except BROKEN as error:
        raise DataError(
            f"image {image} cannot be read any more: {error}", "Put it back, or leave it out of the data."
        ) from error


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """A model's preprocessing, with an augmentation before it in training.

    Attributes:
        preprocessing: the model's own.
        augmentation: ``none``; ``light``, a crop of 80 to 100 % of the area and a flip; or ``strong``, a crop of 8 to
            100 %, a flip, colour jitter 0.4 and grayscale with probability 0.2.
    """

    preprocessing: Preprocessing
    augmentation: str = "none"

    def encode(self, inputs: Sequence[StoredImage], labels: np.ndarray | None, *, by_length: bool) -> EncodedSplit:
        """A split whose images are decoded, resized and cropped when the first of them is needed."""
        return EncodedSplit(
            examples=_Pixels(inputs, labels, self.preprocessing),
            inputs=inputs,
            order=np.arange(len(inputs)),
            lengths=np.ones(len(inputs), dtype=np.int64),
            key=digest([self.preprocessing.description, [image.digest() for image in inputs]], 16),
            shells=[{}] * len(inputs) if labels is None else [{"labels": int(label)} for label in labels],
        )

    def training(self, split: EncodedSplit, seed: int, seen: np.ndarray | None = None) -> Sequence[Mapping[str, Any]]:
        """The examples of one run; augmented ones change from epoch to epoch, the same way in every strategy."""
        if self.augmentation == "none":
            return split.examples
        visits = np.zeros(len(split), dtype=np.int64) if seen is None else seen
        return _Augmented(split, self.preprocessing.size, self.augmentation, seed, visits)

    def collate(self, examples: list[Any]) -> Mapping[str, Any]:
        """A normalised batch."""
        if "pixel_values" in examples[0]:
            pixels = self.preprocessing.normalise(torch.stack([row["pixel_values"] for row in examples]))
        else:
            pixels = torch.zeros(()).expand(len(examples), 3, *self.preprocessing.size)
        batch = {"pixel_values": pixels}
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in examples])
        return batch

    @property
    def augments(self) -> bool:
        """Whether augmentation is asked for."""
        return self.augmentation != "none"

    @property
    def evaluation_batch_size(self) -> int:
        """On a CPU, feature maps of more images than these leave its cache: half the speed with EfficientNet-Lite0."""
        return 64 if torch.cuda.is_available() else 8

    def blank(self, batch: int, tokens: int) -> dict[str, torch.Tensor]:
        """Grey images."""
        return {"pixel_values": torch.zeros(batch, 3, *self.preprocessing.size)}


@dataclass(frozen=True, eq=False)
class _Pixels(Sequence[dict[str, Any]]):
    """Images as examples."""

    images: Sequence[StoredImage]
    labels: np.ndarray | None
    preprocessing: Preprocessing

    @cached_property
    def pixels(self) -> np.ndarray:
        """uint8, (rows, 3, height, width): made once, on all cores, in a file that ends with the process.

        Raises:
            DataError: an image cannot be decoded (any more).
        """
        shape = (len(self.images), 3, *self.preprocessing.size)
        with tempfile.TemporaryFile() as file:
            reserved(file, math.prod(shape))
            pixels = np.memmap(file, np.uint8, "r+", shape=shape) if self.images else np.empty(shape, np.uint8)

        def write(place: int) -> None:
            pixels[place] = self.preprocessing.geometry(_decoded(self.images[place])).numpy()

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(write, range(len(self.images))))
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "pixels"}  # made anew elsewhere

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        example: dict[str, Any] = {"pixel_values": torch.from_numpy(self.pixels[index])}
        return example if self.labels is None else {**example, "labels": int(self.labels[index])}


@dataclass(eq=False)
class _Augmented(Sequence[dict[str, Any]]):
    """Examples that are decoded and augmented anew each time they are asked for."""

    split: EncodedSplit
    size: tuple[int, int]
    augmentation: str
    seed: int
    visits: np.ndarray

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: Any) -> Any:
        visit = int(self.visits[index])
        self.visits[index] += 1
        image = _decoded(self.split.inputs[index])
        # A seed of its own: from the global generator dropout draws too, in each strategy another number of times.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, index, visit)))
            pixels = self._transform(image)
        return {**self.split.examples[index], "pixel_values": pixels}

    @cached_property
    def _transform(self) -> Callable[[Any], Any]:
        from torchvision.transforms import v2  # takes a second, which text does without

        strong = self.augmentation == "strong"
        steps: list[Any] = [
            v2.PILToTensor(),
            v2.RandomResizedCrop(self.size, scale=(0.08 if strong else 0.8, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
        ]
        if strong:
            steps += [v2.ColorJitter(0.4, 0.4, 0.4), v2.RandomGrayscale(0.2)]
        transform: Callable[[Any], Any] = v2.Compose(steps)
        return transform
