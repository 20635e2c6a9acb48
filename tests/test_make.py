from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

VARIABLES = [
    *("STRATEGY", "MODEL", "DATASET", "EXPERIMENT", "TRIALS", "DRY_RUN", "COMPARISON"),
    *("TEXT", "INPUT", "MODEL_PATH", "FORMAT", "ARGS", "PORT", "PYTHON"),
]


def clean_environment() -> dict[str, str]:
    """Without what an outer ``make test ARGS=...`` exports to the makes that the tests start."""
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS", *VARIABLES}
    return {key: value for key, value in os.environ.items() if key not in inherited}


def run_make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=60
    )


def command_of(folder: Path, *arguments: str) -> str:
    """The one command of ours that ``make -n`` would run."""
    result = run_make(folder, "-n", *arguments)
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if "-m sweeper" in line or "-m pytest" in line)
    return line.strip()


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """A folder with the real Makefile and no environment yet."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(repository / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def built(checkout: Path) -> Path:
    """The same with an environment whose ``python`` writes its arguments to ``arguments.txt``, one a line."""
    write_script(checkout / ".venv/bin/python", '#!/bin/sh\nprintf "%s\\n" "$@" > arguments.txt\n')
    (checkout / ".venv/.stamp").touch()
    return checkout


def targets_of(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))


def test_help_describes_every_target_and_variable(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text()
    result = run_make(repository, "help")
    assert result.returncode == 0
    described = dict(re.findall(r"^  make (\S+) {2,}(\S.+)$", result.stdout, flags=re.MULTILINE))
    assert set(described) == targets_of(makefile)
    assert set(described) >= {"help", "setup", "sweep", "compare", "report", "ui", "test", "lint", "clean"}

    explained = set(re.findall(r"^  ([A-Z_]+)=\S+ {2,}\S", result.stdout, flags=re.MULTILINE))
    settable = set(re.findall(r"^([A-Z_]+) \?=", makefile, flags=re.MULTILINE))
    assert explained == settable == set(VARIABLES)


def test_help_is_what_make_alone_prints_and_its_lines_fit_a_terminal(repository: Path) -> None:
    text = run_make(repository).stdout
    assert text == run_make(repository, "help").stdout
    assert max(map(len, text.splitlines())) <= 120


def test_every_target_is_phony(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    assert set(phony.split()) == targets_of(makefile)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sweep"], "sweep"),
        (["sweep", "STRATEGY=lora", "TRIALS=3", "ARGS=a=b"], "sweep strategy=lora study.n_trials=3 a=b"),
        (["sweep", "ARGS=model=x c=d", "MODEL=minilm"], "sweep model=minilm model=x c=d"),
        (["sweep", "EXPERIMENT=smoke", "DATASET=review_lines"], "sweep dataset=review_lines experiment=smoke"),
        (["sweep", "DRY_RUN=1"], "sweep dry_run=true"),
        (["sweep", "DRY_RUN=0"], "sweep"),
        (["compare"], "compare"),
        (["compare", "STRATEGY=frozen,lora", "DRY_RUN=1"], "compare strategy=frozen,lora dry_run=true"),
        (["report"], "report"),
        (["report", "COMPARISON=minilm-review_lines-1a2b"], "report report.comparison=minilm-review_lines-1a2b"),
        (["ui", "PORT=5055"], "ui --port 5055"),
    ],
)
def test_variables_become_overrides_and_args_come_last(built: Path, arguments: list[str], expected: str) -> None:
    assert command_of(built, *arguments) == f".venv/bin/python -m sweeper {expected}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["predict", "TEXT=a triumph"], ["predict", "--", "a triumph"]),
        (
            ["predict", """TEXT=-5 stars: it's "$5", $(5 `id` \\ ünï #x"""],
            ["predict", "--", """-5 stars: it's "$5", $(5 `id` \\ ünï #x"""],
        ),
        (
            ["predict", "INPUT=my $1 reviews.csv", "MODEL_PATH=a b", "ARGS=--output out.csv"],
            ["predict", "--input", "my $1 reviews.csv", "--model", "a b", "--output", "out.csv"],
        ),
        (["serve", "MODEL_PATH=a b", "ARGS=--port 5002"], ["serve", "--model", "a b", "--port", "5002"]),
        (["export"], ["export", "--format", "onnx"]),
        (["export", "FORMAT=torch_export", "MODEL_PATH=a b"], ["export", "--format", "torch_export", "--model", "a b"]),
    ],
)
def test_texts_and_paths_arrive_as_they_are(built: Path, arguments: list[str], expected: list[str]) -> None:
    result = run_make(built, *arguments)
    assert result.returncode == 0, result.stderr
    assert (built / "arguments.txt").read_text().splitlines() == ["-m", "sweeper", *expected]


def test_args_reach_pytest(built: Path) -> None:
    assert command_of(built, "test", "ARGS=-m slow -x") == ".venv/bin/python -m pytest -m slow -x"


def test_quotes_in_args_survive_the_shell(built: Path) -> None:
    result = run_make(built, "sweep", "STRATEGY=lora", "ARGS='model.name=a b' c=[1,2]")
    assert result.returncode == 0, result.stderr
    received = (built / "arguments.txt").read_text().splitlines()
    assert received == ["-m", "sweeper", "sweep", "strategy=lora", "model.name=a b", "c=[1,2]"]


def test_an_unsupported_python_is_one_clear_line(checkout: Path) -> None:
    write_script(checkout / "old", '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1"\n[ "$1" = --version ]\n')
    result = run_make(checkout, "setup", "PYTHON=./old")
    assert result.returncode != 0
    complaint = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(complaint) == 1
    assert "Python 3.9.1" in complaint[0] and "3.11" in complaint[0] and "PYTHON=" in complaint[0]
    assert not (checkout / ".venv").exists()


VERSIONED_PYTHON = """#!/bin/sh
# A Python that says it is {version}, and has no venv module.
case "$2" in *venv*) exit 1;; esac
code=$2
exec {python} -c "import sys; sys.version_info = {version}; $code"
"""


@pytest.mark.parametrize(
    ("version", "supported"),
    [((3, 10, 14), False), ((3, 11, 0), True), ((3, 13, 9), True), ((3, 14, 0), False), ((4, 0, 0), False)],
)
def test_supported_pythons_are_3_11_to_3_13(checkout: Path, version: tuple[int, ...], supported: bool) -> None:
    write_script(checkout / "python", VERSIONED_PYTHON.format(python=sys.executable, version=version))
    complaint = run_make(checkout, "setup", "PYTHON=./python").stderr
    assert ("lacks its venv module" if supported else "Thawline needs Python") in complaint


def test_a_python_without_venv_is_one_clear_line(checkout: Path) -> None:
    write_script(checkout / "bare", '#!/bin/sh\ncase "$2" in *venv*) exit 1;; esac\n')
    result = run_make(checkout, "setup", "PYTHON=./bare")
    assert result.returncode != 0
    complaint = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(complaint) == 1
    assert "./bare" in complaint[0] and "venv" in complaint[0]


FAKE_PYTHON = """#!/bin/sh
# Stands for a Python: `-m venv --clear FOLDER` puts itself there; `-m pip` fails while `broken` exists.
echo "$*" >> calls.txt
case "$1 $2" in
    "-m venv") rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    "-m pip") test ! -e broken ;;
esac
"""


def calls(folder: Path) -> list[str]:
    """What the fake Python was asked to do since the last look, less the checks of its version."""
    log = folder / "calls.txt"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [" ".join(line.split()[:2]) for line in lines if line.startswith("-m")]


def test_a_half_built_environment_is_built_anew_and_a_finished_one_is_kept(checkout: Path) -> None:
    write_script(checkout / "fake", FAKE_PYTHON)
    (checkout / "broken").touch()
    assert run_make(checkout, "sweep", "PYTHON=./fake").returncode != 0
    assert calls(checkout) == ["-m venv", "-m pip"]

    (checkout / "broken").unlink()
    assert run_make(checkout, "sweep", "PYTHON=./fake").returncode == 0
    assert calls(checkout) == ["-m venv", "-m pip", "-m compileall", "-m sweeper"]

    assert run_make(checkout, "sweep", "PYTHON=./fake").returncode == 0
    assert calls(checkout) == ["-m sweeper"]

    later = time.time() + 60
    os.utime(checkout / "constraints.txt", (later, later))
    (checkout / "broken").touch()
    assert run_make(checkout, "test", "PYTHON=./fake").returncode != 0
    assert calls(checkout) == ["-m pip"]  # updated in place ...
    assert run_make(checkout, "test", "PYTHON=./fake").returncode != 0
    assert calls(checkout) == ["-m venv", "-m pip"]  # ... but not trusted once the update failed


def test_setup_installs_what_is_pinned(checkout: Path) -> None:
    write_script(checkout / "fake", FAKE_PYTHON)
    assert run_make(checkout, "setup", "PYTHON=./fake").returncode == 0
    assert any("-c constraints.txt" in line for line in (checkout / "calls.txt").read_text().splitlines())


def test_ctrl_c_reaches_python_and_make_waits_for_it_quietly(built: Path) -> None:
    write_script(
        built / ".venv/bin/python",
        '#!/bin/sh\ntrap "sleep 0.3; touch closed; exit 130" INT\ntouch started\nwhile :; do sleep 0.05; done\n',
    )
    process = subprocess.Popen(
        ["make", "sweep"],
        cwd=built,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a terminal gives it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it in what runs behind
    )
    deadline = time.monotonic() + 90
    while not (built / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    assert process.returncode != 0
    assert (built / "closed").exists()
    assert len(errors.splitlines()) <= 2, errors


def test_clean_keeps_results_and_the_environment(built: Path) -> None:
    kept = ["outputs/mlflow.db", "outputs/models/x/__pycache__/model.pyc", ".venv/lib/__pycache__/site.pyc"]
    removed = ["sweeper/__pycache__/study.pyc", "build/x", "dist/x.whl", ".mypy_cache/x", ".pytest_cache/x"]
    for name in kept + removed:
        (built / name).parent.mkdir(parents=True, exist_ok=True)
        (built / name).touch()
    result = run_make(built, "clean")
    assert result.returncode == 0, result.stderr
    assert "outputs/" in result.stdout
    assert all((built / name).exists() for name in kept)
    assert not any((built / name).exists() for name in removed)
