"""What a machine brings along: checks, each of which says how to mend what is wrong. Nothing is created or fetched."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from packaging.requirements import Requirement

from sweeper.assets import ASSETS, CACHE_VARIABLE, cache_root, cached
from sweeper.errors import StudyError, ThawlineError
from sweeper.secrets import redacted

__all__ = ["CHECKS", "Check", "Places", "checked"]

PACKAGE: Final = "thawline"
SCARCE, TOO_LITTLE = 5e9, 5e8  # bytes: of free disk, below which a sweep may end early, or at once
SECONDS: Final = 4.0  # to an answer of a server
EXPERIMENT: Final = "thawline"  # the default of tracking.experiment

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """What was looked at, and how it is; ``hint`` is what to do where it is not ``ok``."""

    name: str
    status: Status
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Places:
    """Where a sweep would write: its folder, Optuna's storage and MLflow; ``None`` is a database in the folder."""

    output_dir: Path
    storage: str | None = None
    tracking_uri: str | None = None


def checked(places: Places) -> Iterator[Check]:
    """All checks, one after the other; one that fails itself is a problem, with the error that it met."""
    for name, check in CHECKS.items():
        try:
            found = [Check(name, *result) for result in check(places)]
        except ThawlineError as error:
            found = [Check(name, "problem", error.message, error.hint)]
        except Exception as error:  # what is broken here can be anything, as a library that does not load
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            found = [
                Check(
                    name,
                    "problem",
                    f"cannot be checked: {reason}",
                    _ANEW,
                )
            ]
        yield from (Check(item.name, item.status, redacted(item.message), redacted(item.hint)) for item in found)


_ANEW = "Mend what is said above first; if that is nothing, build the environment anew."
_Result = tuple[Status, str] | tuple[Status, str, str]


# --- what is installed -------------------------------------------------------------------------------------------


def _python(places: Places) -> Iterator[_Result]:
    required = Requirement(f"python{metadata.metadata(PACKAGE)['Requires-Python'] or ''}").specifier
    found = platform.python_version()
    if required.contains(found, prereleases=True):
        yield "ok", f"{found}, {sys.executable}"
    else:
        yield "problem", f"{found} does not fit {required}", "Build the environment anew with another Python."


def _packages(places: Places) -> Iterator[_Result]:
    required = [item for item in _requirements() if item.marker is None or item.marker.evaluate({"extra": ""})]
    wrong = [problem for item in required if (problem := _unmet(item))]
    yield from wrong
    if not wrong:
        shown = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "optuna", "mlflow"))
        yield "ok", f"{PACKAGE} {metadata.version(PACKAGE)} and its {len(required)} requirements: {shown} ..."


def _requirements() -> list[Requirement]:
    unique = {text: Requirement(text) for text in metadata.requires(PACKAGE) or []}
    return list(unique.values())


def _unmet(required: Requirement) -> tuple[Status, str, str] | None:
    """What is wrong with a package: it is missing, of a version that is not allowed, or there twice."""
    found = [(item.version, str(item.locate_file(""))) for item in metadata.distributions(name=required.name)]
    install = f"{sys.executable} -m pip install '{required.name}{required.specifier}'"
    if not found:
        return "problem", f"{required.name} is not installed", f"Install it: {install}"
    version, folder = found[0]
    if not required.specifier.contains(version, prereleases=True):
        return "problem", f"{required.name} is {version}, and must be {required.specifier}", f"Replace it: {install}"
    if len({place for _, place in found}) < len(found):  # one folder has two records of it: files of two versions
        versions = " and ".join(sorted({item for item, _ in found}))
        again = f"{sys.executable} -m pip uninstall {required.name}, until none is left, then: {install}"
        return "warning", f"{required.name} is installed twice in {folder}: {versions}", again
    return None


def _extras(places: Places) -> Iterator[_Result]:
    there, missing = [], []
    for extra in metadata.metadata(PACKAGE).get_all("Provides-Extra") or []:
        own = [item for item in _requirements() if item.marker and item.marker.evaluate({"extra": extra})]
        own = [item for item in own if not item.marker.evaluate({"extra": ""})]  # type: ignore[union-attr]
        problems = [problem for item in own if (problem := _unmet(item))]
        if extra == "dev":
            continue
        if any("not installed" in message for _, message, _ in problems):
            missing.append(extra)
        elif problems:
            yield problems[0]
        else:
            there.append(extra)
    absent = f"not installed: {', '.join(missing)} (pip install '{PACKAGE}[{missing[0]}]')" if missing else ""
    yield "ok", "; ".join(filter(None, [", ".join(there), absent])) or "none"


# --- what computes -----------------------------------------------------------------------------------------------


def _device(places: Places) -> Iterator[_Result]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        yield "ok", ", ".join(f"{item.name}, {item.total_memory / 1e9:.0f} GB" for item in names)
    elif shutil.which("nvidia-smi"):
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        yield (
            "warning",
            f"there is an NVIDIA driver, and torch {torch.__version__}, built {build}, finds no device",
            "Compare the driver's version (nvidia-smi) with torch's; CUDA_VISIBLE_DEVICES may hide the device.",
        )
    else:
        yield "ok", f"CPU ({torch.backends.cpu.get_cpu_capability()}, {_cores()} cores), no CUDA device"


def _precision(places: Places) -> Iterator[_Result]:
    from sweeper.training.precision import device, resolve_precision

    if resolve_precision("auto") == "fp32":
        yield "ok", "fp32: this device does not compute in bf16"
    elif device().type == "cpu":
        yield "ok", "bf16, or fp32 for models that it makes no faster (trainer.precision=auto)"
    else:
        yield "ok", "bf16 (trainer.precision=auto)"


def _threads(places: Places) -> Iterator[_Result]:
    import torch

    threads, cores = torch.get_num_threads(), _cores()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    policy = os.environ.get("OMP_WAIT_POLICY", "").upper()
    if threads > cores:
        yield "warning", f"{threads} threads for {cores} cores slow each other", f"export OMP_NUM_THREADS={cores}"
    elif policy != "PASSIVE" and load > cores / 2:
        yield (
            "warning",
            f"{threads} threads, and the machine is busy (load {load:.1f}): threads that spin while they wait slow all",
            "export OMP_WAIT_POLICY=PASSIVE",
        )
    else:
        waiting = "that wait without spinning" if policy == "PASSIVE" else "(OMP_WAIT_POLICY=PASSIVE on busy machines)"
        yield "ok", f"{threads} for {cores} cores, {waiting}"


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- where it writes ---------------------------------------------------------------------------------------------


def _output(places: Places) -> Iterator[_Result]:
    from sweeper.files import check_writable
    from sweeper.ownership import holder

    folder = places.output_dir
    check_writable(folder)
    yield _room(folder, "is writable" if folder.exists() else "will be made", "Make room, or name another output_dir.")
    if owner := holder(folder):
        yield (
            "warning",
            f"{folder} is in use by {owner}",
            "That is a sweep at work: wait until it ends, or give another one its own folder, output_dir=<folder>.",
        )


def _cache(places: Places) -> Iterator[_Result]:
    root = cache_root()
    move = f"Free some space there, or set {CACHE_VARIABLE} to another folder."
    nearest = _nearest(root)
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        yield "problem", f"{root} cannot be written to: {error.strerror}", move
        return
    states, all_ = _size(root / "states"), _size(root)
    yield _room(root, f"holds {_bytes(all_)}, {_bytes(states)} of it recorded states", move)


def _assets(places: Places) -> Iterator[_Result]:
    found = {name: cached(name) for name in ASSETS}
    if damaged := [name for name, state in found.items() if state is None]:
        yield "warning", f"damaged: {', '.join(damaged)}", "Nothing to do: the next command that needs one fetches it."
    missing = [name for name, state in found.items() if state is False]
    size = sum(ASSETS[name].size for name in missing)
    if missing and find_spec("pip") is None:
        yield (
            "warning",
            f"not fetched yet: {', '.join(missing)}, and there is no pip to fetch them",
            f"{sys.executable} -m ensurepip",
        )
    else:
        later = f"; not fetched yet, {_bytes(size)} when asked for: {', '.join(missing)}" if missing else ""
        yield "ok", (", ".join(name for name, state in found.items() if state) or "none fetched") + later


def _room(folder: Path, what: str, hint: str) -> _Result:
    free = shutil.disk_usage(_nearest(folder)).free
    message = f"{folder} {what}, {_bytes(free)} free"
    if free > SCARCE:
        return "ok", message
    return ("warning" if free > TOO_LITTLE else "problem"), message, hint


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _size(folder: Path) -> int:
    """Bytes of all files below a folder; some may go away meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total


def _bytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


# --- whom it talks to --------------------------------------------------------------------------------------------


def _storage(places: Places) -> Iterator[_Result]:
    from sweeper.storage import existing_storage, storage_url

    given = places.storage or os.environ.get("THAWLINE_STORAGE") or None
    url = storage_url(given, places.output_dir)
    storage = existing_storage(url)
    path = Path(url.removeprefix("sqlite:///"))
    if storage is None and given and url.startswith("sqlite:///") and not path.parent.is_dir():
        yield "problem", f"{url}: there is no folder {path.parent}", "Make it, or name another storage."
    elif storage is None:
        yield "ok", f"{url} holds no study yet; the first sweep makes its tables"
    else:
        yield "ok", f"{url} opens: {len(storage.get_all_studies())} studies"


def _tracking(places: Places) -> Iterator[_Result]:
    from sweeper.outbox import FILE, waiting_for

    uri = places.tracking_uri or f"sqlite:///{places.output_dir / 'mlflow.db'}"
    if uri.startswith(("http://", "https://")):
        if problem := _unreachable(f"{uri.rstrip('/')}/health"):
            hint = "Start the server, or mend tracking.uri. A sweep goes on without it, and tells it all of it later."
            yield "warning", f"MLflow at {uri} does not answer: {problem}", hint
        else:
            yield "ok", f"{uri} answers"
    elif uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        yield "ok", f"{uri}: {_runs(path):,} runs" if path.exists() else f"{uri} will be made by the first sweep"
    else:
        yield "ok", f"{uri}, which is not looked at"
    if waiting := waiting_for(places.output_dir / FILE, redacted(uri), EXPERIMENT):
        yield "warning", f"{waiting} writes wait for MLflow", "The next sweep or report sends them: thawline report"


def _runs(path: Path) -> int:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=SECONDS)) as database:
            return int(database.execute("SELECT count(*) FROM runs").fetchone()[0])
    except sqlite3.Error as error:
        raise StudyError(
            f"MLflow's database {path} cannot be read: {error}",
            "Move it away, or name another with --tracking-uri; `mlflow db upgrade` mends one of an older MLflow.",
        ) from error


def _hub(places: Places) -> Iterator[_Result]:
    from huggingface_hub import constants, get_token

    endpoint = constants.ENDPOINT
    token = "a token is set" if get_token() else "no token, which only gated and private ones need"
    if constants.is_offline_mode():
        yield "ok", f"{constants.HF_HUB_CACHE} alone is read, as HF_HUB_OFFLINE says"
    elif problem := _unreachable(endpoint):
        yield (
            "warning",
            f"{endpoint} does not answer: {problem}",
            "The embedded models and data and your own do without it. Else look at HF_ENDPOINT and the proxy; "
            "HF_HUB_OFFLINE=1 reads what was fetched before.",
        )
    else:
        yield "ok", f"{endpoint} answers; {token}"


def _unreachable(url: str) -> str:
    """Why there is no good answer; empty where there is one."""
    import httpx2

    try:
        status = httpx2.head(url, timeout=SECONDS, follow_redirects=True).status_code
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return str(error).strip() or f"nothing within {SECONDS:.0f} s"
    return f"status {status}" if status >= 500 else ""


#: Name -> what looks, in the order of their lines.
CHECKS: Final[dict[str, Callable[[Places], Iterator[_Result]]]] = {
    "python": _python,
    "packages": _packages,
    "extras": _extras,
    "device": _device,
    "precision": _precision,
    "threads": _threads,
    "output_dir": _output,
    "cache": _cache,
    "assets": _assets,
    "storage": _storage,
    "mlflow": _tracking,
    "hub": _hub,
}
