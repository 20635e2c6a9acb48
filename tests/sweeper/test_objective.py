"""A task: what does not fit is refused when a strategy prepares the model, and what is saved says where it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from strategies import Adapter, Frozen, Prefix, Prompt
from sweeper.data import load_dataset
from sweeper.data.images import StoredImage
from sweeper.objective import Task
from sweeper.search_space import StrategySpec
from tests.tasks import SETTINGS, load_task


@pytest.fixture(scope="module")
def task(tiny_checkpoint: Path) -> Task:
    """Texts cut at 30 tokens, for a model of 128 positions."""
    return load_task(tiny_checkpoint, (32, 20, 20), max_length=30)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("kind", [Prompt, Prefix])
def test_virtual_tokens_that_leave_too_little_room_are_refused(task: Task, kind: Any, split: str) -> None:
    splits = {
        name: dataclasses.replace(
            getattr(task, name), examples=[{"input_ids": [7] * (30 if name == split else 9), "labels": 0}]
        )
        for name in ("train", "validation", "test")
    }
    longest = dataclasses.replace(task, **splits)
    longest.prepare(kind(num_tokens=98), 0)
    with pytest.raises(ValueError, match=r"leave 29 of .* the longest has 30 .*num_tokens, or dataset\.max_length=29"):
        longest.prepare(kind(num_tokens=99), 0)


def test_the_saved_tokenizer_cuts_texts_where_the_model_ends(task: Task, tmp_path: Path) -> None:
    own = task.pretrained.processor.model_max_length
    assert own > 128
    for strategy, limit in ((Prompt, 128 - 20), (Adapter, own)):
        run = task.run(StrategySpec(strategy, {"learning_rate": 1e-3}, {}), {}, seed=0)
        task.save(run, tmp_path / strategy.name)
        assert AutoTokenizer.from_pretrained(tmp_path / strategy.name).model_max_length == limit
    assert task.pretrained.processor.model_max_length == own


def test_texts_are_cut_at_what_the_model_reads_and_no_larger_value_is_advised(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint("gpt2")
    task = load_task(folder, (16, 8, 8), max_length=100_000)
    limit = task.pretrained.model.backbone.config.max_position_embeddings
    assert task.encoder.max_length == min(limit, task.pretrained.processor.model_max_length)
    rows = tmp_path / "long.csv"
    words = " ".join(["film"] * 3 * limit)
    rows.write_text("text,label\n" + "".join(f"{number} {words},{'ab'[number % 2]}\n" for number in range(20)))
    dataset = load_dataset("long", source="csv", path=str(rows))
    long = Task.load(
        dataset, folder, head="linear", pooling="mean", revision=None, settings=SETTINGS, max_length=100_000
    )
    assert any(f"are cut at the {limit} tokens that the model reads." in text for text in long.summary["warnings"])
    assert long.run(StrategySpec(Frozen, {"learning_rate": 1e-2}, {}), {}, seed=0).fit.history


def test_unlabelled_images_that_cannot_be_read_are_left_out(checkpoint: Callable[[str], Path]) -> None:
    dataset = load_dataset("digits", modality="image", train_size=20, validation_size=20, test_size=20)
    broken = StoredImage(b"no image", "bad.png")
    dataset = dataclasses.replace(dataset, unlabelled=[*dataset.unlabelled[:3], broken])
    task = Task.load(dataset, checkpoint("resnet"), head="linear", pooling="mean", revision=None, settings=SETTINGS)
    assert len(task.unlabelled(None, seed=0)) == 3
