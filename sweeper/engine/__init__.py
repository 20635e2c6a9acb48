"""Where runs are trained: in the owner's process, on all that a launcher started, in workers, or on a Ray cluster.

One process owns a study: it alone asks Optuna and writes MLflow. An engine trains what the owner hands it and tells it
what happens, in the owner's thread, whatever process or machine the training is in.
"""

from __future__ import annotations

from importlib.util import find_spec

from sweeper.engine.base import Assignment, Engine, WorkerDied
from sweeper.engine.distributed import DistributedEngine
from sweeper.engine.inline import InlineEngine
from sweeper.engine.jobs import Job, Listener, Trained, Workload, is_brief
from sweeper.training.replicas import replicas

__all__ = [
    "Assignment",
    "Engine",
    "InlineEngine",
    "Job",
    "Listener",
    "Trained",
    "WorkerDied",
    "Workload",
    "engine_problems",
    "is_brief",
    "make_engine",
]


def engine_problems(name: str) -> list[str]:
    """What keeps the engine of this name from working here, each as one line."""
    processes = replicas()
    problems = list(processes.problems)
    if name == "ray" and find_spec("ray") is None:
        problems.append("engine=ray: Ray is not installed; install it with: pip install 'thawline[ray]'")
    if processes.size > 1 and name != "inline":
        problems.append(
            f"engine={name}: a launcher (accelerate launch, torchrun) started {processes.size} processes, which train "
            "each run together; leave engine out, or start the command without the launcher"
        )
    return problems


def make_engine(
    name: str, workers: int | None, address: str | None = None, cpus: float | None = None, gpus: float | None = None
) -> Engine:
    """The engine of ``engine.name``; workers start when there is work for them.

    Args:
        name: ``inline``, ``processes`` or ``ray``.
        workers: how many runs are trained side by side; ``None`` = one for each GPU, or each core.
        address: of Ray's cluster; ``None`` = this machine.
        cpus: that Ray reserves for each worker; ``None`` = an equal share.
        gpus: the same of GPUs; ``None`` = 1 where there are any.

    Raises:
        StudyError: Ray finds no place for workers.
    """
    if name == "inline":
        processes = replicas()
        return InlineEngine() if processes.size == 1 else DistributedEngine(processes)
    if name == "ray":
        from sweeper.engine.ray import RayEngine

        return RayEngine(workers, address, cpus, gpus)
    from sweeper.engine.processes import ProcessEngine

    return ProcessEngine(workers)
