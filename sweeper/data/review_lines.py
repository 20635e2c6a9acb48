"""``review_lines``: one-line extracts of film reviews, labelled rotten (0) or fresh (1) by the critic's verdict.

The raw rows are cleaned in this order:

1. Rows of category ``plot`` go: they tell a story and have no verdict.
2. HTML entities are decoded and white space, line breaks included, becomes single spaces.
3. Of several copies of a line (apart from case and punctuation) the first stays. Copies that disagree about the verdict
   all go, since none of them can be trusted. A film listed under two titles with the same lines
   (``el_crimen_del_padre_amaro``) thereby keeps the first title alone.

The pools are split by film, 70% / 10% / 20% of the lines to train / validation / test with the same share of fresh
lines in each, taking films in the order of a hash of their name: they are the same for every size and every seed. Sizes
and the seed choose rows within a pool.
"""

from __future__ import annotations

import bz2
import csv
import functools
import html
import io
from pathlib import Path
from typing import Final, NamedTuple

from sweeper.assets import fetch
from sweeper.data.build import SHARES, Source, build
from sweeper.data.dataset import Dataset
from sweeper.data.request import DataRequest
from sweeper.data.splits import text_key
from sweeper.errors import DataError

__all__ = ["LABEL_NAMES", "SHARES", "load"]

LABEL_NAMES: Final = ("rotten", "fresh")
FILE: Final = "review_lines.csv.bz2"
COLUMNS: Final = ("category", "text", "movie_name")


class Line(NamedTuple):
    """A review line; ``item`` is the number of its row in the CSV file, counted from 0 after the header."""

    item: int
    text: str
    label: int
    film: str


def load(request: DataRequest) -> Dataset:
    """Load the dataset with as many lines per split as asked; ``None`` takes all of the split's pool.

    Lines keep the order of the file, which is by film: shuffle before training. The lines of the train pool that are
    not taken are the unlabelled texts.

    Raises:
        DataError: a size is larger than its pool, or too small to hold both classes.
        AssetError: the file cannot be fetched.
    """
    return build(request, _source(fetch("review_lines") / FILE))


@functools.lru_cache(maxsize=1)  # one process may load the dataset in several sizes
def _source(path: Path) -> Source:
    raw = _read(path)
    lines, dropped = _distinct(raw)
    return Source(
        inputs=[line.text for line in lines],
        labels=[LABEL_NAMES[line.label] for line in lines],
        items=[line.item for line in lines],
        groups=[line.film for line in lines],
        label_names=list(LABEL_NAMES),
        counts={
            "review_lines": len(raw),
            "lines_kept": len(lines),
            **dropped,
            "films": len({line.film for line in lines}),
        },
    )


def _read(path: Path) -> list[Line]:
    """The review lines of the CSV file, cleaned but with their copies."""
    rows = csv.DictReader(io.StringIO(bz2.decompress(path.read_bytes()).decode("utf-8"), newline=""))
    missing = sorted(set(COLUMNS) - set(rows.fieldnames or ()))
    if missing:
        raise DataError(f"{path.name} lacks the columns {', '.join(missing)}; found: {rows.fieldnames}")
    lines = []
    for item, row in enumerate(rows):
        text = " ".join(html.unescape(row["text"]).split())
        if row["category"] in LABEL_NAMES and text:
            lines.append(Line(item, text, LABEL_NAMES.index(row["category"]), row["movie_name"]))
    return lines


def _distinct(lines: list[Line]) -> tuple[list[Line], dict[str, int]]:
    """The first of each line's copies, without those whose copies disagree, and how many lines went and why."""
    copies: dict[str, list[Line]] = {}
    for line in lines:
        copies.setdefault(text_key(line.text), []).append(line)
    agreed = [same for same in copies.values() if len({line.label for line in same}) == 1]
    kept = [same[0] for same in agreed]
    contradictory = len(lines) - sum(map(len, agreed))
    counts = {"contradictory_dropped": contradictory, "copies_dropped": len(lines) - contradictory - len(kept)}
    return kept, counts
