"""The versions of the packages that results, caches and checkpoints depend on."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib import metadata

__all__ = ["versions"]

#: What a result depends on.
PACKAGES = (
    *("thawline", "torch", "transformers", "peft", "timm", "torchvision"),
    *("optuna", "mlflow", "hydra-core", "scikit-learn", "numpy"),
)


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The version of each of the packages, in their order; without those that are not installed."""
    return {package: found for package in packages if (found := _version(package)) is not None}


@functools.cache  # reading one takes milliseconds, and every trial asks
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # thawline itself, where it is run from a folder
        return None
