"""Where runs are trained: in the owner's process, in workers beside it, or on the machines of a Ray cluster.

One process owns a study: it alone asks Optuna and writes MLflow. An engine trains what the owner hands it and tells it
what happens, in the owner's thread, whatever process or machine the training is in.
"""

from __future__ import annotations

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
    "is_brief",
    "make_engine",
]


def make_engine(name: str, workers: int | None) -> Engine:
    """The engine of ``engine.name``; workers start when there is work for them.

    Args:
        name: ``inline`` or ``processes``.
        workers: how many runs are trained side by side; ``None`` = one for each GPU, or each core.
    """
    if name == "inline":
        return InlineEngine()
    from sweeper.engine.processes import ProcessEngine

    return ProcessEngine(workers)
