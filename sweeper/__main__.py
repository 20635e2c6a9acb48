"""``python -m sweeper [sweep|compare|report] key=value ...``: the Hydra entry point, nothing else."""

from __future__ import annotations

import shlex
import sys
from typing import cast

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig

from sweeper.config import Config, config_dir, register
from sweeper.errors import ConfigError, ThawlineError, near_matches
from sweeper.overrides import check_overrides

__all__ = ["main"]

COMMANDS = {
    "sweep": "one study, its finals and its comparison's report (the default)",
    "compare": "a study for each of strategy=a,b,c (default: all), with equal budgets, and one report",
    "report": "rebuild a report from MLflow, running nothing (report.comparison=name; default: the newest)",
}
ALL = "all"


def main() -> None:
    """Run one command; errors of the project are printed in a few lines and end with status 2."""
    register()
    try:
        command, arguments = _split(sys.argv[1:])
        strategies, arguments = _strategies(command, arguments)
        if not any(argument.startswith("-") and argument.split("=")[0] not in _CONFIG_DIR for argument in arguments):
            _check(arguments, strategies)
    except ThawlineError as error:
        _fail(error)
    sys.argv = [sys.argv[0], *arguments]
    full_command = shlex.join(["python", "-m", "sweeper", command, *_with_strategies(arguments, strategies)])

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
    def task(config: Config) -> None:
        try:
            _dispatch(command, config, strategies, full_command)
        except ThawlineError as error:
            _fail(error)

    try:
        task()
    except KeyboardInterrupt:  # before the first trial or after the last final; studies end in an orderly way
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


_CONFIG_DIR = ("--config-dir", "-cd")


def _dispatch(command: str, config: Config, strategies: list[str], full_command: str) -> None:
    from sweeper import commands  # imports torch and the like, which --help and completion do without

    if command == "report":
        commands.report(config)
        return
    if HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN:
        overrides = HydraConfig.get().overrides.task
        full_command = shlex.join(["python", "-m", "sweeper", "sweep", *overrides])
    configs = [config]
    if command == "compare":
        others = [item for item in HydraConfig.get().overrides.task if not item.startswith("strategy=")]
        configs = [cast(Config, compose("config", overrides=[*others, f"strategy={name}"])) for name in strategies]
    commands.run(configs, full_command)


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    if arguments and arguments[0] in COMMANDS:
        return arguments[0], arguments[1:]
    if arguments and not arguments[0].startswith("-") and "=" not in arguments[0]:
        raise ConfigError(f"unknown command {arguments[0]!r}: {near_matches(arguments[0], COMMANDS)}")
    return "sweep", arguments


def _strategies(command: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The strategies of a comparison, and the arguments with the first of them only: Hydra composes one at a time."""
    if command != "compare":
        return [], arguments
    available = sorted(path.stem for path in (config_dir() / "strategy").glob("*.yaml"))
    given = [argument for argument in arguments if argument.startswith("strategy=")]
    names = given[-1].removeprefix("strategy=").strip("[]").split(",") if given else [ALL]
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if names == [ALL]:
        names = available
    if not names:
        raise ConfigError(f"strategy= names none: allowed: {ALL}, {', '.join(available)}")
    return names, [*(argument for argument in arguments if argument not in given), f"strategy={names[0]}"]


def _with_strategies(arguments: list[str], strategies: list[str]) -> list[str]:
    if not strategies:
        return arguments
    return [*arguments[:-1], f"strategy={','.join(strategies)}"]


def _check(arguments: list[str], strategies: list[str]) -> None:
    overrides, extra_dir = [], None
    iterator = iter(arguments)
    for argument in iterator:
        flag, _, value = argument.partition("=")
        if flag in _CONFIG_DIR:
            extra_dir = value or next(iterator, None)
        else:
            overrides.append(argument)
    variants = [[*overrides[:-1], f"strategy={name}"] for name in strategies] or [overrides]
    problems = [problem for variant in variants for problem in check_overrides(variant, config_dir(), extra_dir)]
    if problems:
        raise ConfigError(
            list(dict.fromkeys(problems)), "`make help` shows the commands, conf/ and sweeper/config.py the keys."
        )


def _fail(error: ThawlineError) -> None:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
