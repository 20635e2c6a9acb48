"""``thawline ui``: the MLflow UI, or Optuna's dashboard, on the results of an output folder, for this machine alone."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sweeper.errors import ConfigError, StudyError

__all__ = ["HOST", "add_arguments", "check_port", "run"]

HOST = "127.0.0.1"
PORTS = {"mlflow": 5000, "optuna": 8080}
# MLflow's job runner serves features that are not used here, with several processes that die loudly on Ctrl-C.
ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONWARNINGS": "ignore",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), metavar="FOLDER", help="default: outputs")
    parser.add_argument("--port", type=int, help="where it listens on 127.0.0.1 (default: 5000; of --optuna 8080)")
    parser.add_argument("--optuna", action="store_true", help="Optuna's dashboard instead, on the studies; read-only")
    parser.add_argument("--storage", metavar="URL", help="of --optuna; default: THAWLINE_STORAGE, or in the folder")


def run(arguments: argparse.Namespace) -> None:
    """Serve until Ctrl-C.

    Raises:
        StudyError: there are no runs or studies yet, or the storage cannot be opened.
        ConfigError: the port is none, or taken; a package is missing; a flag belongs to ``--optuna``.
    """
    port = arguments.port if arguments.port is not None else PORTS["optuna" if arguments.optuna else "mlflow"]
    if arguments.optuna:
        app = _dashboard(arguments.storage or os.environ.get("THAWLINE_STORAGE") or None, arguments.output_dir)
        check_port(port)
        _serve(app, port)
        return
    if arguments.storage is not None:
        raise ConfigError("--storage is where Optuna keeps studies", "Add --optuna to look at them.")
    database = arguments.output_dir / "mlflow.db"
    if not database.is_file():
        raise _nothing(database)
    check_port(port)
    _say("the MLflow UI", port, " once Uvicorn runs")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{database}"]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    os.execve(sys.executable, command, {**os.environ, **ENVIRONMENT})


def _dashboard(given: str | None, output_dir: Path) -> Callable[..., Iterable[bytes]]:
    """Optuna's dashboard as a WSGI application that changes nothing: a file of SQLite is opened for reading alone."""
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise ConfigError(
            "--optuna needs Optuna's dashboard, which is not installed",
            f"Install it: {sys.executable} -m pip install 'optuna-dashboard>=0.20' (thawline[dashboard])",
        ) from error
    from sqlalchemy import make_url

    from sweeper.ownership import sqlite_file
    from sweeper.storage import existing_storage, open_storage, storage_url

    url = storage_url(given, output_dir)
    if existing_storage(url) is None:
        raise _nothing(url)
    if (path := sqlite_file(make_url(url))) is not None:
        url = f"sqlite:///{path.as_uri()}?mode=ro&uri=true"
    app = wsgi(open_storage(url))

    def readable(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return app(environ, start_response)
        start_response("405 Method Not Allowed", [("Content-Type", "application/json"), ("Allow", "GET, HEAD")])
        return [b'{"reason": "thawline ui shows studies and changes none"}']

    return readable


def _serve(app: Callable[..., Iterable[bytes]], port: int) -> None:
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    class Handler(WSGIRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing of each request."""

    with make_server(HOST, port, app, Server, Handler) as server, contextlib.suppress(KeyboardInterrupt):
        _say("Optuna's dashboard", port)
        server.serve_forever()


def _say(what: str, port: int, when: str = "") -> None:
    print(f"Starting {what}: http://{HOST}:{port} answers{when}; Ctrl-C stops it.", flush=True)


def _nothing(place: object) -> StudyError:
    return StudyError(
        f"there is nothing in {place} yet, so nothing to show",
        "Run one study first: `make sweep`, or `thawline sweep`; --output-dir names another folder.",
    )


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
