"""What every figure shares: colours, axes, marks that know their values, and SVG.

Design choices: a figure is one SVG file, drawn once and used twice: as a picture beside the markdown, and as a part of
the HTML page, where a short script makes its marks answer to the pointer. It has a solid background, and a
rule that swaps its few colours where the reader's browser is dark; a program that does not know the rule shows the
light colours on white. Text is drawn as paths, so that it stands where it was placed, whatever fonts are
installed, and logged text is never markup. Colour never speaks alone: series differ in their marks, too.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CHOSEN",
    "GRID",
    "INK",
    "LEVELS",
    "MUTED",
    "PAPER",
    "POINT",
    "SERIES",
    "SHARE_INK",
    "Drawing",
    "Look",
    "dark_rules",
    "legend_handle",
    "listed",
    "looks",
    "new_figure",
    "panels",
    "short",
    "style_axes",
]

PAPER, INK, MUTED, GRID = "#ffffff", "#1f2328", "#6e7781", "#e4e8ec"
POINT, CHOSEN = "#4c6f91", "#c2410c"
#: Of series; told apart by colour-blind readers too (Okabe & Ito 2008), and each with a mark of its own.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#a8327d", "#7a6000", "#3f3f9f", "#56a0d3", "#8c4a2f")
#: Of cells, from none to all; evenly darker, so that they survive a printer without colour.
LEVELS = ("#f5f8fb", "#dbe8f4", "#b9d3ea", "#8db6dc", "#5e93c7", "#3570ab", "#174e85")
#: Of the numbers in those cells.
SHARE_INK = ("#1f2329", "#1f2329", "#1f2329", "#1f2329", "#fefefe", "#fefefe", "#fefefe")
_MARKERS = "os^vP<>ph*8"  # a diamond is what was chosen, a cross what failed
_DARK = {
    PAPER: "#0d1117", INK: "#e6edf3", MUTED: "#9198a1", GRID: "#30363d", POINT: "#79a8d6", CHOSEN: "#ff8a4c",
    **dict(zip(SERIES, ("#4aa8e8", "#ff8a3d", "#2fcf9c", "#e07abf", "#cdb13a", "#9a9af5", "#a5d4f5", "#d6926f"),
               strict=True)),
    **dict(zip(LEVELS, ("#141b23", "#16283b", "#173a5c", "#1c5183", "#2b6fae", "#5494d0", "#93c4f0"), strict=True)),
    "#1f2329": "#e6edf4", "#fefefe": "#0d1118",
}  # fmt: skip


def dark_rules() -> str:
    """CSS that swaps the colours of figures on a dark screen; paper stays white."""
    rules = [  # without ancestors: what <use> shows has none that a selector could name
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in _DARK.items()
        for what in ("fill", "stroke")
    ]
    return f"@media screen and (prefers-color-scheme:dark){{{''.join(rules)}}}"


@dataclass
class Drawing:
    """A figure with what is said about it.

    Attributes:
        name: stem of its file.
        figure: matplotlib's figure.
        alt: what it shows, as a sentence for those who do not see it; plain text.
        marks: id in the figure -> the strategy (empty for none) and the values behind a mark, as plain text.
    """

    name: str
    figure: Figure
    alt: str = ""
    marks: dict[str, tuple[str, str]] = field(default_factory=dict)

    def mark(self, artist: Artist, strategy: str, values: str = "") -> None:
        """Let a drawn thing belong to a strategy, and show its values under the pointer."""
        name = f"{self.name}-{len(self.marks)}"
        artist.set_gid(name)
        self.marks[name] = (strategy, values)

    def svg(self) -> str:
        """The figure as SVG, without date or version: equal figures are equal text."""
        import matplotlib

        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": "thawline", "svg.fonttype": "path"}):
            self.figure.savefig(buffer, format="svg", facecolor=PAPER, metadata={"Date": None})
        text = buffer.getvalue()
        text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        text = re.sub(r"<g id=\"([^\"]+)\">", self._group, text)
        head = f'<svg role="img" aria-label="{escape(self.alt)}"'
        text = re.sub(r"\n\s*", "\n", text.replace("<svg", head, 1))
        return text.replace(">", f"><style>{dark_rules()}</style>", 1)

    def _group(self, match: re.Match[str]) -> str:
        """The opening of a group: a mark with its values, or one whose id nobody needs."""
        if match[1] not in self.marks:
            return "<g>"
        strategy, values = self.marks[match[1]]
        title = f"<title>{escape(values)}</title>" if values else ""
        return f'<g class="mark" data-strategy="{escape(strategy)}">{title}'


@dataclass(frozen=True)
class Look:
    """Colour and mark of a series."""

    color: str
    marker: str


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each strategy, the same in all figures of a report; no two of 32 are the same."""
    return {
        name: Look(SERIES[i % len(SERIES)], _MARKERS[(i + i // len(SERIES)) % len(_MARKERS)])
        for i, name in enumerate(dict.fromkeys(names))
    }


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=200, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def panels(
    number: int, title: str, *, height: float = 1.9, legend: int = 0, share_x: bool = True
) -> tuple[Figure, list[Axes]]:
    """Small multiples under one title, four in a row at most, with equal y axes; labels at the outer edges only.

    Args:
        number: of panels.
        title: of the figure; never read as mathematics.
        height: of a row, in inches.
        legend: lines to leave free at the foot.
        share_x: whether the x axes are equal, too.
    """
    columns = number if number <= 4 else 3 if number <= 6 else 4
    rows = math.ceil(number / columns)
    tall = rows * height + 0.95 + 0.22 * legend
    figure = new_figure(7.6, tall)
    axes = figure.subplots(rows, columns, sharex=share_x, sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=0.095, right=0.985, top=1 - 0.62 / tall, bottom=(0.55 + 0.22 * legend) / tall,
        wspace=0.09, hspace=0.32 if share_x else 0.5,
    )  # fmt: skip
    figure.text(0.02, 1 - 0.2 / tall, short(title, 88), fontsize=10.5, color=INK, fontweight="bold", va="center",
                parse_math=False)  # fmt: skip
    flat = list(axes.flat)
    for i, axis in enumerate(flat):
        if i >= number:
            axis.set_visible(False)
        axis.tick_params(labelbottom=not share_x or i + columns >= number)  # the lowest of its column
    return figure, flat[:number]


def style_axes(axes: Axes, title: str = "", *, small: bool = False) -> None:
    """Quiet axes: horizontal lines, no frame, a title at the left that is never read as mathematics."""
    if title:
        axes.set_title(
            short(title, 21 if small else 80), loc="left", fontsize=9 if small else 10.5, color=INK,
            fontweight="normal" if small else "bold", pad=4 if small else 10, parse_math=False,
        )  # fmt: skip
    axes.tick_params(labelsize=8 if small else 9, colors=INK, length=0, pad=4 if small else 6, which="both")
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def short(text: str, limit: int) -> str:
    """Text of at most ``limit`` characters on one line."""
    text = " ".join(str(text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def listed(parts: Sequence[str], most: int = 8) -> str:
    """Parts of a sentence, the first ``most`` of them."""
    more = len(parts) - most
    return ", ".join([*parts[:most], f"and {more} more"] if more > 0 else parts)


def legend_handle(look: Look, label: str, **style: Any) -> Any:
    """An entry of a legend for a series of marks; its label is never read as mathematics, or hidden for a ``_``."""
    from matplotlib.lines import Line2D

    given: dict[str, Any] = {"ls": "", "marker": look.marker, "color": look.color, "mec": PAPER, "ms": 6.5}
    return Line2D([], [], label=short(label, 30).replace("$", r"\$").lstrip("_"), **given | style)
