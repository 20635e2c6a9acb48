"""Where reports are written: a folder of their own, each file replaced in one step."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reports import formats
from sweeper.errors import ThawlineError

__all__ = ["replace_file", "report_folder", "write_markdown"]

_TEMPLATES = Path(__file__).parent / "templates"


def report_folder(reports_dir: Path, name: str) -> Path:
    """``reports_dir/<name>``, created; whatever the name, it stays inside.

    Raises:
        ThawlineError: it cannot be created, or is a link that leads out.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:120]
    if safe != name:  # two unsafe names must not share a folder
        safe = f"{safe or 'comparison'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    folder = reports_dir / safe
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ThawlineError(f"cannot create {folder}: {error.strerror}", "Name another output_dir.") from error
    if folder.resolve().parent != reports_dir.resolve():
        raise ThawlineError(f"{folder} leads out of {reports_dir}", "Remove the link, or name another output_dir.")
    return folder


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in its place in one step.

    Raises:
        ThawlineError: it cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise ThawlineError(
            f"cannot write {path}: {error.strerror}", "Free the place, or name another output_dir."
        ) from (error)
    finally:
        temporary.unlink(missing_ok=True)


def write_markdown(path: Path, template: str, context: Mapping[str, Any]) -> None:
    """Fill a template of ``reports/templates/`` and put it at ``path``.

    Raises:
        ThawlineError: it cannot be written.
    """
    text = _environment().get_template(template).render(**context)
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    replace_file(path, lambda target: target.write_text(text, encoding="utf-8"))


def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"text": formats.escape, "code": formats.code}
    return environment
