"""Where reports are written: a folder of their own, each file replaced in one step; markdown and HTML from one text."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports import formats
from sweeper.errors import ThawlineError
from sweeper.files import inside

if TYPE_CHECKING:
    from reports.plots import Drawing

__all__ = ["filled", "replace_file", "report_folder", "write_pages"]

_TEMPLATES = Path(__file__).parent / "templates"


def report_folder(reports_dir: Path, name: str) -> Path:
    """``reports_dir/<name>``, created; whatever the name, it stays inside.

    Raises:
        ThawlineError: it cannot be created, or is a link that leads out.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:120]
    if safe != name:  # two unsafe names must not share a folder
        safe = f"{safe or 'comparison'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    folder = inside(reports_dir, safe)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ThawlineError(f"cannot create {folder}: {error.strerror}", "Name another output_dir.") from error
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


def write_pages(
    folder: Path,
    name: str,
    template: str,
    context: Mapping[str, Any],
    *,
    drawings: Sequence[Drawing] = (),
    strategies: Sequence[str] = (),
) -> tuple[Path, ...]:
    """Write a report as ``<name>.md`` with its figures beside it, and as ``<name>.html``, which holds them.

    Figures of an older report that are no longer drawn are removed.

    Args:
        folder: of the report.
        name: of the two pages.
        template: in ``reports/templates/``; makes the markdown. A figure is there as ``figures.<its name>``.
        context: what the template shows; its logged text is escaped by the template or before.
        drawings: the figures.
        strategies: labels whose rows and marks belong together in the HTML page.

    Returns:
        The markdown page, the HTML page, then the figures.

    Raises:
        ThawlineError: a file cannot be written.
    """
    from reports.html import page_parts

    figures = {f"{drawing.name}.svg": drawing.svg() for drawing in drawings}
    pictures = defaultdict(str)  # what was not drawn is empty text
    for drawing in drawings:
        said = formats.escape(drawing.alt, limit=1200)
        first = re.split(r"(?<=\.) ", said)[0]
        pictures[drawing.name] = f"![{first}]({drawing.name}.svg)\n\n*{said}*"
    environment = _environment()
    rebuild = formats.rebuild_command
    if folder.parent.name == "reports":  # of an output folder, where MLflow's database is looked for
        rebuild = functools.partial(rebuild, output_dir=str(folder.parent.parent))
    environment.filters["rebuild"] = lambda names, installed, options=(): rebuild(
        *([names] if isinstance(names, str) else names), options=options, installed=installed
    )
    text = _tidy(environment.get_template(template).render(**context, figures=pictures))
    css, script = ((_TEMPLATES / file).read_text(encoding="utf-8") for file in ("page.css", "page.js"))
    parts = page_parts(text, figures, strategies, css=css, script=script)
    page = _environment(autoescape=True).get_template("page.html.j2").render(parts)
    written = []
    for file, content in {**figures, f"{name}.md": text, f"{name}.html": page}.items():
        _write_text(folder / file, content)
        written.append(folder / file)
    for old in folder.glob("*.svg"):
        if old.name not in figures:
            old.unlink(missing_ok=True)
    return (written[-2], written[-1], *written[:-2])


def filled(template: str, context: Mapping[str, Any]) -> str:
    """The markdown that a template makes of a context; see :func:`write_pages`."""
    return _tidy(_environment().get_template(template).render(**context))


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _write_text(path: Path, text: str) -> None:
    replace_file(path, lambda target: target.write_text(text, encoding="utf-8"))


def _environment(*, autoescape: bool = False) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=autoescape,
    )
    environment.filters |= {"text": formats.escape, "code": formats.code}
    return environment
