"""Which studies are continued, which are refused before the first trial, and where names may lead."""

from __future__ import annotations

import os
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from sweeper.errors import ThawlineError
from sweeper.files import inside, replaced
from sweeper.names import folder_problem, text_problem
from sweeper.ownership import StudyOwner
from tests.cli import TINY_SWEEP, run

TINY = [
    *TINY_SWEEP,
    "strategy=frozen",
    "trainer.epochs=1",
    "final.seeds=0",
    "study.n_trials=1",
]


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> list[str]:
    return [*TINY, f"model.path={tiny_checkpoint}"]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """The folder of a study that was given the name `mine`."""
    output = tmp_path_factory.mktemp("named")
    run(output, "sweep", *tiny, "study.name=mine", "study.resume=never")
    return output


def test_a_named_study_of_other_settings_is_refused_with_the_difference(named: Path, tiny: list[str]) -> None:
    before = (named / "optuna.db").read_bytes()
    changed = ["dataset.train_size=60", "strategy.search_space.learning_rate.high=0.5", "trainer.epochs=3"]
    for more in ([], ["dry_run=true"]):
        text = run(named, "sweep", *tiny, "study.name=mine", *changed, *more, status=2)
        assert "study.name=mine belongs to a study of other settings" in text
        assert "dataset.train_size was 64, now 60" in text
        assert "strategy.search_space.learning_rate.high was 0.1, now 0.5" in text
        assert "trainer.epochs was 1, now 3" in text
        assert "the rows of the train split are others" in text
        assert "the test split" not in text
    assert (named / "optuna.db").read_bytes() == before


def test_a_study_without_a_record_of_its_settings_is_refused_too(tmp_path: Path, tiny: list[str]) -> None:
    study = optuna.create_study(study_name="old", storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    study.set_user_attr("identity", "0")
    text = run(tmp_path, "sweep", *tiny, "study.name=old", status=2)
    assert "study.name=old belongs to a study of another model, dataset, strategy or trainer setting" in text


def test_resume_says_whether_a_study_may_or_must_exist(named: Path, tmp_path: Path, tiny: list[str]) -> None:
    text = run(named, "sweep", *tiny, "study.name=mine", "study.resume=never", status=2)
    assert "study.resume=never: the study mine exists already in sqlite:///" in text
    text = run(named, "sweep", *tiny, "study.name=mne", "study.resume=require", status=2)
    assert "there is no study mne in " in text and "near it are mine" in text
    text = run(tmp_path, "compare", *tiny[2:], tiny[0], "strategy=frozen,full", "study.resume=require", status=2)
    assert "error: 2 mistakes:" in text, "all studies are looked at before the first trial"
    assert not (tmp_path / "optuna.db").exists()
    run(named, "sweep", *tiny, "study.name=mine", "study.resume=require", "dry_run=true")


def test_two_folders_do_not_write_one_database_at_once(named: Path, tmp_path: Path, tiny: list[str]) -> None:
    url = f"sqlite:///{named / 'optuna.db'}"
    with StudyOwner(sqlalchemy.make_url(url), ["mine"]):
        text = run(tmp_path, "sweep", *tiny, f"study.storage={url}", status=2)
    assert f"{named / 'optuna.db'} is in use by process {os.getpid()}" in text


def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, tiny: list[str]) -> None:
    names = ["study.name=../../x", 'strategy.label="red\x1b[31m"', 'tracking.experiment="a\x07"']
    data = ["dataset=csv", f"dataset.path={tmp_path / 'rows.csv'}", f"dataset.name={'x' * 300}"]
    text = run(tmp_path / "outputs", "sweep", *tiny, *names, *data, status=2)
    assert "study.name='../../x': becomes the name of a folder" in text
    assert "tracking.experiment='a\\x07': must be of characters that can be printed" in text
    assert ": must be 1 to 200 characters" in text
    text = run(tmp_path / "outputs", "sweep", *tiny, names[1], status=2)
    assert "strategy.label='red\\x1b[31m': must be of characters that can be printed" in text and "\x1b" not in text
    assert not (tmp_path / "outputs").exists() or {path.name for path in (tmp_path / "outputs").iterdir()} <= {"hydra"}


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".hidden", "-x", "a\0b", "x" * 121, "é" * 61, "Domain_Pretrain", " ", "a."]
)
def test_names_that_are_no_folders_of_their_own(name: str) -> None:
    assert folder_problem(name)


def test_a_report_is_not_written_outside(named: Path) -> None:
    around = set(named.parent.iterdir())
    text = run(named, "report", "report.comparison=../../x", status=2)
    assert "Traceback" not in text and set(named.parent.iterdir()) == around


def test_ordinary_names_are_accepted() -> None:
    assert not any(map(folder_problem, ("mine", "Übung 2", "bert-base_v1.2+x", "研究")))
    assert not any(map(text_problem, ("user/model-1.0", "l'été", "研究 😀")))


def test_links_do_not_lead_out_of_a_folder(tmp_path: Path) -> None:
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    models.mkdir()
    elsewhere.mkdir()
    (models / "linked").symlink_to(elsewhere)
    (models / ".study.new").symlink_to(elsewhere)
    with pytest.raises(ThawlineError, match="leads out of"), replaced(models / "study") as fresh:
        (fresh / "weights").write_text("")
    for name in ("linked", "..", "../elsewhere", "a/b/../../.."):
        with pytest.raises(ThawlineError, match="leads out of"):
            inside(models, name)
    assert not list(elsewhere.iterdir())
    assert inside(models, "study") == models / "study"
