"""Check the command line's overrides before Hydra composes them: all mistakes at once, with the near matches.

Hydra stops at the first mistake and lists no alternatives for a key; this asks its own composition about each
override in turn, so that what is accepted here is exactly what Hydra accepts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweeper.config import Config, check
from sweeper.errors import ConfigError, near_matches

__all__ = ["check_overrides", "compared", "composed", "config_folders", "for_strategies", "group_options", "variant"]


def check_overrides(overrides: Sequence[str], config_dir: Path, extra_dir: str | None = None) -> list[str]:
    """Every override that cannot be composed or has an impossible value: what was given, what is allowed.

    Args:
        overrides: as on the command line, ``study.n_trials=4``.
        config_dir: the folder ``conf/``.
        extra_dir: the user's own folder of YAML files, Hydra's ``--config-dir``.
    """
    search_path = _search_path(extra_dir)
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        if not _error([*search_path, *overrides]):
            config = compose("config", overrides=[*search_path, *overrides], return_hydra_config=True)
            choices = config.hydra.runtime.choices
            return _shadowed(choices, config_dir, extra_dir) + check(cast(Config, config))
        groups = [item for item in overrides if _is_group(item, config_dir, extra_dir)]
        bad = [item for item in groups if _error([*search_path, item])]
        # A key can depend on the group chosen beside it (strategy=full strategy.rank=4), so good groups stay.
        base = [*search_path, *(item for item in groups if item not in bad)]
        problems = [_explain_group(item, config_dir, extra_dir) for item in bad]
        for item in overrides:
            if item not in groups and (message := _error([*base, item])):
                problems.append(_explain_key(item, message, base))
                bad.append(item)
        if not problems:  # each is fine alone but not all together: Hydra's own words
            return [_error([*search_path, *overrides])]
        good = [*search_path, *(item for item in overrides if item not in bad)]
        return problems if _error(good) else problems + check(cast(Config, compose("config", overrides=good)))


def composed(variants: Sequence[Sequence[str]], config_dir: Path, extra_dir: str | None = None) -> list[Config]:
    """A configuration for each of the lists of overrides, which are right (:func:`check_overrides`).

    Args:
        variants: the overrides of each.
        config_dir: the folder ``conf/``.
        extra_dir: the user's own folder of YAML files.
    """
    search_path = _search_path(extra_dir)
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        return [cast(Config, compose("config", overrides=[*search_path, *overrides])) for overrides in variants]


def compared(overrides: Sequence[str], config_dir: Path, extra_dir: str | None = None) -> list[Any] | None:
    """The entries of the key ``compare``, which an experiment sets or the command line; None where nothing does.

    What cannot be composed sets nothing here: :func:`check_overrides` says what is wrong with it.
    """
    own = [item for item in overrides if _key(item) in ("experiment", "compare")]
    given = [*_search_path(extra_dir), *own]
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        try:
            config = compose("config", overrides=given)
        except (HydraException, OmegaConfBaseException):
            return None
    return cast("list[Any] | None", OmegaConf.to_container(config, resolve=False)["compare"])  # type: ignore[call-overload, index]


def variant(entry: Any) -> list[str]:
    """The overrides of one entry of ``compare``: a strategy's name, or ``{strategy: name, key: value, ...}``.

    A key is one of ``strategy.*``. A field that is given a value is not searched.

    Raises:
        ConfigError: the entry names no strategy.
    """
    if isinstance(entry, str):
        entry = {"strategy": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("strategy"), str):
        raise ConfigError(
            f"compare: {entry}: must be a strategy's name or a mapping with one, "
            "{strategy: lora, label: rank 8, rank: 8}"
        )
    own = {key: value for key, value in entry.items() if key != "strategy"}
    fixed = [key for key, value in own.items() if key not in ("label", "search_space") and value is not None]
    return [
        f"strategy={entry['strategy']}",
        *(f"++strategy.search_space.{key}=null" for key in fixed),
        *_flat("strategy", own),
    ]


def _flat(prefix: str, values: Mapping[Any, Any]) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}={json.dumps(value, ensure_ascii=False)}"


def for_strategies(
    overrides: Sequence[str], variants: Sequence[Sequence[str]], config_dir: Path, extra_dir: str | None = None
) -> list[list[str]]:
    """The overrides of each study of a comparison: a ``strategy.*`` key goes to those strategies that have it.

    One that no strategy has stays with all of them, so that it is reported.

    Args:
        overrides: what all have in common; they win over those of a variant.
        variants: the overrides of each study, its strategy first (:func:`variant`).
        config_dir: the folder ``conf/``.
        extra_dir: the user's own folder of YAML files.
    """
    search_path = _search_path(extra_dir)

    def fits(item: str, strategy: str) -> bool:
        return not _error([*search_path, strategy, item])

    names = {own[0] for own in variants}
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        keys = [item for item in overrides if _key(item).startswith("strategy.")]
        known = {item: {name for name in names if fits(item, name)} or names for item in keys}
    return [[*own, *(item for item in overrides if item not in known or own[0] in known[item])] for own in variants]


def _search_path(extra_dir: str | None) -> list[str]:
    return [f"hydra.searchpath=[file://{Path(extra_dir).resolve()}]"] if extra_dir else []


def _shadowed(choices: Mapping[str, str | None], config_dir: Path, extra_dir: str | None) -> list[str]:
    """Chosen options that the user's folder has too, under a name of ours: Hydra would read ours, in silence."""
    if extra_dir is None:
        return []
    chosen = {f"{group}={option}": f"{group}/{option}.yaml" for group, option in choices.items() if option}
    return [
        f"{choice}: {Path(extra_dir, file)} has the name of Thawline's own, which is read; rename it"
        for choice, file in chosen.items()
        if (own := config_dir / file).is_file()
        and (other := Path(extra_dir, file)).is_file()
        and own.read_bytes() != other.read_bytes()
    ]


def _error(overrides: Sequence[str]) -> str:
    try:
        config = compose("config", overrides=list(overrides))
        for group in ("model", "dataset"):
            OmegaConf.to_container(config[group], resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        return str(error.__cause__ or error).strip()
    return ""


def _key(item: str) -> str:
    return item.partition("=")[0].lstrip("+~").partition("@")[0]


def _is_group(item: str, config_dir: Path, extra_dir: str | None) -> bool:
    return any((folder / _key(item)).is_dir() for folder in config_folders(config_dir, extra_dir)) and "." not in _key(
        item
    )


def config_folders(config_dir: Path, extra_dir: str | None) -> list[Path]:
    """Where configurations lie: the folder ``conf/``, and the user's own."""
    return [config_dir, *([Path(extra_dir)] if extra_dir else [])]


def group_options(group: str, folders: Sequence[Path]) -> list[str]:
    """The options of a Hydra group, sorted."""
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def _explain_group(item: str, config_dir: Path, extra_dir: str | None) -> str:
    group, _, option = item.partition("=")
    options = group_options(_key(item), config_folders(config_dir, extra_dir))
    if "," in option:
        return f"{item}: one at a time; `compare` runs several strategies with one report"
    if option in options:
        message = _error([item])
        missing = re.findall(r"Missing mandatory value: (\S+)", message)
        return (
            f"{item} needs {', '.join(f'{_key(item)}.{key}=...' for key in missing)}"
            if missing
            else f"{item}: {message}"
        )
    own = " (`thawline init FILE` writes one of your own into conf/, and is found from that folder)"
    return f"{group}={option}: {near_matches(option, options)}{own if group == 'experiment' else ''}"


def _leaves(config: Any, prefix: str = "") -> Iterator[str]:
    """Every key below the top level, dotted."""
    for name in config:
        if name == "hydra" or OmegaConf.is_missing(config, name):
            continue
        if isinstance(value := config._get_node(name), DictConfig) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        elif prefix:
            yield f"{prefix}{name}"


def _like(given: str, name: str) -> bool:
    return name == given or name.endswith(f"_{given}")


def _or(keys: Sequence[str]) -> str:
    return f". Is {' or '.join(keys[:3])} meant?" if keys else ""


def _explain_key(item: str, message: str, base: Sequence[str]) -> str:
    key, given = _key(item), item.partition("=")[2]
    try:
        OverridesParser.create().parse_override(item)
    except HydraException as error:
        return f"{item}: cannot be read as key=value: {str(error).splitlines()[0]}"
    config: Any = compose("config", overrides=list(base))
    node, parts = config, key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig) or part not in node:
            where = ".".join([*parts[:depth], ""])
            if not isinstance(node, DictConfig):
                owner = ".".join(parts[:depth])
                return f"{key}: {owner} is a single value; give it whole, as {owner}=..."
            allowed = [f"{where}{name!s}" for name in node if name != "hydra"]
            deeper = [name for name in _leaves(config) if not depth and _like(part, name.rpartition(".")[2])]
            return f"{key}: no such key; {near_matches(key, allowed)}{_or(deeper)}"
        node = node._get_node(part) if OmegaConf.is_missing(node, part) else node[part]
    return f"{key}={given}: {message.splitlines()[0]}"
