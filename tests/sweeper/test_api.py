"""Sweeps from Python: what is asked for reaches the engine as it was given, and comes back as tables and a model."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sweeper import compare, sweep
from sweeper.api import _dataset, _value
from sweeper.errors import ConfigError, DataError, ThawlineError


@pytest.mark.parametrize(
    "value",
    [
        *(
            "plain",
            "größe",
            "it's",
            'say "so"',
            "C:\\data\\",
            "back\\'slash",
            "a, b: {c} [d]",
            "",
            "null",
            "1e-3",
            " x ",
        ),
        *(None, True, 0.001, 1e-05, 7, ["a", 1, None], {"pos": "a good one", "very bad": "it's"}, {"a": {"b": [1]}}),
    ],
)
def test_a_value_is_what_the_configuration_holds(value: Any) -> None:
    override = OverridesParser.create().parse_override(f"key={_value(value)}")
    assert override.value() == value


def test_a_name_of_ours_wins_over_a_folder_and_a_path_over_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "textile").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "bewertungen.csv").write_text("text,label\nsome long words here,1\n")
    (tmp_path / "labels.csv").write_text("file,label\na.png,1\nb.png,2\n")
    named = ["review_lines", "textile"]
    assert _dataset("textile", named, tmp_path) == ["dataset=textile"]
    assert _dataset(Path("textile"), named, tmp_path)[0] == "dataset=image_folder"
    assert _dataset("photos", named, tmp_path)[0] == "dataset=image_folder"
    assert _dataset("bewertungen.csv", named, tmp_path)[0] == "dataset=csv"
    assert _dataset("labels.csv", named, tmp_path)[0] == "dataset=image_csv"
    with pytest.raises(ConfigError, match=r"no such file or folder, and no dataset .*mean 'textile'"):
        _dataset("textil", named, tmp_path)


def test_a_table_is_stored_once_whatever_its_labels_are(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "label": ["x", 1]}, index=[5, 5])
    first, second = _dataset(frame, [], tmp_path), _dataset(frame.copy(), [], tmp_path)
    assert first == second and len(list((tmp_path / "data").iterdir())) == 1
    _dataset(frame.assign(label=["x", 2]), [], tmp_path)
    assert len(list((tmp_path / "data").iterdir())) == 2
    with pytest.raises(DataError, match="cannot be stored"):
        _dataset(pd.DataFrame([["a", "b"]], columns=["text", "text"]), [], tmp_path)


def test_mistakes_are_those_of_the_command_line_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        sweep("lorra", trials=0, output_dir=tmp_path, overrides={"trainer.epoch": 1})
    assert "did you mean 'lora'" in raised.value.message and "trainer.epoch" in raised.value.message
    with pytest.raises(ThawlineError, match="several strategies, and sweep runs one"):
        sweep(experiment="frozen_vs_full", output_dir=tmp_path)


def test_an_error_stands_right_below_the_callers_line(tmp_path: Path) -> None:
    """Neither our frames nor Hydra's, from which nobody learns more than the message says."""
    with pytest.raises(ConfigError) as raised:
        sweep("frozen", output_dir=tmp_path, overrides={"trainer.epoch": 1})
    shown = traceback.format_exception(raised.value)
    assert len(traceback.extract_tb(raised.tb)) == 2 and "hydra" not in "".join(shown).lower(), "".join(shown)
    assert str(inspect.signature(sweep)).startswith("(strategy: 'str | None' = None, *, model:")


@pytest.mark.slow
def test_a_strategy_that_is_named_wins_over_the_experiments_and_the_result_can_be_used(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "größe"
    overrides = {
        "model.path": str(tiny_checkpoint),
        "dataset.train_size": 64,
        "dataset.validation_size": 40,
        "dataset.test_size": 60,
        "trainer.epochs": 1,
        "trainer.precision": "fp32",
        "final.seeds": 1,
    }
    given: dict[str, Any] = {"model": "local", "dataset": "review_lines", "output_dir": output, "overrides": overrides}
    result = sweep("bitfit", experiment="smoke", **given)
    assert result.table["strategy"].tolist()[0] == "bitfit"
    assert result.model_path is not None and result.model_path.parent.parent == output
    assert set(result.runs["kind"]) >= {"trial", "final"}
    assert str(result.report.path) in str(result) and "<iframe" in result._repr_html_()
    assert result.predictor().predict(["a triumph"])["label"][0] in ("fresh", "rotten")
    again = compare(["bitfit"], experiment="smoke", **given)
    assert len(again.runs) == len(result.runs), "nothing was trained again"
