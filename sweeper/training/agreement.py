"""Whether a model that computes less still computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["REFUSED", "TOLERANCE", "difference", "in_eval_mode"]

#: Greatest :func:`difference` of what is taken for the same. Both compute in one precision, from the same values.
TOLERANCE = 1e-3
#: What a model's code raises where its shapes are not those that it expects.
REFUSED = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError)


def difference(logits: torch.Tensor, others: torch.Tensor) -> float:
    """The greatest difference of a logit, in parts of the largest logit."""
    logits = logits.float()
    return float((logits - others.float()).abs().max() / logits.abs().max().clamp(min=1e-3))


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode while the block runs, and then in the mode that it had."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
