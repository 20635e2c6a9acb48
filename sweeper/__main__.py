"""``thawline``, or ``python -m sweeper``: Hydra's commands; those that take flags are in ``sweeper.tools``."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import textwrap
import threading
import traceback
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn, cast

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig

from sweeper.completion import offered
from sweeper.config import Config, config_dir, group_names, register, users_config_dir
from sweeper.errors import ConfigError, ThawlineError, near_matches
from sweeper.faults import said_of_storage
from sweeper.files import written
from sweeper.invocation import CONFIG_DIR_FLAGS, Invocation, interpret, shown
from sweeper.overrides import config_folders, group_options
from sweeper.quiet import quick_imports
from sweeper.secrets import redacted
from sweeper.tools import TOOLS
from sweeper.tools import main as run_tool

__all__ = ["console", "main"]

COMMANDS = {
    "sweep": "one study, its finals and its comparison's report (the default where keys are given)",
    "compare": "a study for each of strategy=a,b,c, or all (default: the experiment's, else frozen,lora,partial,full), "
    "and one report",
    "report": "rebuild a report from MLflow, running nothing (report.comparison=name; default: the newest; several, as "
    "a,b,c or all, give one summary)",
}
_HELP = ("--help", "-h")
_COMPLETION = ("--shell-completion", "-sc")


def main() -> None:
    """Run one command; errors of the project are printed in a few lines and end with status 2.

    Of the processes of a launcher the first one runs it; the others train what it trains, and end when it does.
    """
    if sys.argv[1:2] and sys.argv[1] in TOOLS:
        _tool(sys.argv[1:])
        return
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        _command()
        return
    with quick_imports():
        from sweeper.engine.distributed import follow  # takes seconds
        from sweeper.training.replicas import joined

    with joined() as processes:
        if processes.rank == 0:
            _command()
        else:
            follow(processes)


def _tool(arguments: list[str]) -> None:
    try:
        run_tool(arguments)
    except ThawlineError as error:
        _fail(error)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # who read what is printed has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception:
        _crash()


def _command() -> None:
    register()
    if sys.argv[1:] == ["--version"]:
        print(f"thawline {version('thawline')}")
        return
    if sys.argv[1:] and sys.argv[1] in _COMPLETION and (words := offered(COMMANDS)) is not None:
        print("\n".join(words))
        return
    try:
        command, arguments = _split(sys.argv[1:])
        flags, overrides, extra_dir = _parse(arguments)
        if any(flag in _HELP for flag in flags) or not sys.argv[1:]:
            print(_help(config_folders(config_dir(), extra_dir)))
            return
        # --help, -m and the like are Hydra's business.
        plain = all(flag in CONFIG_DIR_FLAGS for flag in flags[::2])
        asked = interpret(command, overrides, extra_dir, flags, check=plain)
    except ThawlineError as error:
        _fail(error)
    sys.argv = [sys.argv[0], *flags, *asked.overrides[0]]

    @hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
    def task(config: Config) -> None:
        try:
            _mask_hydra_files()
            _dispatch(command, config, asked)
        except ThawlineError as error:
            _fail(error)
        except Exception:
            _crash()

    try:
        task()
    except KeyboardInterrupt:  # before the first trial or after the last final; studies end in an orderly way
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


def console() -> None:
    """Run :func:`main` as a process of its own, whose end does not take apart all that was imported, for seconds."""
    main()
    # As Python does first: pools of processes are told that they are not needed any more.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _dispatch(command: str, config: Config, asked: Invocation) -> None:
    from sweeper import commands  # imports pandas and the like, which --help and completion do without

    if command == "report":
        commands.report(config)
        return
    text = asked.text
    if HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN:
        text = shown("sweep", *HydraConfig.get().overrides.task)
    with said_of_storage(Path(config.output_dir)):
        configs = [config]
        if asked.several:
            configs = [cast(Config, compose("config", overrides=given)) for given in asked.overrides]
        commands.run(configs, text, skip_inapplicable=asked.everything)


def _mask_hydra_files() -> None:
    """Take the secrets out of what Hydra has just written of this run: the configuration and the overrides."""
    runtime = HydraConfig.get()
    folder = Path(runtime.runtime.output_dir)
    for path in (*folder.glob(f"{runtime.output_subdir}/*.yaml"), folder.parent / "multirun.yaml"):
        if path.is_file() and (masked := redacted(text := path.read_text(encoding="utf-8"))) != text:
            written(path, masked)


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    if arguments and arguments[0] in COMMANDS:
        return arguments[0], arguments[1:]
    if arguments and not arguments[0].startswith("-") and "=" not in arguments[0]:
        raise ConfigError(
            f"unknown command {arguments[0]!r}: {near_matches(arguments[0], [*COMMANDS, *TOOLS])}",
            "`thawline --help` says what each does.",
        )
    return "sweep", arguments


def _parse(arguments: list[str]) -> tuple[list[str], list[str], str | None]:
    """Hydra's flags, the overrides, and the user's own configuration folder, which joins unasked if it is ``conf/``."""
    flags, overrides, extra_dir = [], [], None
    iterator = iter(arguments)
    for argument in iterator:
        flag, _, value = argument.partition("=")
        if flag in CONFIG_DIR_FLAGS:
            extra_dir = value or next(iterator, "")
            flags += [flag, extra_dir]
        elif flag.startswith("--") and flag[2:].replace("-", "_") in (*group_names(), "trials"):
            raise ConfigError(
                f"{argument}: choices and keys have no dashes",
                f"Write {flag[2:]}=..., as in `thawline sweep strategy=lora`.",
            )
        elif argument.startswith("-"):
            flags.append(argument)
        else:
            overrides.append(argument)
    if extra_dir is None and (extra_dir := users_config_dir()):
        flags = [CONFIG_DIR_FLAGS[0], extra_dir, *flags]
    return flags, overrides, extra_dir


def _help(folders: list[Path]) -> str:
    """What there is to type; Hydra's own help loads every file of every group for it, which takes seconds."""
    lines = ["usage: thawline [command] [group=option ...] [key=value ...]", "", "commands:"]
    lines += _described(COMMANDS)
    lines += ["", "commands with flags, which `thawline COMMAND --help` lists:", *_described(TOOLS), "", "groups:"]
    for group in sorted({path.name for folder in folders for path in folder.iterdir() if path.is_dir()}):
        options = f"{group}={' | '.join(group_options(group, folders))}"
        lines += _wrapped(options, "  ", len(group) + 3)
    ending = (
        "keys: `thawline --cfg job` prints them all with their values; sweeper/config.py has their meanings. "
        "dry_run=true shows what would run. `thawline --hydra-help` lists Hydra's own flags."
    )
    return "\n".join([*lines, "", *_wrapped(ending)])


def _described(commands: Mapping[str, str]) -> list[str]:
    return [line for name, text in commands.items() for line in _wrapped(text, f"  {name:9}", 11)]


def _wrapped(text: str, first: str = "", indent: int = 0) -> list[str]:
    width = min(shutil.get_terminal_size().columns, 110)
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _crash() -> NoReturn:
    """A mistake of the program, or a library's error, which may quote a URL."""
    print(redacted(traceback.format_exc()), file=sys.stderr, end="")
    sys.exit(1)


def _fail(error: ThawlineError) -> NoReturn:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    console()
