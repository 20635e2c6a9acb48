"""What frozen blocks compute for an example, computed once: each trial pays only for what it trains.

Below the boundary nothing trains and every module runs in eval mode, so the hidden state that enters the first part
above it is the same in every epoch, trial, strategy and process. It is recorded once, with the pretrained model, and
kept in a :class:`~sweeper.training.state_store.StateStore`. While a model is attached to the cache, the modules below
compute nothing of an example: they put out zeros of the right shape, which nobody reads, since the recorded state takes
the place of the input of the first part above, the *cut*. What does not depend on the examples, such as tables of
positions, is computed, and everything else of the model's own forward pass runs as it is written.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from strategies.base import Layout, inside, prefix_names
from sweeper.data.encoding import EncodedSplit, Encoder
from sweeper.hashing import digest
from sweeper.models.classifier import Classifier
from sweeper.models.pretrained import Pretrained
from sweeper.training.agreement import REFUSED, TOLERANCE, difference, in_eval_mode
from sweeper.training.micro_batches import Halving
from sweeper.training.precision import DTYPES, autocast, device
from sweeper.training.read_positions import Known, only_read_positions
from sweeper.training.state_store import States, StateStore
from sweeper.versions import versions

__all__ = ["Attached", "BoundaryCache"]

logger = logging.getLogger(__name__)

#: Raised when the same key would hold other values.
VERSION = 3
#: What examples and batches call their recorded states: (batch, tokens, width), or (batch, ...).
STATES = "boundary_states"
LIBRARIES = ("torch", "transformers", "timm", "torchvision", "pillow")  # whose versions may change what is recorded

Batch = Mapping[str, Any]


class BoundaryCache:
    """Recorded states of one pretrained model, read by one encoder, in one precision.

    Args:
        pretrained: with the weights that a prefix must have.
        encoder: prepares the inputs.
        precision: ``fp32``, ``bf16`` or ``fp16``; the states are kept in it.
        store: where they are kept.
    """

    def __init__(self, pretrained: Pretrained, encoder: Encoder, precision: str, store: StateStore) -> None:
        self.encoder = encoder
        self.precision = precision
        self._pretrained = pretrained
        self._store = store
        model = pretrained.model
        self._reading = [type(model).__name__, getattr(model.config, "pooling", "")]  # besides weights and inputs
        self._weights = {**dict(pretrained.model.named_parameters()), **dict(pretrained.model.named_buffers())}
        self._templates: dict[tuple[str, ...], _Templates | None] = {}
        self._agreed: set[tuple[type, str]] = set()
        self._read_positions: Known = {}
        self._expected: dict[str, None] = {}
        self._expected_of: frozenset[str] = frozenset()
        self._refused: set[str] = set()
        #: Of reading instead of computing, recording deducted; an estimate, from what recording took.
        self.saved_seconds = 0.0
        self.recording_seconds = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process finds out by itself where its models can be cut."""
        arguments = (self._pretrained, self.encoder, self.precision, self._store)
        kept = ("_expected", "_expected_of", "_refused")
        return BoundaryCache, arguments, {name: getattr(self, name) for name in kept}

    def of(self, pretrained: Pretrained) -> BoundaryCache:
        """The same for other weights."""
        return self._like(pretrained, self._store)

    def within(self, folder: Path, share: float) -> BoundaryCache:
        """The same in another folder, with this share of the room."""
        return self._like(self._pretrained, StateStore(folder, int(share * self._store.max_bytes)))

    def _like(self, pretrained: Pretrained, store: StateStore) -> BoundaryCache:
        other = BoundaryCache(pretrained, self.encoder, self.precision, store)
        other._expected, other._expected_of = dict(self._expected), self._expected_of
        return other

    def expect(self, cuts: Iterable[str], splits: Iterable[EncodedSplit]) -> None:
        """Record the states of these splits that enter these modules in one pass, as soon as any are asked for."""
        self._expected |= dict.fromkeys(cuts)
        self._expected_of |= {split.key for split in splits}

    @contextmanager
    def attached(
        self, model: nn.Module, probe: EncodedSplit, on_step: Callable[[], None] = lambda: None
    ) -> Iterator[Attached | None]:
        """Let a prepared model read recorded states while the block runs.

        Args:
            model: on the device where it will run.
            probe: a split, a few examples of which show that the model computes the same with recorded states.
            on_step: called between the batches of a recording; may raise to end it (interruption).

        Yields:
            What adds states to the examples of a split, or ``None`` where nothing can be skipped.
        """
        with ExitStack() as stack:
            yield self._attach(model, probe, on_step, stack)

    def _attach(
        self, model: nn.Module, probe: EncodedSplit, on_step: Callable[[], None], stack: ExitStack
    ) -> Attached | None:
        layout = self._pretrained.layout
        below = _below(model, layout)
        if not below or not self._unchanged(model, below):
            return None
        if below not in self._templates:
            self._templates[below] = _record_templates(model, below, self.encoder, self.precision)
        templates = self._templates[below]
        if templates is None:
            return None
        splice = _Splice(model, templates)
        stack.enter_context(splice)
        attached = Attached(self, templates.cut, splice, on_step)
        if (type(model), templates.cut) not in self._agreed:
            if not self._agrees(model, attached, probe):
                self._templates[below] = None
                splice.remove()
                return None
            self._agreed.add((type(model), templates.cut))
        return attached

    def states(self, cut: str, split: EncodedSplit, on_step: Callable[[], None]) -> States | None:
        """The states that enter the module ``cut``, recorded now where they are not yet; ``None`` = they cannot be."""
        key = self._key(cut, split)
        if (found := self._store.read(key)) is not None or key in self._refused:
            return found
        others = self._expected if split.key in self._expected_of else ()
        keys = {cut: key} | {other: self._key(other, split) for other in others}
        try:
            with ExitStack() as stack:
                for each in sorted(keys.values()):  # in one order, so that no two processes wait for each other
                    stack.enter_context(self._store.building(each, on_step))
                if self._store.read(key) is None:
                    new = {name: each for name, each in keys.items() if self._store.read(each) is None}
                    seconds = self._record(new, cut, split, on_step)
                    self.recording_seconds += seconds
                    self.saved_seconds -= seconds
        except OSError as error:  # a full or read-only disk: the run goes on, and pays for all of it
            logger.warning("states cannot be recorded, and are computed again and again: %s", error)
        found = self._store.read(key)
        if found is None:
            self._refused.add(key)
        return found

    def _key(self, cut: str, split: EncodedSplit) -> str:
        reading = [*self._reading, cut, self.precision, split.key]
        return digest([VERSION, self._pretrained.fingerprint, reading, *versions(LIBRARIES).values()], 24)

    def _record(self, keys: Mapping[str, str], asked: str, split: EncodedSplit, on_step: Callable[[], None]) -> float:
        """Run the pretrained model up to the last of several cuts over a split, short examples first.

        Args:
            keys: cut -> what its states are kept under. All are recorded where they take no more than half of the
                store, else only those of the cut that was asked for.
            asked: that cut.
            split: of which.
            on_step: called between batches; may raise to end it.

        Returns:
            The seconds that it took.
        """
        order = split.lengths.argsort(kind="stable")
        cuts: Sequence[str] = list(keys)
        spent = dict.fromkeys(cuts, 0.0)
        recorded: dict[str, States] = {}
        with self._on_device() as model, ExitStack() as stack:
            layout = self._pretrained.layout
            if not all(inside(cut, layout.blocks) for cut in keys):  # the last block is run
                stack.enter_context(only_read_positions(model, layout, self.encoder, split, self._read_positions))

            def capture(rows: Sequence[int]) -> tuple[dict[str, torch.Tensor], dict[str, tuple[torch.Tensor, float]]]:
                on_step()
                batch = self._collate(split, rows)
                return batch, _capture(model, cuts, batch, self.precision)

            for rows, (batch, found) in Halving(self.encoder.evaluation_batch_size).over(order.tolist(), capture):
                if not recorded:
                    shapes = {cut: _shape(states, batch, split) for cut, (states, _) in found.items()}
                    dtype = DTYPES[self.precision]
                    sizes = {cut: math.prod(shape) * dtype.itemsize for cut, shape in shapes.items()}
                    if not self._store.fits(2 * sum(sizes.values())):
                        shapes = {asked: shapes[asked]}
                    if not self._store.fits(sizes[asked]):
                        reason = f"its {sizes[asked] / 1e9:.1f} GB of states exceed cache.max_gb"
                        logger.warning(_NOT_CACHED, asked, reason)
                        break
                    cuts = list(shapes)
                    for cut, shape in shapes.items():
                        per_token = _per_token(found[cut][0], batch)
                        offsets = np.concatenate([[0], split.lengths.cumsum()]) if per_token else None
                        seconds = functools.partial(spent.__getitem__, cut)
                        recorded[cut] = stack.enter_context(
                            self._store.writing(keys[cut], shape, dtype, offsets, seconds)
                        )
                for cut in cuts:
                    states, seconds_to_it = found[cut]
                    spent[cut] += seconds_to_it
                    mask = batch["attention_mask"] if _per_token(states, batch) else None
                    for place, row in enumerate(rows):
                        keep = states[place] if mask is None else states[place][mask[place].bool()]
                        recorded[cut][row].copy_(keep)
        return max(spent.values())

    @contextmanager
    def _on_device(self) -> Iterator[Any]:
        """The pretrained model where it computes; it is back when the block ends."""
        model: Any = self._pretrained.model
        try:
            yield model.to(device()).eval()
        finally:
            model.to("cpu")

    def _collate(self, split: EncodedSplit, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        batch = self.encoder.collate([split.examples[row] for row in rows])
        return {name: tensor.to(device()) for name, tensor in batch.items() if name != "labels"}

    def _unchanged(self, model: nn.Module, below: Sequence[str]) -> bool:
        """Whether all that lies below the cut is as it was pretrained."""
        for name in below:
            module = model.get_submodule(name)
            for key, tensor in itertools.chain(module.named_parameters(prefix=name), module.named_buffers(prefix=name)):
                other = self._weights.get(key)
                if other is None or other.dtype != tensor.dtype:
                    return False
                shared = other.data_ptr() == tensor.data_ptr() and other.shape == tensor.shape
                if not shared and not torch.equal(other.to(tensor.device), tensor):
                    return False
        return True

    def _agrees(self, model: nn.Module, attached: Attached, probe: EncodedSplit) -> bool:
        """Whether some examples get the same logits either way."""
        batch = self._collate(probe, probe.spread())
        with self._on_device() as pretrained:
            states = _capture(pretrained, [attached.cut], batch, self.precision)[attached.cut][0]
        try:
            with in_eval_mode(model), torch.no_grad(), autocast(self.precision):
                whole = model(**batch).logits
                spliced = model(**batch, **{STATES: states}).logits
        except REFUSED as error:
            logger.warning(_NOT_CACHED, attached.cut, error)
            return False
        if not (apart := difference(whole, spliced)) <= TOLERANCE:
            logger.warning(
                _NOT_CACHED, attached.cut, f"with recorded states, logits differ by {apart:.2g} of the largest"
            )
            return False
        return True


_NOT_CACHED = "what lies below %s is computed every time: %s"


class Attached:
    """A model that reads recorded states: makes the examples and batches that carry them."""

    def __init__(self, cache: BoundaryCache, cut: str, splice: _Splice, on_step: Callable[[], None]) -> None:
        self.cut = cut
        self._cache = cache
        self._splice = splice
        self._on_step = on_step
        self._read: dict[str, States] = {}

    def examples(self, split: EncodedSplit) -> Sequence[dict[str, Any]] | None:
        """The split's examples with their states; ``None`` where there are none (a mixed split, or too large)."""
        states = self.states(split)
        return None if states is None else _WithStates(split, states)

    def states(self, split: EncodedSplit) -> States | None:
        """The split's recorded states."""
        states = self._cache.states(self.cut, split, self._on_step) if split.key else None
        if states is not None:
            self._read[split.key] = states
        return states

    def ran(self, epochs: int) -> None:
        """Every split whose states were asked for has been read so many times."""
        self._cache.saved_seconds += epochs * self.recorded_seconds

    @property
    def recorded_seconds(self) -> float:
        """What recording the states that were asked for took, whenever that was."""
        return sum(states.seconds for states in self._read.values())

    def features(self, *splits: EncodedSplit) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Features (examples, width) and labels (examples,) of each split, on the device.

        Nothing where the cut is not the one head of the model, or not all splits have recorded states.
        """
        if self.cut != "head" or not isinstance(self._splice.model, Classifier):
            return []
        found = []
        for split in splits:
            states = self.states(split)
            if states is None or states.values.ndim != 2 or states.offsets is not None:
                return []
            labels = torch.tensor([shell["labels"] for shell in split.shells])
            found.append((states.values.float().to(device()), labels.to(device())))
        return found

    @property
    def head(self) -> nn.Module:
        """The module at the cut."""
        return self._splice.model.get_submodule(self.cut)

    def collate(self, examples: list[Any]) -> dict[str, Any]:
        """A batch, with states where its examples have them."""
        plain = [{name: value for name, value in example.items() if name != STATES} for example in examples]
        batch = dict(self._cache.encoder.collate(plain))
        if STATES in examples[0]:
            states = [example[STATES] for example in examples]
            mask = batch.get("attention_mask")
            if states[0].ndim == 2 and mask is not None and self._splice.per_token:
                padded = torch.zeros((*mask.shape, states[0].shape[-1]), dtype=states[0].dtype)
                padded[mask.bool()] = torch.cat(states)
                batch[STATES] = padded
            else:
                stacked = torch.stack(states)
                maps = stacked.ndim == 4  # of a CNN, in the memory that its convolutions are fast in
                batch[STATES] = stacked.contiguous(memory_format=torch.channels_last) if maps else stacked
        return batch


class _WithStates(Sequence[dict[str, Any]]):
    def __init__(self, split: EncodedSplit, states: States) -> None:
        self._shells, self._states = split.shells, states

    def __len__(self) -> int:
        return len(self._shells)

    def __getitem__(self, index: Any) -> Any:
        return {**self._shells[index], STATES: self._states[index]}


# --- where a model is cut ----------------------------------------------------------------------------------------


def _below(model: nn.Module, layout: Layout) -> tuple[str, ...]:
    """The names of the modules that need not compute anything; none where not even one block is among them."""
    prefix = prefix_names(model, layout)
    if not any(name in layout.blocks for name in prefix):
        return ()
    if layout.backbone and len(prefix) == len((*layout.stem, *layout.blocks, *layout.top)):
        return (layout.backbone,)
    modules = dict(model.named_modules())
    return tuple(name for name in prefix if name in modules)


def _transparent(module: nn.Module) -> bool:
    """Whether what a module puts out follows from its input alone, in training too: a pooling, an activation."""
    random = any("drop" in type(part).__name__.lower() for part in module.modules())
    return not random and not any(True for _ in module.parameters())


class _Reached(Exception):
    """The last cut was reached; nothing after it has to be computed."""


def _capture(
    model: nn.Module, cuts: Sequence[str], batch: Batch, precision: str
) -> dict[str, tuple[torch.Tensor, float]]:
    """The hidden states that enter modules, for a batch, and the seconds that it took to get there."""
    found: dict[str, tuple[torch.Tensor, float]] = {}
    started = _now()

    def enter(cut: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found[cut] = (_argument(args, kwargs, _hidden(args, kwargs)), _now() - started)
        if len(found) == len(cuts):
            raise _Reached

    with ExitStack() as stack:
        for cut in cuts:
            hook = model.get_submodule(cut).register_forward_pre_hook(
                lambda module, args, kwargs, cut=cut: enter(cut, args, kwargs), with_kwargs=True
            )
            stack.callback(hook.remove)
        with contextlib.suppress(_Reached), torch.no_grad(), autocast(precision):
            model(**batch)
    return found


def _now() -> float:
    """The time when what was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _per_token(states: torch.Tensor, batch: Batch) -> bool:
    return states.ndim == 3 and "attention_mask" in batch and states.shape[:2] == batch["attention_mask"].shape


def _shape(states: torch.Tensor, batch: Batch, split: EncodedSplit) -> tuple[int, ...]:
    """Of what is kept for a whole split, without padding."""
    if _per_token(states, batch):
        return (int(split.lengths.sum()), *states.shape[2:])
    return (len(split), *states.shape[1:])


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | str | None:
    """Which argument of a module is its hidden state; ``None`` = it takes no tensor."""
    if args and isinstance(args[0], torch.Tensor):
        return 0
    if "hidden_states" in kwargs:
        return "hidden_states"
    return next((name for name, value in kwargs.items() if isinstance(value, torch.Tensor)), None)


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], where: int | str | None) -> Any:
    return args[where] if isinstance(where, int) else kwargs[str(where)]


# --- what skipped modules put out --------------------------------------------------------------------------------


class _Templates:
    """The shapes that modules put out, with the sizes of batch and tokens left open.

    Attributes:
        cut: the module whose input is replaced.
        per_token: whether that input has a state for each token.
        outputs: module -> leaves and structure of its output; a tensor's leaf is its sizes and its dtype.
    """

    def __init__(self, cut: str, per_token: bool, outputs: Mapping[str, tuple[list[Any], Any]]) -> None:
        self.cut = cut
        self.per_token = per_token
        self.outputs = outputs


def _record_templates(model: nn.Module, below: Sequence[str], encoder: Encoder, precision: str) -> _Templates | None:
    """Two passes with other sizes of batch and tokens tell which sizes of an output are which."""
    try:
        with in_eval_mode(model):
            runs = [_shapes(model, below, encoder.blank(*sizes), precision) for sizes in ((2, 5), (3, 7))]
    except (*REFUSED, StopIteration) as error:
        logger.warning(_NOT_CACHED, "the boundary", error)
        return None
    (cut, state, first), (_, other_state, second) = runs
    outputs = {}
    for name, (leaves, structure) in first.items():
        others, _ = second[name]
        merged = [_merge(one, other) for one, other in zip(leaves, others, strict=True)]
        if any(leaf is _UNKNOWN for leaf in merged):
            logger.warning(_NOT_CACHED, name, "its output has sizes that depend on both batch and tokens")
            return None
        tensors = [leaf for leaf in merged if isinstance(leaf, tuple)]
        if tensors and all("batch" in sizes for sizes, _ in tensors):
            outputs[name] = (merged, structure)
    per_token = state.ndim == 3 and (state.shape[1], other_state.shape[1]) == (5, 7)
    return _Templates(cut, per_token, outputs)


_UNKNOWN = object()


def _shapes(
    model: nn.Module, below: Sequence[str], batch: Batch, precision: str
) -> tuple[str, torch.Tensor, dict[str, tuple[list[Any], Any]]]:
    """The cut, its hidden state, and what the modules below put out, in one pass.

    The cut is the first module that runs after the last of those below and that is not transparent: a state is recorded
    as late as it stays the same in every epoch.
    """
    outputs: dict[str, tuple[list[Any], Any]] = {}
    entered: list[tuple[str, nn.Module, torch.Tensor]] = []
    handles = []

    def leave(name: str, output: Any) -> None:
        outputs[name] = tree_flatten(output)
        entered.clear()

    def enter(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (where := _hidden(args, kwargs)) is not None:
            entered.append((name, module, _argument(args, kwargs, where)))

    for name, module in model.named_modules():
        if name in below:
            handles.append(module.register_forward_hook(lambda m, a, output, name=name: leave(name, output)))
        elif name and not inside(name, below):
            handles.append(
                module.register_forward_pre_hook(lambda m, a, k, name=name: enter(name, m, a, k), with_kwargs=True)
            )
    try:
        with torch.no_grad(), autocast(precision):
            model(**{name: tensor.to(device()) for name, tensor in batch.items()})
    finally:
        for handle in handles:
            handle.remove()
    cut, _, state = next(entry for entry in entered if not _transparent(entry[1]))
    return cut, state, outputs


def _merge(one: Any, other: Any) -> Any:
    """The leaf of a template: of a tensor its sizes, ``batch`` and ``tokens`` among them, and its dtype."""
    if not isinstance(one, torch.Tensor):
        return one
    sizes: list[int | str] = []
    for pair in zip(one.shape, other.shape, strict=True):
        if pair[0] == pair[1]:
            sizes.append(pair[0])
        elif pair in ((2, 3), (5, 7)):
            sizes.append("batch" if pair == (2, 3) else "tokens")
        else:
            return _UNKNOWN
    return (tuple(sizes), one.dtype)


class _Splice(AbstractContextManager["_Splice"]):
    """The hooks and stand-ins that make a model read states; without states in a batch it runs as ever."""

    def __init__(self, model: nn.Module, templates: _Templates) -> None:
        self.model = model
        self.per_token = templates.per_token
        self._states: torch.Tensor | None = None
        self._tokens = 0
        self._undo: list[Callable[[], Any]] = []
        self._undo.append(model.register_forward_pre_hook(self._take, with_kwargs=True).remove)
        self._undo.append(model.register_forward_hook(self._drop, always_call=True).remove)
        cut = model.get_submodule(templates.cut)
        self._undo.append(cut.register_forward_pre_hook(self._replace, with_kwargs=True).remove)
        for name, template in templates.outputs.items():
            self._skip(model.get_submodule(name), template)

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Give the model back as it was."""
        while self._undo:
            self._undo.pop()()

    def _take(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._states = kwargs.pop(STATES, None)
        tokens = kwargs.get("attention_mask", kwargs.get("input_ids"))
        self._tokens = 0 if tokens is None else tokens.shape[1]
        return args, kwargs

    def _drop(self, *_: object) -> None:
        self._states = None

    def _replace(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        if self._states is None:
            return None
        where: Any = _hidden(args, kwargs)
        if isinstance(where, int):
            return (self._states.to(args[0].dtype), *args[1:]), kwargs
        return args, {**kwargs, where: self._states.to(kwargs[where].dtype)}

    def _skip(self, module: Any, template: tuple[list[Any], Any]) -> None:
        compute = module.forward
        leaves, structure = template

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            if self._states is None:
                return compute(*args, **kwargs)
            sizes = {"batch": len(self._states), "tokens": self._tokens}
            filled = [
                torch.zeros((), dtype=leaf[1], device=self._states.device).expand(
                    [size if isinstance(size, int) else sizes[size] for size in leaf[0]]
                )
                if isinstance(leaf, tuple)
                else leaf
                for leaf in leaves
            ]
            return tree_unflatten(filled, structure)

        own = module.__dict__.get("forward")
        module.forward = stand_in
        self._undo.append(lambda: setattr(module, "forward", own) if own else module.__dict__.pop("forward"))
