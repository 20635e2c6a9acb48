"""``textile``: simulated pictures of woven cloth, without a defect (nominal), with a local or with a global one."""

from __future__ import annotations

from typing import Final

from sweeper.assets import fetch
from sweeper.data.build import Source, build
from sweeper.data.dataset import Dataset
from sweeper.data.images import StoredImage
from sweeper.data.request import DataRequest

__all__ = ["LABEL_NAMES", "SHARES", "load"]

LABEL_NAMES: Final = ("nominal", "local", "global")
#: More test images than usual, because strategies lie close together here.
SHARES: Final = {"train": 0.5, "validation": 0.15, "test": 0.35}


def load(request: DataRequest) -> Dataset:
    """Load the dataset.

    Raises:
        DataError: a size is larger than its pool, or too small to hold every class.
        AssetError: the files cannot be fetched.
    """
    folder = fetch("textile")
    files = [(path, label) for label in LABEL_NAMES for path in sorted((folder / label).glob("*.jpg"))]
    source = Source(
        inputs=[StoredImage(path, f"{label}/{path.name}") for path, label in files],
        labels=[label for _, label in files],
        items=list(range(len(files))),
        label_names=list(LABEL_NAMES),
        counts={"images": len(files)},
    )
    return build(request, source, shares=SHARES)
