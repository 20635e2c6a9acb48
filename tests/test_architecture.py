"""Which package may import which: ``conf -> sweeper -> strategies``, ``sweeper -> MLflow -> reports``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Package -> what no file of it imports.
FORBIDDEN = {
    "strategies": {"hydra", "omegaconf", "optuna", "mlflow", "sweeper", "reports"},
    "reports": {"torch", "optuna", "transformers", "peft", "accelerate", "hydra", "omegaconf", "strategies"},
}
#: What few files of ``sweeper`` import -> those files.
RESERVED = {
    "mlflow": {"sweeper/tracking.py", "sweeper/registry.py", "sweeper/models/packed.py"},
    "reports": {"sweeper/commands.py", "sweeper/api.py"},
}
#: What ``reports`` uses of the engine.
SHARED = ("sweeper.schema", "sweeper.errors", "sweeper.files")


def imports_of(source: str, package: str) -> set[str]:
    """Dotted names that a file of ``package`` imports, wherever in the file, those inside functions included.

    ``from a.b import c`` counts as ``a.b.c``, because ``c`` may be a module. A name given as a literal to
    ``import_module`` or ``__import__`` counts too.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                names.add(node.args[0].value)
    return names


def within(name: str, parents: set[str] | tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def files_of(repository: Path, package: str) -> Iterator[tuple[str, set[str]]]:
    """Each file of a package, with what it imports."""
    paths = sorted((repository / package).rglob("*.py"))
    assert paths, f"{package}/ has no Python files"
    for path in paths:
        relative = path.relative_to(repository)
        yield relative.as_posix(), imports_of(path.read_text(), ".".join(relative.parts[:-1]))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_does_not_import(repository: Path, package: str) -> None:
    wrong = {
        file: bad
        for file, names in files_of(repository, package)
        if (bad := sorted(name for name in names if within(name, FORBIDDEN[package])))
    }
    assert not wrong


def test_reports_use_only_the_names_the_engine_writes_and_its_errors(repository: Path) -> None:
    wrong = {
        file: bad
        for file, names in files_of(repository, "reports")
        if (bad := sorted(name for name in names if within(name, {"sweeper"}) and not within(name, SHARED)))
    }
    assert not wrong


@pytest.mark.parametrize("module", RESERVED)
def test_only_few_files_of_the_engine_import(repository: Path, module: str) -> None:
    importing = {
        file for file, names in files_of(repository, "sweeper") if any(within(name, {module}) for name in names)
    }
    assert importing == RESERVED[module]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import mlflow.tracking as t", {"mlflow.tracking"}),
        ("from sweeper import schema, study", {"sweeper.schema", "sweeper.study"}),
        ("def f():\n    from mlflow import MlflowClient", {"mlflow.MlflowClient"}),
        ("from . import a\nfrom .b import c\nfrom .. import d", {"sweeper.data.a", "sweeper.data.b.c", "sweeper.d"}),
        ("import importlib\nimportlib.import_module('torch.nn')", {"importlib", "torch.nn"}),
        ("text = 'import mlflow'", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, expected: set[str]) -> None:
    assert imports_of(source, "sweeper.data") == expected
