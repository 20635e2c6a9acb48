"""The report as one HTML page that needs nothing else: no network, no library, no file beside it.

Design choices: the page is made from the very markdown of the report, so that both say the same; its figures are
the SVG files of the report, inlined, and a short script (``templates/page.js``) shows the values of a mark, lights up a
strategy in all figures and tables, and sorts tables. A charting library would draw every figure a second time and
weigh megabytes in each report. Raw HTML in the markdown is text, but for the one fold that the template writes;
a content security policy allows this one script by its hash, and no address at all.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from reports.formats import MISSING
from reports.plots.canvas import dark_rules

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

__all__ = ["page_parts", "sort_value"]

_UNITS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "%": 1.0}
_UNITS |= {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_PIECE = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?)(?: ?(kB|MB|GB|TB|ms|min|[kMGTBshd%])(?![A-Za-z]))?")
_FOLD = re.compile(r"</?details>|<summary>[^<>]*</summary>")


def page_parts(
    markdown: str, figures: Mapping[str, str], strategies: Sequence[str], *, css: str, script: str
) -> dict[str, str]:
    """What the template of the page shows: ``title`` and ``policy`` as text; ``css``, ``body`` and ``script`` as HTML.

    Args:
        markdown: the report; every logged text in it has been escaped for markdown.
        figures: file name -> SVG, for the pictures that the markdown names; others become their alternative text.
        strategies: labels; rows that begin with one belong to it.
        css: of the page.
        script: of the page.
    """
    parser = _parser()
    tokens = parser.parse(markdown)
    _mark_tables(tokens, set(strategies))
    title = _mark_headings(tokens)
    body = parser.renderer.render(_inline_figures(tokens, figures), parser.options, {})
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "; ".join(
        (
            "default-src 'none'",
            "style-src 'unsafe-inline'",
            f"script-src 'sha256-{digest}'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    return {"title": title, "policy": policy, "css": css + dark_rules(), "body": body, "script": script}


def sort_value(text: str) -> float | None:
    """The number by which a cell is sorted: ``1 min 12 s`` is 72, ``tie, 0.001 [..]`` is 0.001; ``None`` for words."""
    text = text.strip().replace("\N{MINUS SIGN}", "-").removeprefix("tie, ").removeprefix("< ")
    if text == "best":  # its own difference to the best
        return 0.0
    sign = -1.0 if text.startswith("-") else 1.0
    text = text.lstrip("+-")
    total, at = 0.0, 0
    while match := _PIECE.match(text, at):
        total += float(match[1].replace(",", "")) * _UNITS.get(match[2], 1.0)
        at = match.end() + 1
        if match[2] not in ("d", "h", "min", "s") or text[match.end() : at] != " ":
            break
    if not at or re.match(r"\w", text[at - 1 :]):  # no number, or a word that begins with one
        return None
    if len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\(.*?\)|\[.*?\]", "", text[at - 1 :]))) > 2:  # a sentence that does
        return None
    return sign * total


def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    # Parsed as HTML, so that the template's fold is found; written as text, whatever else it is.
    parser.add_render_rule("html_block", _html_block)
    parser.add_render_rule("html_inline", lambda self, tokens, i, options, env: escape(tokens[i].content))
    parser.add_render_rule("image", lambda self, tokens, i, options, env: escape(_plain(tokens[i])))
    parser.add_render_rule("table_open", lambda self, tokens, i, options, env: '<div class="scroll"><table>\n')
    parser.add_render_rule("table_close", lambda self, tokens, i, options, env: "</table></div>\n")
    parser.add_render_rule("figure", lambda self, tokens, i, options, env: tokens[i].content)
    return parser


def _html_block(self: Any, tokens: Sequence[Token], i: int, options: Any, env: Any) -> str:
    lines = tokens[i].content.splitlines()
    return "".join(line + "\n" if _FOLD.fullmatch(line) else f"<p>{escape(line)}</p>\n" for line in lines if line)


def _mark_tables(tokens: Sequence[Token], strategies: set[str]) -> None:
    """Give cells the number that they are sorted by, and rows the strategy that they belong to."""
    row: Token | None = None
    first = False
    for i, token in enumerate(tokens):
        if token.type == "tr_open":
            row, first = token, True
        elif token.type == "td_open":
            text = _plain(tokens[i + 1])
            value = sort_value(text)
            if value is not None:
                token.attrSet("data-sort", f"{value:.12g}")
            elif text in ("", MISSING):
                token.attrSet("data-missing", "")
            if first and row is not None and text in strategies:
                row.attrSet("data-strategy", text)
            first = False


def _mark_headings(tokens: Sequence[Token]) -> str:
    """Give headings the anchors that GitHub gives them; returns the text of the first one."""
    title = ""
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            text = _plain(tokens[i + 1])
            title = title or text
            token.attrSet("id", re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
    return title


def _inline_figures(tokens: Sequence[Token], figures: Mapping[str, str]) -> list[Token]:
    """Replace paragraphs that are one picture of the report by the picture itself."""
    from markdown_it.token import Token

    kept: list[Token] = []
    for token in tokens:
        images = [child for child in token.children or [] if child.type == "image"]
        alone = len(images) == 1 and len(token.children or []) == 1 and kept and kept[-1].type == "paragraph_open"
        svg = figures.get(str(images[0].attrGet("src"))) if alone else None
        if svg is not None:
            kept.pop()
            svg = re.sub(r"<style>.*?</style>", "", svg, count=1)  # the page has these rules once
            kept.append(Token("figure", "", 0, content=f"<figure>{svg}</figure>\n"))  # its caption is the text below
        elif not (token.type == "paragraph_close" and kept and kept[-1].type == "figure"):
            kept.append(token)
    return kept


def _plain(token: Token) -> str:
    """The text of an inline token without its markup."""
    if token.children:
        return "".join(_plain(child) for child in token.children)
    return " " if token.type in ("softbreak", "hardbreak") else token.content
