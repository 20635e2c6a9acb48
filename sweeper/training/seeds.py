"""Every generator that a run may draw from."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["generator_states", "set_generator_states", "set_seed"]


def set_seed(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators, as transformers does in a module that takes seconds."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def generator_states() -> dict[str, Any]:
    """The states of these generators and of every CUDA device's, as tensors and plain values."""
    numpy: Any = np.random.get_state(legacy=True)
    _, keys, *rest = numpy
    return {
        "python": random.getstate(),
        "numpy": [keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def set_generator_states(states: Mapping[str, Any]) -> None:
    """Go on drawing where :func:`generator_states` was called, on a machine with as many CUDA devices."""
    random.setstate(states["python"])
    np.random.set_state(("MT19937", *states["numpy"]))
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state_all(states["cuda"])
