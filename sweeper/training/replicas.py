"""The processes of a launcher that train each run together: every one computes its part of each batch.

Each process holds a replica of the model. The gradients of the parts are added up over the processes, so that all
replicas take the step of the whole batch (Li et al. 2020, "PyTorch Distributed: experiences on accelerating data
parallel training", arXiv:2006.15704). torch's ``DistributedDataParallel`` wants a gradient of the same parameters in
equally many passes of each process; incomplete batches, batches in parts and stages do not give it that, and a sum
after the last pass does without.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from sweeper.errors import StudyError

__all__ = ["ALONE", "SHARE", "Ended", "OwnPart", "ProcessGone", "Replicas", "Stopped", "joined", "replicas"]

Result = TypeVar("Result")

#: How long a process waits for the others: the first may load data or train heads alone meanwhile, for hours.
PATIENCE = timedelta(days=30)
BUCKET_BYTES = 25 * 2**20  # that are sent at once, as DistributedDataParallel does
#: What a batch calls the share that a process's part has in the mean loss of the whole.
SHARE = "share_of_batch"


class _Word(IntEnum):
    """What a process says to the others, the graver the higher."""

    GO = 0
    NO_MEMORY = 1
    STOP = 2
    END = 3


class Stopped(BaseException):
    """The first process has left the run."""


class Ended(Stopped):
    """The first process ends."""


class ProcessGone(StudyError):
    """A process of the launch is gone."""


class _NoMemoryElsewhere(MemoryError):
    """Memory ran out in another process."""


@dataclass(frozen=True)
class Replicas:
    """The processes that train a run together, as one of them sees them.

    All do the same in the same order. What only the first one can know, such as a signal or that a run is pruned, ends
    a run wherever the others are by then: each exchange begins with a word of every process, and the gravest counts.

    Attributes:
        rank: this process's number; 0 is the first, which owns the sweep.
        size: how many there are; 1 = there is nobody to exchange anything with.
        problems: what keeps them from training together, each as one line.
        devices: the group that tensors on GPUs are exchanged in; ``None`` = there are no GPUs.
    """

    rank: int = 0
    size: int = 1
    problems: tuple[str, ...] = ()
    devices: Any = None

    def agree(self) -> None:
        """Wait until all processes are here.

        Raises:
            Stopped: the first process has left the run.
            MemoryError: memory ran out in another process, which has said so.
            ProcessGone: one is gone.
        """
        self._say(_Word.GO)

    def out_of_memory(self, error: Exception) -> None:
        """Tell the others that memory ran out here, unless one of them said it first; all start the run anew."""
        if not isinstance(error, _NoMemoryElsewhere):
            self._say(_Word.NO_MEMORY)

    def stop(self) -> None:
        """The first process leaves a run before its end: the others leave it too, if they have not by themselves."""
        self._say(_Word.STOP)

    def end(self) -> None:
        """The first process ends."""
        self._say(_Word.END)

    def of_first(self, compute: Callable[[], Result]) -> Result:
        """What the first process computes, for all of them.

        Raises:
            BaseException: see :meth:`agree`, and what ``compute`` raises in the first process.
        """
        if self.size == 1:
            return compute()
        if self.rank == 0:
            result = compute()
            message = [pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL)]
            self._broadcast(message)
            return result
        message = [b""]
        self._broadcast(message)
        received: Result = pickle.loads(message[0])
        return received

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put into each tensor the sum of what all processes have in it; equal in each, to the last bit.

        Raises:
            BaseException: see :meth:`agree`.
        """
        if self.size > 1:
            self.agree()
            self._exchange(tensors, lambda flat: dist.all_reduce(flat, group=self._group(flat)))

    def same(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put into each tensor what the first process has in it.

        Raises:
            BaseException: see :meth:`agree`.
        """
        if self.size > 1:
            self.agree()
            # As bytes: not every backend knows every type.
            self._exchange(tensors, lambda flat: dist.broadcast(flat.view(torch.uint8), src=0, group=self._group(flat)))

    def _broadcast(self, message: list[bytes]) -> None:
        self.agree()
        with _others_may_be_gone():
            dist.broadcast_object_list(message, src=0, device=torch.device("cpu"))

    def _say(self, word: _Word) -> None:
        if self.size == 1:
            return
        said = torch.tensor(int(word))
        with _others_may_be_gone():
            dist.all_reduce(said, dist.ReduceOp.MAX)
        gravest = _Word(int(said))
        if gravest == word:
            return
        if gravest == _Word.NO_MEMORY:
            raise _NoMemoryElsewhere("out of memory in another process of this launch")
        raise Ended if gravest == _Word.END else Stopped

    def _exchange(self, tensors: Sequence[torch.Tensor], exchange: Callable[[torch.Tensor], Any]) -> None:
        for bucket in _buckets(tensors):
            with torch.no_grad():
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                with _others_may_be_gone():
                    exchange(flat)
                for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                    tensor.copy_(part.view_as(tensor))

    def _group(self, tensor: torch.Tensor) -> Any:
        return self.devices if tensor.is_cuda else None


#: One process, which no launcher started.
ALONE = Replicas()
_joined = ALONE


def replicas() -> Replicas:
    """The processes that a launcher started, this one among them; ``ALONE`` where none did."""
    return _joined


@contextmanager
def joined() -> Iterator[Replicas]:
    """Join the other processes of a launcher (``accelerate launch``, ``torchrun``) until the first one ends.

    Afterwards each process sees its own GPU alone, and the launcher's variables are gone from the environment: what
    transformers and accelerate do in a process of its own is what they do here.
    """
    global _joined
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    sharded = [name for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM") if _is_on(f"ACCELERATE_USE_{name}")]
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"] and (loopback := _loopback()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)  # listens on this machine alone
    _see_one_gpu(int(os.environ.get("LOCAL_RANK", "0")), none=cpu)
    dist.init_process_group("gloo", timeout=PATIENCE)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]  # trainer.* says how to train, its precision among it
    rank, size = dist.get_rank(), dist.get_world_size()
    gpus = torch.tensor(int(torch.cuda.is_available()))
    dist.all_reduce(gpus)
    problems = [f"a launcher with {', '.join(sharded)}: each process holds the whole model here"] if sharded else []
    if 0 < gpus < size:
        problems.append(f"a launcher started {size} processes, and {int(gpus)} of them found a GPU of their own")
    devices = dist.new_group(backend="nccl", timeout=PATIENCE) if gpus == size else None
    _joined = Replicas(rank, size, tuple(problems), devices)
    try:
        yield _joined
    finally:
        if rank == 0:
            with contextlib.suppress(ProcessGone):
                _joined.end()
        _joined = ALONE


class OwnPart:
    """Reads of a batch, given by the numbers of its rows, what this process computes: every so many-th row.

    Args:
        processes: among which a batch is divided.
        examples: of the train split.
        weights: of each in a mean loss, shape (rows,).
        visits: how often the run saw each example, shape (rows,): counts those that other processes read.
        collate: makes a batch of examples.
    """

    def __init__(
        self,
        processes: Replicas,
        examples: Sequence[Mapping[str, Any]],
        weights: torch.Tensor,
        visits: np.ndarray,
        collate: Callable[[list[Any]], Mapping[str, Any]],
    ) -> None:
        self._processes = processes
        self._examples, self._weights, self._visits = examples, weights, visits
        self._collate = collate

    def __call__(self, rows: list[int]) -> dict[str, Any]:
        """This process's part of a batch, and its share of the batch's mean loss.

        Of a batch of fewer rows than there are processes, some compute one that is another's, with a share of 0:
        they have gradients of the same parameters as all others.
        """
        own = rows[self._processes.rank :: self._processes.size]
        share = float(self._weights[own].sum() / self._weights[rows].sum())
        own = own or rows[:1]
        self._visits[np.setdiff1d(rows, own)] += 1
        return {**self._collate([self._examples[row] for row in own]), SHARE: share}


def _see_one_gpu(number: int, *, none: bool) -> None:
    """Let this process see the one of the visible GPUs that its number on this machine gives it, if there is one."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [str(number)] if given is None else given.split(",")[number : number + 1]
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if none else "".join(visible)


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")


def _loopback() -> str | None:
    """The network interface of this machine alone, under its usual names."""
    names = {name for _, name in socket.if_nameindex()}
    return next((name for name in ("lo", "lo0") if name in names), None)


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors of one type, that together take no more than a bucket or are a single one."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[torch.Tensor] = []
        for tensor in (tensor for tensor in tensors if tensor.dtype == dtype):
            if bucket and sum(other.nbytes for other in bucket) + tensor.nbytes > BUCKET_BYTES:
                yield bucket
                bucket = []
            bucket.append(tensor)
        yield bucket


@contextmanager
def _others_may_be_gone() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessGone(
            "a process of this launch is gone: " + str(error).splitlines()[0],
            "What it printed says why. The same command continues where this one stopped.",
        ) from error
