"""What a model does to an image before it reads it, taken from the model's own image processor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

__all__ = ["Preprocessing", "preprocessing_of", "with_image_size"]


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
