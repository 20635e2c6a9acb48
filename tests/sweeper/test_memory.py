"""What a training step frees is used by the next one, and given back between runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, sys, torch
from sweeper.training.memory import give_back_memory, keep_memory, peak_memory_mb, reset_peak_memory
if "keep" in sys.argv:
    keep_memory()
def step():
    return torch.ones(1 << 24)  # 64 MB, more than malloc itself ever keeps
for _ in range(10):  # until there are free chunks of every alignment
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
reset_peak_memory()
print(faults, peak_memory_mb())
"""


def faults_and_rest(repository: Path, *arguments: str) -> tuple[int, float]:
    command = [sys.executable, "-c", SCRIPT, *arguments]
    printed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True).stdout.split()
    return int(printed[0]), float(printed[1])


@pytest.mark.skipif(sys.platform != "linux", reason="malloc of glibc")
def test_memory_is_kept_from_step_to_step_and_given_back_between_runs(repository: Path) -> None:
    plain, resident = faults_and_rest(repository)
    kept, after = faults_and_rest(repository, "keep")
    pages = 5 * (64 << 20) // 4096
    assert plain > pages / 2, "this malloc keeps memory by itself: nothing is tested"
    assert kept < pages / 10
    assert after < resident + 30, "MB; the 64 that were free are gone"
