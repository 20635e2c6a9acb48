"""``thawline serve``: a saved model behind MLflow's own scoring server, for this machine alone."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sweeper.tools.predict import add_model_arguments
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

    manifest = Manifest.read(folder) or Manifest(modality="text")
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
        environment = {**os.environ, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}
        with subprocess.Popen(command, env=environment) as server:
            try:
                status = server.wait()
            except KeyboardInterrupt:  # the server was told by the same key
                status = server.wait()
    sys.exit(max(status, 0))
