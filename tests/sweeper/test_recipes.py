"""The recipes of ``conf/experiment/``: each runs offline, with an embedded dataset and another model put in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from sweeper.comparison import prepare_comparisons
from sweeper.config import Config, config_dir, register
from sweeper.dry_run import print_dry_run
from sweeper.overrides import compared, for_strategies, variant
from tests.cli import run, runs

IMAGES = {"domain_adaptation", "frozen_vs_full", "gradual_unfreezing", "layer_groups", "layer_wise_vs_uniform"}
IMAGES |= {"lora_vit", "vit_partial"}
RECIPES = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))
#: What the tiny models are too small for.
SMALLER = {
    "data_size": ["compare=[frozen,lora,{strategy: partial, num_blocks: 2},full]"],
    "domain_pretraining": ["domain_pretrain.size=64"],
    "gradual_unfreezing": ["strategy.num_blocks=[0,1,3]"],
    "r8": [
        "strategy.search_space.num_blocks.low=2",
        "strategy.search_space.num_blocks.high=4",
        "dataset.train_size=100",
    ],
    "smoke": ["strategy=frozen"],
}
TINY = [
    *("dataset.train_size=32", "dataset.validation_size=24", "dataset.test_size=24", "trainer.precision=fp32"),
    *("study.n_trials=1", "final.seeds=1", "trainer.batch_size=16"),
]


@pytest.fixture(autouse=True, scope="module")
def schema() -> None:
    register()


@pytest.fixture(scope="module")
def embedded(checkpoint: Callable[[str], Path]) -> Callable[[str], list[str]]:
    """The overrides that put a small model and an embedded dataset into a recipe."""

    def overrides(recipe: str, text_model: str = "bert") -> list[str]:
        kind, dataset = ("vit-timm", "digits") if recipe in IMAGES else (text_model, "review_lines")
        modality = "image" if recipe in IMAGES else "text"
        return [
            *(f"experiment={recipe}", "model=local", f"model.path={checkpoint(kind)}", f"model.modality={modality}"),
            *(f"dataset={dataset}", *SMALLER.get(recipe, [])),
        ]

    return overrides


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_dry_runs_on_embedded_data(recipe: str, embedded: Callable[[str], list[str]]) -> None:
    small = ["trainer.precision=fp32", "trainer.batch_size=4", "dataset.test_size=50"]  # what is timed
    overrides = [*embedded(recipe), "dry_run=true", *small]
    entries = compared(overrides, config_dir())
    studies = for_strategies(overrides, [variant(entry) for entry in entries], config_dir()) if entries else [overrides]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        configs = [cast(Config, compose("config", overrides=study)) for study in studies]
    assert {config.dataset.name for config in configs} == {"digits" if recipe in IMAGES else "review_lines"}
    console = Console(record=True, quiet=True)
    prepared = prepare_comparisons([configs], "command", console)
    assert [plan.strategy for plan in prepared[0].plans] == [
        config.strategy["label"] or config.strategy["name"] for config in configs
    ] or recipe.startswith("domain_")
    print_dry_run(prepared, console)


def test_the_tutorials_values_are_pinned() -> None:
    """Sizes, lengths, epochs, batches and rates, as the tutorials give them."""
    found = {}
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        for name in RECIPES:
            if name.startswith(("distilbert_", "lora_imdb", "bert_")):
                config = cast(Config, compose("config", overrides=[f"experiment={name}"]))
                data, how = config.dataset, config.trainer
                sizes = (data.train_size, data.max_length, how.epochs, how.batch_size)
                found[name] = (*sizes, how.learning_rate, how.warmup_ratio, config.strategy["name"])
    assert found == {
        "bert_clipping": (1000, 128, 3, 16, 2e-5, 0.1, "full"),
        "distilbert_ag_news": (1000, 512, 3, 16, 2e-5, 0.0, "full"),
        "distilbert_imdb": (2000, 256, 2, 16, 2e-5, 0.0, "full"),
        "distilbert_rotten_tomatoes": (1000, 256, 3, 16, 2e-5, 0.1, "full"),
        "lora_imdb": (2000, 256, 2, 16, 2e-5, 0.0, "lora"),
    }


@pytest.mark.slow
def test_a_text_model_is_fine_tuned(tmp_path: Path, embedded: Callable[..., list[str]]) -> None:
    """LoRA on DistilBERT's native head: the queries and values, and a head of two layers."""
    run(tmp_path, "sweep", *embedded("lora_imdb", "distilbert"), *TINY, "trainer.epochs=1")
    (final,) = runs(tmp_path, kind="final").to_dict("records")
    head = (32 * 32 + 32) + (32 * 2 + 2)
    assert final["metrics.trainable_params_head"] == head
    assert final["metrics.trainable_params_backbone"] == 3 * 2 * 8 * (32 + 32)


@pytest.mark.slow
def test_an_image_model_is_unfrozen_in_stages(tmp_path: Path, embedded: Callable[[str], list[str]]) -> None:
    run(tmp_path, "sweep", *embedded("gradual_unfreezing"), *TINY, "trainer.epochs=4")
    (final,) = runs(tmp_path, kind="final").to_dict("records")
    assert final["metrics.epochs_run"] == 4, "5, 5 and 10 of 20 epochs: 1, 1 and 2 of 4"
    head, mean = final["metrics.trainable_params_head"], final["metrics.trainable_params_mean"]
    assert head < mean < final["metrics.trainable_params"] < final["metrics.total_params"]


@pytest.mark.slow
def test_variants_of_one_strategy_stand_beside_each_other(tmp_path: Path, embedded: Callable[[str], list[str]]) -> None:
    """LoRA of two ranks on a ViT: the recipe's own entries, two of six."""
    recipe = embedded("lora_vit")
    entries = compared(recipe, config_dir()) or []
    two = json.dumps([entry for entry in entries if isinstance(entry, dict)][:2]).replace('"', "")
    text = run(tmp_path, "compare", *recipe, *TINY, "trainer.epochs=1", f"compare={two}")
    finals = runs(tmp_path, kind="final").set_index("tags.thawline.strategy")
    added = finals["metrics.trainable_params_backbone"]
    assert list(added.index) == ["lora-4", "lora-8"]
    assert added["lora-8"] == 2 * added["lora-4"]
    assert text.count("Report:") == 1


@pytest.mark.slow
def test_a_source_is_adapted_to_an_unlabelled_target(tmp_path: Path, embedded: Callable[[str], list[str]]) -> None:
    recipe = [*embedded("domain_adaptation"), *TINY, "trainer.epochs=1", "pseudo_label.size=40"]
    run(tmp_path, "sweep", *recipe, "pseudo_label.threshold=0.12")
    (final,) = runs(tmp_path, kind="final").to_dict("records")
    assert final["tags.thawline.strategy"] == "partial+pseudo_label"
    assert final["metrics.epochs_run"] == 2, "before and after labelling"
    assert 0 < final["metrics.pseudo_labelled"] <= 40


def test_sweep_says_how_to_run_what_compares(tmp_path: Path, embedded: Callable[[str], list[str]]) -> None:
    recipe = [*embedded("layer_wise_vs_uniform"), *TINY]
    text = run(tmp_path, "sweep", *recipe, status=2)
    assert "error: compare=[layer-wise, uniform] is for several strategies, and sweep runs one" in text
    assert "make compare" in text and "strategy=" in text


@pytest.mark.slow
def test_a_curve_over_train_sizes_is_rebuilt_from_mlflow_alone(
    tmp_path: Path, embedded: Callable[[str], list[str]]
) -> None:
    sizes = "dataset.train_sizes=[16,32]"
    text = run(tmp_path, "compare", *embedded("data_size"), *TINY, sizes, "trainer.epochs=1", "strategy=frozen")
    studies = runs(tmp_path, kind="study")
    assert studies["params.train_size"].tolist() == ["16", "32"]
    assert studies["tags.thawline.comparison"].nunique() == 2
    (curve,) = set(studies["tags.thawline.curve"])
    page = tmp_path / "reports" / curve / "data_size.md"
    assert re.search(rf"Report: +{page}", text)
    before = page.read_text()
    assert re.search(r"^\| 16 \| .*\n\| 32 \| ", before, flags=re.MULTILINE)
    assert len(list((tmp_path / "reports").glob("*/report.md"))) == 2

    page.unlink()
    figure = page.parent / "accuracy_vs_train_size.svg"
    drawn = figure.read_bytes()
    figure.unlink()
    run(tmp_path, "report", f"report.comparison={curve}")
    assert page.read_text() == before
    assert figure.read_bytes() == drawn


def test_all_sizes_are_checked_before_the_first_trial(tmp_path: Path, embedded: Callable[[str], list[str]]) -> None:
    recipe = [*embedded("data_size"), *TINY, "strategy=frozen", "dataset.train_sizes=[16,90000]"]
    text = run(tmp_path, "compare", *recipe, status=2)
    assert "90000" in text
    assert not (tmp_path / "optuna.db").exists()
