"""Every command of the guides: checked by the program's own checks, and, in the slow tier, really run.

A command is a line of a fenced block marked ``bash`` in ``README.md`` or ``docs/``. All of them are collected, so that
a new one is tested without a word here, unless it cannot run, which :data:`NOT_RUN` has to say.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sweeper.config import check, config_dir, register, users_config_dir
from sweeper.invocation import interpret
from sweeper.overrides import group_options
from sweeper.search_space import parse_strategy
from sweeper.tools import TOOLS
from sweeper.tools import main as run_tool
from tests.cli import run
from tests.sweeper.tools.test_tools import thawline
from tests.test_make import clean_environment, write_script

REPOSITORY = Path(__file__).resolve().parents[1]
GUIDES = ["README.md", *sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").glob("*.md"))]

#: Why a command that begins so is composed, expanded or parsed, and not run.
NOT_RUN = {
    r"make test\b": "the tests themselves",
    r"make setup\b": "builds an environment, for minutes; tests/test_make.py looks at what it would do",
    r"(make|thawline) ui\b": "a server that stays; tests/sweeper/tools starts it",
    r"(make|thawline) export\b": "a model that a sweep saved; tests/sweeper/models/test_export.py exports some",
    r"(make|thawline) serve\b": "likewise; tests/sweeper/test_registry.py starts it",
    r"thawline predict .*--model outputs/": "a model of some sweep on images",
    r"pip install -c thawline/": "fills an environment, for minutes; tests/test_package.py installs the wheel",
    r"make bench\b": "takes minutes; tests/benchmarks runs a tiny one",
    r"python -m benchmarks\.": "likewise",
    r"make sweep .*engine=ray": "a cluster, or GPUs; tests/sweeper/engine/test_ray.py starts clusters",
    r"ray start\b": "likewise",
    r"(accelerate launch|torchrun) ": "a launcher's processes; tests/sweeper/engine/test_distributed.py starts them",
    r"python -m sweeper sweep -m hydra/launcher=": "launchers; tests/sweeper/test_cli.py runs them",
    r"make .*reference\.prompting\.base_url": "an endpoint; tests/sweeper/test_prompting.py serves one",
    r"make .*hub\.push": "an upload; tests/sweeper/test_push.py has a hub for it",
    r"export ": "nothing to run",
    r"thawline init\b": "every other command here finds what it wrote: write_own_files runs it",
    r"eval ": "a shell's completion; tests/sweeper/test_completion.py presses its tab key",
}
#: What stands for something of the reader's.
PLACEHOLDERS = {"/folder/with/a/checkpoint": "minilm", "/folder/with/clip": "clip", "<name>": "comparison"}


@dataclass(frozen=True)
class Command:
    """A command as a reader would type it, and where it stands first."""

    text: str
    where: str

    @property
    def reason(self) -> str | None:
        """Why it is not run; None where it is."""
        return next((reason for start, reason in NOT_RUN.items() if re.match(start, self.text)), None)


def blocks(guide: str) -> list[tuple[int, str, str]]:
    """Line, language and text of each fenced block."""
    text = (REPOSITORY / guide).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start()) + 1, match[1], match[2]) for match in found]


def commands() -> list[Command]:
    """All of them, each once."""
    found: dict[str, Command] = {}
    for guide in GUIDES:
        for line, language, text in blocks(guide):
            if language == "bash":
                for row in text.replace("\\\n", " ").splitlines():
                    if words := shlex.split(row, comments=True):
                        command = shlex.join(words)
                        found.setdefault(command, Command(command, f"{guide}:{line}"))
    return list(found.values())


COMMANDS = commands()
named = pytest.mark.parametrize("command", COMMANDS, ids=[f"{each.where} {each.text}" for each in COMMANDS])


# --- what a command asks for -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A call of a command of Hydra: its name, Hydra's flags, the overrides, and what they are composed to."""

    command: str
    flags: tuple[str, ...]
    overrides: tuple[str, ...]
    config: Any = None


@dataclass(frozen=True)
class ToolCall:
    """A call of a command that takes flags."""

    name: str
    flags: tuple[str, ...]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose environment exists, so that ``make -n`` shows what a target runs."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, folder)
    write_script(folder / ".venv/bin/python", "#!/bin/sh\n")
    (folder / ".venv/.stamp").touch()
    (folder / "outputs").mkdir()
    (folder / "outputs/mlflow.db").touch()
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands are run, beside what the guides call the reader's own."""
    folder = tmp_path_factory.mktemp("scratch")
    write_own_files(folder)
    return folder


def expanded(words: list[str], built: Path) -> list[list[str]]:
    """The command lines that run in the end: those of the target for ``make``, else the one that was typed."""
    if words[0] != "make":
        return [words]
    result = subprocess.run(
        [words[0], "-n", *words[1:]], cwd=built, env=clean_environment(), capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 0, result.stderr
    given = {f"${name}": value for name, _, value in (word.partition("=") for word in words[1:])}  # reaches the shell
    lines = [shlex.split(line) for line in result.stdout.replace("\\\n", " ").splitlines()]
    return [[given.get(word, word) for word in line] for line in lines if line[0] != "echo"]


def call_of(words: list[str]) -> Call | ToolCall | None:
    """The call of ours in a command line, by whatever name or launcher."""
    if words[0] == "thawline":
        arguments = words[1:]
    elif "sweeper" in words and words[words.index("sweeper") - 1] == "-m":
        arguments = words[words.index("sweeper") + 1 :]
    else:
        return None
    if arguments and arguments[0] in TOOLS:
        return ToolCall(arguments[0], tuple(arguments[1:]))
    command = arguments.pop(0) if arguments and "=" not in arguments[0] and arguments[0][0] != "-" else "sweep"
    flags = [word for word in arguments if word.startswith("-")]
    if "--config-dir" in flags:
        flags.append(arguments.pop(arguments.index("--config-dir") + 1))
    return Call(command, tuple(flags), tuple(word for word in arguments if word not in flags))


def composed(call: Call) -> Call:
    """The same with its configuration, the first of a comparison's; fails with what the program would refuse."""
    extra = call.flags[-1] if "--config-dir" in call.flags else users_config_dir()
    overrides = list(call.overrides)
    if "-m" in call.flags:  # one job of several
        overrides = [word.split(",")[0] for word in overrides if not word.startswith("hydra")]
    variants = interpret(call.command, overrides, extra, check=False).overrides
    if call.command == "compare":
        unknown = {each[0].partition("=")[2] for each in variants} - set(group_options("strategy", [config_dir()]))
        assert not unknown, f"no such strategies: {unknown}"
        if not any(word.startswith("strategy.") for word in overrides):
            variants = variants[:1]  # what they share is checked once
    register()
    path = [f"hydra.searchpath=[file://{Path(extra).resolve()}]"] if extra else []
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        configs: list[Any] = [compose("config", overrides=[*path, *each]) for each in variants]
    for config in configs:
        raw: Any = OmegaConf.to_container(config.strategy, resolve=True)
        _, mistakes = parse_strategy(raw, config.trainer.learning_rate)
        assert not [*check(config), *mistakes]
    return Call(call.command, call.flags, call.overrides, configs[0])


# --- the default tier: nothing trains --------------------------------------------------------------------------------


@named
def test_a_command_is_what_the_program_accepts(
    command: Command, built: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scratch)
    for words in expanded(shlex.split(re.sub(r"<[\w ]+>", "name", command.text)), built):
        if isinstance(call := call_of(words), Call):
            composed(call)
        elif isinstance(call, ToolCall):
            parser = argparse.ArgumentParser(exit_on_error=False)
            importlib.import_module(f"sweeper.tools.{call.name}").add_arguments(parser)
            _, unknown = parser.parse_known_args(call.flags)
            assert not unknown, f"thawline {call.name} has no {unknown}"
        elif (module := next((word for word in words if word.startswith("benchmarks")), None)) is not None:
            spec = importlib.util.find_spec(module if "." in module else f"{module}.__main__")
            assert spec is not None and spec.origin is not None, f"no module {module}"
            source = Path(spec.origin).read_text(encoding="utf-8")
            assert not [flag for flag in words if flag.startswith("--") and f'"{flag}"' not in source]
        else:
            assert command.reason, "say in NOT_RUN why it is not run, or how it is checked here"


def test_what_is_not_run_is_still_in_the_guides() -> None:
    unused = [start for start in NOT_RUN if not any(re.match(start, command.text) for command in COMMANDS)]
    assert not unused, f"no command begins so any more: {unused}"


@pytest.mark.parametrize("guide", GUIDES)
def test_shell_blocks_are_marked_bash_and_can_be_read_by_it(guide: str) -> None:
    languages = {language for _, language, _ in blocks(guide)}
    assert not languages & {"sh", "shell", "console", "zsh"}, "these would not be collected"
    script = "\n".join(text for _, language, text in blocks(guide) if language == "bash")
    script = re.sub(r"<[\w ]+>", "name", script)  # what the reader puts in
    result = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr


# --- the slow tier: each of them, on little data ---------------------------------------------------------------------


def write_own_files(folder: Path) -> None:
    """Texts and images under the names that the guides use."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    rows = pd.DataFrame(
        {"text": [f"a {'good' if row % 2 else 'bad'} thing, the {row}th" for row in range(200)], "label": [0, 1] * 100}
    )
    for name in ("reviews.csv", "train.csv", "test.csv", "other_shop.csv"):
        own = rows.assign(text=f"{name[:2]} " + rows["text"])
        own.rename(columns={"label": "stars"} if name[0] == "t" else {}).to_csv(folder / name, index=False)
    for name in ("train", "dev", "test"):
        rows.assign(text=f"{name} " + rows["text"]).to_json(folder / f"{name}.jsonl", orient="records", lines=True)
    rows.assign(part=["train", "train", "train", "validation", "test"] * 40).to_parquet(folder / "all.parquet")
    rows.assign(question=rows["text"], answer="it is").drop(columns="text").to_csv(folder / "pairs.csv", index=False)
    rows.assign(patient=[row // 4 for row in range(200)]).to_csv(folder / "notes.csv", index=False)
    images = []
    generator = np.random.default_rng(0)
    for label, brightness in (("cat", 60), ("dog", 180)):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(60):
            pixels = generator.integers(brightness - 50, brightness + 50, (32, 32, 3), dtype=np.uint8)
            images.append((f"{label}/{number}.png", label))
            Image.fromarray(pixels).save(folder / "photos" / images[-1][0])
    pd.DataFrame(images, columns=["photo", "label"]).to_csv(folder / "photos/labels.csv", index=False)
    (folder / "my_conf/model").mkdir(parents=True)
    finbert = next(
        text for _, language, text in blocks("docs/own_model.md") if language == "yaml" and "finbert" in text
    )
    (folder / "my_conf/model/finbert.yaml").write_text(finbert)
    with contextlib.chdir(folder):
        run_tool(["init", "reviews.csv"])


def tiny(call: Call) -> list[str]:
    """The arguments of a call that trains seconds: embedded models and data in place of the hub's, few of all."""
    config = call.config
    given = list(call.overrides)
    image = config.model.modality == "image"
    if config.model.source in ("hub", "timm"):
        given = [word for word in given if not word.startswith(("model.name=", "model.revision="))]
        given.append("model=efficientnet_lite0" if image else "model=minilm")
    if config.dataset.source == "hub":
        given = [word for word in given if not word.startswith(("dataset.name=", "dataset.modality="))]
        given.append("dataset=textile" if image else "dataset=review_lines")
    given += ["study.n_trials=1", "final.seeds=1", "trainer.precision=fp32"]
    stages = re.search(r"\b(gradual|lp_ft|all)\b", f"{given} {config.strategy.name}")
    given.append(f"trainer.epochs={3 if stages else 1}")
    given += ["dataset.train_size=48", "dataset.validation_size=24", "dataset.test_size=24"]
    given.append("dataset.train_sizes=[32,48]" if config.dataset.train_sizes else "dataset.train_sizes=null")
    if image and config.model.source != "local":
        given.append("dataset.image_size=64")
    if not image:
        given.append("dataset.max_length=16")
    given += ["domain_pretrain.size=32", "pseudo_label.size=32"]
    return given


@pytest.fixture(scope="module")
def reported(scratch: Path) -> Path:
    """An output folder with two comparisons."""
    for length in (8, 16):
        call = composed(Call("compare", (), ("strategy=frozen,partial",)))
        run(scratch / "reported", "compare", *tiny(call), f"dataset.max_length={length}", cwd=scratch)
    return scratch / "reported"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    runnable := [each for each in COMMANDS if each.reason is None],
    ids=[f"{each.where} {each.text}" for each in runnable],
)
def test_a_command_runs(
    command: Command,
    built: Path,
    scratch: Path,
    checkpoint: Callable[[str], Path],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sweeper.assets import fetch

    monkeypatch.chdir(scratch)
    stands_for: dict[str, Callable[[], object]] = {
        "minilm": functools.partial(fetch, "minilm", progress=False),
        "clip": functools.partial(checkpoint, "clip-with-text"),
        "comparison": lambda: min((request.getfixturevalue("reported") / "reports").iterdir()).name,
    }
    text = command.text
    for placeholder, what in PLACEHOLDERS.items():
        if placeholder in text:
            text = text.replace(placeholder, str(stands_for[what]()))
    for words in expanded(shlex.split(text), built):
        call = call_of(words)
        assert call is not None, "say in NOT_RUN why it is not run, or how it is run here"
        if isinstance(call, ToolCall):
            folder = request.getfixturevalue("reported")
            link = scratch / "outputs"
            link.symlink_to(folder)
            try:
                done = thawline(call.name, *call.flags, cwd=scratch)
            finally:
                link.unlink()
            assert done.returncode == 0, done.stdout + done.stderr
            continue
        call = composed(call)
        if call.command == "report":
            run(request.getfixturevalue("reported"), "report", *call.overrides, cwd=scratch)
            continue
        output = scratch / "outputs"
        run(output, call.command, *call.flags, *tiny(call), cwd=scratch)
        shutil.rmtree(output, ignore_errors=True)  # finals save whole models
