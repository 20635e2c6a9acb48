"""Fetching pinned wheels: what is unpacked, what is checked, and what the errors tell the user."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import textwrap
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from sweeper.assets import ASSETS, CACHE_VARIABLE, Asset, cache_root, fetch
from sweeper.errors import AssetError

WHEEL = "thawline_fake_asset-1.0-py3-none-any.whl"
MEMBERS = {
    "fake/model/config.json": b'{"right": true}',
    "fake/model/1_Pooling/config.json": b'{"right": false}',
    "fake/__init__.py": b"raise SystemExit('the package was imported')",
    "fake/images/a/1.jpg": b"one",
    "fake/images/b/2.jpg": b"two",
    "thawline_fake_asset-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: thawline-fake-asset\nVersion: 1.0\n",
    "thawline_fake_asset-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "thawline_fake_asset-1.0.dist-info/RECORD": b"",
}


def write_wheel(folder: Path, members: dict[str, bytes] = MEMBERS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # a fixed date: the same bytes every time
    return path


def fake_asset(wheel: Path, **changes: object) -> Asset:
    asset = Asset(
        name="fake",
        package="thawline-fake-asset",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        size=wheel.stat().st_size,
        files={"fake/model/config.json": "config.json", "fake/images/": "images/"},
        licence="Apache-2.0",
        description="a wheel made for this test",
    )
    return replace(asset, **changes)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is pip's only source: no test that uses it reaches the network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fake(index, cache, monkeypatch):
    """An asset that pip finds in the index."""
    asset = fake_asset(write_wheel(index))
    monkeypatch.setitem(ASSETS, "fake", asset)
    return asset


@pytest.fixture
def placed(fake, index, cache):
    """The wheel of the same asset, placed by hand: quicker where pip is not the subject."""
    (index / WHEEL).unlink()
    return write_wheel(cache / "wheels")


def test_only_the_named_files_are_unpacked_and_progress_is_one_line(fake, cache, capfd):
    folder = fetch("fake")

    assert capfd.readouterr() == ("", "Fetching fake: thawline-fake-asset 1.0 (0 MB)\n")
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}
    assert files == {"config.json", "images/a/1.jpg", "images/b/2.jpg"}
    assert (folder / "config.json").read_bytes() == MEMBERS["fake/model/config.json"]
    assert not list(cache.rglob("*.whl")), "the wheel is deleted once it is unpacked"
    assert [path.name for path in (cache / "assets").iterdir() if path.is_dir()] == [folder.name]


def test_a_complete_cache_needs_neither_a_wheel_nor_a_writable_folder(placed, cache):
    folder = fetch("fake")
    placed.unlink()
    writable = [path for path in (cache, cache / "assets", folder) if path.chmod(0o555) is None]
    try:
        assert fetch("fake") == folder
    finally:
        for path in writable:
            path.chmod(0o755)


@pytest.mark.parametrize("damage", ["change", "delete", "truncate the manifest"])
def test_a_damaged_file_is_fetched_again_with_a_warning(placed, caplog, damage):
    folder = fetch("fake")
    if damage == "change":
        (folder / "config.json").write_bytes(b'{"right": None}')
    elif damage == "delete":
        (folder / "images/a/1.jpg").unlink()
    else:
        (folder / ".manifest.json").write_text("{")

    with caplog.at_level(logging.WARNING):
        assert fetch("fake") == folder

    assert "fake" in caplog.text and "damaged" in caplog.text
    assert (folder / "config.json").read_bytes() == MEMBERS["fake/model/config.json"]
    assert (folder / "images/a/1.jpg").read_bytes() == b"one"


def test_a_damaged_file_is_an_error_when_it_cannot_be_fetched_again(placed):
    (fetch("fake") / "config.json").write_bytes(b"{}")
    placed.unlink()
    with pytest.raises(AssetError, match="cannot download"):
        fetch("fake")


def test_another_pin_is_another_folder(placed, cache, monkeypatch):
    first = fetch("fake")
    wheel = write_wheel(cache / "wheels", MEMBERS | {"fake/model/config.json": b'{"new": 1}'})
    monkeypatch.setitem(ASSETS, "fake", fake_asset(wheel))
    second = fetch("fake")
    assert second != first
    assert json.loads((second / "config.json").read_text()) == {"new": 1}


def test_a_download_with_another_hash_is_refused(fake, index, cache):
    found = hashlib.sha256(write_wheel(index, MEMBERS | {"fake/extra": b"tampered"}).read_bytes()).hexdigest()
    with pytest.raises(AssetError) as error:
        fetch("fake")
    assert fake.sha256 in str(error.value) and found in str(error.value)
    assert "pip config" in error.value.hint
    assert not list(cache.rglob("config.json"))


def test_a_wheel_placed_by_hand_is_used_and_kept(placed):
    assert (fetch("fake") / "config.json").exists()
    assert placed.exists()


def test_a_wrong_wheel_placed_by_hand_is_refused(fake, cache):
    placed = write_wheel(cache / "wheels", MEMBERS | {"fake/extra": b"tampered"})
    with pytest.raises(AssetError) as error:
        fetch("fake")
    assert fake.sha256 in str(error.value)
    assert hashlib.sha256(placed.read_bytes()).hexdigest() in str(error.value)
    assert str(placed) in str(error.value)


def test_an_empty_cache_without_network_says_where_to_put_the_wheel(fake, index, cache, capfd, monkeypatch):
    (index / WHEEL).unlink()
    monkeypatch.setenv("PIP_VERBOSE", "3")
    with pytest.raises(AssetError) as error:
        fetch("fake")
    message = str(error.value)
    for part in ("thawline-fake-asset==1.0", fake.sha256, str(cache / "wheels"), "No matching distribution"):
        assert part in message
    assert len(message.splitlines()) <= 6
    shown = capfd.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1, "pip's own output is not passed on"
    assert [path.name for path in (cache / "assets").iterdir() if path.is_dir()] == []


def test_an_environment_without_pip_is_named(fake, tmp_path, monkeypatch, capfd):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    bare = str(tmp_path / "bare/bin/python")
    monkeypatch.setattr(sys, "executable", bare)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(AssetError, match="no pip") as error:
        fetch("fake", progress=False)
    assert capfd.readouterr() == ("", "")
    assert bare in str(error.value) and "ensurepip" in error.value.hint


def test_a_member_cannot_be_written_outside_of_the_folder(cache, monkeypatch):
    wheel = write_wheel(cache / "wheels", MEMBERS | {"fake/images/../../../../evil": b"evil"})
    monkeypatch.setitem(ASSETS, "fake", fake_asset(wheel))
    with pytest.raises(AssetError, match="outside"):
        fetch("fake")
    assert not list(cache.parent.rglob("evil"))


def test_a_wheel_without_the_named_file_is_an_error(cache, monkeypatch):
    wheel = write_wheel(cache / "wheels")
    monkeypatch.setitem(ASSETS, "fake", fake_asset(wheel, files={"fake/model/no.bin": "no.bin"}))
    with pytest.raises(AssetError, match=r"fake/model/no\.bin"):
        fetch("fake")


def test_a_cache_that_cannot_be_written_is_named(fake, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(AssetError, match="cannot write") as error:
        fetch("fake", cache_dir=tmp_path / "file")
    assert CACHE_VARIABLE in error.value.hint


def test_two_processes_fetch_once(fake, index, cache, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            from sweeper.assets import ASSETS, Asset, fetch
            ASSETS["fake"] = Asset(
                "fake", {fake.package!r}, {fake.version!r}, {fake.sha256!r}, {fake.size}, {dict(fake.files)!r}, "", ""
            )
            print("ready", flush=True)
            sys.stdin.readline()
            print((fetch("fake") / "config.json").read_text())
            """
        )
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([sys.executable, str(script)], env=environment, **pipes) for _ in range(2)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in running]

    assert [process.returncode for process in running] == [0, 0], results
    assert [out.strip() for out, _ in results] == ['{"right": true}'] * 2
    assert sum(err.count("Fetching fake") for _, err in results) == 1


def test_an_unknown_asset_names_the_known_ones():
    with pytest.raises(AssetError, match="did you mean 'minilm'"):
        fetch("minilmm")


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_root().name == "thawline"


def test_every_asset_is_documented():
    text = (Path(__file__).parents[2] / "docs/assets.md").read_text(encoding="utf-8")
    for name, asset in ASSETS.items():
        assert name == asset.name
        for part in (f"`{name}`", asset.requirement, asset.sha256, asset.licence):
            assert part in text, f"docs/assets.md does not give {part} of {name}"


def test_minilm_is_the_checkpoint_and_not_its_pooling_layer():
    config = json.loads((fetch("minilm") / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == ("bert", 6, 384)


def test_minilm_tokenizes_from_the_unpacked_files():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(fetch("minilm"))
    assert tokenizer("An Embrace!")["input_ids"] == [101, 2019, 9979, 999, 102]
