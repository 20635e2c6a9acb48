from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

#: In the checkout -> in the wheel.
FOLDERS = {"sweeper": "sweeper", "strategies": "strategies", "reports": "reports", "conf": "sweeper/conf"}


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--disable-pip-version-check", "--wheel-dir", str(folder), str(repository)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("thawline-*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (member,) = (member for member in wheel.namelist() if member.endswith(f".dist-info/{name}"))
    return wheel.read(member).decode()


@pytest.mark.parametrize("folder", FOLDERS)
def test_wheel_carries_the_whole_folder(repository: Path, wheel: zipfile.ZipFile, folder: str) -> None:
    source = repository / folder
    wanted = {
        f"{FOLDERS[folder]}/{path.relative_to(source).as_posix()}"
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert wanted, f"{folder}/ is empty"
    assert wanted - set(wheel.namelist()) == set()


def test_wheel_carries_what_the_command_reads_at_run_time(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert "sweeper/conf/config.yaml" in names
    assert any(name.startswith("sweeper/conf/strategy/") and name.endswith(".yaml") for name in names)
    assert any(name.startswith("reports/templates/") for name in names)


def test_wheel_adds_nothing_else_to_the_top_level(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sweeper", "strategies", "reports"}


def test_wheel_installs_the_command_and_its_license(wheel: zipfile.ZipFile) -> None:
    assert "thawline = sweeper.__main__:console" in metadata(wheel, "entry_points.txt").splitlines()
    fields = Parser().parsestr(metadata(wheel, "METADATA"))
    assert fields["License-Expression"] == "Apache-2.0"
    assert "Apache License" in metadata(wheel, "licenses/LICENSE")


def test_the_command_names_a_function_that_exists() -> None:
    from sweeper.__main__ import console

    assert callable(console)


def test_constraints_pin_every_dependency(repository: Path, wheel: zipfile.ZipFile) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = {}
    for line in (repository / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            pins[canonicalize_name(requirement.name)] = pin.version
    for text in Parser().parsestr(metadata(wheel, "METADATA")).get_all("Requires-Dist"):
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pins, f"constraints.txt does not pin {name}"
        assert requirement.specifier.contains(pins[name]), f"{text} does not allow {pins[name]}"


def test_the_installed_wheel_runs_from_an_empty_folder(
    wheel: zipfile.ZipFile, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    wheel.extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def python(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        result = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=240)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    assert python("-c", "import sweeper; print(sweeper.__file__)").startswith(str(site))
    text = python(
        "-m",
        "sweeper",
        "compare",
        "strategy=frozen,full",
        "experiment=smoke",
        "model=local",
        f"model.path={tiny_checkpoint}",
        "dry_run=true",
    )
    assert "nothing is started" in text
    assert "frozen" in text and "full" in text
