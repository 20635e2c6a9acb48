"""The server that worker processes are forked from; importing this takes no time."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from typing import Any

__all__ = ["worker_context"]


def worker_context() -> Any:
    """The context of ``multiprocessing`` that starts workers; its server begins to import what they need.

    Those imports take longer than many a run. The server makes them once, and while the caller makes its own. Not
    ``fork``: what threads of this process hold would stay locked in a copy of it. Where there is no such server, on
    Windows, each worker imports by itself.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sweeper.engine.preload"])
    forkserver.ensure_running()
    return context
