"""How numbers and foreign text appear in a report: short for people, safe for GitHub-flavoured markdown.

A missing number (``None`` or NaN) is always the dash of ``MISSING``. Text that was logged (labels, reasons, commands)
is never trusted to be free of markup.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

__all__ = [
    "MISSING",
    "accuracy",
    "class_name",
    "code",
    "count",
    "different",
    "duration",
    "escape",
    "fence",
    "floor_name",
    "hydra_quoted",
    "is_installed",
    "is_missing",
    "joined",
    "markdown_table",
    "percent",
    "rebuild_command",
    "score",
    "score_interval",
    "setting",
    "signed",
    "size",
]

MISSING = "\N{EN DASH}"
#: ``floor`` param -> what a sentence calls it, and a narrow table or a figure.
_FLOORS = {
    "majority": ("majority class", "majority class"),
    "tfidf_logreg": ("TF-IDF + logistic regression", "TF-IDF + logistic"),
    "pixels_logreg": ("raw pixels + logistic regression", "pixels + logistic"),
    "zero_shot": ("zero-shot", "zero-shot"),
}
_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_BARE_PATH = re.compile(r"[A-Za-z0-9_./-]+")
_OUTPUT_DIR = "outputs"  # the default
_WORDS = ("null", "true", "false", "nan", "inf")  # to Hydra no text
_MINUS = "\N{MINUS SIGN}"


def floor_name(name: str, *, short: bool = False) -> str:
    """A floor as a reader knows it; an unknown one by its own name."""
    return _FLOORS.get(name, (name, name))[short]


def class_name(label: object, names: object) -> str:
    """A class as a reader knows it, not escaped: predictions may hold its number in the order of ``names``.

    Args:
        label: as predictions hold it.
        names: the list of the classes' names; anything else, as a foreign record may hold, names none.
    """
    text = str(label)
    if isinstance(names, list) and text.isdecimal() and int(text) < len(names):
        return str(names[int(text)])
    return text


def is_installed(revision: object) -> bool:
    """Whether a recorded revision is that of an installed package, and no commit."""
    return str(revision).startswith(("thawline", "installed package"))  # the second: as earlier versions had it


def rebuild_command(
    *comparisons: str, output_dir: str = _OUTPUT_DIR, options: Sequence[str] = (), installed: bool = False
) -> str:
    """The command that writes a report again, as a code span; not for table cells. ``output_dir`` holds MLflow.

    ``options`` are further overrides, of plain characters; ``installed`` leaves make out, which a clone alone has.

    Names that make, its shell and Hydra would all read as they stand go through make. Others are quoted for Hydra and
    for a shell, and make is left out, which would need a third quoting. Names are single lines, as MLflow's tags are.
    """
    elsewhere = output_dir != _OUTPUT_DIR
    bare = all(_BARE.fullmatch(name) and name.lower() not in _WORDS for name in comparisons)
    bare_path = _BARE_PATH.fullmatch(output_dir)
    if not installed and bare and (not elsewhere or bare_path):
        overrides = [*([f"output_dir={output_dir}"] if elsewhere else []), *options]
        where = f' ARGS="{" ".join(overrides)}"' if overrides else ""
        return code(f"make report COMPARISON={','.join(comparisons)}{where}")
    names = ",".join(comparisons if bare else map(hydra_quoted, comparisons))
    given = names if bare or len(comparisons) == 1 else f"[{names}]"
    program = "thawline" if installed else "python -m sweeper"
    command = f"{program} report {shlex.quote(f'report.comparison={given}')}"
    if elsewhere:
        command += f" {shlex.quote(f'output_dir={output_dir if bare_path else hydra_quoted(output_dir)}')}"
    command += "".join(f" {option}" for option in options)
    ticks = "`" * (1 + max((len(run) for run in re.findall(r"`+", command)), default=0))
    pad = " " if len(ticks) > 1 else ""
    return f"{ticks}{pad}{command}{pad}{ticks}"


def hydra_quoted(text: str) -> str:
    """Text in the quotes that Hydra reads."""
    return "'" + re.sub(r"(\\*)('|$)", _hydra_escaped, text) + "'"


def _hydra_escaped(match: re.Match[str]) -> str:
    """Backslashes double before a quote and at the end, where Hydra reads them; elsewhere it does not."""
    return match[1] * 2 + ("\\'" if match[2] else "")


def is_missing(value: object) -> bool:
    """Whether a value says nothing: ``None``, NaN, an infinity, pandas' NA or blank text."""
    if isinstance(value, str):
        return not value.strip()
    if value is None or value is pd.NA or value is pd.NaT:
        return True
    try:
        return not math.isfinite(value)  # type: ignore[arg-type]
    except TypeError:  # not a number
        return False


def _short(value: float, units: Sequence[str], base: float = 1000.0) -> str:
    step = 0
    while step < len(units) - 1 and float(f"{abs(value):.3g}") >= base:
        value /= base
        step += 1
    number = f"{value:.0f}" if step == 0 or abs(value) >= 99.95 else f"{value:.3g}"
    return f"{number} {units[step]}".strip()


def count(value: float | None) -> str:
    """``22700000`` -> ``22.7 M``; below a thousand the number itself."""
    return MISSING if value is None or is_missing(value) else _short(value, ("", "k", "M", "G", "T"))


def size(n_bytes: float | None) -> str:
    """``590000`` -> ``590 kB``; decimal units (1 kB = 1000 bytes)."""
    return MISSING if n_bytes is None or is_missing(n_bytes) else _short(n_bytes, ("B", "kB", "MB", "GB", "TB"))


def duration(seconds: float | None) -> str:
    """``72`` -> ``1 min 12 s``; two units at most."""
    if seconds is None or is_missing(seconds):
        return MISSING
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, whole = divmod(whole, length)
        if amount:
            parts.append(f"{amount} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def percent(value: float | None) -> str:
    """``0.6533`` (percent) -> ``0.65 %``; small shares keep two digits."""
    if value is None or is_missing(value):
        return MISSING
    if value >= 99.95:
        return f"{value:.0f} %"
    if 0 < value < 0.001:
        return "&lt; 0.001 %"
    return f"{value:.1f} %" if value >= 10 else f"{value:.2g} %"


def score(value: float | None) -> str:
    """An accuracy or F1 as a fraction with three decimals."""
    return MISSING if value is None or is_missing(value) else f"{value:.3f}"


def signed(value: float | None) -> str:
    """A difference with its sign, three decimals; what rounds to nothing has no sign."""
    if value is None or is_missing(value):
        return MISSING
    rounded = f"{abs(value):.3f}"
    return rounded if float(rounded) == 0 else f"{'+' if value > 0 else _MINUS}{rounded}"


def score_interval(mean: float | None, low: float | None, high: float | None, *, difference: bool = False) -> str:
    """``0.755 [0.738, 0.772]``; the mean alone where no interval is known."""
    shown = signed if difference else score
    if is_missing(low) or is_missing(high):
        return shown(mean)
    return f"{shown(mean)} [{shown(low)}, {shown(high)}]"


def accuracy(row: Mapping[str, Any] | pd.Series) -> str:
    """The test accuracy of a row of ``tables.comparison_table`` with its interval."""
    return score_interval(row["test_accuracy"], row["test_accuracy_low"], row["test_accuracy_high"])


def joined(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def different(values: Iterable[object]) -> str:
    """The different values in their order, joined by commas, as they were logged; nothing for what is missing."""
    return ", ".join(dict.fromkeys(str(value) for value in values if not is_missing(value)))


def setting(value: object) -> str:
    """A hyperparameter's value: three significant digits, whole numbers without a point."""
    if is_missing(value):
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e6 else f"{value:.3g}"


def escape(text: object, limit: int = 240) -> str:
    """Logged text as one line of inert markdown, also inside a table cell; cut after ``limit`` characters."""
    line = " ".join(str(text).split())
    if len(line) > limit:
        line = line[: limit - 1].rstrip() + "…"
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]|~$])", r"\\\1", line)
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)
    return re.sub(r"^([#+-]|\d+[.)](?=\s))", r"\\\1", line)


def code(text: object) -> str:
    """Logged text as a code span, also inside a table cell; backticks become apostrophes."""
    line = " ".join(str(text).split()).replace("`", "'").replace("|", "\\|")
    return f"`{line}`" if line else MISSING


def fence(text: str, language: str = "") -> str:
    """Logged text as a fenced block that the text itself cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{text.strip()}\n{ticks}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table from cells that are already markdown: the first ``left`` columns to the left, the others to the right.

    Columns without a single value are dropped, and with no rows the table is empty text.
    """
    if not rows:
        return ""
    keep = [i for i in range(len(header)) if any(row[i] not in ("", MISSING) for row in rows)]
    lines = [[header[i] for i in keep], [":---" if i < left else "---:" for i in keep]]
    lines += [[row[i] for i in keep] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
