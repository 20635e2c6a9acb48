"""The worked example of CONTRIBUTING.md is a strategy like any other."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import strategies
from strategies import Strategy
from sweeper.models.pretrained import Pretrained, load_model
from sweeper.search_space import parse_strategy
from tests.strategies import strategy_contract as contract


def blocks(repository: Path) -> tuple[str, str]:
    """Its Python and its YAML."""
    text = (repository / "CONTRIBUTING.md").read_text()
    section = text.partition("## Adding a strategy")[2].partition("\n## ")[0]
    python, declared = (re.search(rf"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("python", "yaml"))
    assert python and declared
    return python.group(1), declared.group(1)


@pytest.fixture(scope="module")
def example(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> type[Strategy]:
    path = tmp_path_factory.mktemp("example") / "norms.py"
    path.write_text(blocks(repository)[0])
    spec = importlib.util.spec_from_file_location("norms", path)
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["norms"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    found: type[Strategy] = module.Norms
    return found


@pytest.fixture(scope="module")
def pretrained(tiny_checkpoint: Path) -> Pretrained:
    return load_model(tiny_checkpoint, modality="text", head="linear", pooling="mean", label_names=["rotten", "fresh"])


def test_it_is_short(repository: Path) -> None:
    assert sum(len(block.strip().splitlines()) for block in blocks(repository)) < 40


@pytest.mark.parametrize(
    "check",
    contract.CHECKS,
    ids=lambda check: check.__name__,
)
def test_it_fulfils_the_contract(check: Any, example: Any, pretrained: Pretrained) -> None:
    check(example(), pretrained)


def test_it_trains_the_norms_and_the_head(example: Any, pretrained: Pretrained) -> None:
    model = contract.prepared(example(), pretrained)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "LayerNorm" in name or name.startswith("head.")}


def test_its_yaml_is_read(repository: Path, example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(strategies.STRATEGIES, "norms", example)
    spec, mistakes = parse_strategy(yaml.safe_load(blocks(repository)[1]), None)
    assert mistakes == []
    assert spec is not None
    assert list(spec.space) == ["learning_rate"]
