"""The command of a report trains the winner: it composes, with every value fixed and the settings of the sweep."""

from __future__ import annotations

import shlex
from typing import Any, cast

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import reports
from reports.reproduce import places, train_command
from sweeper import schema
from sweeper.config import config_dir, register
from sweeper.overrides import check_overrides, variant
from sweeper.search_space import parse_strategy
from tests.reports.conftest import KNOWN, Recorder


def composed(overrides: list[str]) -> dict[str, Any]:
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return cast(dict[str, Any], OmegaConf.to_container(compose("config", overrides=overrides), resolve=True))


@pytest.mark.parametrize(
    ("name", "given", "own", "winner"),
    [
        (
            "c-alone",
            ["study.n_trials=10", "output_dir=out put", "trainer.epochs=2", "dataset.train_size=300"],
            "lora",
            {"learning_rate": 0.001596679130738707, "rank": 16, "alpha_ratio": 3.0},
        ),
        (
            "c-variant",  # a size of a curve, a label, a field that is fixed although its YAML searches it
            ["dataset.train_sizes=[100,300]", "compare=[{strategy: lora, label: rank 8, rank: 8}, full]"],
            {"strategy": "lora", "label": "rank 8", "rank": 8},
            {"learning_rate": 1e-3, "alpha_ratio": 2.0},
        ),
    ],
)
def test_the_command_trains_the_winner_with_the_settings_of_the_sweep(
    recorder: Recorder, name: str, given: list[str], own: Any, winner: dict[str, float]
) -> None:
    common = [item for item in given if not item.startswith(("compare=", "dataset.train_sizes="))]
    config = composed([*common, *variant(own), *(["dataset.train_size=100"] if own != "lora" else [])])
    study = recorder.study(
        name,
        "lora",
        tags={schema.TAG_COMMAND: shlex.join(["python", "-m", "sweeper", "compare", *given])},
        params={schema.PARAM_SEARCHED: ",".join(winner)},
        artifacts={schema.ARTIFACT_CONFIG: OmegaConf.to_yaml(OmegaConf.create(config))},
    )
    recorder.trial(name, study, 0, params=winner)
    loaded = reports.load_comparison(recorder.uri, name)

    words = shlex.split(train_command(loaded, "lora"))
    assert words[:4] == ["python", "-m", "sweeper", "sweep"]
    assert check_overrides(words[4:], config_dir()) == []
    alone = composed(words[4:])
    spec, mistakes = parse_strategy(alone["strategy"], alone["trainer"]["learning_rate"])
    assert not mistakes and spec is not None and spec.space == {}
    before, _ = parse_strategy(config["strategy"], None)
    assert before is not None and spec.fixed == {**before.fixed, **winner} and spec.label == before.label
    for group in ("model", "dataset", "trainer", "final"):
        assert {k: v for k, v in alone[group].items() if k != "learning_rate"} == {
            k: v for k, v in config[group].items() if k != "learning_rate"
        }
    assert alone["study"]["n_trials"] == 1
    assert alone["output_dir"] == f"{config['output_dir']}/only_lora"  # not beside the studies of the comparison
    assert f"{config['output_dir']}/models/{study}" in " ".join(places(loaded, "lora"))


def test_what_another_program_ran_has_no_such_command(uri: str) -> None:
    loaded = reports.load_comparison(uri, KNOWN)
    assert train_command(loaded, "lora") == "" and list(places(loaded, "lora")) == []
