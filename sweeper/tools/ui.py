"""``thawline ui``: the MLflow UI on the runs of an output folder, for this machine alone."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

from sweeper.errors import ConfigError, StudyError

__all__ = ["HOST", "add_arguments", "check_port", "run"]

HOST = "127.0.0.1"
# MLflow's job runner serves features that are not used here, with several processes that die loudly on Ctrl-C.
ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONWARNINGS": "ignore",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="FOLDER", help="default: outputs")
    parser.add_argument("--port", type=int, default=5000, help="where it listens on 127.0.0.1 (default: 5000)")


def run(arguments: argparse.Namespace) -> None:
    """Become the server, which Ctrl-C ends.

    Raises:
        StudyError: there are no runs yet.
        ConfigError: the port is none, or taken.
    """
    database = arguments.output_dir / "mlflow.db"
    if not database.is_file():
        raise StudyError(
            f"there is no {database} yet, so nothing to show", "Run one study first: `make sweep`, or `thawline sweep`."
        )
    check_port(arguments.port)
    print(f"Starting the MLflow UI: http://{HOST}:{arguments.port} answers once Uvicorn runs; Ctrl-C stops it.")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{database}"]
    command += ["--host", HOST, "--port", str(arguments.port), "--workers", "1"]
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, **ENVIRONMENT})


def check_port(port: int) -> None:
    """See that a server can listen there.

    Raises:
        ConfigError: the number is none of a port, or another program listens.
    """
    hint = "Name a free one, such as --port 5050."
    if not 0 < port < 1 << 16:
        raise ConfigError(f"--port {port}: must be 1 to 65535", hint)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror} on {HOST}", hint) from error
