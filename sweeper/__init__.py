"""The engine: composes, samples, trains, records; from Python, ``sweep`` and ``compare``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeper.api import Result, compare, sweep
    from sweeper.models.predictor import Predictor
    from sweeper.models.saved import load_adapters

__all__ = ["Predictor", "Result", "compare", "load_adapters", "sweep"]

_HOME = {
    "Result": "sweeper.api",
    "compare": "sweeper.api",
    "sweep": "sweeper.api",
    "Predictor": "sweeper.models.predictor",
    "load_adapters": "sweeper.models.saved",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562): the command line pays for none of it."""
    if name not in _HOME:
        raise AttributeError(f"module 'sweeper' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
