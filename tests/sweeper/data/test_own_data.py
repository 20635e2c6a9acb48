"""A user's own tables and folders: what is found, what is left out and said, and what is refused in which words."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sweeper.data import Dataset, load_dataset
from sweeper.errors import ConfigError, DataError, ThawlineError

ROWS = [
    {"text": f"review number {number} is {'good' if number % 2 else 'bad'}", "label": str(number % 2)}
    for number in range(40)
]


def save(path: Path, rows: list[dict[str, Any]] = ROWS) -> str:
    """The rows as the file's ending says."""
    frame = pd.DataFrame(rows)
    kind = path.name.removesuffix(".gz")
    if kind.endswith(".parquet"):
        frame.to_parquet(path)
        return str(path)
    if kind.endswith(".json"):
        text = json.dumps(rows)
    elif kind.endswith("l"):
        text = "\n".join(json.dumps(row) for row in rows)
    else:
        text = frame.to_csv(index=False, sep="\t" if kind.endswith(".tsv") else ",")
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return str(path)


def load(path: str | Path, source: str = "csv", **fields: Any) -> Dataset:
    modality = "text" if source == "csv" else "image"
    return load_dataset("mine", source=source, modality=modality, path=str(path), **fields)


def all_inputs(dataset: Dataset) -> list[Any]:
    return [*dataset.train.inputs, *dataset.validation.inputs, *dataset.test.inputs]


def warnings(dataset: Dataset) -> str:
    return "\n".join(dataset.summary["warnings"])


# --- tables of texts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["r.csv", "r.tsv", "r.jsonl", "r.json", "r.parquet", "r.csv.gz", "r.jsonl.gz", "R.CSV"]
)
def test_the_same_rows_are_read_from_every_kind_of_file(tmp_path: Path, name: str) -> None:
    found = load(save(tmp_path / name))
    assert sorted(all_inputs(found)) == sorted(row["text"] for row in ROWS)
    assert found.label_names == ["0", "1"]
    assert {name: len(getattr(found, name)) for name in ("train", "validation", "test")} == {
        "train": 28,
        "validation": 4,
        "test": 8,
    }


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        ("text;label\nEins, zwei;a\n".encode("utf-8-sig"), "Eins, zwei"),
        ('text,label\n"a ""b"",\nc",a\n'.encode("utf-16"), 'a "b",\nc'),
        ('text\tlabel\n"half a quote\ta\n', '"half a quote'),
        ("text|label\r\none|a\r\n", "one"),
    ],
)
def test_delimiters_encodings_and_quotation_marks_are_found(tmp_path: Path, data: bytes | str, texts: str) -> None:
    from sweeper.data.table_files import read_table

    path = tmp_path / ("t.tsv" if "\t" in str(data) else "t.csv")
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    table = read_table(path)
    assert table.frame.to_dict("list") == {"text": [texts], "label": ["a"]}


def test_what_is_not_utf8_is_read_with_a_warning(tmp_path: Path) -> None:
    rows = [{**row, "text": f"{row['text']} café"} for row in ROWS]
    (tmp_path / "r.csv").write_bytes(pd.DataFrame(rows).to_csv(index=False).encode("latin-1"))
    found = load(tmp_path / "r.csv")
    assert all(text.endswith("café") for text in all_inputs(found))
    assert "r.csv is not UTF-8" in warnings(found)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((0, 1), ["0", "1"]),
        ((1.0, 2.0), ["1", "2"]),
        ((10.0, 9.0), ["9", "10"]),
        ((True, False), ["False", "True"]),
        (("spam", "ham"), ["ham", "spam"]),
        (("1.5", "2.0"), ["1.5", "2.0"]),
    ],
)
def test_labels_of_every_type_become_names(tmp_path: Path, labels: tuple[Any, Any], names: list[str]) -> None:
    rows = [{**row, "label": labels[place % 2]} for place, row in enumerate(ROWS)]
    assert load(save(tmp_path / "r.parquet", rows)).label_names == names
    assert load(save(tmp_path / "r.csv", rows)).label_names == names


def test_columns_are_found_by_what_they_hold(tmp_path: Path) -> None:
    rows = [{"id": 7, "author": "me", "what they wrote": row["text"], "sentiment": row["label"]} for row in ROWS]
    assert sorted(all_inputs(load(save(tmp_path / "r.csv", rows)))) == sorted(row["text"] for row in ROWS)


def test_an_unclear_column_is_asked_for_with_examples(tmp_path: Path) -> None:
    path = save(tmp_path / "r.csv", [{"a": row["text"], "b": f"{row['text']} too", "n": row["label"]} for row in ROWS])
    with pytest.raises(ConfigError) as error:
        load(path)
    assert "which column holds the label?" in str(error.value)
    assert "\n  a: review number 0 is bad\n" in str(error.value)
    assert str(error.value).endswith("dataset.label_column=n")
    with pytest.raises(ConfigError, match=r"which column holds the text(.|\n)*dataset.text_column=a"):
        load(path, label_column="n")


def test_all_wrong_columns_are_named_with_near_matches(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(save(tmp_path / "r.csv"), text_column="txt", label_column="lable")
    assert "dataset.text_column=txt: r.csv has no such column; did you mean 'text'?" in str(error.value)
    assert "dataset.label_column=lable: r.csv has no such column; did you mean 'label'?" in str(error.value)


def test_what_cannot_be_used_is_counted_and_said(tmp_path: Path) -> None:
    path = Path(save(tmp_path / "r.csv"))
    extra = [f"{ROWS[0]['text']},0", f"{ROWS[1]['text']},0", ",1", "without a label,", "too,many,fields"]
    path.write_text(path.read_text() + "\n".join(extra))
    found = load(path)
    assert found.summary["source"] == {
        "columns": {"text": "text", "label": "label"},
        "rows": 45,
        "bad_rows": 1,
        "empty_texts": 1,
        "unlabelled_rows": 1,
        "duplicate_rows": 2,
        "contradictory_inputs": 1,
    }
    assert found.unlabelled == ["without a label"]
    assert sum(found.summary["sizes"].values()) == 42
    said = warnings(found)
    assert "cannot be read, left out: 1 of 45: not the header's 2 fields (1, first in line 46)." in said
    for sentence in ("Rows without a text, left out: 1.", "Rows that repeat another one: 2."):
        assert sentence in said
    assert "Inputs that occur with different labels: 1." in said


def test_a_stray_quotation_mark_does_not_swallow_rows_unsaid(tmp_path: Path) -> None:
    path = Path(save(tmp_path / "r.csv"))
    path.write_text(path.read_text() + '"never closed,1\nlost,0\nlost too,1\n')
    found = load(path)
    assert found.summary["source"]["bad_rows"] == 3
    assert "quotation marks that do not match" in warnings(found)


def test_pairs_of_texts(tmp_path: Path) -> None:
    rows = [{**row, "question": "why?"} for row in ROWS]
    found = load(save(tmp_path / "r.jsonl", rows), text_column="question", second_text_column="text")
    assert found.train.inputs[0] == ("why?", found.train.inputs[0][1])


def test_given_files_are_the_splits_and_nothing_is_carved_from_test(tmp_path: Path) -> None:
    train, test = save(tmp_path / "a.csv", ROWS[:30]), save(tmp_path / "b.jsonl", ROWS[30:])
    found = load(train, test_path=test)
    assert sorted(found.test.inputs) == sorted(row["text"] for row in ROWS[30:])
    assert len(found.train) + len(found.validation) == 30
    unlabelled = save(tmp_path / "c.csv", [{**row, "label": ""} for row in ROWS[30:]])
    with pytest.raises(DataError, match="no row of test has a label"):
        load(train, test_path=unlabelled)
    other = save(tmp_path / "d.csv", [{"text": "x", "labels": "1"}])
    with pytest.raises(ConfigError, match=r"dataset.test_path: d.csv lacks the column label of a.csv; did you mean"):
        load(train, test_path=other)
    strange = save(tmp_path / "e.csv", [{"text": "x", "label": "7"}, {"text": "y", "label": "1"}])
    with pytest.raises(DataError, match=r"1 labels of test are not in train: 7 \(1\)"):
        load(train, test_path=strange)


def test_a_column_of_splits(tmp_path: Path) -> None:
    rows = [{**row, "part": ["Train", "train", "dev", "TEST"][place // 2 % 4]} for place, row in enumerate(ROWS)]
    found = load(save(tmp_path / "r.csv", rows), split_column="part")
    assert found.summary["sizes"] == {"train": 20, "validation": 10, "test": 10}
    rows[0]["part"] = "holdout"
    with pytest.raises(DataError, match=r"rows say holdout \(1\); allowed: train, "):
        load(save(tmp_path / "r.csv", rows), split_column="part")


def test_groups_stay_together_and_blank_ones_are_alone(tmp_path: Path) -> None:
    rows = [{**row, "site": "" if place == 0 else f"site {place // 4}"} for place, row in enumerate(ROWS)]
    found = load(save(tmp_path / "r.csv", rows), group_column="site")
    groups = [set(split.groups) for split in (found.train, found.validation, found.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 11
    with pytest.raises(DataError, match="the split by group leaves validation, test empty"):
        load(save(tmp_path / "r.csv", [{**row, "site": "all"} for row in rows]), group_column="site")


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("r.csv", b"", "is empty"),
        ("r.csv", b"text,label\n", "has no rows"),
        ("r.xlsx", b"text", "must end in .csv, .tsv, .jsonl"),
        ("r.csv", b"PK\x03\x04\x00\x00", "holds no text but binary data"),
        ("r.parquet", b"text,label\n", "no parquet file"),
        ("r.csv.gz", b"text,label\n", "cannot be read: Not a gzipped file"),
        ("r.jsonl", b"{\n", "1 of 1 rows cannot be read: no JSON"),
        ("r.json", b"[1, 2", "is no JSON"),
        ("r.csv", b"text,text\na,b\n", "several columns are called text"),
        ("r.csv", b"text,label\na\nb\nc,1\n", "2 of 3 rows cannot be read"),
        ("r.csv", b"text,label\na,1\nb,1\nc,1\n", "has one class only"),
        ("r.csv", b"text,label\na,1\nb,1\nc,1\nd,2\n", "too few rows of 2"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ThawlineError) as error:
        load(tmp_path / name)
    assert words in str(error.value)


def test_paths_that_lead_nowhere_are_named_all_at_once(tmp_path: Path) -> None:
    save(tmp_path / "reviews.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError) as error:
        load(tmp_path / "review.csv", test_path=str(tmp_path), validation_path=str(tmp_path / "link.csv"))
    assert f"did you mean {tmp_path / 'reviews.csv'}?" in str(error.value)
    assert f"dataset.test_path={tmp_path}: is no file" in str(error.value)
    assert "is a link that leads nowhere" in str(error.value)


# --- images ------------------------------------------------------------------------------------------------------


def paint(path: Path, shade: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8), (shade, 0, 0)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten red and ten dark pictures."""
    for place in range(10):
        paint(tmp_path / "photos" / "red" / f"{place}.png", 200 + place)
        paint(tmp_path / "photos" / "dark" / "deep" / f"{place}.JPG", place)
    return tmp_path / "photos"


def test_folders_name_labels(photos: Path) -> None:
    found = load(photos, "image_folder")
    assert found.label_names == ["dark", "red"]
    assert sum(found.summary["sizes"].values()) == 20
    names = dict(zip(found.train.items.tolist(), map(str, found.train.inputs), strict=True))
    listed = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*"))
    assert all(listed[item] == name for item, name in names.items()), "items are places in the sorted list"


def test_folders_name_splits(photos: Path, tmp_path: Path) -> None:
    for split, number in (("train", 6), ("Valid", 2), ("test", 2)):
        for label in ("red", "dark"):
            for place in range(number):
                paint(tmp_path / "split" / split / label / f"{place}.png", place + 50 * number)
    sizes = load(tmp_path / "split", "image_folder").summary["sizes"]
    assert sizes == {"train": 12, "validation": 4, "test": 4}
    sizes = load(photos, "image_folder", test_path=str(tmp_path / "split" / "test")).summary["sizes"]
    assert sizes["test"] == 4 and sizes["train"] + sizes["validation"] == 20
    (tmp_path / "split" / "blue").mkdir()
    with pytest.raises(DataError, match="has a folder train and others that name no split: blue"):
        load(tmp_path / "split", "image_folder")


def test_a_label_may_be_called_train(photos: Path) -> None:
    (photos / "red").rename(photos / "train")
    assert load(photos, "image_folder").label_names == ["dark", "train"]


def test_what_is_no_image_is_left_out_and_said(photos: Path, tmp_path: Path) -> None:
    outside = paint(tmp_path / "outside.png", 9)
    (photos / "red" / "link.png").symlink_to(outside)
    (photos / "red" / "nowhere.png").symlink_to("gone")
    (photos / "red" / "linked").symlink_to(tmp_path)
    (photos / "red" / ".hidden.png").write_bytes(b"")
    (photos / "red" / "notes.txt").write_text("no image")
    (photos / "red" / "broken.png").write_bytes(b"no image")
    (photos / "empty").mkdir()
    paint(photos / "beside.png", 1)
    found = load(photos, "image_folder")
    assert found.summary["source"] == {
        "images": 21,
        "links_out_of_the_folder": 2,
        "linked_folders": 1,
        "hidden_files": 1,
        "other_files": 1,
        "empty_labels": 1,
        "files_outside_of_labels": 1,
        "unreadable_images": 1,
    }
    assert "Links that lead out of the folder or nowhere, left out: 2." in warnings(found)
    assert "Images that cannot be read, left out: 1, such as red/broken.png" in warnings(found)


def test_folders_without_labels_are_refused(tmp_path: Path) -> None:
    paint(tmp_path / "flat" / "a.png", 1)
    with pytest.raises(DataError, match=r"no images in folders of labels \(files outside of labels: 1\)\nExpected is"):
        load(tmp_path / "flat", "image_folder")
    paint(tmp_path / "one" / "only" / "a.png", 1)
    with pytest.raises(DataError, match="one class only"):
        load(tmp_path / "one", "image_folder")
    with pytest.raises(ConfigError, match="is a file: dataset=image_folder reads a folder"):
        load(tmp_path / "flat" / "a.png", "image_folder")


def table_of(photos: Path, change: Callable[[list[dict[str, str]]], object] = lambda rows: None) -> str:
    paths = sorted([*photos.glob("red/*.png"), *photos.glob("dark/*/*.JPG")])
    rows = [
        {"photo": path.relative_to(photos).as_posix(), "label": path.relative_to(photos).parts[0]} for path in paths
    ]
    change(rows)
    return save(photos / "list.csv", rows)


def test_a_table_of_images(photos: Path, tmp_path: Path) -> None:
    absolute = str(paint(tmp_path / "elsewhere.png", 77))
    found = load(table_of(photos, lambda rows: rows.append({"photo": absolute, "label": "red"})), "image_csv")
    assert sum(found.summary["sizes"].values()) == 21
    assert {str(image) for image in all_inputs(found)} >= {"red/0.png", absolute}
    found = load(table_of(photos, lambda rows: rows.append({"photo": "gone.png", "label": "red"})), "image_csv")
    assert found.summary["source"]["missing_images"] == 1
    assert "Images that do not exist, left out: 1, such as gone.png." in warnings(found)


def test_images_outside_of_the_tables_folder_are_refused(photos: Path, tmp_path: Path) -> None:
    paint(tmp_path / "outside.png", 1)
    (photos / "link.png").symlink_to(tmp_path / "outside.png")
    for name in ("../outside.png", "red/../../outside.png", "link.png"):
        path = table_of(photos, lambda rows, name=name: rows.append({"photo": name, "label": "red"}))  # type: ignore[misc]
        with pytest.raises(DataError, match=f"the image {name} lies outside of"):
            load(path, "image_csv")
    path = table_of(photos)
    (photos / "red").rename(photos / "moved")
    (photos / "dark").rename(photos / "away")
    with pytest.raises(DataError, match="20 of 20 images do not exist"):
        load(path, "image_csv")


def test_a_label_whose_images_are_all_broken_is_missed(photos: Path) -> None:
    """Unreadable images are found after sampling: what is left must still make sense."""
    for path in (photos / "red").glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="train is left with one class only, dark"):
        load(photos, "image_folder", train_size=4, validation_size=2, test_size=2)


# --- groups ------------------------------------------------------------------------------------------------------


def grouped(tmp_path: Path, *, groups: int = 8, rows: int = 400, labelled: float = 1.0) -> str:
    return save(
        tmp_path / "grouped.csv",
        [
            {
                "text": f"text {number}",
                "label": "ab"[number // groups % 2] if number < labelled * rows else "",
                "group": f"g{number % groups}",
            }
            for number in range(rows)
        ],
    )


def test_no_row_is_lost_when_groups_are_put_aside_beside_a_test_file(tmp_path: Path) -> None:
    other = save(tmp_path / "test.csv", [{"text": f"other {n}", "label": "ab"[n % 2], "group": "t"} for n in range(20)])
    path = grouped(tmp_path)
    found = load(path, test_path=other, group_column="group", validation_size=40)
    pools = found.summary["pool_sizes"]
    assert pools["train"] + pools["validation"] == 400
    assert len(found.validation) == 40
    assert not set(found.train.groups or ()) & set(found.validation.groups or ())
    few = load(path, test_path=other, group_column="group", validation_size=4)
    assert "of the 50 rows whose groups are kept out of train for validation" in warnings(few)


def test_a_validation_split_by_group_is_as_large_as_asked(tmp_path: Path) -> None:
    found = load(grouped(tmp_path, groups=80), group_column="group", validation_size=120)
    assert len(found.validation) == 120


def test_the_name_of_a_file_does_not_choose_its_test_rows(tmp_path: Path) -> None:
    path = Path(grouped(tmp_path, groups=80))
    first = load_dataset("one", source="csv", path=str(path), group_column="group")
    second = load_dataset("two", source="csv", path=str(path), group_column="group")
    assert first.test.inputs == second.test.inputs


def test_unlabelled_rows_of_held_out_groups_are_not_trained_on(tmp_path: Path) -> None:
    found = load(grouped(tmp_path, groups=80, labelled=0.6), group_column="group")
    held_out = {*(found.validation.groups or ()), *(found.test.groups or ())}
    assert held_out and found.unlabelled
    assert not {f"g{int(text.split()[1]) % 80}" for text in found.unlabelled} & held_out


def test_rows_of_test_without_a_label_are_said_to_be_left_out(tmp_path: Path) -> None:
    rows = [{**row, "part": "test" if number // 2 % 4 == 0 else "train"} for number, row in enumerate(ROWS)]
    rows[0]["label"], rows[2]["label"] = "", ""
    found = load(save(tmp_path / "parts.csv", rows), split_column="part")
    assert "Rows without a label, used unlabelled: 1." in warnings(found)
    assert "Rows of validation or test without a label, left out: 1." in warnings(found)
    assert len(found.unlabelled) == 1


# --- shifted data ------------------------------------------------------------------------------------------------


def test_shifted_rows_come_along_and_change_nothing_else(tmp_path: Path) -> None:
    path = save(tmp_path / "r.csv")
    other = save(tmp_path / "s.csv", [{"text": "another domain", "label": "1"}, {"text": "unlabelled", "label": ""}])
    plain, shifted = load(path), load(path, shifted=other)
    assert plain.fingerprint == shifted.fingerprint
    assert plain.shifted is None and shifted.shifted is not None
    assert shifted.shifted.inputs == ["another domain"]
    assert shifted.shifted.labels.tolist() == [1]
    assert shifted.summary["shifted"]["class_counts"] == {"0": 0, "1": 1}
    strange = save(tmp_path / "t.csv", [{"text": "x", "label": "1"}, {"text": "y", "label": "many"}])
    with pytest.raises(DataError, match=r"dataset.shifted=.*t.csv: 1 labels are not among those of mine: many \(1\)"):
        load(path, shifted=strange)
    with pytest.raises(ConfigError, match=r"dataset.shifted=.*u.csv: does not exist"):
        load(path, shifted=str(tmp_path / "u.csv"))


def test_an_embedded_dataset_is_shifted_by_another_ones_name() -> None:
    found = load_dataset("digits", modality="image", train_size=100, shifted="digits")
    assert found.shifted is not None and len(found.shifted) == 1797
    with pytest.raises(ConfigError, match="unknown dataset 'digit'"):
        load_dataset("digits", modality="image", shifted="digit")


# --- Fashion-MNIST -----------------------------------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">i4").tobytes()
    return gzip.compress(header + values.astype(np.uint8).tobytes())


def test_fashion_mnist_is_read_from_its_files(tmp_path: Path) -> None:
    for prefix, rows in (("train", 60), ("t10k", 20)):
        pixels = np.arange(rows * 4, dtype=np.uint8).reshape(rows, 2, 2)
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(pixels))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(rows) % 10))
    found = load_dataset("fashion_mnist", modality="image", path=str(tmp_path))
    assert found.summary["sizes"]["test"] == 20
    assert found.test.inputs[1].source.tolist() == [[4, 5], [6, 7]]
    assert found.label_names[found.test.labels[1]] == "Trouser"
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(20))[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset("fashion_mnist", modality="image", path=str(tmp_path))
    with pytest.raises(DataError, match=r"apt install dataset-fashion-mnist(.|\n)*dataset=hub"):
        load_dataset("fashion_mnist", modality="image", path=str(tmp_path / "gone"))


def test_shifted_rows_are_not_among_the_unlabelled_ones_and_overlap_is_said(tmp_path: Path) -> None:
    bare = [{"text": f"target {number}", "label": ""} for number in range(10)]
    path = save(tmp_path / "rows.csv", [*ROWS, *bare])
    other = save(tmp_path / "other.csv", [{"text": f"target {n}", "label": str(n % 2)} for n in range(4)])
    found = load(path, shifted=other)
    assert sorted(found.unlabelled) == [f"target {number}" for number in range(4, 10)]
    assert "inputs of mine occur in it too" in warnings(load(path, shifted=save(tmp_path / "same.csv")))
