"""The datasets by name: a new one is a module with ``load``, one entry here and one YAML in ``conf/dataset/``."""

from __future__ import annotations

from typing import Protocol

from sweeper.data import review_lines
from sweeper.data.text import TextDataset
from sweeper.errors import ConfigError, near_matches

__all__ = ["DATASETS", "load_dataset"]


class Loader(Protocol):
    """Loads one dataset; the sizes are numbers of rows, ``None`` takes all of the split's pool."""

    def __call__(
        self, *, train_size: int | None, validation_size: int | None, test_size: int | None, seed: int
    ) -> TextDataset:
        """Load the dataset."""
        ...


DATASETS: dict[str, Loader] = {"review_lines": review_lines.load}


def load_dataset(
    name: str, *, train_size: int | None, validation_size: int | None, test_size: int | None, seed: int = 42
) -> TextDataset:
    """The dataset called ``name``, with as many rows per split as asked; the same arguments give the same rows.

    Args:
        name: a key of ``DATASETS``.
        train_size: number of rows to train on; ``None`` takes all of the pool.
        validation_size: number of rows that trials are scored on; ``None`` takes all of the pool.
        test_size: number of rows that finals are scored on; ``None`` takes all of the pool.
        seed: which rows of each pool are taken when a size is given; the pools themselves do not depend on it.

    Raises:
        ConfigError: the name is unknown.
        DataError: a size is larger than its pool, or too small to hold every class; all such sizes are listed.
        AssetError: the dataset's files cannot be fetched.
    """
    if name not in DATASETS:
        raise ConfigError(f"unknown dataset {name!r}", near_matches(name, DATASETS))
    return DATASETS[name](train_size=train_size, validation_size=validation_size, test_size=test_size, seed=seed)
