"""What a model does to an image before it reads it, taken from the model's own image processor.

Like ``predictor.py``, which imports this file, it needs nothing of the project.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

__all__ = ["BROKEN", "Preprocessing", "preprocessing_of", "upright", "with_image_size"]

#: What decoding a damaged image raises.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """Resize and crop, then scale and normalise; the two are apart because only the first costs time per image.

    Attributes:
        geometry: an RGB image to uint8 pixels, shape (3, height, width).
        size: height and width.
        mean: of each channel, after scaling.
        std: likewise.
        scale: what a pixel's value is multiplied by first.
        description: changes with any of it.
    """

    geometry: Callable[[Image.Image], torch.Tensor]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255
    description: str = ""

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the model reads: float32 in channels-last memory, of uint8 pixels (images, 3, height, width)."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels.to(torch.float32, memory_format=torch.channels_last) * self.scale - mean) / std


def upright(image: Image.Image) -> Image.Image:
    """A decoded image as RGB, turned as its camera was held, transparent parts white."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):  # more than 8 bits, which PIL would clip
        values = _eight_bits(np.asarray(image, dtype=np.float64), sixteen=image.mode.startswith("I;16"))
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def preprocessing_of(processor: Any) -> Preprocessing:
    """The steps of an image processor of transformers or timm; together they give what the processor gives.

    Raises:
        ValueError: its images have no one size.
    """
    if _is_timms(processor):
        import timm  # takes seconds, which a text model does without

        config = processor.data_config
        _, height, width = config["input_size"]
        transform = timm.data.create_transform(**config, is_training=False, normalize=False)  # type: ignore[attr-defined]
        return Preprocessing(
            transform, (height, width), tuple(config["mean"]), tuple(config["std"]), description=repr(config)
        )

    def geometry(image: Image.Image) -> torch.Tensor:
        pixels = processor([image], do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
        return pixels.to(torch.uint8)

    height, width = geometry(Image.new("RGB", (48, 32))).shape[1:]
    if geometry(Image.new("RGB", (32, 48))).shape[1:] != (height, width):
        raise ValueError("the image processor gives images of several sizes, which do not fit into one batch")
    normalises = getattr(processor, "do_normalize", True)
    return Preprocessing(
        geometry,
        (height, width),
        tuple(processor.image_mean) if normalises else (0.0,) * 3,
        tuple(processor.image_std) if normalises else (1.0,) * 3,
        float(processor.rescale_factor) if getattr(processor, "do_rescale", True) else 1.0,
        description=processor.to_json_string(),
    )


def _eight_bits(values: np.ndarray, *, sixteen: bool) -> np.ndarray:
    """Pixels of more than 8 bits, by the range that they are stored in.

    Of images of 16 bits that is 0 to 65,535, as dark as one may be; of others what their values show.
    """
    top = values.max(initial=0)
    if not sixteen and top <= 1 and (values != np.floor(values)).any():
        return values * 255
    return values / 257 if sixteen or top > 255 else values


def with_image_size(processor: Any, size: int) -> Any:
    """A copy of an image processor that gives square images of another size."""
    if _is_timms(processor):
        return type(processor)({**processor.data_config, "input_size": (3, size, size)})
    changed = copy.deepcopy(processor)
    for name in ("size", "crop_size"):
        if (current := getattr(changed, name, None)) is not None:
            given = dict(current)
            edges = ("height", "width") if given.get("height") else ("shortest_edge",)
            setattr(changed, name, type(current)(**dict.fromkeys(edges, size)))
    return changed


def _is_timms(processor: Any) -> bool:
    return hasattr(processor, "data_config")
