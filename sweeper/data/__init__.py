"""Datasets: what ``dataset=...`` names, loaded, split and sampled the same way every time.

``sweeper.data.floors`` holds what every comparison is measured against; it is imported on its own, because it needs
scikit-learn.
"""

from __future__ import annotations

from sweeper.data.registry import DATASETS, load_dataset
from sweeper.data.text import TextDataset, TextSplit

__all__ = ["DATASETS", "TextDataset", "TextSplit", "load_dataset"]
