"""Where a head reads one position of a sequence, the last block computes no other one, as far as it can.

Behind attention each position goes its own way: what the output and feed-forward layers of the last block make of the
positions that nobody reads is thrown away. These layers are given the one position that is read (the class token, the
first token, a decoder's last one), and a residual connection adds what they put out to all: right where it is read. Of
a usual block this leaves the projections to queries, keys and values, a quarter of its weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.pytorch_utils import Conv1D

from strategies.base import Layout, inside
from sweeper.data.encoding import EncodedSplit, Encoder
from sweeper.faults import is_out_of_memory
from sweeper.models.classifier import Classifier
from sweeper.training.agreement import REFUSED, TOLERANCE, difference, in_eval_mode
from sweeper.training.micro_batches import release_memory
from sweeper.training.precision import device

__all__ = ["Known", "only_read_positions"]

logger = logging.getLogger(__name__)

#: Instead of a position: that of each example's last token.
LAST = -1

Batch = Mapping[str, torch.Tensor]


class Found(NamedTuple):
    """The position that a head reads, from the left or ``LAST``, and the layers that can do with it, as they run."""

    where: int
    layers: tuple[str, ...]


#: By what a model is and what of it trains; ``None`` = nothing can be narrowed.
Known = dict[tuple[Any, ...], Found | None]


@contextmanager
def only_read_positions(
    model: nn.Module, layout: Layout, encoder: Encoder, split: EncodedSplit, known: Known
) -> Iterator[tuple[str, ...]]:
    """Let layers of the last block compute only the position that the head reads, while the block runs.

    Which one that is, and on which layers nothing else depends, the gradients of a few examples' logits say; their
    logits then have to be the same. The model's own code runs as it is written. Results are equal within rounding, but
    for dropout, which draws masks of fewer elements.

    Args:
        model: prepared by a strategy, on its device.
        layout: its parts.
        encoder: makes batches.
        split: a few examples of which are tried.
        known: what was found of models of the same pretrained one, which is not looked for again where the same
            parameters train; what is found now joins it.

    Yields:
        The names of these layers; none where the head reads several positions, or where it is not sure that it always
        reads what it read of those examples.

    Raises:
        DataError: one of the examples is an image that cannot be read any more.
    """
    layers = _candidates(model, layout)
    found = _found(model, layout, layers, encoder, split, known) if layers else None
    if found is None:
        yield ()
    else:
        with _Narrowed(model, [layers[name] for name in found.layers], found.where):
            yield found.layers


def _found(
    model: nn.Module,
    layout: Layout,
    layers: Mapping[str, nn.Module],
    encoder: Encoder,
    split: EncodedSplit,
    known: Known,
) -> Found | None:
    """What is known of such a model, or else what is found out now and kept, but where memory runs out."""
    trained = ((name, parameter.shape) for name, parameter in model.named_parameters() if parameter.requires_grad)
    alike = (type(model), *((name, type(layer)) for name, layer in layers.items()), *trained)
    if alike not in known:
        batch = _probe(encoder, split)
        try:
            known[alike] = _narrowable(model, model.get_submodule(layout.blocks[-1]), layers, batch)
        except (*REFUSED, MemoryError) as error:
            if not is_out_of_memory(error):
                logger.info("the last block computes all positions: %s", error)
                known[alike] = None
        if alike not in known:
            release_memory()  # not above: an error holds on to what it met
    return known.get(alike)


def _candidates(model: nn.Module, layout: Layout) -> dict[str, nn.Module]:
    """The layers of the last block that multiply by a weight, each with what an adapter adds to it."""
    last = layout.blocks[-1:]
    pooling = getattr(getattr(model, "config", None), "pooling", "")
    modules = {name: module for name, module in model.named_modules() if inside(name, last)}
    # The mean and the maximum read all positions; batch norms would measure others.
    if pooling in ("mean", "max") or any(isinstance(module, _BatchNorm) for module in modules.values()):
        return {}
    found: dict[str, nn.Module] = {}
    for name, module in modules.items():  # what wraps a layer comes before it
        if (isinstance(module, nn.Linear | Conv1D) or hasattr(module, "base_layer")) and not inside(name, tuple(found)):
            found[name] = module
    return found


def _probe(encoder: Encoder, split: EncodedSplit) -> Batch:
    """A few examples, of which one at least is padded where a mask says what is."""
    batch = encoder.collate([split.examples[row] for row in split.spread()])
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape[1] > 2 and bool(mask.all()):
        mask[0, -1] = 0
    return {name: tensor.to(device()) for name, tensor in batch.items() if name != "labels"}


def _narrowable(model: nn.Module, block: nn.Module, layers: Mapping[str, nn.Module], batch: Batch) -> Found | None:
    """What can be narrowed.

    Raises:
        Exception: of ``REFUSED``, or of memory that runs out.
    """
    with in_eval_mode(model):
        whole, found = _read(model, block, layers, batch)
        # The first of them may make queries, which attention counts.
        while found is not None and found.layers:
            with _Narrowed(model, [layers[name] for name in found.layers], found.where):
                if _agrees(model, batch, whole):
                    return found
            found = found._replace(layers=found.layers[1:])
    return None


def _agrees(model: nn.Module, batch: Batch, whole: torch.Tensor) -> bool:
    """Whether a batch gets the same logits as from the whole model."""
    try:
        with torch.no_grad():
            return difference(whole, model(**batch).logits) <= TOLERANCE
    except REFUSED as error:
        if is_out_of_memory(error):
            raise
        return False


def _read(
    model: nn.Module, block: nn.Module, layers: Mapping[str, nn.Module], batch: Batch
) -> tuple[torch.Tensor, Found | None]:
    """The logits, and the position that the head reads, with the layers of whose input it reads no other."""
    entered: dict[str, list[torch.Tensor]] = {}

    def keep(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = args[0]
        # Each layer's own, though several may be given the same.
        states = states.view_as(states) if states.requires_grad else states.detach().requires_grad_()
        entered.setdefault(name, []).append(states)
        return (states, *args[1:])

    def begin_graph(*_: object) -> None:
        torch.set_grad_enabled(True)

    with ExitStack() as stack, torch.no_grad():  # what lies before the block needs no graph
        stack.callback(block.register_forward_pre_hook(begin_graph).remove)
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(lambda _, args, name=name: keep(name, args)).remove)
        logits = model(**batch).logits.float()
        once = {name: states[0] for name, states in entered.items() if len(states) == 1 and states[0].ndim == 3}
        if not once or not logits.requires_grad:
            return logits.detach(), None
        weights = torch.linspace(1.0, 2.0, logits.numel(), device=logits.device).view_as(logits)
        gradients = torch.autograd.grad((logits * weights).sum(), list(once.values()), allow_unused=True)
    found: dict[str, int] = {}
    for name, gradient in zip(once, gradients, strict=True):
        if gradient is not None and len(gradient) == len(logits):
            where = _one_position(gradient, batch, isinstance(model, Classifier))
            if where is not None:
                found[name] = where
    read = Found(next(iter(found.values())), tuple(found)) if len(set(found.values())) == 1 else None
    return logits.detach(), read


def _one_position(gradient: torch.Tensor, batch: Batch, ours: bool) -> int | None:
    """The one position that has a gradient, in each example, and in any other one too; ``None`` = there is none such.

    Of an image, which always has as many positions, whichever it is. Of a text the first token, behind virtual ones,
    or the last one where pooling is ``ours``: other heads find the last token by rules of their own.
    """
    has = gradient.ne(0).any(-1)  # (batch, positions)
    if has.shape[1] < 2 or not bool((has.sum(1) == 1).all()):
        return None
    places = has.int().argmax(1)
    first = int(places[0])
    fixed = bool((places == first).all())
    if "input_ids" not in batch:
        return first if fixed else None
    mask = batch.get("attention_mask")
    if mask is None or mask.shape[1] < 2:
        return None
    if fixed and first == has.shape[1] - mask.shape[1]:
        return first
    return LAST if ours and torch.equal(places, _last_tokens(mask, has.shape[1])) else None


def _last_tokens(mask: torch.Tensor, positions: int) -> torch.Tensor:
    """The position of each example's last token, whichever side the padding is on, behind virtual ones: (batch,)."""
    order = torch.arange(mask.shape[1], device=mask.device)
    return (mask.bool() * order).argmax(1) + positions - mask.shape[1]


class _Narrowed(AbstractContextManager["_Narrowed"]):
    """The hooks that give layers one position of their input."""

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], where: int) -> None:
        self._where = where
        self._mask: torch.Tensor | None = None
        self._hooks = [model.register_forward_pre_hook(self._note_mask, with_kwargs=True)]
        self._hooks += [layer.register_forward_pre_hook(self._narrow) for layer in layers]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note_mask(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._mask = kwargs.get("attention_mask")

    def _narrow(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = args[0]
        if states.ndim != 3 or states.shape[1] == 1:  # the latter: by a layer before
            return args
        if self._where != LAST:
            return (states[:, self._where : self._where + 1], *args[1:])
        assert self._mask is not None
        rows = torch.arange(len(states), device=states.device)
        return (states[rows, _last_tokens(self._mask, states.shape[1])].unsqueeze(1), *args[1:])
