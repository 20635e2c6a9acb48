"""The order of examples in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

__all__ = ["ShuffledBatches"]

MEGABATCH = 50  # batches among whose examples those of similar length are put together, as in transformers


class ShuffledBatches(Sampler[int]):
    """Random batches of examples of similar length, in random order; another one in each epoch.

    transformers' own sampler goes from long to short again and again, and its module takes seconds to import.

    Args:
        batch_size: examples that make a step.
        lengths: of each example.
        generator: what the order is drawn from.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], generator: torch.Generator) -> None:
        self.batch_size = batch_size
        self.generator = generator
        self._lengths = torch.as_tensor(lengths)
        #: The generator's state from which the order of the current epoch was drawn.
        self.drawn_from = generator.get_state()

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        self.drawn_from = self.generator.get_state()
        order = torch.randperm(len(self), generator=self.generator)
        similar = [
            part[self._lengths[part].argsort(descending=True, stable=True)]
            for part in order.split(self.batch_size * MEGABATCH)
        ]
        batches = torch.cat(similar).split(self.batch_size)
        whole = len(self) // self.batch_size  # an incomplete batch stays the last
        for place in [*torch.randperm(whole, generator=self.generator).tolist(), *range(whole, len(batches))]:
            yield from batches[place].tolist()
