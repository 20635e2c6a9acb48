"""``digits``: scikit-learn's 1,797 handwritten digits of 8x8 pixels, for smoke tests of image models."""

from __future__ import annotations

import numpy as np

from sweeper.data.build import Source, build
from sweeper.data.dataset import Dataset
from sweeper.data.images import StoredImage
from sweeper.data.request import DataRequest

__all__ = ["load"]


def load(request: DataRequest) -> Dataset:
    """Load the dataset.

    Raises:
        DataError: a size is larger than its pool, or too small to hold every class.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).astype(np.uint8)
    source = Source(
        inputs=[StoredImage(image, f"digit {place}") for place, image in enumerate(pixels)],
        labels=[str(label) for label in digits.target],
        items=list(range(len(pixels))),
        counts={"images": len(pixels)},
    )
    return build(request, source)
