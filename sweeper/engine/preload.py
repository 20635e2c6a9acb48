"""What the server of worker processes imports once, so that no worker does: everything that trains, quietly."""

import atexit
import gc
import os

from sweeper.quiet import quick_imports

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # a process that has initialised CUDA cannot be forked

with quick_imports():
    import sweeper.engine.processes
    import sweeper.training.trainer  # noqa: F401

gc.freeze()  # what was imported is shared with the workers: left alone, its pages are never copied
atexit.register(os._exit, 0)  # the server's own end takes nothing apart; workers do not run this
