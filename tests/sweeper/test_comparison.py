"""What is checked of all strategies before the first trial."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from strategies import STRATEGIES
from sweeper.comparison import _check_model, _load, _validate
from sweeper.config import Config, config_dir, register
from sweeper.errors import ConfigError

NAMES = sorted(path.stem for path in (config_dir() / "strategy").glob("*.yaml"))


def misfits(tiny_checkpoint: Path, names: list[str], *overrides: str) -> dict[str, str]:
    """Why strategies do not apply, by name."""
    register()
    given = [
        *("model=local", f"model.path={tiny_checkpoint}", "trainer.precision=fp32", "trainer.epochs=3"),
        *("dataset.train_size=16", "dataset.validation_size=16", "dataset.test_size=16", "dataset.max_length=24"),
        *overrides,
    ]
    own = {
        "partial": ["strategy.search_space.num_blocks.high=4"],  # the model has no more
        "pissa": ["strategy.search_space.rank.choices=[2,4]"],  # its layers are 32 wide
    }
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        configs: list[Any] = [
            compose("config", overrides=[f"strategy={name}", *given, *own.get(name, [])]) for name in names
        ]
    found: list[Config] = configs
    specs = _validate(found)
    task = _load(found[0], Console(quiet=True))
    return {names[index]: message for index, message in _check_model(task, found, specs).items()}


def test_there_is_a_file_for_every_strategy() -> None:
    assert set(STRATEGIES) == set(NAMES)


def test_every_strategy_fits_an_encoder(tiny_checkpoint: Path) -> None:
    assert misfits(tiny_checkpoint, NAMES) == {}


def test_what_does_not_fit_is_left_out_with_its_reason(tiny_checkpoint: Path) -> None:
    found = misfits(tiny_checkpoint, NAMES, "model.head=native", "trainer.epochs=2", "domain_pretrain.epochs=1")
    assert set(found) == {"adapter", "prompt", "prefix", "gradual", "scratch"}
    assert found["gradual"] == "strategy=gradual: trainer.epochs=2: must be at least 3, one for each stage"
    assert "throws away what domain_pretrain.epochs trains" in found["scratch"]
    assert all("model.head=linear or mlp" in found[name] for name in ("adapter", "prompt", "prefix"))


def test_what_is_printed_stays_on_its_line_however_narrow_the_terminal(tmp_path: Path) -> None:
    """Names and paths can be copied, and brackets are no markup."""
    register()
    given = ["model=local", "model.name='a[/x]model-of-mine'", f"model.path={tmp_path}"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config: Any = compose("config", overrides=given)
    printed = io.StringIO()
    with pytest.raises(ConfigError, match="no checkpoint there"):
        _load(config, Console(file=printed, width=20))
    assert printed.getvalue() == "Loading review_lines and a[/x]model-of-mine ...\n"


def test_a_choice_in_the_middle_is_checked_too(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="targets='typo': allowed are"):
        misfits(
            tiny_checkpoint,
            ["lora"],
            "strategy.targets=null",
            "strategy.search_space.targets.choices=[query,typo,value]",
        )


def test_zero_shot_is_left_out_where_an_image_model_reads_no_text(checkpoint: Callable[[str], Path]) -> None:
    images = ("model.modality=image", "dataset=digits", "dataset.train_size=20", "dataset.validation_size=20")
    assert misfits(checkpoint("clip-with-text"), ["zero_shot"], *images) == {}
    found = misfits(checkpoint("resnet"), ["zero_shot", "frozen"], *images)
    assert set(found) == {"zero_shot"}
    assert "strategy=zero_shot: it needs a text tower beside the image tower" in found["zero_shot"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("base_url=http://me:secret@host/v1", "base_url: must hold no user, password or query"),
        ("base_url='http://host/v1?key=secret'", "base_url: must hold no user, password or query"),
        ("base_url=host:8000", "must be like http://127.0.0.1:8000/v1"),
        ("model=null", "reference.prompting.model is not given"),
        ("shots=2", "must be 0, or 3 to 10"),
        ("api_key_variable=sk-secret", "never the key itself"),
        ("instruction='Name the label.'", "must hold {labels} once"),
        ("max_items=1", "must be at least 2"),
        ("timeout=0", "must be above 0"),
    ],
)
def test_impossible_prompting_is_refused_without_showing_a_key(
    tiny_checkpoint: Path, override: str, message: str
) -> None:
    on = ["reference.prompting.base_url=http://127.0.0.1:1/v1", "reference.prompting.model=tiny"]
    with pytest.raises(ConfigError) as caught:
        misfits(tiny_checkpoint, ["frozen"], *on, f"reference.prompting.{override}")
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_images_are_neither_prompted_nor_modelled_as_language(checkpoint: Callable[[str], Path]) -> None:
    on = ("reference.prompting.base_url=http://127.0.0.1:1/v1", "reference.prompting.model=tiny")
    images = ("model.modality=image", "dataset=digits", "domain_pretrain.epochs=1")
    with pytest.raises(ConfigError, match=r"only texts are asked about") as caught:
        misfits(checkpoint("resnet"), ["frozen"], *images, *on)
    assert "domain_pretrain.epochs=1: it trains on text" in str(caught.value)
