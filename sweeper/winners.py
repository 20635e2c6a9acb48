"""Where the models of a sweep's winners lie, and which one its report chose."""

from __future__ import annotations

import json
from pathlib import Path

from sweeper.errors import ConfigError, StudyError
from sweeper.files import inside, written

__all__ = ["chosen_model", "model_folder", "note_chosen"]

_CHOSEN = "chosen.json"


def model_folder(output_dir: Path, study: str) -> Path:
    """The folder of a study's winner."""
    return inside(output_dir / "models", study)


def note_chosen(output_dir: Path, comparison: str, study: str | None) -> None:
    """Note what a report chose, for the commands that use a model: the newest report's choice is theirs.

    ``None`` = nothing, or a model that is not in ``output_dir``.
    """
    if not (output_dir / "models").is_dir():
        return
    text = json.dumps({"comparison": comparison, "study": study}, indent=2)
    written(output_dir / "models" / _CHOSEN, text + "\n")


def chosen_model(folder: Path | None, output_dir: Path) -> Path:
    """The saved model to use.

    Args:
        folder: where the user says that it is; ``None`` = what the newest report of ``output_dir`` chose.
        output_dir: of the sweeps.

    Raises:
        ConfigError: there is no model in ``folder``.
        StudyError: nothing was chosen yet, or its folder is gone.
    """
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"--model {folder}: no saved model there (no config.json)",
                f"Name a folder below {output_dir / 'models'}, or leave it out for the one that the report chose.",
            )
        return folder
    try:
        noted = json.loads((output_dir / "models" / _CHOSEN).read_text(encoding="utf-8"))
        study, comparison = noted["study"], noted["comparison"]
        found = None if study is None else model_folder(output_dir, study)
    except (OSError, ValueError, KeyError, TypeError):
        raise StudyError(
            f"no report in {output_dir} has chosen a model yet",
            "Run `thawline sweep` or `thawline compare` (`make sweep`) first, or name a saved model with --model.",
        ) from None
    if found is None:
        raise StudyError(
            f"the newest report in {output_dir}, of {comparison}, chose no model that is saved there",
            "The report says why; --model names a saved model.",
        )
    if not (found / "config.json").is_file():
        raise StudyError(
            f"the chosen model is not in {found} any more",
            "The same sweep with a higher final.seeds saves one again; --model names another.",
        )
    return found
