"""Configuration: every file composes, every mistake is named, all at once."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from strategies import STRATEGIES
from sweeper.config import Config, check, config_dir, register
from sweeper.data import DataRequest
from sweeper.errors import ConfigError
from sweeper.overrides import check_overrides, compared, for_strategies, variant
from sweeper.search_space import parse_strategy

GIVEN = {
    "model=hub_text": ["model.name=some/model"],
    "model=hub_image": ["model.name=some/model"],
    "model=timm": ["model.name=resnet50"],
    "model=local": ["model.path=."],
    "dataset=hub": ["dataset.name=some/data"],
    "dataset=csv": ["dataset.path=rows.csv"],
    "dataset=image_csv": ["dataset.path=images.csv"],
    "dataset=image_folder": ["dataset.path=images"],
}
IMAGES = {"model": "dataset=digits", "dataset": "model=efficientnet_lite0"}  # what goes with a file about images
OPTIONS = [
    f"{path.parent.name}={path.stem}" for path in sorted(config_dir().glob("*/*.yaml")) if path.parent.name != "hydra"
]


@pytest.fixture(autouse=True, scope="module")
def schema() -> None:
    register()


def composed(*overrides: str) -> Config:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("config", overrides=list(overrides))  # type: ignore[return-value]


def problems(*overrides: str) -> list[str]:
    return check_overrides(overrides, config_dir())


@pytest.mark.parametrize("option", OPTIONS)
def test_every_file_composes_and_is_valid(option: str) -> None:
    overrides = [option, *GIVEN.get(option, [])]
    group, _, name = option.partition("=")
    if "modality: image" in (config_dir() / group / f"{name}.yaml").read_text():
        overrides.append(IMAGES[group])
    assert problems(*overrides) == []
    config = composed(*overrides)
    assert check(config) == []
    raw: Any = OmegaConf.to_container(config.strategy, resolve=True)  # type: ignore[call-overload]
    spec, mistakes = parse_strategy(raw, config.trainer.learning_rate)
    assert mistakes == []
    assert spec is not None
    assert spec.space or option.startswith("experiment=") or not spec.cls.trains


@pytest.mark.parametrize("path", sorted(config_dir().glob("strategy/*.yaml")), ids=lambda path: path.stem)
def test_every_field_of_a_strategy_can_be_fixed_and_searched(path: Path) -> None:
    raw = yaml.safe_load(path.read_text())
    cls = STRATEGIES[raw["name"]]
    names = {field.name for field in fields(cls)}
    assert set(raw) - {"name", "search_space", "label"} == names
    if cls.trains:
        assert set(raw["search_space"]) == names | {"learning_rate"}
        assert all(set(bounds) == {"low", "high", "log", "step", "choices"} for bounds in raw["search_space"].values())


@pytest.mark.parametrize("path", sorted(config_dir().glob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_file_opens_with_its_command(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if "@package" not in line]
    assert lines[0].startswith("# make "), f"{path} must open with the command that uses it"


def test_every_key_of_the_schema_is_read_somewhere(repository: Path) -> None:
    code = "\n".join(path.read_text() for path in (repository / "sweeper").rglob("*.py"))
    for group in fields(Config):
        default = getattr(Config(), group.name)
        for key in fields(default) if is_dataclass(default) else ():
            is_read = f".{key.name}" in code or key.name in {field.name for field in fields(DataRequest)}
            assert is_read, f"{group.name}.{key.name} is declared and never read"


def test_all_mistakes_come_at_once() -> None:
    found = problems("strategy=lorra", "study.n_trial=3", "trainer.epochs=x", "final.seeds=-1", "dataset.train_size=1")
    assert len(found) == 5
    text = "\n".join(found)
    assert "strategy=lorra: did you mean 'lora' or 'qlora' or 'rslora'? allowed: " in text
    assert "study.n_trial: no such key; did you mean 'study.n_trials'" in text
    assert "trainer.epochs=x: Value 'x' of type 'str' could not be converted to Integer" in text
    assert "final.seeds=-1: must be at least 0" in text
    assert "dataset.train_size=1: must be at least 2" in text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.path=/nope", "model.source=asset does not read it; it is for local"),
        ("model.revision=abc", "model.source=asset does not read it; it is for hub, timm"),
        ("dataset.augmentation=strong", "it is for images, and the dataset holds texts"),
        ("model=minilm2", "did you mean 'minilm'? allowed: "),
        ("dataset=review_line", "did you mean 'review_lines'? allowed: "),
        ("model=hub_text", "model=hub_text needs model.name=..."),
        ("strategy.rnk=4", "did you mean 'strategy.rank'"),
        ("trainer.epochs.max=4", "trainer.epochs is a single value"),
        ("trainr.epochs=4", "did you mean 'trainer'"),
    ],
)
def test_a_wrong_override_names_what_is_allowed(override: str, words: str) -> None:
    assert words in "\n".join(problems(override))


def test_a_key_that_another_strategy_has_is_refused() -> None:
    assert problems("strategy=lora", "strategy.dropout=0.1") == []
    assert "strategy.dropout: no such key" in problems("strategy=full", "strategy.dropout=0.1")[0]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("study.n_trials=0", "study.n_trials=0: must be at least 1"),
        ("trainer.warmup_ratio=1", "trainer.warmup_ratio=1.0: must be at least 0 and below 1"),
        ("trainer.max_grad_norm=0", "trainer.max_grad_norm=0.0: must be above 0"),
        ("study.timeout=-1", "study.timeout=-1.0: must be above 0"),
        ("study.pruner=medan", "did you mean 'median'"),
        ("study.sampler=tpee", "did you mean 'tpe'"),
        ("trainer.precision=fp8", "allowed: auto, bf16, fp16, fp32"),
        ("model.head=mpl", "did you mean 'mlp'"),
        ("verbosity=loud", "allowed: normal, quiet, verbose"),
        ("study.direction=minimize", "the wrong way for validation_accuracy"),
        ("model=local", "model.path is not given"),
        ("dataset=csv", "dataset.path is not given: dataset=csv needs dataset.path=<your file or folder>"),
        ("dataset.path=x.csv", "dataset=review_lines has its own data; your own are read by dataset=csv"),
        ("dataset=image_folder dataset.text_column=a", "dataset.source=image_folder does not read it; it is for csv"),
        ("dataset=csv dataset.subset=a", "dataset.source=csv does not read it; it is for hub"),
        ("dataset=csv dataset.path=a.csv dataset.test_path=./a.csv", "must differ"),
        ("dataset=csv dataset.split_column=a dataset.test_path=b.csv", "give one of them"),
        ("dataset=csv dataset.modality=image", "dataset.modality=image: dataset.source=csv holds text"),
        ("engine.workers=2", "engine.name=inline does not read it; it is for processes, ray"),
        ("engine.address=auto", "engine.name=inline does not read it; it is for ray"),
    ],
)
def test_impossible_values_are_named(override: str, words: str) -> None:
    assert words in "\n".join(check(composed(*override.split())))


def test_a_users_own_folder_joins_the_search_path(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("name: review_lines\nmodality: text\ntrain_size: 10\n")
    assert check_overrides(["dataset=mine"], config_dir(), str(tmp_path)) == []
    assert "did you mean 'mine'" in check_overrides(["dataset=mien"], config_dir(), str(tmp_path))[0]


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "strategy.search_space.rank.low=4",
            "strategy.search_space.rank.high=64",
            "strategy.search_space.rank.choices=null",
        ],
        ["strategy.search_space.rank={low: 4, high: 64, log: true, choices: null}"],
        ["strategy.search_space.learning_rate.log=false", "strategy.search_space.learning_rate.step=1e-4"],
        ["strategy.search_space.learning_rate={low: null, high: null, log: false, choices: [1e-3, 2e-3]}"],
        ["strategy.search_space.dropout.low=0", "strategy.search_space.dropout.high=0.2", "strategy.dropout=null"],
        ["strategy.targets=[query,value]"],
    ],
)
def test_every_key_of_a_search_space_can_be_overridden(overrides: list[str]) -> None:
    overrides = ["strategy=lora", *overrides]
    assert problems(*overrides) == []
    raw: Any = OmegaConf.to_container(composed(*overrides).strategy, resolve=True)  # type: ignore[call-overload]
    _, mistakes = parse_strategy(raw, None)
    assert mistakes == []


@pytest.mark.parametrize("label", ["7", "''", "[a]"])
def test_a_label_is_a_name(label: str) -> None:
    raw: Any = OmegaConf.to_container(composed(f"strategy.label={label}").strategy, resolve=True)  # type: ignore[call-overload]
    spec, mistakes = parse_strategy(raw, None)
    assert spec is None
    assert len(mistakes) == 1 and mistakes[0].startswith("strategy.label=")


def test_a_comparison_gives_a_strategys_key_to_those_that_have_it() -> None:
    given = ["strategy.rank=8", "strategy.head_lr_multiplier=2", "strategy.nothing=1", "study.n_trials=2"]
    frozen, lora = for_strategies(given, [["strategy=frozen"], ["strategy=lora"]], config_dir())
    assert frozen == ["strategy=frozen", "strategy.nothing=1", "study.n_trials=2"]
    assert lora == ["strategy=lora", *given]


def test_variants_of_one_strategy_have_labels_and_values_that_are_not_searched() -> None:
    entries = ["frozen", {"strategy": "discriminative", "label": 'a rate for all, "uniform"', "layer_decay": 1.0}]
    given = ["study.n_trials=2", "strategy.head_lr_multiplier=3"]
    frozen, uniform = for_strategies(given, [variant(entry) for entry in entries], config_dir())
    assert problems(*frozen) == problems(*uniform) == []
    strategy = composed(*uniform).strategy
    assert (strategy["name"], strategy["label"]) == ("discriminative", 'a rate for all, "uniform"')
    assert (strategy["layer_decay"], strategy["search_space"]["layer_decay"]) == (1.0, None)
    assert strategy["head_lr_multiplier"] == 3, "the command line reaches every variant that has the key"
    raw: Any = OmegaConf.to_container(strategy, resolve=True)  # type: ignore[call-overload]
    spec, mistakes = parse_strategy(raw, None)
    assert mistakes == [] and spec is not None and set(spec.space) == {"learning_rate"}


@pytest.mark.parametrize("entry", [7, {"label": "x"}, ["lora"], {"strategy": None}])
def test_an_entry_of_compare_names_a_strategy(entry: Any) -> None:
    with pytest.raises(ConfigError, match="must be a strategy's name or a mapping with one"):
        variant(entry)


def test_the_experiment_says_what_is_compared_and_the_command_line_wins() -> None:
    assert compared(["experiment=frozen_vs_full", "strategy.nothing=1"], config_dir()) == ["frozen", "full"]
    assert compared(["experiment=frozen_vs_full", "compare=[lora]"], config_dir()) == ["lora"]
    assert compared(["experiment=smoke"], config_dir()) is None
    assert compared(["experiment=no_such_thing"], config_dir()) is None


@pytest.mark.parametrize("sizes", ["[]", "[1,10]", "[10,10]", "[20,10]"])
def test_train_sizes_grow(sizes: str) -> None:
    assert "must be different numbers from 2, the smallest first" in "\n".join(problems(f"dataset.train_sizes={sizes}"))


def test_one_name_is_not_for_the_studies_of_many_sizes() -> None:
    assert "study.name=mine names one study" in problems("dataset.train_sizes=[10,20]", "study.name=mine")[0]
