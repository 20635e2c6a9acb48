"""The review lines as a user of ``load_dataset`` meets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sweeper.data import DATASETS, Dataset, load_dataset
from sweeper.data.splits import text_key
from sweeper.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")


def load(train=None, validation=None, test=None, seed=42) -> Dataset:
    return load_dataset("review_lines", train_size=train, validation_size=validation, test_size=test, seed=seed)


@pytest.fixture(scope="module")
def full() -> Dataset:
    return load()


@pytest.fixture(scope="module")
def thousand() -> Dataset:
    return load(1000, 500)


def test_the_pools_are_large_enough_and_hold_the_known_lines(full):
    assert {name: len(getattr(full, name)) for name in SPLITS} == {"train": 8951, "validation": 1261, "test": 2537}
    assert full.summary["source"] == {
        "review_lines": 12808,
        "lines_kept": 12749,
        "contradictory_dropped": 0,
        "copies_dropped": 59,
        "films": 507,
    }


def test_unlabelled_is_what_the_train_split_leaves_of_its_pool(full, thousand):
    assert full.unlabelled == []
    assert len(thousand.unlabelled) == thousand.summary["unlabelled"] == 8951 - 1000
    assert not set(thousand.unlabelled) & set(thousand.train.inputs)
    assert set(thousand.unlabelled) | set(thousand.train.inputs) == set(full.train.inputs)
    held_out = {text_key(text) for split in (full.validation, full.test) for text in split.inputs}
    assert not held_out & {text_key(text) for text in thousand.unlabelled}


def test_no_film_and_no_line_is_on_two_sides(full):
    films = [set(getattr(full, name).groups) for name in SPLITS]
    keys = [{text_key(text) for text in getattr(full, name).inputs} for name in SPLITS]
    items = np.concatenate([getattr(full, name).items for name in SPLITS])
    for sides in (films, keys):
        assert len(set.union(*sides)) == sum(map(len, sides))
    assert len(np.unique(items)) == len(items) == sum(map(len, keys)), "each line occurs once"
    assert full.summary["duplicates_across_splits"] == 0
    assert full.summary["warnings"] == []


def test_the_film_with_two_titles_is_one_film(full):
    films = {film for name in SPLITS for film in getattr(full, name).groups}
    assert "el_crimen_del_padre_amaro" in films
    assert "the_crime_of_padre_amaro" not in films


def test_labels_are_the_critics_verdicts(full):
    verdicts = {}
    for name in SPLITS:
        verdicts |= zip(getattr(full, name).inputs, getattr(full, name).labels, strict=True)
    assert full.label_names == ["rotten", "fresh"]
    assert verdicts["A prison comedy that never really busts out of its comfy little cell."] == 0
    assert verdicts["An absorbing documentary."] == 1


def test_texts_are_single_lines_without_markup(full):
    texts = [text for name in SPLITS for text in getattr(full, name).inputs]
    assert all(text and text == " ".join(text.split()) for text in texts)
    assert not any("&amp;" in text for text in texts)


def test_every_split_has_the_same_share_of_each_class(full, thousand):
    for dataset in (full, thousand):
        shares = [dataset.summary["class_shares"][name]["fresh"] for name in SPLITS]
        assert shares == pytest.approx([0.578] * 3, abs=0.005)


def test_samples_are_nested_and_the_seed_chooses_them(full, thousand):
    small, large, other = thousand.train, load(5000, 500).train, load(1000, 500, seed=7)
    assert set(small.items) < set(large.items) < set(full.train.items)
    assert set(other.train.items) != set(small.items)
    assert set(other.train.items) < set(full.train.items), "another seed takes other rows of the same pool"
    assert np.array_equal(other.test.items, thousand.test.items), "the test pool does not depend on the seed"


def test_the_same_arguments_give_the_same_data(thousand):
    again = load(1000, 500)
    assert again.fingerprint == thousand.fingerprint
    assert again.train.inputs == thousand.train.inputs
    assert load(1000, 501).fingerprint != thousand.fingerprint


def test_the_fingerprint_does_not_drift(thousand):
    assert thousand.fingerprint == "e6ec79d1a384c2f3", "published results were measured on other rows"


def test_the_summary_is_json_and_counts_what_is_there(thousand):
    summary = json.loads(json.dumps(thousand.summary))
    assert summary["sizes"] == {"train": 1000, "validation": 500, "test": 2537}
    assert summary["class_counts"]["train"] == {"rotten": 423, "fresh": 577}
    assert summary["words"]["train"]["median"] == pytest.approx(18, abs=1)
    assert summary["groups"]["test"] == len(set(thousand.test.groups))


def test_too_large_sizes_name_the_pool():
    with pytest.raises(DataError) as error:
        load(100_000, 5_000)
    message = str(error.value)
    assert "train_size=100000" in message and "8951" in message
    assert "validation_size=5000" in message and "1261" in message, "both mistakes come together"


@pytest.mark.parametrize("size", [0, -5, 1, 10.5, True])
def test_sizes_that_cannot_hold_both_classes_are_refused(size):
    with pytest.raises(DataError, match="train_size"):
        load(size)


def test_the_smallest_size_holds_both_classes():
    assert sorted(load(2, 2, 2).test.labels) == [0, 1]


def test_an_unknown_dataset_names_the_known_ones():
    with pytest.raises(ConfigError, match="did you mean 'review_lines'"):
        load_dataset("review_line", train_size=None, validation_size=None, test_size=None)


def test_the_yaml_loads_as_it_stands():
    yaml = pytest.importorskip("yaml")
    path = Path(__file__).parents[3] / "conf/dataset/review_lines.yaml"
    text = path.read_text(encoding="utf-8")
    keys = yaml.safe_load(text)
    assert text.startswith("#") and "make sweep DATASET=review_lines" in text
    assert keys["name"] in DATASETS
    dataset = load_dataset(**{key: keys[key] for key in ("name", "train_size", "validation_size", "test_size", "seed")})
    assert len(dataset.train) == keys["train_size"] and len(dataset.test) == 2537
