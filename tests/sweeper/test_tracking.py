"""What is written to MLflow beside the runs of a study."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from sweeper.errors import StudyError
from sweeper.tracking import log_report


def test_a_report_is_found_with_its_run_and_what_cannot_be_logged_is_said(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    page = tmp_path / "report.html"
    page.write_text("<p>")
    run = client.create_run(client.create_experiment("open", artifact_location=(tmp_path / "art").as_uri()))
    log_report(uri, run.info.run_id, [page])
    assert [file.path for file in client.list_artifacts(run.info.run_id, "report")] == ["report/report.html"]

    closed = client.create_run(client.create_experiment("closed", artifact_location=page.as_uri()))  # a file, no folder
    for unknown in (closed.info.run_id, "0" * 32):
        with pytest.raises(StudyError, match="the report was not logged"):
            log_report(uri, unknown, [page])
