"""What makes two studies the same study, and two comparisons the same comparison."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import BertModel

from sweeper.comparison import _load
from sweeper.config import Config, config_dir, register
from sweeper.data import load_dataset
from sweeper.hashing import derive_seed
from sweeper.plan import Plan, make_plan
from sweeper.search_space import parse_strategy


@pytest.fixture(scope="module")
def plan(tiny_checkpoint: Path) -> Any:
    from rich.console import Console

    register()
    base = [
        "strategy=lora",
        "model=local",
        "dataset.train_size=20",
        "dataset.validation_size=20",
        "dataset.test_size=20",
    ]

    def make(*overrides: str, checkpoint: Path = tiny_checkpoint) -> Plan:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            composed = compose("config", overrides=[*base, f"model.path={checkpoint}", *overrides])
        config = cast(Config, composed)
        raw: Any = OmegaConf.to_container(composed.strategy, resolve=True)
        spec, problems = parse_strategy(raw, config.trainer.learning_rate)
        assert spec is not None, problems
        return make_plan(config, spec, _load(config, Console(quiet=True)), "command")

    return make


def test_budgets_places_and_looks_do_not_change_the_names(plan: Any) -> None:
    first = plan()
    same = plan(
        "study.n_trials=50",
        "study.timeout=60",
        "study.max_failure_rate=0.1",
        "final.seeds=7",
        "tracking.uri=sqlite:///other.db",
        "output_dir=other",
        "verbosity=quiet",
        "report.confidence=0.9",
        "report.max_trainable_params=1000",
        "reference.prompting.base_url=http://127.0.0.1:1/v1",
        "reference.prompting.model=tiny",
        "compare=[frozen,lora]",
    )
    assert (first.study, first.comparison) == (same.study, same.comparison)


def test_budgets_that_constrain_the_search_change_both_names(plan: Any) -> None:
    first = plan()
    few, fewer = (plan(f"report.max_trainable_params={n}", "report.constrain_search=true") for n in (2000, 1000))
    assert len({first.study, few.study, fewer.study}) == len({first.comparison, few.comparison, fewer.comparison}) == 3
    assert (first.budgets, fewer.budgets) == ({}, {"trainable_params": 1000.0})


@pytest.mark.parametrize(
    "override",
    [
        "trainer.epochs=4",
        "trainer.weight_decay=0.1",
        "trainer.precision=fp32",
        "dataset.train_size=24",
        "dataset.seed=1",
        "model.head=mlp",
        "model.pooling=max",
        "study.seed=1",
        "study.sampler=random",
        "study.pruner=none",
        "study.metric=validation_macro_f1",
    ],
)
def test_what_is_measured_changes_both_names(plan: Any, override: str) -> None:
    precision = ["trainer.precision=bf16"]  # explicit, so that fp32 is a change on every machine
    first, other = plan(*precision), plan(*precision, override)
    assert first.study != other.study
    assert first.comparison != other.comparison


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy.search_space.rank=null", "strategy.rank=8"],
        ["strategy.dropout=0.1"],
        ["strategy.search_space.learning_rate.high=1e-2"],
        ["strategy.search_space.learning_rate=null", "trainer.learning_rate=1e-3"],
        ["pseudo_label.rounds=1"],
        ["domain_pretrain.epochs=1"],
    ],
)
def test_a_strategys_own_settings_change_its_study_only(plan: Any, overrides: list[str]) -> None:
    first, other = plan(), plan(*overrides)
    assert first.study != other.study
    assert first.comparison == other.comparison


def test_other_weights_are_another_study(plan: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    moved = tmp_path / tiny_checkpoint.name
    shutil.copytree(tiny_checkpoint, moved)
    assert plan().study == plan(checkpoint=moved).study, "only the content counts"
    model = BertModel.from_pretrained(moved)
    next(model.parameters()).data += 0.5
    model.save_pretrained(moved)
    assert plan().study.rpartition("-")[0] == plan(checkpoint=moved).study.rpartition("-")[0]
    assert plan().study != plan(checkpoint=moved).study


def test_names_hold_model_dataset_and_strategy(plan: Any) -> None:
    assert plan().study.startswith("bert-review_lines-lora-")
    assert plan().comparison.startswith("bert-review_lines-")


def test_wrappers_that_are_off_do_not_change_the_names(plan: Any) -> None:
    same = plan("pseudo_label.threshold=0.5", "pseudo_label.size=10", "domain_pretrain.learning_rate=1e-3")
    assert same.study == plan().study
    on = plan("pseudo_label.rounds=1")
    assert on.study != plan("pseudo_label.rounds=1", "pseudo_label.threshold=0.5").study
    assert on.study == plan("pseudo_label.rounds=1", "domain_pretrain.batch_size=8").study


def test_labels_name_rows_and_studies_but_measure_nothing(plan: Any) -> None:
    assert plan().strategy == "lora"
    wrapped = plan("pseudo_label.rounds=2", "domain_pretrain.epochs=1")
    assert wrapped.strategy == "lora+pseudo_label+domain_pretrain"
    assert wrapped.study.startswith("bert-review_lines-lora_pseudo_label_domain_pretrain-")
    assert (wrapped.epochs, wrapped.params["epochs"]) == (9, 9)
    mine = plan("strategy.label='LoRA / mine'", "pseudo_label.rounds=1")
    assert mine.strategy == mine.tags["thawline.strategy"] == mine.params["strategy"] == "LoRA / mine+pseudo_label"
    assert mine.study.startswith("bert-review_lines-LoRA_mine_pseudo_label-"), "safe as a file's name"
    assert mine.identity == plan("pseudo_label.rounds=1").identity
    assert mine.comparison == plan().comparison


def test_seeds_are_fixed_and_differ_by_every_part() -> None:
    assert derive_seed(42, "final", 0) == derive_seed(42, "final", 0)
    seeds = {derive_seed(seed, kind, k) for seed in (1, 2) for kind in ("trial", "final") for k in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_comparisons_on_different_train_sizes_are_points_of_one_curve(plan: Any) -> None:
    def curve(*overrides: str) -> str:
        return str(plan(*overrides).tags["thawline.curve"])

    first = curve()
    assert curve("dataset.train_size=24") == curve("dataset.train_size=24", "strategy=frozen") == first
    for other in ("dataset.seed=1", "dataset.test_size=24", "dataset.validation_size=24", "trainer.epochs=4"):
        assert curve(other) != first, other


def test_smaller_train_splits_lie_inside_larger_ones_and_the_same_rows_are_scored() -> None:
    small, large = (
        load_dataset("review_lines", train_size=size, validation_size=50, test_size=60) for size in (30, 300)
    )
    assert set(small.train.items) < set(large.train.items)
    assert small.validation.items.tolist() == large.validation.items.tolist()
    assert small.test.items.tolist() == large.test.items.tolist()


def test_outside_of_a_clone_the_version_stands_for_the_revision(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no git
    assert plan().study_tags["thawline.git_revision"] == f"thawline {version('thawline')}"
