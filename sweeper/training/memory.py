"""The peak memory of a run."""

from __future__ import annotations

import sys

import torch

__all__ = ["peak_memory_mb", "reset_peak_memory"]


def reset_peak_memory() -> None:
    """Start measuring anew, where the platform can."""
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
