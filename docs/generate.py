"""Write ``configuration.md``: every key of the configuration, from what the program itself reads.

    python docs/generate.py        # `make docs` does it first

Keys, types and meanings come from the dataclasses of ``sweeper/config.py`` and the comments beside their fields, limits
from the tables that :func:`sweeper.config.check` uses, defaults from the composed ``conf/``, and what a strategy has
and searches from its dataclass, the docstrings of its fields and its YAML. The page is committed, and a test compares.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

PAGE = Path(__file__).with_name("configuration.md")
REPOSITORY = PAGE.parent.parent
sys.path.insert(0, str(REPOSITORY))  # as a script, it would find the modules beside it only

import yaml  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from omegaconf import MISSING, OmegaConf  # noqa: E402

from strategies import STRATEGIES, BackboneStrategy, Strategy  # noqa: E402
from sweeper import config as schema  # noqa: E402
from sweeper.overrides import group_options  # noqa: E402

INTRODUCTION = """\
# Configuration reference

Generated from `sweeper/config.py`, `conf/` and `strategies/` by `make docs`; a test compares. Change the comment
beside a key there, not this page.

Every key is given on the command line as `key=value`, after `thawline sweep` (or `python -m sweeper sweep`), or in
`ARGS="..."` of `make sweep` and `make compare`; Hydra's syntax applies. `null` means that nothing is given. Unknown
keys and impossible values are refused together, before the first trial, with the nearest names that exist.
`thawline --cfg job` prints the whole configuration as it is composed.
"""
GROUPS = """\
## Groups

A group chooses a file of `conf/`, which sets the keys of the same name: `model=distilbert`, or `MODEL=distilbert` with
make. Files of your own join with `--config-dir=<folder>`, in the same subfolders.
"""
NOTES = {
    "model": "Defaults hold where the chosen file of `conf/model/` says nothing.",
    "dataset": "Defaults hold where the chosen file of `conf/dataset/` says nothing. [data.md](data.md) explains the "
    "keys by source.",
    "engine": "[scale.md](scale.md) says which engine is for what.",
    "reference.prompting": "[references.md](references.md) says how to use it.",
    "report": "[statistics.md](statistics.md) has the rule of choice.",
}
STRATEGY = """\
## strategy

`strategy=<name>` chooses what trains; [strategies.md](strategies.md) explains each. A field is fixed by
`strategy.<field>=<value>`, and searched where its search space is not empty, never both: a field that is searched by
default is fixed with `strategy.search_space.<field>=null strategy.<field>=<value>`. The learning rate is fixed by
`trainer.learning_rate`. `strategy.label=<name>` is what tables call the strategy.

| key of `strategy.search_space.<field>` | values | meaning |
|---|---|---|
| `low`, `high` | numbers | both ends, which may be drawn |
| `log` | `true` or `false` | drawn on a logarithmic scale |
| `step` | number or null | distance between values; whole numbers have 1 by default; not with `log=true` |
| `choices` | list or null | these values instead of an interval; `low`, `high` and `step` are null then |
"""


_RATE = "| `learning_rate` (`trainer.learning_rate`) | number above 0 | `null` | {} | the peak of the schedule |"


def page() -> str:
    """The whole page as markdown."""
    with initialize_config_dir(str(schema.config_dir()), version_base="1.3"):
        schema.register()
        composed: Any = OmegaConf.to_container(compose("config"), resolve=False)  # type: ignore[call-overload]
    meanings = comments()
    parts = [INTRODUCTION, GROUPS + "\n" + _groups()]
    single = []
    for name, annotation, default in _fields(schema.Config):
        if dataclasses.is_dataclass(annotation):
            parts += _sections(name, annotation, composed[name], meanings)
        elif name != "strategy":
            single.append(_row(name, annotation, composed.get(name, default), meanings["Config", name]))
    parts.append("## Other keys\n\n" + _table(single))
    parts.append(STRATEGY + "\nStrategies that touch the backbone have in common:\n")
    parts.append(_strategy_table(_rows(BackboneStrategy)))
    parts += [_strategy(cls) for cls in STRATEGIES.values()]
    return "\n".join(parts)


def comments() -> dict[tuple[str, str], str]:
    """Class and field -> what the comment beside the field says, or above it."""
    lines = inspect.getsource(schema).splitlines()
    found = {}
    for cls in ast.parse("\n".join(lines)).body:
        if isinstance(cls, ast.ClassDef):
            for node in cls.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    beside = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset or 0 :]
                    above: list[str] = []
                    while (line := lines[node.lineno - 2 - len(above)].strip()).startswith("#"):
                        above.insert(0, line)
                    found[cls.name, node.target.id] = " ".join(
                        text.strip().lstrip("# ") for text in (*above, beside) if text.strip()
                    )
    return found


# --- keys of sweeper/config.py ---------------------------------------------------------------------------------------


def _groups() -> str:
    folders = sorted(path for path in schema.config_dir().iterdir() if path.is_dir())
    rows = [
        f"| `{folder.name}` | {', '.join(f'`{option}`' for option in group_options(folder.name, [folder.parent]))} |"
        for folder in folders
    ]
    return "\n".join(["| group | files |", "|---|---|", *rows, ""])


def _fields(cls: Any) -> Iterator[tuple[str, Any, Any]]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        default = field.default if field.default is not dataclasses.MISSING else None
        yield field.name, hints[field.name], default


def _sections(name: str, cls: Any, composed: Mapping[str, Any], meanings: Mapping[tuple[str, str], str]) -> list[str]:
    """The section of a group of keys, and those of the groups in it."""
    rows, nested = [], []
    for field, annotation, default in _fields(cls):
        if dataclasses.is_dataclass(annotation):
            nested += _sections(f"{name}.{field}", annotation, composed[field], meanings)
        else:
            value = default if name in ("model", "dataset") else composed.get(field, default)
            rows.append(_row(f"{name}.{field}", annotation, value, meanings[cls.__name__, field]))
    more = [NOTES[name]] if name in NOTES else []
    text = "\n\n".join([f"## {name}", f"{inspect.getdoc(cls)}", *more, _table(rows)])
    return ([text] if rows else []) + nested


def _row(key: str, annotation: Any, default: Any, meaning: str) -> str:
    allowed = _choices(key)
    shown = " | ".join(allowed)
    meaning = meaning.removeprefix(shown).lstrip(":, ") if allowed else meaning
    return f"| `{key}` | {_values(key, annotation)} | {_value(default)} | {_cell(meaning)} |"


def _table(rows: list[str]) -> str:
    return "\n".join(["| key | values | default | meaning |", "|---|---|---|---|", *rows, ""])


def _choices(key: str) -> tuple[str, ...]:
    return next((tuple(allowed) for *parts, allowed in schema._CHOICES if ".".join(filter(None, parts)) == key), ())


def _values(key: str, annotation: Any) -> str:
    """What may be given: type and limits, or the names that are allowed."""
    types = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    words = " or ".join(_type(each) for each in types if each is not NoneType)
    if allowed := _choices(key):
        words = ", ".join(f"`{value}`" for value in allowed)
    for group, field, minimum in schema._MINIMA:
        if f"{group}.{field}" == key:
            words += f" from {minimum}"
    for group, field, low, high in schema._INTERVALS:
        if f"{group}.{field}" == key:
            words += f" from {low} to below {high}"
    for group, field in schema._POSITIVE:
        if f"{group}.{field}" == key:
            words += " above 0"
    return f"{words} or null" if NoneType in types else words


def _type(annotation: Any) -> str:
    names = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", Any: "name or list"}
    if annotation in names:
        return names[annotation]
    arguments = get_args(annotation)
    if get_origin(annotation) is list:
        return f"list of {'entries' if arguments[0] is Any else f'{_type(arguments[0])}s'}"
    return "mapping"


def _value(value: Any) -> str:
    if value == MISSING:
        return "set by each file"
    if value is None or isinstance(value, bool):
        return f"`{'null' if value is None else str(value).lower()}`"
    text = f"{value:g}" if isinstance(value, float) else str(value).replace("'", "")
    return f"`{' '.join(text.split())}`"


def _cell(text: str) -> str:
    """Text for a cell of a table, as it stands outside of backticks: neither markup nor a border."""
    outside = re.split(r"(`[^`]*`)", text.replace("|", "\\|"))
    outside[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in outside[::2]]
    return "".join(outside)


# --- strategies ------------------------------------------------------------------------------------------------------


def _strategy(cls: type[Strategy]) -> str:
    """The section of a strategy: its fields, their defaults, and what is searched."""
    space = _declared(cls)["search_space"]
    rows = [_RATE.format(_searched(space["learning_rate"]))] if cls.trains else []
    shared = set(_rows(parent)) if (parent := cls.__mro__[1]) is not Strategy else set()
    rows += [row for row in _rows(cls) if row not in shared]
    text = f"### strategy={cls.name}\n\n"
    if parent in STRATEGIES.values():
        text += f"As [{parent.name}](#strategy{parent.name}), but:\n\n"  # type: ignore[attr-defined]
    return text + _strategy_table(rows)


def _strategy_table(rows: list[str]) -> str:
    head = ["| field of `strategy` | values | default | searched by default | meaning |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def _rows(cls: type) -> list[str]:
    """A row for each field of a strategy, or of what several derive from."""
    declared, meanings = _declared(cls), _attributes(cls)
    rows = []
    for field, annotation, default in _fields(cls):
        given = declared.get(field)
        types = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
        words = " or ".join("null" if each is NoneType else _type(each) for each in types)
        value = default if given is None else given
        searched = _searched(declared.get("search_space", {}).get(field) or {})
        rows.append(f"| `{field}` | {words} | {_value(value)} | {searched} | {_cell(meanings[field])} |")
    return rows


def _declared(cls: type) -> dict[str, Any]:
    """What the YAML of a strategy says; nothing of a class that is none."""
    path = schema.config_dir() / "strategy" / f"{getattr(cls, 'name', '')}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _searched(space: Mapping[str, Any]) -> str:
    if space.get("choices"):
        return f"one of {', '.join(f'`{choice}`' for choice in space['choices'])}"
    if space.get("low") is None:
        return ""
    how = ", log" if space.get("log") else f", step {space['step']}" if space.get("step") else ""
    return f"{space['low']:g} to {space['high']:g}{how}"


def _attributes(cls: type) -> dict[str, str]:
    """Field -> its meaning, by the sections ``Attributes:`` of the class and of those that it derives from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        section = (inspect.cleandoc(base.__doc__ or "")).partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section, flags=re.MULTILINE | re.DOTALL):
            meaning = " ".join(re.sub(r"`*None`*", "null", text.replace("``", "`")).split())
            found[name] = meaning.removesuffix(".")
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
