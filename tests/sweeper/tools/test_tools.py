"""The command as a user meets it: what it says of itself, and of mistakes."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sweeper.tools import TOOLS


def thawline(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sweeper", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_alone_it_prints_its_help_and_starts_nothing(tmp_path: Path) -> None:
    done = thawline(cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == thawline("--help", cwd=tmp_path).stdout
    for name in ("sweep", "compare", "report", *TOOLS):
        assert f"\n  {name} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TOOLS)
def test_every_command_explains_its_flags(name: str, tmp_path: Path) -> None:
    done = thawline(name, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: thawline {name} ")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert importlib.import_module(f"sweeper.tools.{name}").run.__doc__


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_told_to_stop_ends_with_status_0(number: int, repository: Path) -> None:
    waits = "print('up', flush=True); import time; time.sleep(60)"
    served = f"_run([sys.executable, '-c', {waits!r}], {{**os.environ}})"
    # A shell starts what runs in the background with Ctrl-C ignored, and so these tests.
    code = "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"from sweeper.tools.serve import _run; sys.exit({served})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=repository, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stdout.readline() == "up\n"
        server.send_signal(number)
        assert server.wait(30) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["swep"], ["'swep'", "did you mean 'sweep'", "ui"]),
        (["ui", "--prot", "5001"], ["--prot", "did you mean '--port'", "\n  `thawline ui --help`"]),
        (["ui", "--port", "many"], ["'many'", "\n  `thawline ui --help`"]),
        (["ui", "--port", "70000"], ["70000", "65535"]),
    ],
)
def test_mistakes_are_two_lines_and_status_2(arguments: list[str], said: list[str], tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/mlflow.db").touch()
    done = thawline(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) <= 2
    for text in said:
        assert text in done.stderr


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    assert thawline("--version", cwd=tmp_path).stdout.split()[0] == "thawline"
