"""The datasets by name: a new one is a module with ``load``, one entry here and one YAML in ``conf/dataset/``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sweeper.data import digits, hub, r8, review_lines, textile
from sweeper.data.dataset import Dataset
from sweeper.data.request import DataRequest
from sweeper.errors import ConfigError, near_matches

__all__ = ["DATASETS", "SOURCES", "load_dataset"]

Loader = Callable[[DataRequest], Dataset]

#: The datasets that need no hub, by ``dataset.name``.
DATASETS: dict[str, Loader] = {
    "digits": digits.load,
    "r8": r8.load,
    "review_lines": review_lines.load,
    "textile": textile.load,
}


def _embedded(request: DataRequest) -> Dataset:
    if request.name not in DATASETS:
        raise ConfigError(f"unknown dataset {request.name!r}", near_matches(request.name, DATASETS))
    return DATASETS[request.name](request)


#: Where rows come from, by ``dataset.source``.
SOURCES: dict[str, Loader] = {"embedded": _embedded, "hub": hub.load}


def load_dataset(name: str, **fields: Any) -> Dataset:
    """The dataset called ``name``, with as many rows per split as asked; the same arguments give the same rows.

    Args:
        name: of an embedded dataset a key of ``DATASETS``.
        fields: the other fields of :class:`~sweeper.data.request.DataRequest`.

    Raises:
        ConfigError: the name is unknown, or something else that was asked for does not exist.
        DataError: the rows cannot be used, or a size is larger than its pool, or too small to hold every class; all
            such sizes are listed.
        AssetError: the dataset's files cannot be fetched.
    """
    request = DataRequest(name=name, **fields)
    return SOURCES[request.source](request)
