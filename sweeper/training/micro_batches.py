"""Batches that do not fit into memory, in parts: the same result from smaller passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sweeper.faults import is_out_of_memory
from sweeper.training.memory import give_back_memory

__all__ = ["Halving", "batch_parts", "release_memory"]

Result = TypeVar("Result")


class Halving:
    """Works through rows in batches, in halves from where memory runs out; the size that fits is kept.

    For what leaves no trace where it breaks off: forward passes without gradients, in eval mode.

    Args:
        size: of the batches at first.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def over(
        self, rows: Sequence[int], compute: Callable[[Sequence[int]], Result]
    ) -> Iterator[tuple[Sequence[int], Result]]:
        """The rows of each batch and what ``compute`` makes of them, in order.

        Raises:
            Exception: of ``compute``; of memory, where a single row does not fit.
        """
        start = 0
        while start < len(rows):
            part = rows[start : start + self.size]
            try:
                result = compute(part)
            except Exception as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
                self.size = len(part) // 2
            else:
                yield part, result
                start += len(part)
                continue
            release_memory()  # here, where the error and the tensors in its frames are gone


def batch_parts(inputs: Mapping[str, Any], size: int, weigh: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """A batch in parts of at most ``size`` examples, each with its share of the batch's mean loss.

    Args:
        inputs: tensors (batch, ...), ``labels`` among them.
        size: at most.
        weigh: the weight of some labels in a mean loss: their number, or the sum of their classes' weights.
    """
    labels = inputs["labels"]
    if len(labels) <= size:
        yield inputs, 1.0
        return
    whole = weigh(labels)
    for start in range(0, len(labels), size):
        part = {name: tensor[start : start + size] for name, tensor in inputs.items()}
        yield part, weigh(part["labels"]) / whole


def release_memory() -> None:
    """Give back what a failed pass left behind, so that the next has all there is."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
    give_back_memory()
