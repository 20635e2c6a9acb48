"""Sweeps from Python: the commands of the command line as functions, for notebooks and scripts.

from sweeper import compare
result = compare(["frozen", "lora"], dataset=frame, trials=10)
result                       # the report, in a notebook
result.table                 # a row for each strategy and floor
result.predictor().predict(["a triumph from start to finish"])
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sweeper.config import config_dir, register, users_config_dir
from sweeper.errors import ConfigError, DataError, StudyError, ThawlineError, near_matches
from sweeper.hashing import digest
from sweeper.invocation import interpret
from sweeper.overrides import composed, config_folders, group_options
from sweeper.winners import model_folder

if TYPE_CHECKING:
    import pandas as pd

    import reports
    from sweeper.models.predictor import Predictor

__all__ = ["Result", "compare", "sweep"]

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def _told(function: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """Raise the project's errors right below the caller's own line: they say what to do, our frames and Hydra's do not.

    All other errors keep theirs.
    """

    @functools.wraps(function)
    def told(*args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        try:
            return function(*args, **kwargs)
        except ThawlineError as error:
            raise error.with_traceback(None) from None

    return told


@dataclass(frozen=True)
class Result:
    """What a comparison came to.

    Attributes:
        report: that was written; a notebook shows it whole.
        model_path: the folder of the chosen model; ``None`` where nothing was chosen.
        tracking_uri: MLflow's address.
    """

    report: reports.Report
    model_path: Path | None
    tracking_uri: str

    @property
    def table(self) -> pd.DataFrame:
        """The report's table: a row for each strategy and floor, with intervals, parameters and cost."""
        return self.report.table

    @property
    def runs(self) -> pd.DataFrame:
        """Every trial and final as MLflow holds it: a row each."""
        import pandas as pd

        import reports

        name = self.report.comparison
        if reports.is_curve(self.tracking_uri, name):
            return pd.concat([part.runs for part in reports.load_curve(self.tracking_uri, name)], ignore_index=True)
        return reports.load_comparison(self.tracking_uri, name).runs

    def predictor(self) -> Predictor:
        """The chosen model, ready for texts or images.

        Raises:
            StudyError: nothing was chosen.
        """
        from sweeper.models.predictor import Predictor

        if self.model_path is None:
            raise StudyError("no model was chosen", "The report says why.")
        return Predictor.load(self.model_path)

    def __str__(self) -> str:
        """The answer, and where the report is."""
        return f"{self.report.summary.replace('**', '')}\n{self.report.path}"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


@_told
def sweep(
    strategy: str | None = None,
    *,
    model: str | None = None,
    dataset: str | Path | pd.DataFrame | None = None,
    experiment: str | None = None,
    trials: int | None = None,
    output_dir: str | Path = "outputs",
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> Result:
    """Search one strategy, retrain its best configuration with several seeds, test it and report.

    The same as ``thawline sweep``: what was finished earlier is kept, so that the same call again trains nothing.

    Args:
        strategy: a name from ``conf/strategy/``; ``None`` = the experiment's, else lora.
        model: a name from ``conf/model/``.
        dataset: a name from ``conf/dataset/``, a file or folder of your own, or a table with a column of labels.
        experiment: a recipe from ``conf/experiment/``.
        trials: of the study.
        output_dir: where everything goes.
        overrides: further keys, ``{"trainer.epochs": 5}`` or ``["trainer.epochs=5"]``; they win.

    Raises:
        ThawlineError: as the command line says it.
    """
    chosen = [] if strategy is None and experiment is not None else [f"strategy={strategy or 'lora'}"]
    return _run("sweep", chosen, model, dataset, experiment, trials, output_dir, overrides)


@_told
def compare(
    strategies: Sequence[str] | None = None,
    *,
    model: str | None = None,
    dataset: str | Path | pd.DataFrame | None = None,
    experiment: str | None = None,
    trials: int | None = None,
    output_dir: str | Path = "outputs",
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> Result:
    """Search several strategies with equal budgets, and report which one to choose.

    Args:
        strategies: names from ``conf/strategy/``, or ``["all"]``; ``None`` = the experiment's, else frozen, lora,
            partial and full.
        model: see :func:`sweep`, and so for the others.
        dataset: see there.
        experiment: see there.
        trials: of each study.
        output_dir: see there.
        overrides: see there.

    Raises:
        ThawlineError: as the command line says it; the first error of a study, once the others are done.
    """
    chosen = [] if strategies is None else [f"strategy={','.join(strategies)}"]
    return _run("compare", chosen, model, dataset, experiment, trials, output_dir, overrides)


def _run(
    command: str,
    chosen: list[str],
    model: str | None,
    dataset: str | Path | pd.DataFrame | None,
    experiment: str | None,
    trials: int | None,
    output_dir: str | Path,
    overrides: Mapping[str, Any] | Sequence[str],
) -> Result:
    from sweeper import commands

    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigError(
            "several processes of a launcher: only the command line trains each run on all of them",
            "accelerate launch -m sweeper sweep ...",
        )
    register()
    extra_dir = users_config_dir()
    named = group_options("dataset", config_folders(config_dir(), extra_dir))
    given = [f"experiment={experiment}"] if experiment is not None else []
    given += chosen
    given += [f"model={model}"] if model is not None else []
    given += [] if dataset is None else _dataset(dataset, named, Path(output_dir))
    if model is None and experiment is None and {"dataset=image_folder", "dataset=image_csv"} & set(given):
        given.append("model=efficientnet_lite0")
    given += [f"study.n_trials={trials}"] if trials is not None else []
    given += [f"output_dir={_value(str(output_dir))}"]
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={_value(value)}" for key, value in overrides.items()]
    given += overrides
    asked = interpret(command, given, extra_dir)
    configs = composed(asked.overrides, config_dir(), extra_dir)
    reported = commands.run(configs, asked.text, skip_inapplicable=asked.everything)
    if not reported:
        raise StudyError(
            "nothing was reported: a dry run, nothing to train, or final.seeds=0, which leaves out the test split",
            "Name a strategy that trains, or raise final.seeds.",
        )
    choices = [report.chosen[0] for report in reported if report.chosen is not None]
    folder = model_folder(Path(configs[0].output_dir), choices[-1]) if choices else None
    found = folder if folder is not None and folder.is_dir() else None
    return Result(reported[-1], found, commands.tracking_uri(configs[0]))


def _dataset(given: str | Path | pd.DataFrame, named: Sequence[str], output_dir: Path) -> list[str]:
    """The overrides that name a dataset of ours, a file or folder, or a table, which is stored first."""
    import pandas as pd

    if isinstance(given, pd.DataFrame):
        return ["dataset=csv", f"dataset.path={_value(str(_stored(given, output_dir)))}"]
    if isinstance(given, str) and given in named:
        return [f"dataset={given}"]
    path = Path(given).expanduser()
    if path.is_dir():
        return ["dataset=image_folder", f"dataset.path={_value(str(path))}"]
    if not path.is_file():
        raise ConfigError(
            f"dataset={given}: no such file or folder, and no dataset of that name; {near_matches(str(given), named)}",
            "Give a path, one of these names, or a DataFrame.",
        )
    from sweeper.data.columns import holds_images
    from sweeper.data.table_files import read_table

    kind = "image_csv" if holds_images(read_table(path)) else "csv"
    return [f"dataset={kind}", f"dataset.path={_value(str(path))}"]


def _stored(frame: pd.DataFrame, output_dir: Path) -> Path:
    """A table as a file, named by its content; labels and texts as text, as files of tables hold them."""
    import pyarrow as pa

    table = frame.rename(columns=str).reset_index(drop=True)
    for name, column in table.items():
        if column.dtype == object:
            table[name] = column.map(str, na_action="ignore")
    try:
        content = table.to_csv(index=False)
        path = output_dir / "data" / f"frame-{digest([content], 8)}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path, index=False)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"the table cannot be stored: {error}", "Give columns of texts or numbers, each under its own name."
        ) from error
    return path


def _value(value: Any) -> str:
    """A value in Hydra's grammar of overrides."""
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{_key(key)}:{_value(part)}' for key, part in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, str | Path):
        text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), str(value))
        return f"'{text}'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _key(key: object) -> str:
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(key))
