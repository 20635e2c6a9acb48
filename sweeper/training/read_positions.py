"""Where a head reads one position of a sequence, the last block computes no other one, as far as it can.

Behind attention each position goes its own way: what the projections and the feed-forward layers of the last block make
of the positions that nobody reads is thrown away. These layers are given the one position that is read (the class
token, the first token, a decoder's last token), and a residual connection adds it to all: the sum is right where it is
read. Of a usual block this leaves the projections to queries, keys and values, a quarter of its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from strategies.base import Layout, inside
from sweeper.data.encoding import EncodedSplit, Encoder
from sweeper.training.precision import device

__all__ = ["only_read_positions"]

#: Greatest difference of a logit between the whole model and the lean one, in parts of the largest, in full precision.
TOLERANCE = 1e-3

Batch = Mapping[str, torch.Tensor]


@contextmanager
def only_read_positions(
    model: nn.Module, layout: Layout, encoder: Encoder, split: EncodedSplit
) -> Iterator[tuple[str, ...]]:
    """Let layers of the last block compute only the position that the head reads, while the block runs.

    Which one that is, and which layers nothing else depends on, the gradients of a few examples' logits say; their
    logits then have to be the same. The model's own code runs as it is written. Results are equal within rounding, but
    for dropout, which draws masks of fewer elements.

    Args:
        model: prepared by a strategy, on its device.
        layout: its parts.
        encoder: makes batches.
        split: a few examples of which are tried.

    Yields:
        The names of these layers; none where the head reads several positions, or nothing is sure.
    """
    with ExitStack() as stack:
        yield _install(model, layout, encoder, split, stack)


def _install(
    model: nn.Module, layout: Layout, encoder: Encoder, split: EncodedSplit, stack: ExitStack
) -> tuple[str, ...]:
    if getattr(getattr(model, "config", None), "pooling", "") in ("mean", "max"):
        return ()
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and inside(name, layout.blocks[-1:])
    }
    if not layers:
        return ()
    examples = encoder.collate([split.examples[row] for row in split.spread()])
    batch = {name: tensor.to(device()) for name, tensor in examples.items() if name != "labels"}
    training = model.training
    model.eval()
    try:
        read = _read(model, layers, batch)
        if read is None:
            return ()
        where, names = read
        with torch.no_grad():
            whole = model(**batch).logits.float()
        # The first of them may make queries, which attention counts.
        for start in range(len(names)):
            narrowed = _Narrowed(model, [layers[name] for name in names[start:]], where)
            if narrowed.agrees(whole, batch):
                stack.callback(narrowed.remove)
                return names[start:]
            narrowed.remove()
    except _REFUSED:  # an architecture in which gradients or examples are not to be had so
        pass
    finally:
        model.train(training)
    return ()


_REFUSED = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)
_LAST = -1


def _read(model: nn.Module, layers: Mapping[str, nn.Module], batch: Batch) -> tuple[int, tuple[str, ...]] | None:
    """The position that the head reads, and the layers of whose input it reads no other, in the order of their calls.

    The position is counted from the left, or ``_LAST``: that of each example's last token.
    """
    entered: dict[str, list[torch.Tensor]] = {}

    def keep(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
        entered.setdefault(name, []).append(states)
        return (states, *args[1:])

    with ExitStack() as stack, torch.enable_grad():
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(lambda _, args, name=name: keep(name, args)).remove)
        logits = model(**batch).logits.float()
    once = {name: states[0] for name, states in entered.items() if len(states) == 1 and states[0].ndim == 3}
    if not once:
        return None
    weights = torch.linspace(1.0, 2.0, logits.numel(), device=logits.device).view_as(logits)
    gradients = torch.autograd.grad((logits * weights).sum(), list(once.values()), allow_unused=True)
    found: dict[str, int] = {}
    for name, gradient in zip(once, gradients, strict=True):
        if gradient is not None and (where := _one_position(gradient, batch.get("attention_mask"))) is not None:
            found[name] = where
    if len(set(found.values())) != 1:
        return None
    return next(iter(found.values())), tuple(found)


def _one_position(gradient: torch.Tensor, mask: torch.Tensor | None) -> int | None:
    """The one position with a gradient, (batch, positions, width), in each example; ``None`` = there is none such."""
    has = gradient.ne(0).any(-1)
    if not bool((has.sum(1) == 1).all()):
        return None
    places = has.int().argmax(1)
    first = int(places[0])
    if bool((places == first).all()) and first < has.shape[1] - 1:
        return first
    return _LAST if mask is not None and torch.equal(places, _last_tokens(mask, has.shape[1])) else None


def _last_tokens(mask: torch.Tensor, positions: int) -> torch.Tensor:
    """The position of each example's last token, whichever side the padding is on, behind virtual ones: (batch,)."""
    order = torch.arange(mask.shape[1], device=mask.device)
    return (mask.bool() * order).argmax(1) + positions - mask.shape[1]


class _Narrowed:
    """The hooks that give layers one position of their input."""

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], where: int) -> None:
        self._model = model
        self._where = where
        self._mask: torch.Tensor | None = None
        self._hooks = [model.register_forward_pre_hook(self._note_mask, with_kwargs=True)]
        self._hooks += [layer.register_forward_pre_hook(self._narrow) for layer in layers]

    def remove(self) -> None:
        """Give the model back as it was."""
        for hook in self._hooks:
            hook.remove()

    def agrees(self, whole: torch.Tensor, batch: Batch) -> bool:
        """Whether a batch gets the same logits as from the whole model."""
        try:
            with torch.no_grad():
                logits = self._model(**batch).logits.float()
        except _REFUSED:
            return False
        return float((whole - logits).abs().max()) <= TOLERANCE * float(whole.abs().max().clamp(min=1e-3))

    def _note_mask(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._mask = kwargs.get("attention_mask")

    def _narrow(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = args[0]
        if states.shape[1] == 1:  # narrowed by a layer before
            return args
        if self._where != _LAST:
            return (states[:, self._where : self._where + 1], *args[1:])
        assert self._mask is not None
        rows = torch.arange(len(states), device=states.device)
        return (states[rows, _last_tokens(self._mask, states.shape[1])].unsqueeze(1), *args[1:])
