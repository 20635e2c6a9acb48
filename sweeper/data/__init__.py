"""Datasets: what ``dataset=...`` names, loaded, split and sampled the same way every time.

``sweeper.data.floors`` holds what every comparison is measured against; it is imported on its own, because it needs
scikit-learn.
"""

from __future__ import annotations

from sweeper.data.dataset import Dataset, Split
from sweeper.data.registry import DATASETS, SOURCES, load_dataset
from sweeper.data.request import DataRequest

__all__ = ["DATASETS", "SOURCES", "DataRequest", "Dataset", "Split", "load_dataset"]
