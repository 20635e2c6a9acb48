"""Where runs are trained: in the owner's process, in workers beside it, or on the machines of a Ray cluster.

One process owns a study: it alone asks Optuna and writes MLflow. An engine trains what the owner hands it and tells it
what happens, in the owner's thread, whatever process or machine the training is in.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from sweeper.engine.base import Assignment, Engine, WorkerDied
from sweeper.engine.inline import InlineEngine
from sweeper.engine.jobs import Job, Listener, Trained, Workload, is_brief

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
    problems = []
    if name == "ray" and find_spec("ray") is None:
        problems.append("engine=ray: Ray is not installed; install it with: pip install 'thawline[ray]'")
    if (processes := int(os.environ.get("WORLD_SIZE") or 1)) > 1:
        problems.append(
            f"WORLD_SIZE={processes}: a launcher (accelerate launch, torchrun) started this command {processes} times, "
            "and each would run the whole sweep; start it once, and let engine=processes or engine=ray train a run on "
            "each device"
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
        return InlineEngine()
    if name == "ray":
        from sweeper.engine.ray import RayEngine

        return RayEngine(workers, address, cpus, gpus)
    from sweeper.engine.processes import ProcessEngine

    return ProcessEngine(workers)
