"""Tables of the hub's library, made here: which columns and rows become a dataset, and what is refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from datasets import Image as ImageFeature
from PIL import Image

from sweeper.data import DataRequest
from sweeper.data.hub import read
from sweeper.errors import DataError

CLASSES = ClassLabel(names=["neg", "pos", "unused"])
COLUMNS: dict[str, Any] = {"text": Value("string"), "label": CLASSES}


def table(rows: int, features: dict[str, Any] = COLUMNS, **columns: Any) -> Dataset:
    """Rows of alternating labels; ``columns`` gives or replaces values."""
    made = {"text": [f"film {row}" for row in range(rows)], "label": [row % 2 for row in range(rows)], **columns}
    return Dataset.from_dict({name: made[name] for name in features}, features=Features(features))


def request(**fields: Any) -> DataRequest:
    return DataRequest(name="user/data", source="hub", **fields)


def splits(**tables: Any) -> dict[str, Any]:
    return {"train": table(60), "test": table(20), **tables}


def test_class_labels_bring_their_names() -> None:
    dataset = read(request(), splits(validation=table(10)))
    assert dataset.label_names == ["neg", "pos"]
    assert dataset.train.inputs[:2] == ["film 0", "film 1"]
    assert dataset.train.labels[:2].tolist() == [0, 1]
    items = np.concatenate([dataset.train.items, dataset.validation.items, dataset.test.items])
    assert len(set(items.tolist())) == 90
    assert dataset.summary["source"]["columns"] == {"label": "label", "text": "text"}


def test_validation_goes_by_its_usual_names_or_is_carved_from_train() -> None:
    assert len(read(request(), splits(dev=table(10))).validation) == 10
    carved = read(request(validation_size=12), splits())
    assert (len(carved.train), len(carved.validation), len(carved.test)) == (48, 12, 20)


def test_a_validation_split_can_be_the_test_split() -> None:
    dataset = read(request(test_split="validation"), splits(validation=table(16), test=table(20, label=[-1] * 20)))
    assert len(dataset.test) == 16
    assert set(dataset.test.items.tolist()).isdisjoint(dataset.validation.items.tolist())
    assert len(dataset.train) + len(dataset.validation) == 60


def test_hidden_labels_are_no_labels() -> None:
    hidden = table(20, label=[-1] * 20)
    dataset = read(request(), splits(test=hidden))
    assert len(dataset.train) + len(dataset.validation) + len(dataset.test) == 60
    assert any("the split test has no labels" in warning for warning in dataset.summary["warnings"])
    with pytest.raises(DataError, match=r"dataset\.test_split=test, and the split test has no labels"):
        read(request(test_split="test"), splits(test=hidden))
    lines = [f"line {row}" for row in range(60)]
    some = table(60, text=lines, label=[-1 if row < 20 else row % 2 for row in range(60)])
    dataset = read(request(), splits(train=some))
    assert sorted(dataset.unlabelled) == sorted(lines[:20])
    assert len(dataset.train) + len(dataset.validation) == 40


def test_pairs_groups_and_empty_rows() -> None:
    features = {"premise": Value("string"), "hypothesis": Value("large_string"), "label": Value("int64")}
    features["topic"] = Value("int32")
    pairs = table(
        40,
        features,
        premise=["" if row == 3 else f"it is {row}" for row in range(40)],
        hypothesis=[None if row == 4 else f"is it {row}?" for row in range(40)],
        topic=[row // 4 for row in range(40)],
    )
    asked = request(text_column="premise", second_text_column="hypothesis", group_column="topic")
    dataset = read(asked, {"train": pairs})
    assert dataset.label_names == ["0", "1"]
    every = [*dataset.train.inputs, *dataset.validation.inputs, *dataset.test.inputs]
    assert len(every) == 38
    assert ("it is 0", "is it 0?") in every
    assert any("2 rows without a text are left out" in warning for warning in dataset.summary["warnings"])
    assert not set(dataset.train.groups or ()) & set(dataset.test.groups or ())


def test_images_stay_as_they_are_stored() -> None:
    file = io.BytesIO()
    Image.new("RGB", (7, 5), "red").save(file, "PNG")
    rows: list[Any] = [{"bytes": file.getvalue() + bytes([row]), "path": None} for row in range(39)]
    images = table(40, {"img": ImageFeature(), "label": CLASSES}, img=[*rows, None])
    dataset = read(request(modality="image"), {"train": images})
    every = [*dataset.train.inputs, *dataset.validation.inputs, *dataset.test.inputs]
    assert len(every) == 39
    assert {image.size for image in every} == {(7, 5)}
    assert len({image.digest() for image in every}) == 39
    assert every[0].open().getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("fields", "features", "words"),
    [
        ({}, {**COLUMNS, "title": Value("string"), "text": Value("int64")}, None),
        ({}, {"title": Value("string"), "body": Value("string"), "label": CLASSES}, "columns title, body could all be"),
        ({}, {"text": Value("string"), "coarse": CLASSES, "fine": CLASSES}, "columns coarse, fine could all be it"),
        ({}, {"text": Value("string"), "class": Value("int64")}, "which column holds the labels is not clear"),
        (
            {"modality": "image"},
            COLUMNS,
            r"no free column is of that kind; it has text \(string\), label \(ClassLabel\)",
        ),
        ({}, {"text": Value("string"), "label": Value("float32")}, "label_column=label holds float32; allowed are"),
        ({}, {"text": Value("string"), "label": Sequence(Value("int64"))}, "allowed are class labels, text, integers"),
        ({"label_column": "text"}, COLUMNS, "holds the texts is not clear: no free column is of that kind"),
        ({"text_column": "txt"}, COLUMNS, r"dataset\.text_column=txt: did you mean 'text'"),
        ({"group_column": "topic"}, COLUMNS, r"dataset\.group_column=topic: .*allowed: label, text"),
        ({"train_split": "trian"}, COLUMNS, r"dataset\.train_split=trian: did you mean 'train'"),
        ({"validation_split": "test", "test_split": "test"}, COLUMNS, "one split cannot be two"),
    ],
)
def test_what_is_not_clear_or_not_there_is_said(fields: Any, features: Any, words: str | None) -> None:
    values = {
        name: [[0]] * 40 if type(kind).__name__ in ("List", "Sequence") else ["x"] * 40
        for name, kind in features.items()
    }
    for name, kind in features.items():
        if getattr(kind, "dtype", "") in ("int64", "float32"):
            values[name] = [row % 2 for row in range(40)]  # type: ignore[misc]
    made = Dataset.from_dict(values, features=Features(features))
    tables = {"train": made, "test": made}
    if words is None:
        assert read(request(), tables).train.inputs[0] == "x"
        return
    with pytest.raises(DataError, match=words):
        read(request(**fields), tables)


def test_without_a_train_split_the_splits_are_named() -> None:
    with pytest.raises(DataError, match="has no split train; it has first, second"):
        read(request(), {"first": table(20), "second": table(20)})
    assert len(read(request(), {"only": table(40)}).train) > 0
