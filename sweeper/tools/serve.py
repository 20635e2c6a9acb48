"""``thawline serve``: a saved model behind MLflow's own scoring server, for this machine alone."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from sweeper.tools.predict import add_model_arguments, said_of_model
from sweeper.tools.ui import HOST, check_port
from sweeper.winners import chosen_model

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_model_arguments(parser)
    parser.add_argument("--port", type=int, default=5001, help="where it listens on 127.0.0.1 (default: 5001)")


def run(arguments: argparse.Namespace) -> None:
    """Pack the model and serve it until Ctrl-C.

    Raises:
        StudyError: there is no model yet.
        ConfigError: there is no such model, or the port is none, or taken.
    """
    folder = chosen_model(arguments.model, arguments.output_dir)
    check_port(arguments.port)
    from sweeper.models.predictor import EXAMPLES, Manifest, columns
    from sweeper.registry import pack

    with said_of_model(folder):
        manifest = Manifest.of(folder)
    record = {name: EXAMPLES[manifest.modality] for name in columns(manifest)}
    url = f"http://{HOST}:{arguments.port}"
    print(f"model: {folder}\nServing it on {url} once Uvicorn runs; Ctrl-C stops it. Ask it by")
    body = json.dumps({"dataframe_records": [record]})
    print(f"curl {url}/invocations -H 'Content-Type: application/json' -d '{body}'", flush=True)
    with tempfile.TemporaryDirectory(prefix="thawline-") as temporary:
        model = Path(temporary, "model")
        pack(folder, model)
        command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(model)]
        command += ["--env-manager", "local", "--host", HOST, "--port", str(arguments.port), "--workers", "1"]
        # MLflow looks for uvicorn on the path, which need not hold this environment.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        sys.exit(_run(command, {**os.environ, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}))


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Run a command to its end, which Ctrl-C or SIGTERM brings to it and all that it started; its status.

    0 where it was told to stop, which is how a server ends.
    """

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with subprocess.Popen(command, env=environment, process_group=0) as server:
        try:
            return max(server.wait(), 0)
        except KeyboardInterrupt:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()
            return 0
