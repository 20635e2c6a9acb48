"""``fashion_mnist``: 70,000 pictures of clothes, 28x28 pixels in gray, from the files of Zalando Research."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Final

import numpy as np

from sweeper.data.build import Source, build
from sweeper.data.dataset import Dataset
from sweeper.data.images import StoredImage
from sweeper.data.request import DataRequest
from sweeper.errors import DataError

__all__ = ["FOLDER", "LABEL_NAMES", "load"]

#: Where Debian's package puts the files.
FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")
LABEL_NAMES: Final = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FILES: Final = {"train": "train", "test": "t10k"}


def load(request: DataRequest) -> Dataset:
    """Load the dataset from ``dataset.path``, by default where Debian puts it; validation is carved from train.

    Raises:
        DataError: the files are missing or damaged, or a size is larger than its pool or too small for the classes.
    """
    folder = Path(request.path).expanduser() if request.path else FOLDER
    inputs: list[StoredImage] = []
    labels: list[str | None] = []
    splits: list[str] = []
    for split, prefix in FILES.items():
        images = _idx(folder / f"{prefix}-images-idx3-ubyte.gz", dimensions=3)
        numbers = _idx(folder / f"{prefix}-labels-idx1-ubyte.gz", dimensions=1)
        if len(images) != len(numbers) or (len(numbers) and numbers.max() >= len(LABEL_NAMES)):
            raise DataError(f"{folder}: the images and the labels of {split} do not belong together")
        inputs += [StoredImage(image, f"{split} {place}") for place, image in enumerate(images)]
        labels += [LABEL_NAMES[number] for number in numbers]
        splits += [split] * len(numbers)
    items = list(range(len(inputs)))
    counts = {"images": len(inputs)}
    return build(request, Source(inputs, labels, items, splits, label_names=list(LABEL_NAMES), counts=counts))


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """The bytes of an IDX file: two zeros, type 8, the number of dimensions, each of them as 4 bytes, the values."""
    if not path.is_file():
        raise DataError(
            f"there is no {path}",
            "Install Debian's package (apt install dataset-fashion-mnist), name a folder with its four files "
            "(dataset.path=...), or take the hub's: dataset=hub dataset.modality=image "
            "dataset.name=zalando-datasets/fashion_mnist",
        )
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}", "Fetch the file again.") from error
    start = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(data[4:start], dtype=">i4").tolist()) if len(data) >= start else ()
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) - start != int(np.prod(shape)):
        raise DataError(f"{path} is no IDX file of {dimensions} dimensions, or not whole", "Fetch the file again.")
    return np.frombuffer(data[start:], dtype=np.uint8).reshape(shape)
