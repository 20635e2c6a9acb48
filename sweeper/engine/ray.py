"""Runs side by side on the machines of a Ray cluster, or in one that lives as long as the sweep, on this machine.

Ray places the workers, gives each its cores and its share of a GPU, and notices when one or its machine is gone. What
the owner and a worker tell each other is the same as between processes. Each worker is an actor: a thread of it
trains, and two of its methods put what the owner sends into the thread's queue and take what it says out of another.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import platform
import queue
import secrets
import signal
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from sweeper.engine.jobs import Job, Workload
from sweeper.engine.worker import Shared, serve
from sweeper.engine.workers import Remote, WorkerEngine
from sweeper.errors import StudyError
from sweeper.interruption import StopSignal
from sweeper.versions import versions

__all__ = ["RayEngine"]

MAX_WORKERS = 4  # by default, on each machine without a GPU
PLACE_SECONDS = 600.0  # how long to wait where not even one worker is there; on a busy machine imports take minutes
DEATHS = 3  # of workers that came to nothing, one after another
PACKAGES = ("thawline", "torch", "transformers")  # of one version everywhere

Node = Mapping[str, float]


class RayEngine(WorkerEngine):
    """Workers wherever Ray finds room for them; those that find none join when there is some.

    Args:
        workers: ``None`` = as many as there is room for, up to ``MAX_WORKERS`` on a machine where they have no GPU.
        address: of a cluster, ``auto`` = the one that this machine belongs to; ``None`` = Ray is started, for this
            process alone.
        cpus: that each takes; ``None`` = what is there is shared equally.
        gpus: that each takes, up to 1; ``None`` = 1 where there are any.

    Raises:
        StudyError: the cluster cannot be joined, or no machine of it has what a worker takes.
    """

    def __init__(self, workers: int | None, address: str | None, cpus: float | None, gpus: float | None) -> None:
        super().__init__()
        self._connected = _connect(address)
        import ray

        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self.workers, self._cpus, self._gpus = _shares(nodes, workers, cpus, gpus)
            self._here = ray.get_runtime_context().get_node_id()
            threads = max(1, int(self._cpus))
            self.description = f"{self.workers} Ray workers of {threads} thread{'s' if threads > 1 else ''}" + (
                f" and {self._gpus:g} GPU" if self._gpus else ""
            )
            # Two threads, beside the one that trains: what arrives and what leaves each stay in order.
            remote = cast(Any, ray.remote(concurrency_groups={"put": 1, "take": 1})(_Actor))
            self._actor = remote.options(num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0)
            self._arriving: list[_Remote] = []
            self._deaths = 0
            self._alone_since: float | None = None
            self._ask()  # they import what trains while the first study is prepared
        except BaseException:
            self.close()
            raise

    def room(self) -> bool:
        """See :meth:`WorkerEngine.room`."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        self._ask()
        for remote in self._arriving:
            if remote.arrived or not ray.wait([remote.hello], timeout=0)[0]:
                continue
            try:
                remote.arrive(ray.get(remote.hello), self._here)
                self._deaths = 0
            except RayActorError as error:
                self._arriving.remove(remote)
                self._deaths += 1
                if self._deaths == DEATHS:
                    raise StudyError(
                        f"engine=ray: {DEATHS} workers died one after another when they were started: {_brief(error)}",
                        "Ray's logs on the worker's machine say more.",
                    ) from error
                break  # another one is asked for the next time
            except RayTaskError as error:
                raise StudyError(f"engine=ray: a worker cannot be started: {_brief(error.cause)}", _SAME) from error
        if self._pool or any(remote.arrived for remote in self._arriving):
            self._alone_since = None
        else:
            self._alone_since = self._alone_since or time.monotonic()
            if time.monotonic() - self._alone_since > PLACE_SECONDS:
                raise StudyError(
                    f"engine=ray: no worker could be placed within {PLACE_SECONDS:.0f} seconds; each takes "
                    f"{_amount(self._cpus, self._gpus)}, and of {_described(ray.cluster_resources())} in the cluster, "
                    f"{_described(ray.available_resources())} are free",
                    "Free some, or lower engine.cpus_per_worker or engine.gpus_per_worker; the same command continues.",
                )
        return any(remote.arrived for remote in self._arriving)

    def _ask(self) -> None:
        """Ask for the workers that are missing; Ray keeps the request until there is room."""
        while len(self._pool) + len(self._arriving) < self.workers:
            self._arriving.append(_Remote(self._actor.remote(max(1, int(self._cpus)), self._gpus > 0)))

    def start(self, number: int) -> Remote:
        """See :meth:`WorkerEngine.start`; asked where :meth:`room` says that one is there."""
        remote = next(remote for remote in self._arriving if remote.arrived)
        self._arriving.remove(remote)
        return remote

    def share(self, workload: Workload, job: Job, stop: StopSignal) -> Shared:
        """See :meth:`WorkerEngine.share`."""
        import ray

        # Recorded here, with all cores, for the workers on this machine; each other one records for its own.
        workload.task.record_states(workload.spec, job.configuration, stop.check)
        return Shared(ray.put(pickle.dumps(workload, protocol=pickle.HIGHEST_PROTOCOL)))

    def wait(self, remotes: Sequence[Remote], seconds: float) -> list[Remote]:
        """See :meth:`WorkerEngine.wait`."""
        import ray

        waiting = {cast(_Remote, remote).next: remote for remote in remotes}
        references = list(waiting) or [remote.hello for remote in self._arriving if not remote.arrived]
        if not references:
            return []
        ray.wait(references, timeout=seconds)  # for the first
        if not waiting:
            return []
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return [waiting[reference] for reference in ready]

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        import ray

        for remote in [*(worker.remote for worker in self._pool), *getattr(self, "_arriving", [])]:
            with contextlib.suppress(Exception):  # a cluster that is gone has none
                remote.kill()
        self._pool, self._arriving, self._shared = [], [], None
        if self._connected:
            ray.shutdown()


class _Remote:
    """A worker as the owner reaches it."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.hello = actor.hello.remote()
        self.arrived = False
        self.pid = 0
        self.next: Any = None
        self._where = ""
        self._error: BaseException | None = None

    def arrive(self, said: dict[str, Any], here: str) -> None:
        """It is there; refused where it runs other versions than the owner."""
        ours = _versions()
        if said["versions"] != ours:
            other = "; ".join(
                f"{name} {said['versions'][name]} there, {ours[name]} here"
                for name in ours
                if said["versions"][name] != ours[name]
            )
            raise StudyError(f"engine=ray: the worker on {said['host']} runs other versions: {other}", _SAME)
        self.pid = said["pid"]
        self._where = f"worker {said['pid']} on {said['host']}"
        self.actor.begin.remote(said["node"] != here, os.getcwd())
        self._ask()
        self.arrived = True

    def _ask(self) -> None:
        self.next = self.actor.take.options(concurrency_group="take").remote()

    def send(self, message: Any, /) -> None:
        self.actor.put.options(concurrency_group="put").remote(message)

    def recv(self) -> Any:
        import ray
        from ray.exceptions import RayError

        try:
            message = ray.get(self.next)
        except RayError as error:
            self._error = error
            raise EOFError from error
        self._ask()
        return message

    def poll(self) -> bool:
        import ray

        return bool(ray.wait([self.next], timeout=0)[0])

    def kill(self) -> None:
        import ray

        ray.kill(self.actor)

    def how_it_ended(self) -> str:
        return f"{self._where} ended: {_brief(self._error)}"


_SAME = (
    "Every machine of the cluster needs the same Python, the same version of Thawline and of its dependencies "
    "(docs/scale.md)."
)


def _connect(address: str | None) -> bool:
    """Join a cluster, or start one of this machine alone; False where this process is in one already."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it announces a default to come
    if address is None:
        # Read when Ray is imported. Without it Ray listens on all of the machine's addresses; whoever gets in may run
        # any code, and so needs a secret that only this process and those it starts know.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_worker_niceness", "0")  # else whatever runs here goes before training
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        return False
    local = {"include_dashboard": False} if address is None else {}
    try:
        with _handlers_kept():
            ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        if address is None:
            raise StudyError(
                f"engine=ray: Ray cannot be started: {_brief(error)}", "Ray's own logs say more."
            ) from error
        raise StudyError(
            f"engine.address={address}: this cluster cannot be joined: {_brief(error)}",
            "`ray status` on this machine shows whether it is part of a cluster; docs/scale.md says how to start one.",
        ) from error
    return True


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray replaces what is done at SIGTERM."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    yield
    if main:
        signal.signal(signal.SIGTERM, before)


def _shares(
    nodes: Sequence[Node], workers: int | None, cpus: float | None, gpus: float | None
) -> tuple[int, float, float]:
    """How many workers, and the CPUs and GPUs that each takes.

    Args:
        nodes: what the machines have, as Ray names it.
        workers: as asked for, as are the others; ``None`` = see :class:`RayEngine`.
        cpus: of each.
        gpus: of each.

    Raises:
        StudyError: no machine has what a worker takes.
    """
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) for node in nodes) else 0.0
    if workers is None:
        limit = math.inf if cpus or gpus else MAX_WORKERS
        workers = sum(int(min(_fitting([node], cpus or 1, gpus), limit)) for node in nodes)
    if cpus is None:
        most = int(max((node.get("CPU", 0) for node in nodes), default=0))
        cpus = next((float(n) for n in range(most, 0, -1) if _fitting(nodes, n, gpus) >= workers), 0.0)
        if not cpus:  # fewer cores than workers
            total = sum(node.get("CPU", 0) for node in nodes)
            cpus = max(0.01, math.floor(min(1.0, total / max(workers, 1)) * 100) / 100)
    if not _fitting(nodes, cpus, gpus):
        there = "; ".join(_described(node) for node in nodes)
        raise StudyError(
            f"engine=ray: a worker takes {_amount(cpus, gpus)}, and no machine has that: {there}",
            "Lower engine.cpus_per_worker or engine.gpus_per_worker, or add a machine that has it.",
        )
    return workers, cpus, gpus


def _fitting(nodes: Sequence[Node], cpus: float, gpus: float) -> int:
    """How many workers that take so much find room, each on one machine."""
    return sum(
        int(min(node.get("CPU", 0) / cpus, node.get("GPU", 0) / gpus if gpus else math.inf) + 1e-6) for node in nodes
    )


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPUs and {gpus:g} GPUs"


def _described(resources: Mapping[str, Any]) -> str:
    return _amount(resources.get("CPU", 0), resources.get("GPU", 0))


def _versions() -> dict[str, str]:
    return {"Python": platform.python_version(), **dict.fromkeys(PACKAGES, "not installed"), **versions(PACKAGES)}


def _brief(error: BaseException | None) -> str:
    """An error of Ray in a line: they explain themselves at length, after a list of the actor's properties."""
    lines = [line for line in str(error).splitlines() if not line.startswith("\t")]
    if len(lines) > 1 and "died unexpectedly before finishing this task" in lines[0]:
        del lines[0]
    return textwrap.shorten(" ".join(lines), 240) or type(error).__name__


# --- in the worker -----------------------------------------------------------------------------------------------


class _Actor:
    """A worker's life, in a process that Ray started."""

    def __init__(self, threads: int, gpu: bool) -> None:
        self._threads, self._gpu = threads, gpu
        self._incoming: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def hello(self) -> dict[str, Any]:
        """Import what trains; where this is, and what it runs."""
        if not self._gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        import ray
        import torch

        import sweeper.training.trainer  # noqa: F401
        from sweeper.quiet import quieten_libraries

        torch.set_num_threads(self._threads)
        quieten_libraries()
        node = ray.get_runtime_context().get_node_id()
        return {"node": node, "host": platform.node(), "pid": os.getpid(), "versions": _versions()}

    def begin(self, apart: bool, folder: str) -> None:
        """Serve the owner, whose working folder this is, from now on; ``apart`` = on another machine."""
        with contextlib.suppress(OSError):  # what paths are relative to; another machine may not have it
            os.chdir(folder)
        threading.Thread(target=self._live, args=(apart,), daemon=True).start()

    def _live(self, apart: bool) -> None:
        import torch

        try:
            torch.set_num_threads(self._threads)  # of this thread
            serve(self, _read, apart=apart)
        finally:
            os._exit(1)  # else the owner would wait for ever

    def put(self, message: Any) -> None:
        """A message from the owner."""
        self._incoming.put(message)

    def take(self) -> Any:
        """The next message to the owner, waiting for it."""
        return self._outgoing.get()

    def send(self, message: Any, /) -> None:
        """See :class:`~sweeper.engine.worker.Pipe`."""
        self._outgoing.put(message)

    def recv(self) -> Any:
        """See :class:`~sweeper.engine.worker.Pipe`."""
        return self._incoming.get()

    def poll(self) -> bool:
        """See :class:`~sweeper.engine.worker.Pipe`."""
        return not self._incoming.empty()


def _read(shared: Shared) -> Workload:
    import ray

    workload: Workload = pickle.loads(ray.get(shared.where))  # from the owner, by way of the cluster
    return workload
