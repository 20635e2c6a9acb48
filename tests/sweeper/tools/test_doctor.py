"""``thawline doctor``: what it says of a machine, that it says how to mend it, and that it changes nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sweeper.environment import CHECKS
from sweeper.ownership import Owner
from sweeper.tools import main

NOBODY = "http://127.0.0.1:9"  # the port that discards; nothing listens


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, a hub that does not answer at once, and no cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOBODY)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("THAWLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("THAWLINE_STORAGE", raising=False)
    return tmp_path


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str, status: int) -> dict[str, list[dict[str, Any]]]:
    """What it says with ``--json``, by check."""
    ended = 0
    try:
        main(["doctor", "--json", *arguments])
    except SystemExit as error:
        ended = int(str(error.code))
    found: dict[str, list[dict[str, Any]]] = {}
    for check in json.loads(capsys.readouterr().out):
        found.setdefault(check["name"], []).append(check)
    assert ended == status, found
    return found


def test_it_has_a_line_for_everything_and_leaves_nothing(
    alone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mustnotbeseen")
    monkeypatch.setenv("COLUMNS", "80")
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    first = [line.split()[:2] for line in lines if not line.startswith(" ")]
    assert [name for name, _ in first] == list(CHECKS)
    assert {status for _, status in first} == {"ok", "warning"}
    assert ["hub", "warning"] in first and any("HF_ENDPOINT" in line for line in lines)
    assert max(len(line) for line in lines if str(alone) not in line) <= 80, "but for a path, which is one word"
    assert not any("mustnotbeseen" in line or "\x1b" in line for line in lines)
    assert not list(alone.iterdir())


def test_what_is_missing_old_or_there_twice_comes_with_the_command_that_mends_it(
    alone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(name: str, version: str, *lines: str) -> None:
        folder = alone / "site" / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("\n".join([f"Name: {name}", f"Version: {version}", *lines]))

    wanted = ["absent>=1", "torch>=999", "doubled>=1", 'elsewhere>=1; sys_platform == "none"', 'more>=2; extra == "x"']
    extra = ["Requires-Python: >=3.99", "Provides-Extra: x"]
    install("thawline", "0.1.0", *extra, *(f"Requires-Dist: {item}" for item in wanted))
    install("doubled", "1.0")
    install("doubled", "2.0")
    monkeypatch.syspath_prepend(str(alone / "site"))
    found = doctor(capsys, status=1)
    packages = {check["message"].split()[0]: check for check in found["packages"]}
    assert set(packages) == {"absent", "torch", "doubled"}
    assert packages["absent"]["status"] == "problem" and "pip install 'absent>=1'" in packages["absent"]["hint"]
    assert "must be >=999" in packages["torch"]["message"]
    assert packages["doubled"]["status"] == "warning" and "uninstall doubled" in packages["doubled"]["hint"]
    assert found["python"][0]["status"] == "problem"
    assert "pip install 'thawline[x]'" in found["extras"][0]["message"]


def test_a_library_that_does_not_load_is_a_problem_and_the_rest_is_still_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = doctor(capsys, status=1)
    assert "torch" in found["device"][0]["message"] and found["device"][0]["status"] == "problem"
    assert found["storage"][0]["status"] == "ok"


def test_a_folder_at_work_is_a_warning(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (alone / "outputs").mkdir()
    with Owner(alone / "outputs"):
        found = doctor(capsys, status=0)
    assert [check["status"] for check in found["output_dir"]] == ["ok", "warning"]
    assert f"process {os.getpid()}" in found["output_dir"][1]["message"]


@pytest.mark.parametrize(
    ("arguments", "check", "status", "said"),
    [
        (["--storage", "sqlite:///nowhere/x.db"], "storage", "problem", "no folder nowhere"),
        (["--storage", "sqlite:///damaged.db"], "storage", "problem", "damaged.db"),
        (["--storage", "nonsense"], "storage", "problem", "nonsense"),
        (["--storage", "mysql://me:opensesame@127.0.0.1:9/x"], "storage", "problem", "me:***@127.0.0.1"),
        (["--tracking-uri", f"{NOBODY}/"], "mlflow", "warning", "does not answer"),
        (["--tracking-uri", "sqlite:///damaged.db"], "mlflow", "problem", "cannot be read"),
        (["--output-dir", "damaged.db/x"], "output_dir", "problem", "cannot be written"),
    ],
)
def test_what_cannot_be_used_is_named_with_the_next_step(
    arguments: list[str], check: str, status: str, said: str, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (alone / "damaged.db").write_bytes(b"no database" * 100)
    found = doctor(capsys, *arguments, status=int(status == "problem"))
    assert found[check][0]["status"] == status
    assert said in found[check][0]["message"] and found[check][0]["hint"]
    assert [path.name for path in alone.iterdir()] == ["damaged.db"]
