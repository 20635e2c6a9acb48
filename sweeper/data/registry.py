"""The datasets by name: a new one is a module with ``load``, one entry here and one YAML in ``conf/dataset/``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sweeper.data import digits, fashion_mnist, folders, hub, r8, review_lines, tables, textile
from sweeper.data.build import Source, build
from sweeper.data.dataset import SPLITS, Dataset
from sweeper.data.paths import existing
from sweeper.data.request import DataRequest
from sweeper.data.shifted import rows_of, with_shifted
from sweeper.errors import ConfigError, near_matches

__all__ = ["DATASETS", "SOURCES", "load_dataset"]

Loader = Callable[[DataRequest], Dataset]

#: The datasets that need no hub, by ``dataset.name``.
DATASETS: dict[str, Loader] = {
    "digits": digits.load,
    "fashion_mnist": fashion_mnist.load,
    "r8": r8.load,
    "review_lines": review_lines.load,
    "textile": textile.load,
}


def _embedded(request: DataRequest) -> Dataset:
    if request.name not in DATASETS:
        raise ConfigError(f"unknown dataset {request.name!r}", near_matches(request.name, DATASETS))
    return DATASETS[request.name](request)


#: What reads a user's own rows, by ``dataset.source``.
OWN: dict[str, Callable[[DataRequest], Source]] = {
    "csv": tables.read,
    "image_csv": tables.read,
    "image_folder": folders.read,
}


def _own(request: DataRequest) -> Dataset:
    return build(request, OWN[request.source](request))


#: Where rows come from, by ``dataset.source``.
SOURCES: dict[str, Loader] = {"embedded": _embedded, "hub": hub.load, **dict.fromkeys(OWN, _own)}


def load_dataset(name: str, **fields: Any) -> Dataset:
    """The dataset called ``name``, with as many rows per split as asked; the same arguments give the same rows.

    Args:
        name: of an embedded dataset a key of ``DATASETS``; of own data what it is to be called.
        fields: the other fields of :class:`~sweeper.data.request.DataRequest`.

    Raises:
        ConfigError: the name is unknown, or something else that was asked for does not exist.
        DataError: the rows cannot be used, or a size is larger than its pool, or too small to hold every class; all
            such sizes are listed.
        AssetError: the dataset's files cannot be fetched.
    """
    request = DataRequest(name=name, **fields)
    dataset = SOURCES[request.source](request)
    return dataset if request.shifted is None else with_shifted(dataset, request.shifted, _shifted_rows(request))


def _shifted_rows(request: DataRequest) -> Source:
    """All rows of what ``dataset.shifted`` names: a path of own data, read like the dataset, or another dataset."""
    if request.source in OWN:
        existing({"dataset.shifted": request.shifted}, folder=request.source == "image_folder")
        other = replace(request, path=request.shifted, validation_path=None, test_path=None, split_column=None)
        return OWN[request.source](other)
    whole: dict[str, Any] = dict.fromkeys(f"{split}_size" for split in SPLITS)
    whole |= dict.fromkeys(("path", "subset", "revision", "train_split", "validation_split", "test_split"))
    return rows_of(SOURCES[request.source](replace(request, name=str(request.shifted), **whole)))
