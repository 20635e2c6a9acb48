"""``thawline ui``: what it starts, and that looking at a study cannot change it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import optuna
import pytest

from sweeper.errors import ThawlineError
from sweeper.tools import main
from tests.cli import TINY_SWEEP, run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_without_runs_it_says_what_to_run_first(tmp_path: Path) -> None:
    for flags in ([], ["--optuna"]):
        with pytest.raises(ThawlineError, match="nothing to show") as caught:
            main(["ui", "--output-dir", str(tmp_path), *flags])
        assert "make sweep" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_it_becomes_mlflows_server_on_this_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").touch()
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda path, command, environment: started.append((command, environment)))
    port = str(free_port())
    main(["ui", "--output-dir", str(tmp_path), "--port", port])
    ((command, environment),) = started
    assert command[1:4] == ["-m", "mlflow", "ui"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == port
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert f"http://127.0.0.1:{port}" in capsys.readouterr().out


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ThawlineError, match="in use"):
            main(["ui", "--output-dir", str(tmp_path), "--port", str(other.getsockname()[1])])


def test_without_the_dashboard_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(ThawlineError) as caught:
        main(["ui", "--optuna", "--output-dir", str(tmp_path)])
    assert "pip install 'optuna-dashboard" in caught.value.hint


@pytest.mark.slow
def test_the_dashboard_shows_a_sweep_and_changes_nothing(tmp_path: Path, tiny_checkpoint: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    output = tmp_path / "my outputs"
    sweep = [
        "strategy=frozen",
        f"model.path={tiny_checkpoint}",
        "study.n_trials=2",
        "trainer.epochs=1",
        "final.seeds=1",
    ]
    run(output, "sweep", *TINY_SWEEP, *sweep)
    (name,) = optuna.get_all_study_names(f"sqlite:///{output / 'optuna.db'}")
    before = (output / "optuna.db").read_bytes()
    port = free_port()
    command = [sys.executable, "-m", "sweeper", "ui", "--optuna", "--output-dir", str(output), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None and f"http://127.0.0.1:{port}" in server.stdout.readline()

        def ask(path: str, method: str = "GET") -> dict[str, object]:
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        (study,) = ask("/api/studies")["study_summaries"]  # type: ignore[misc]
        assert study["study_name"] == name
        shown = ask(f"/api/studies/{study['study_id']}?after=0")
        assert len(shown["trials"]) == 2  # type: ignore[arg-type]
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(f"/api/studies/{study['study_id']}", "DELETE")
        assert refused.value.code == 405
        assert (output / "optuna.db").read_bytes() == before
    finally:
        server.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 30
        while server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        server.kill()
    assert server.wait() == 0
