"""What is asked of a dataset: the loading part of ``dataset.*``."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DataRequest"]


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """The keys of ``DatasetConfig`` in ``sweeper/config.py`` that say which rows there are; see there."""

    name: str
    source: str = "embedded"
    modality: str = "text"
    path: str | None = None
    validation_path: str | None = None
    test_path: str | None = None
    subset: str | None = None
    revision: str | None = None
    train_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    text_column: str | None = None
    second_text_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    shifted: str | None = None
    train_size: int | None = None
    validation_size: int | None = None
    test_size: int | None = None
    seed: int = 42
