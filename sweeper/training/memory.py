"""The memory of a process that trains: kept from step to step, given back between runs, its peak measured."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

import torch

__all__ = ["give_back_memory", "keep_memory", "peak_memory_mb", "reset_peak_memory"]

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@functools.cache
def keep_memory() -> None:
    """Let this process keep what it frees for its next allocation, where malloc is glibc's.

    By default it returns every large tensor to the system at once, which then clears page after page for the next
    one: of a training step of EfficientNet-Lite0 with 32 images on two cores a third of the time.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_memory() -> None:
    """Return to the system what is free."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> Any:
    """The C library, if it is glibc; else ``None``."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def reset_peak_memory() -> None:
    """Start measuring anew, where the platform can; what earlier runs left free is no part of it."""
    give_back_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # proc(5): resets the resident set's high-water mark
        except OSError:
            pass  # the mark then covers the whole process: an upper bound


def peak_memory_mb() -> float:
    """Peak since the reset: of the device's memory on CUDA, else of the process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform == "linux":
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
