"""What the source never does: load what could run code, ask a shell, listen to other machines, tell others of a run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("sweeper", "strategies", "reports")
#: Calls that run what a file holds, and what makes one of them harmless.
FORBIDDEN = {
    "pickle.load": None,
    "pickle.loads": None,
    "pickle.Unpickler": None,
    "pd.read_pickle": None,
    "joblib.load": None,
    "dill.load": None,
    "shelve.open": None,
    "marshal.loads": None,
    "yaml.load": None,  # yaml.safe_load is
    "yaml.unsafe_load": None,
    "yaml.full_load": None,
    "os.system": None,
    "eval": None,
    "exec": None,
    "torch.load": ("weights_only", True),
}
#: What the owner and the workers that it started send each other is pickled; no other user can write there.
BETWEEN_PROCESSES = (
    *(f"sweeper/engine/{name}.py" for name in ("worker", "processes", "ray")),
    "sweeper/training/replicas.py",
)
#: Arguments that no call has.
ARGUMENTS = {("allow_pickle", True), ("weights_only", False), ("trust_remote_code", True), ("shell", True)}


def findings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        given = []
        if isinstance(node, ast.Call):
            given = [(item.arg, getattr(item.value, "value", None)) for item in node.keywords]
            name = ast.unparse(node.func)
            if name in FORBIDDEN and FORBIDDEN[name] not in given:
                yield f"line {node.lineno}: {name}"
        elif isinstance(node, ast.Dict):  # keywords that are handed on
            given = [
                (getattr(k, "value", None), getattr(v, "value", None))
                for k, v in zip(node.keys, node.values, strict=True)
            ]
        yield from (f"line {node.lineno}: {name}={value}" for name, value in given if (name, value) in ARGUMENTS)
        if isinstance(node, ast.Constant) and node.value == "0.0.0.0":
            yield f"line {node.lineno}: {node.value}"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_loaded_that_could_run_code(repository: Path, package: str) -> None:
    paths = {path.relative_to(repository).as_posix(): path for path in (repository / package).rglob("*.py")}
    found = {name: list(findings(path.read_text())) for name, path in paths.items() if name not in BETWEEN_PROCESSES}
    assert found and not any(found.values()), {name: lines for name, lines in found.items() if lines}


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "f(**{'trust_remote_code': True})",
        "pickle.loads(data)",
        "yaml.load(text, Loader)",
        "subprocess.run(line, shell=True)",
        "serve(host='0.0.0.0')",
    ],
)
def test_what_could_run_code_is_found(source: str) -> None:
    assert list(findings(source))
    assert not list(findings("torch.load(path, weights_only=True)"))


def test_make_ui_serves_this_machine_and_nothing_is_told_to_others(repository: Path) -> None:
    makefile = (repository / "Makefile").read_text()
    assert "-m sweeper ui" in makefile and "0.0.0.0" not in makefile
    assert 'HOST = "127.0.0.1"' in (repository / "sweeper" / "tools" / "ui.py").read_text()
    assert "export MLFLOW_DISABLE_TELEMETRY := true" in makefile
