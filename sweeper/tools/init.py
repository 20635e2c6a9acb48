"""``thawline init``: looks at a user's own data and writes an experiment for them, with its reasons as comments."""

from __future__ import annotations

import argparse
import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sweeper.config import config_dir, register, users_config_dir
from sweeper.errors import ConfigError, DataError, ThawlineError, near_matches

__all__ = ["add_arguments", "run"]

#: The model that is there without a hub, by modality.
MODELS = {"text": "minilm", "image": "efficientnet_lite0"}
#: Rows of each split at most: those of the embedded datasets, whose comparisons take a quarter of an hour on two cores.
MOST = {
    "text": {"train": 1000, "validation": 500, "test": 1000},
    "image": {"train": 700, "validation": 300, "test": 700},
}
ROOM = 1.2  # a split is sampled where it has so many times as many rows
UNEQUAL = 0.25  # rows of the rarest class for one of the largest, below which accuracy says little of the rare ones
FEW_TEST_ROWS = 200  # more seeds then make up a little for the width of the intervals
SHOWN = 8  # classes
TOKENS_PER_WORD = 1.4  # of English
MAX_LENGTH = 128


@dataclass(frozen=True)
class _Found:
    """What the data are."""

    source: str
    modality: str
    columns: Mapping[str, str]  # text, image, label -> the column
    classes: Mapping[str, int]  # name -> rows, the largest first
    pools: Mapping[str, int]  # split -> rows that it could have
    sizes: Mapping[str, int | None]  # split -> rows that it has; None = all
    words: float  # that 95 of 100 texts keep below
    counts: Mapping[str, Any]
    warnings: Sequence[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "path",
        metavar="PATH",
        help="a table of texts or images (CSV, JSON lines, parquet), or a folder that has one of images for each label",
    )
    parser.add_argument("--text-column", metavar="NAME", help="where it is not clear which one holds the texts")
    parser.add_argument("--image-column", metavar="NAME", help="likewise, the paths of images")
    parser.add_argument("--label-column", metavar="NAME", help="likewise, the labels")
    parser.add_argument("--model", metavar="NAME", help="default: minilm for texts, efficientnet_lite0 for images")
    parser.add_argument("--name", metavar="NAME", help="of the experiment; default: that of the file or folder")
    parser.add_argument("--force", action="store_true", help="replace an experiment of that name")


def run(arguments: argparse.Namespace) -> None:
    """Write ``conf/experiment/<name>.yaml`` in the current folder and say what was found.

    Raises:
        ThawlineError: the data cannot be used, it is not clear which column is meant, the name is taken or no name, or
            the model is unknown or does not fit.
    """
    from sweeper.overrides import check_overrides, config_folders, group_options

    register()
    own = users_config_dir()
    model_names = group_options("model", config_folders(config_dir(), own))
    if arguments.model is not None and arguments.model not in model_names:
        raise ConfigError(f"--model {arguments.model}: {near_matches(arguments.model, model_names)}")
    try:
        found = _look(arguments)
    except (ConfigError, DataError) as error:
        raise type(error)(_in_flags(error.message), _in_flags(error.hint)) from error
    model = arguments.model or MODELS[found.modality]
    path = _target(arguments)
    before = path.read_text(encoding="utf-8") if path.exists() else None
    _write(path, _experiment(arguments.path, path.stem, model, found))
    folder = None if path.parents[1].samefile(config_dir()) else str(path.parents[1])
    if problems := check_overrides([f"experiment={path.stem}"], config_dir(), folder):
        _restore(path, before)
        raise ConfigError(problems, "Name another with --model, or leave it out.")
    print(_summary(arguments.path, found))
    print(f"\nWrote {path}; its comments say what can be changed.\n")
    print("Next, in this folder (with dry_run=true it only says what would run, how long):")
    joins = folder is None or users_config_dir() is not None
    print(f"  thawline compare {'' if joins else '--config-dir conf '}experiment={path.stem}")


# --- what there is -----------------------------------------------------------------------------------------------


def _look(arguments: argparse.Namespace) -> _Found:
    from sweeper.data.build import build
    from sweeper.data.registry import OWN
    from sweeper.data.request import DataRequest

    source, modality = _kind(arguments)
    request = DataRequest(
        name=Path(arguments.path).name,
        source=source,
        modality=modality,
        path=arguments.path,
        text_column=arguments.text_column,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
    )
    rows = OWN[source](request)
    pools = _pools(rows.labels, rows.splits)
    most = MOST[modality]
    sizes: dict[str, Any] = {split: most[split] if size > ROOM * most[split] else None for split, size in pools.items()}
    dataset = build(replace(request, **{f"{split}_size": size for split, size in sizes.items()}), rows)
    classes = Counter(label for label in rows.labels if label is not None)
    return _Found(
        source=source,
        modality=modality,
        columns=rows.counts.get("columns", {}),
        classes=dict(classes.most_common()),
        pools=dataset.summary["pool_sizes"],
        sizes=sizes,
        words=dataset.summary["words"]["train"]["p95"] if modality == "text" else 0,
        counts=rows.counts,
        warnings=dataset.summary["warnings"],
    )


def _kind(arguments: argparse.Namespace) -> tuple[str, str]:
    """The source that reads the data, and their modality."""
    from sweeper.data.columns import holds_images
    from sweeper.data.paths import existing
    from sweeper.data.table_files import read_table

    if Path(arguments.path).expanduser().is_dir():
        for flag in ("text_column", "image_column", "label_column"):
            if getattr(arguments, flag) is not None:
                raise ConfigError(
                    f"--{flag.replace('_', '-')} is for tables, and {arguments.path} is a folder",
                    "Leave it out: the folders below it name the labels.",
                )
        return "image_folder", "image"
    path = existing({"dataset.path": arguments.path}, folder=False)["dataset.path"]
    if arguments.image_column and arguments.text_column:
        raise ConfigError("--text-column and --image-column: give one of them", "A model takes texts, or images.")
    images = not arguments.text_column and (arguments.image_column or holds_images(read_table(path)))
    return ("image_csv", "image") if images else ("csv", "text")


def _pools(labels: Sequence[str | None], splits: Sequence[str]) -> dict[str, float]:
    """About how many labelled rows each split could have."""
    from sweeper.data.build import SHARES

    given = Counter(
        split for split, label in zip(splits or ["all"] * len(labels), labels, strict=True) if label is not None
    )
    return {split: given[split] or given["all"] * share for split, share in SHARES.items()}


# --- what is written ---------------------------------------------------------------------------------------------


def _target(arguments: argparse.Namespace) -> Path:
    """The file to write.

    Raises:
        ConfigError: the name is none, or taken.
    """
    own = config_dir() / "experiment"
    name = arguments.name if arguments.name is not None else _name_of(arguments.path)
    path = Path("conf", "experiment", f"{name}.yaml")
    in_ours = path.parent.resolve() == own.resolve()  # a clone, where conf/ is our own folder
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise ConfigError(f"--name {name}: must be of letters, digits and _, and begin with a letter")
    if (own / f"{name}.yaml").exists() and not in_ours:
        if arguments.name is not None:
            raise ConfigError(f"--name {name}: is the name of an experiment of Thawline's own", "Choose another one.")
        path = path.with_stem(f"my_{name}")
    if path.exists() and not arguments.force:
        raise ConfigError(f"{path} exists already", "Replace it with --force, or choose another name with --name.")
    return path


def _name_of(path: str) -> str:
    """The file's or folder's name as one of an experiment: ``Größe 2.csv.gz`` becomes ``grosse_2``."""
    stem = re.sub(r"\.[^.]+(\.gz)?$", "", Path(path).expanduser().absolute().name, flags=re.IGNORECASE)
    plain = unicodedata.normalize("NFKD", stem.casefold()).encode("ascii", "ignore").decode()
    name = re.sub(r"\W+", "_", plain).strip("_")
    return name if re.match("[a-z]", name) else f"my_{name or 'data'}"


def _write(path: Path, text: str) -> None:
    from sweeper.files import written

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written(path, text)
    except OSError as error:
        raise ThawlineError(f"{path} cannot be written: {error.strerror}", "Run it in a folder of yours.") from error


def _restore(path: Path, before: str | None) -> None:
    if before is None:
        path.unlink()
    else:
        _write(path, before)


def _experiment(given: str, name: str, model: str, found: _Found) -> str:
    import jinja2
    import yaml

    def quoted(text: str) -> str:
        text = text.replace("${", r"\${")  # which would be an interpolation
        return str(yaml.safe_dump(text, allow_unicode=True, default_style='"', width=1 << 30)).strip()

    rows = {split: found.sizes[split] or size for split, size in found.pools.items()}
    template = Path(__file__).with_name("experiment.yaml.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["quoted"] = quoted
    return environment.from_string(template).render(
        vars(found),
        name=name,
        model=model,
        path=given,
        relative=not Path(given).expanduser().is_absolute(),
        file=_printable(Path(given).expanduser().absolute().name),
        classes=_classes(found.classes),
        sampled=any(found.sizes.values()),
        scored={"train": "rows to train on", "validation": "to score trials on", "test": "to score finals on"},
        unequal=min(found.classes.values()) < UNEQUAL * max(found.classes.values()),
        max_length=MAX_LENGTH,
        long=found.words * TOKENS_PER_WORD > MAX_LENGTH,
        epochs=3 if rows["train"] >= 500 else 5 if rows["train"] >= 150 else 10,
        seeds=3 if rows["test"] >= FEW_TEST_ROWS else 5,
    )


# --- what is said ------------------------------------------------------------------------------------------------


def _summary(given: str, found: _Found) -> str:
    read = {name.replace("_", " "): count for name, count in found.counts.items() if isinstance(count, int)}
    lines = [f"{_printable(given)}: {', '.join(f'{count:,} {name}' for name, count in read.items())}"]
    lines += [f"{part}: {_printable(column)}" for part, column in found.columns.items()]
    lines.append(_classes(found.classes))
    used = [f"{found.sizes[split] or size:,} of {size:,} for {split}" for split, size in found.pools.items()]
    lines.append(f"used: {', '.join(used)}")
    lines += [f"note: {warning}" for warning in found.warnings]
    whole = textwrap.TextWrapper(80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(line for text in lines for line in whole.wrap(text))  # words are, so that paths can be copied


def _classes(classes: Mapping[str, int]) -> str:
    shown = ", ".join(f"{_printable(name)} ({count:,})" for name, count in list(classes.items())[:SHOWN])
    more = f" and {len(classes) - SHOWN} more" * (len(classes) > SHOWN)
    return f"{sum(classes.values()):,} labelled, {len(classes)} classes: {shown}{more}"


def _printable(text: str) -> str:
    """The text in one line."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _in_flags(text: str) -> str:
    """The same with our flags for the keys of the configuration."""
    text = re.sub(r"dataset\.(text|image|label)_column\b(=?)", lambda key: f"--{key[1]}-column{key[2] and ' '}", text)
    return text.replace("dataset.path=", "").replace("dataset.path", "PATH")
