"""A split as a model reads it, whatever it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

__all__ = ["EncodedSplit", "Encoder", "Rows"]


class Rows(Sequence[dict[str, Any]]):
    """Some examples of a sequence, in an order of their own, with other labels where labels are given."""

    def __init__(
        self, examples: Sequence[Mapping[str, Any]], rows: Sequence[int], labels: Sequence[int] | None = None
    ) -> None:
        self._examples, self._rows, self._labels = examples, rows, labels

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        example = dict(self._examples[self._rows[index]])
        return example if self._labels is None else {**example, "labels": self._labels[index]}


class _Joined(Sequence[dict[str, Any]]):
    def __init__(self, first: Sequence[Any], second: Sequence[Any]) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        index = index + len(self) if index < 0 else index
        if index >= len(self):
            raise IndexError(index)
        return self._first[index] if index < len(self._first) else self._second[index - len(self._first)]


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """The examples of a split as the model reads them.

    Attributes:
        examples: a dict each, ``labels`` among its keys unless the split is unlabelled.
        inputs: what each example was made of.
        order: where each example stands in its split, shape (rows,).
        lengths: what an example costs, in tokens; all alike for images; shape (rows,).
        truncated: number of texts that were cut at the maximal length.
        key: changes with what the model reads; empty where that has no name, as in a part of a split.
        shells: the examples without what recorded states stand for, read where ``key`` is given.
    """

    examples: Sequence[dict[str, Any]]
    inputs: Sequence[Any]
    order: np.ndarray
    lengths: np.ndarray
    truncated: int = 0
    key: str = ""
    shells: Sequence[dict[str, Any]] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def spread(self) -> list[int]:
        """The first example, the middle one and the last, which differ in length where a split is sorted by it."""
        return sorted({0, len(self) // 2, len(self) - 1})

    def select(self, rows: Sequence[int], labels: Sequence[int] | None = None) -> EncodedSplit:
        """Some of the examples, with other labels where labels are given."""
        return EncodedSplit(
            examples=Rows(self.examples, rows, labels),
            inputs=[self.inputs[row] for row in rows],
            order=np.arange(len(rows)),
            lengths=self.lengths[list(rows)],
            shells=Rows(self.shells, rows, labels),
        )

    def joined(self, other: EncodedSplit) -> EncodedSplit:
        """These examples, then the others."""
        return EncodedSplit(
            examples=_Joined(self.examples, other.examples),
            inputs=[*self.inputs, *other.inputs],
            order=np.arange(len(self) + len(other)),
            lengths=np.concatenate([self.lengths, other.lengths]),
            truncated=self.truncated + other.truncated,
        )


class Encoder(Protocol):
    """How inputs of one modality become batches of a model."""

    @property
    def augments(self) -> bool:
        """Whether an example of a training run is another one in every epoch."""
        ...

    @property
    def evaluation_batch_size(self) -> int:
        """Examples of a pass without gradients."""
        ...

    def encode(self, inputs: Sequence[Any], labels: np.ndarray | None, *, by_length: bool) -> EncodedSplit:
        """Encode a split once; ``by_length`` sorts it, so that an evaluation pads little."""
        ...

    def training(self, split: EncodedSplit, seed: int, seen: np.ndarray | None = None) -> Sequence[Mapping[str, Any]]:
        """The examples of one training run, augmented where that is asked for.

        ``seen`` says how often the run saw each example before, shape (rows,); ``None`` = never.
        """
        ...

    def collate(self, examples: list[Any]) -> Mapping[str, Any]:
        """A batch, of examples or of shells."""
        ...

    def blank(self, batch: int, tokens: int) -> dict[str, torch.Tensor]:
        """A batch of so many inputs without content; ``tokens`` is the length of texts."""
        ...
