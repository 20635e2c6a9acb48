"""Libraries' own bars, advice and warnings, which would bury what a person follows."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quick_imports", "quieten_libraries"]


@contextmanager
def quick_imports() -> Iterator[None]:
    """Around imports of what trains, which take seconds."""
    # Where it is installed, peft imports bitsandbytes, which advises of an optional kernel on every start.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    gc.disable()  # a sixth of the time would go into looking again and again at what they have made
    yield
    gc.enable()


def quieten_libraries() -> None:
    """The libraries' own bars and advice would bury what a person follows; real warnings are ours to give."""
    import optuna
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # A library would ask a service to add a converted copy to the repository of whoever's pickled weights are loaded.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    logging.getLogger("sweeper").setLevel(logging.WARNING)  # Hydra has the root's at ERROR
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it prints tracebacks of errors that are handled here
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|peft|transformers|accelerate|mlflow")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
