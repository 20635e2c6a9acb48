"""Random bad input ends in the project's own errors or in a dataset that keeps its promises."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sweeper.data import Dataset, load_dataset
from sweeper.data.dataset import SPLITS
from sweeper.data.shifted import rows_of, with_shifted
from sweeper.errors import ThawlineError

QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

NAMES = st.sampled_from(["label", "text", "class", "target", "image", "site", "", " label", "ü", "\ud800", "a,b", "_x"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(min_value=-(10**30), max_value=10**30),
    st.floats(),
    st.sampled_from(
        ["", " ", "yes", "no", "1.0", "2.0", "a much longer text than a label is", "\ud83d", "x\0y", "é" * 9]
    ),
    st.text(max_size=20),
)
CELLS = st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.text(max_size=2), SCALARS, max_size=2))
#: Rows that can be used; random ones come on top.
GOOD = [{"text": f"text number {number}", "label": "yes" if number % 2 else "no"} for number in range(12)]
SIZES = st.one_of(st.none(), st.integers(2, 12))


def checked(**fields: Any) -> Dataset | None:
    """What is loaded, if it is, with what must hold of every dataset."""
    try:
        loaded = load_dataset("mine", **fields)
    except ThawlineError as error:
        assert str(error).strip()
        return None
    splits = {name: getattr(loaded, name) for name in SPLITS}
    items = [item for split in splits.values() for item in split.items.tolist()]
    assert len(items) == len(set(items)), "a row in two splits, or an item twice"
    if fields.get("group_column") and not any(fields.get(key) for key in ("validation_path", "split_column")):
        groups = [group for split in splits.values() for group in set(split.groups)]
        assert len(groups) == len(set(groups)), "a group in two splits"
    trained = set(loaded.train.labels.tolist())
    unreadable = loaded.summary["source"].get("unreadable_images", 0)
    for name, split in splits.items():
        assert set(split.labels.tolist()) <= trained
        size = fields.get(f"{name}_size")
        assert len(split) > 0
        assert size is None or size - unreadable <= len(split) <= size
    assert trained <= set(range(len(loaded.label_names)))
    assert all(isinstance(warning, str) for warning in loaded.summary["warnings"])
    json.dumps(loaded.summary).encode()
    assert load_dataset("mine", **fields).fingerprint == loaded.fingerprint
    assert with_shifted(loaded, "itself", rows_of(loaded)).fingerprint == loaded.fingerprint
    return loaded


def column(cells: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.one_of(st.none(), cells), min_size=12, max_size=12)


#: Columns of one type each, as parquet has them.
COLUMNS = st.one_of(
    st.sampled_from([[row["text"] for row in GOOD], [row["label"] for row in GOOD]]),
    column(st.integers(0, 1)),
    column(st.booleans()),
    column(st.floats()),
    column(st.text(max_size=20)),
    column(st.binary(max_size=4)),
    column(st.datetimes()),
    column(st.lists(st.integers(0, 1), max_size=2)),
    column(st.fixed_dictionaries({"bytes": st.binary(max_size=2)})),
)


def in_folder(test: Callable[[Path], Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return test(Path(folder))


@QUICK
@given(
    data=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda text: text.encode(errors="replace"))),
    ending=st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".parquet", ".csv.gz", ".jsonl.gz", ".xlsx", ""]),
    packed=st.booleans(),
    source=st.sampled_from(["csv", "image_csv"]),
)
def test_random_bytes(data: bytes, ending: str, packed: bool, source: str) -> None:
    def test(folder: Path) -> None:
        path = folder / f"table{ending}"
        path.write_bytes(gzip.compress(data) if packed else data)
        checked(source=source, modality="text" if source == "csv" else "image", path=str(path))

    in_folder(test)


@QUICK
@given(text=st.text(alphabet='label,text;\t\n\r"1 ab\u2028é', max_size=200), ending=st.sampled_from([".csv", ".tsv"]))
def test_random_delimiters_and_quotation_marks(text: str, ending: str) -> None:
    def test(folder: Path) -> None:
        separator = "\t" if ending == ".tsv" else ","
        good = "\n".join(f"{row['text']}{separator}{row['label']}" for row in GOOD)
        (folder / f"t{ending}").write_text(f"text{separator}label\n{good}\n{text}\n{good}", newline="")
        checked(source="csv", path=str(folder / f"t{ending}"))

    in_folder(test)


@QUICK
@given(
    rows=st.lists(st.one_of(st.fixed_dictionaries({"text": CELLS}), st.dictionaries(NAMES, CELLS, max_size=3), CELLS)),
    good=st.sampled_from([[], GOOD, GOOD * 2]),
    array=st.booleans(),
    labels=st.booleans(),
)
def test_random_cells_in_json(rows: list[Any], good: list[Any], array: bool, labels: bool) -> None:
    for row in rows:
        if labels and isinstance(row, dict):
            row["label"] = "yes"
    rows = [*rows, *good]

    def test(folder: Path) -> None:
        path = folder / "rows.json"
        path.write_text(json.dumps(rows) if array else "\n".join(map(json.dumps, rows)))
        checked(source="csv", path=str(path))
        checked(source="csv", path=str(path), text_column="text", label_column="label")

    in_folder(test)


@QUICK
@given(
    columns=st.dictionaries(st.sampled_from(["label", "text", "class", "site"]), COLUMNS, min_size=1, max_size=4),
    damage=st.one_of(st.none(), st.tuples(st.integers(0, 1500), st.binary(max_size=8))),
)
def test_random_cells_in_parquet(columns: dict[str, list[Any]], damage: tuple[int, bytes] | None) -> None:
    buffer = io.BytesIO()
    pd.DataFrame(columns).to_parquet(buffer)
    stored = bytearray(buffer.getvalue())
    if damage is not None:
        stored[damage[0] : damage[0] + len(damage[1])] = damage[1]

    def test(folder: Path) -> None:
        (folder / "rows.parquet").write_bytes(stored)
        checked(source="csv", path=str(folder / "rows.parquet"))

    in_folder(test)


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """Rows that mostly can be used."""
    rows = draw(st.integers(6, 60))
    labels = draw(st.sampled_from([["yes", "no"], ["1.0", "2.0", "0"], ["a", "b", "c", ""], ["nan", "1", "01"], ["x"]]))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    words = draw(st.sampled_from([["one", "two", "three"], [str(number) for number in range(1000)], ["", "w"]]))
    return pd.DataFrame(
        {
            "text": [" ".join(random.choice(words, 3)) for _ in range(rows)],
            "label": random.choice(labels, rows),
            "site": random.choice([f"site {number}" for number in range(draw(st.integers(1, 12)))], rows),
            "part": random.choice(["Train", "val", "TEST"], rows),
        }
    )


@QUICK
@given(
    table=tables(),
    sizes=st.tuples(SIZES, SIZES, SIZES),
    seed=st.integers(0, 3),
    group=st.booleans(),
    given_splits=st.sampled_from(["none", "column", "files"]),
)
def test_splits_of_random_tables(
    table: pd.DataFrame, sizes: tuple[Any, ...], seed: int, group: bool, given_splits: str
) -> None:
    def test(folder: Path) -> None:
        fields: dict[str, Any] = {f"{name}_size": size for name, size in zip(SPLITS, sizes, strict=True)}
        fields |= {"source": "csv", "path": str(folder / "all.csv"), "seed": seed, "text_column": "text"}
        table.to_csv(folder / "all.csv", index=False)
        if given_splits == "files":
            table.sample(frac=0.4, random_state=seed).to_csv(folder / "validation.csv", index=False)
            fields["validation_path"] = str(folder / "validation.csv")
        fields["group_column"] = "site" if group else None
        fields["split_column"] = "part" if given_splits == "column" else None
        checked(**fields)

    in_folder(test)


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE_BYTES = st.one_of(
    st.binary(max_size=60),
    st.integers(0, 255).map(png),
    st.tuples(st.integers(0, 255), st.integers(0, 80), st.binary(max_size=12)).map(
        lambda parts: png(parts[0])[: parts[1]] + parts[2] + png(parts[0])[parts[1] :]
    ),
    st.sampled_from([b"GIF89a", b"\xff\xd8\xff\xe0", b"II*\0", b"BM", b"P6 9999999999 1 255\n", b"RIFF1234WEBPVP8 "]),
)
PARTS = st.sampled_from(["train", "Test", "val", "cats", "dogs", ".hidden", "deep", "ü", "x.png"])
FILES = st.builds("{}{}".format, st.sampled_from("abcdefgh"), st.sampled_from([".png", ".JPG", ".txt", ".tif", ""]))


@QUICK
@given(
    tree=st.lists(st.tuples(st.lists(PARTS, max_size=3), FILES, IMAGE_BYTES), max_size=15),
    good=st.sampled_from([[], ["cats", "dogs"], ["train", "val"], ["train/cats", "train/dogs"]]),
    links=st.lists(
        st.tuples(PARTS, FILES, st.sampled_from(["/etc/passwd", "..", "nothing", "cats/a.png"])), max_size=3
    ),
    sizes=st.tuples(SIZES, SIZES, SIZES),
)
def test_random_trees_of_images(tree: list[Any], good: list[str], links: list[Any], sizes: tuple[Any, ...]) -> None:
    tree = [*tree, *(([part], f"{number}.png", png(number)) for part in good for number in range(8))]

    def test(folder: Path) -> None:
        (folder / "images").mkdir()
        table = []
        for parts, name, data in tree:
            path = folder.joinpath("images", *parts, name)
            with suppress(OSError):  # a name that is a file already, or a folder
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            table.append({"file": str(path.relative_to(folder / "images")), "label": (parts or ["none"])[0]})
        for part, name, target in links:
            with suppress(OSError):
                (folder / "images" / part / name).symlink_to(target)
        fields = {f"{name}_size": size for name, size in zip(SPLITS, sizes, strict=True)}
        checked(source="image_folder", modality="image", path=str(folder / "images"), **fields)
        if table:
            pd.DataFrame(table).to_csv(folder / "images" / "list.csv", index=False)
            checked(source="image_csv", modality="image", path=str(folder / "images" / "list.csv"), **fields)

    in_folder(test)
