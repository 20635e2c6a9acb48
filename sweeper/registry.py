"""Saved models in MLflow: packed for ``mlflow.pyfunc``, and in its model registry.

A packed model brings the few files of the project that read it, so that it loads where the project is not installed.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import sweeper.tracking  # noqa: F401  # sets what mlflow reads when it is imported
from sweeper import schema
from sweeper.errors import StudyError
from sweeper.hub import MODEL_FILES
from sweeper.models import additions, classifier, packed, predictor, preprocessing
from sweeper.models.predictor import Manifest
from sweeper.secrets import redacted
from sweeper.versions import versions

# isort: split
import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema

__all__ = ["ALIAS", "pack", "register"]

ALIAS = "chosen"
_PACKAGE = "thawline_model"  # what the copied files are called in a packed model
_WEIGHTS = "thawline.weights"  # tag of a version: a hash of its weights


def register(uri: str, folder: Path, name: str, run_id: str) -> str:
    """Add a saved model to the registry and give it the alias ``chosen``; one that is there already is not added again.

    Args:
        uri: of MLflow, whose registry is used too.
        folder: of the saved model.
        name: of the registered model; created when missing.
        run_id: MLflow's, of the study that it comes from.

    Returns:
        The version's number.

    Raises:
        StudyError: MLflow does not take it.
    """
    try:
        client = MlflowClient(uri, registry_uri=uri)
        weights = _weights(folder)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        versions = client.search_model_versions(f"name = '{name}' and tags.`{_WEIGHTS}` = '{weights}'")
        number = str(versions[0].version) if versions else _add(client, folder, name, run_id, weights)
        client.set_registered_model_alias(name, ALIAS, number)
        return number
    except Exception as error:  # each store raises errors of its own, and the model is saved already
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StudyError(
            f"the model was not registered in MLflow at {redacted(uri)}: {redacted(reason)}",
            f"It is complete in {folder}; tracking.register=false leaves the registry out.",
        ) from error


def pack(folder: Path, path: Path, mlflow_model: Model | None = None) -> None:
    """Write a saved model as a model of MLflow, which ``mlflow.pyfunc.load_model`` reads and ``mlflow models`` serves.

    Its input is a table with a column ``text`` (and ``text_pair`` where it was trained on pairs), or ``image`` with
    the content of a file in base64; its output the columns ``label`` and ``score``, calibrated.

    Args:
        folder: of the saved model.
        path: created.
        mlflow_model: what MLflow has recorded of it so far.
    """
    manifest = Manifest.of(folder)
    columns = predictor.columns(manifest)
    example: dict[str, Any] = dict.fromkeys(columns, predictor.EXAMPLES[manifest.modality])
    with tempfile.TemporaryDirectory() as temporary:
        code = Path(temporary, _PACKAGE)
        code.mkdir()
        (code / "__init__.py").touch()
        for module in (additions, classifier, packed, predictor, preprocessing):
            shutil.copy(str(module.__file__), code)
        data = Path(temporary, "model")
        data.mkdir()
        for file in folder.iterdir():  # no exports, no adapter, nothing of the user's own
            if file.is_file() and MODEL_FILES.fullmatch(file.name):
                (data / file.name).symlink_to(file.resolve())
        mlflow.pyfunc.save_model(
            str(path),
            loader_module=f"{_PACKAGE}.{packed.__name__.rpartition('.')[2]}",
            data_path=str(data),
            code_paths=[str(code)],
            signature=ModelSignature(
                inputs=Schema([ColSpec("string", name) for name in columns]),
                outputs=Schema([ColSpec("string", "label"), ColSpec("double", "score")]),
            ),
            input_example=[example],
            pip_requirements=_requirements(manifest),
            mlflow_model=mlflow_model,
        )


def _add(client: MlflowClient, folder: Path, name: str, run_id: str, weights: str) -> str:
    run = client.get_run(run_id)
    tags: dict[str, str] = {
        key: run.data.tags[key] for key in (schema.TAG_STUDY, schema.TAG_COMPARISON) if key in run.data.tags
    }
    logged = client.create_logged_model(
        run.info.experiment_id, name=name, source_run_id=run_id, tags=tags, model_type="classifier"
    )
    described = Model(
        artifact_path=logged.artifact_location, model_uuid=logged.model_id, run_id=run_id, model_id=logged.model_id
    )
    try:
        with tempfile.TemporaryDirectory() as temporary:
            pack(folder, Path(temporary, "model"), described)
            client.log_model_artifacts(logged.model_id, str(Path(temporary, "model")))
    except Exception:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    added = client.create_model_version(
        name, logged.artifact_location, run_id, tags={**tags, _WEIGHTS: weights}, model_id=logged.model_id
    )
    return str(added.version)


def _weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _requirements(manifest: Manifest) -> list[str]:
    """What reading and running the model needs, as installed here."""
    packages = ["torch", "transformers", "safetensors", "numpy", "pandas", "pillow"]
    packages += ["timm", "torchvision"] if manifest.modality == "image" else ["sentencepiece"]
    installed = versions(packages)
    return [f"{package}=={installed[package]}" for package in packages]  # an error where one is missing
