"""How far features moved: the two similarities, and a trained model against the pretrained one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from strategies import Frozen, Full, Strategy
from sweeper import schema
from sweeper.data import load_dataset
from sweeper.drift import linear_cka, mean_cosine
from sweeper.objective import Task
from sweeper.search_space import StrategySpec
from tests.tasks import SETTINGS, load_task


def test_cka_sees_the_same_features_whatever_their_scale_and_rotation() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 8)) * np.arange(1, 9)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert linear_cka(features, 3.0 + 5.0 * features @ rotation) == pytest.approx(1.0)
    assert linear_cka(features, rng.normal(size=(200, 8))) < 0.1
    # By hand: X = (1, -1, 0), Y = (1, 0, -1) give (1 * 1)^2 / (2 * 2).
    assert linear_cka(np.array([[1.0], [-1], [0]]), np.array([[1.0], [0], [-1]])) == pytest.approx(0.25)
    assert np.isnan(linear_cka(features, np.ones((200, 8))))


def test_cosine_is_that_of_each_example_with_itself() -> None:
    first = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert mean_cosine(first, 7 * first) == pytest.approx(1.0)
    assert mean_cosine(first, np.array([[0.0, 1.0], [0.0, 1.0]])) == pytest.approx(0.5)


def images(checkpoint: Callable[[str], Path]) -> Task:
    dataset = load_dataset("digits", modality="image", train_size=64, validation_size=40, test_size=40)
    return Task.load(dataset, checkpoint("resnet"), head="linear", pooling="mean", revision=None, settings=SETTINGS)


def texts(checkpoint: Callable[[str], Path]) -> Task:
    return load_task(checkpoint("bert"), (64, 40, 40), max_length=30)


@pytest.mark.parametrize("load", [texts, images])
def test_features_stay_under_a_frozen_backbone_and_move_when_all_of_it_trains(
    load: Callable[[Callable[[str], Path]], Task], checkpoint: Callable[[str], Path]
) -> None:
    task = load(checkpoint)

    def drift(strategy: type[Strategy]) -> dict[str, float]:
        return task.drift(task.run(StrategySpec(strategy, {"learning_rate": 3e-2}, {}), {}, seed=0))

    frozen, full = drift(Frozen), drift(Full)
    assert frozen[schema.DRIFT_CKA] == pytest.approx(1.0) and frozen[schema.DRIFT_COSINE] == pytest.approx(1.0)
    assert full[schema.DRIFT_CKA] < 0.95 and full[schema.DRIFT_COSINE] < 0.95
    assert full[schema.DRIFT_ITEMS] == len(task.validation)
