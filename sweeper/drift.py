"""How far training moved a backbone's features: two similarities between features before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

__all__ = ["head_inputs", "linear_cka", "mean_cosine"]


def linear_cka(first: np.ndarray, second: np.ndarray) -> float:
    """Linear centred kernel alignment of two sets of features of the same examples, in [0, 1].

    ``||Y'X||^2 / (||X'X|| ||Y'Y||)`` in Frobenius norms, of features centred over the examples (Kornblith et al. 2019,
    section 3 and table 1, arXiv:1905.00414). Rotating or scaling one side changes nothing, which a new head could undo:
    1 means that the features hold the same up to that. With few examples it is biased upwards.

    Args:
        first: (examples, features).
        second: (examples, features); the numbers of features may differ.

    Returns:
        NaN where the features of one side are the same for every example.
    """
    x, y = (np.asarray(side, dtype=np.float64) for side in (first, second))
    x, y = x - x.mean(0), y - y.mean(0)
    scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(y.T @ x) ** 2 / scale) if scale > 0 else float("nan")


def mean_cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Cosine between the features of an example before and after, averaged over the examples, in [-1, 1].

    Args:
        first: (examples, features).
        second: of the same shape.
    """
    tensors = [torch.from_numpy(np.asarray(side, dtype=np.float64)) for side in (first, second)]
    return float(torch.cosine_similarity(tensors[0], tensors[1]).mean())


def head_inputs(model: nn.Module, head: Sequence[str], run: Callable[[], object]) -> np.ndarray | None:
    """What the head is given while ``run`` feeds the model: (examples, features), in the order that they come in.

    Args:
        model: in which ``head`` lies.
        head: dotted names of the head's modules, the first of which reads what the backbone pooled.
        run: runs the model on batches of examples.

    Returns:
        None where the head reads more than one vector for each example, as some architectures' own heads do.
    """
    found: list[torch.Tensor] = []

    def note(_: nn.Module, inputs: tuple[torch.Tensor, ...], __: object) -> None:
        found.extend(given.detach().float().cpu() for given in inputs[:1])

    hook = model.get_submodule(head[0]).register_forward_hook(note)
    try:
        run()
    finally:
        hook.remove()
    return torch.cat(found).numpy() if found and all(batch.ndim == 2 for batch in found) else None
