"""What the server of worker processes imports once, so that no worker does: everything that trains, quietly."""

import atexit
import gc
import logging
import os

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # a process that has initialised CUDA cannot be forked
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # advises of an optional kernel
gc.disable()  # a sixth of the imports would go into looking again and again at what they have made

import sweeper.engine.processes  # noqa: E402
import sweeper.training.trainer  # noqa: E402, F401

gc.enable()
gc.freeze()  # what was imported is shared with the workers: left alone, its pages are never copied
atexit.register(os._exit, 0)  # the server's own end takes nothing apart; workers do not run this
