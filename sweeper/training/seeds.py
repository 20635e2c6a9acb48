"""Every generator that a run may draw from."""

from __future__ import annotations

import random

import numpy as np
import torch

__all__ = ["set_seed"]


def set_seed(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators, as transformers does in a module that takes seconds."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
