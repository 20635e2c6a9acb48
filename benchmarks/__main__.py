"""A sweep against plain scripts that train the same trials.

    make bench                       # the small size, about five minutes on two cores
    make bench ARGS="--size full"    # the sizes of the README's table
    make bench ARGS="--size scaling --output scaling.json"    # ours alone, and a figure beside the measurements

Each case runs, one after the other and interleaved over the rounds: ours (`python -m sweeper`, from start to exit, with
an empty cache and an empty output folder, no finals, no report; the precision that suits the model is measured once on
a machine, before), A and B of :mod:`benchmarks.baseline` on the hyperparameters that ours sampled. Every side is a
process of its own; its wall time and its peak memory are the operating system's. The scripts are linear in the trials:
where ``--baseline-trials`` has them run fewer, which the column ``measured`` says, the rest of each strategy is counted
at the mean of those that ran after its first. B's first trial loads what the others find loaded, so at least two of
each strategy run there.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psutil
from rich.console import Console
from rich.table import Table

MODELS = {"text": "minilm", "image": "efficientnet_lite0"}
DATASETS = {"text": "review_lines", "image": "textile"}
MAX_LENGTH = 128
FIXED = {"dropout": 0.05, "rank": 8, "alpha_ratio": 2.0}


@dataclass(frozen=True)
class Case:
    """Trials that all sides train.

    Attributes:
        name: in the table.
        strategies: each with its number of trials.
        trials: of each strategy.
        epochs: of each trial.
        train: examples of the train split.
        validation: of the validation split.
        modality: ``text`` or ``image``.
        num_blocks: of ``partial``.
        baseline_trials: how many of each strategy's trials A and B run; ``None`` = all.
        pruner: of ours.
    """

    name: str
    strategies: tuple[str, ...]
    trials: int
    epochs: int
    train: int = 1000
    validation: int = 500
    modality: str = "text"
    num_blocks: int = 2
    baseline_trials: int | None = None
    pruner: str = "none"

    def overrides(self) -> list[str]:
        """What ours is told."""
        given = [
            f"model={MODELS[self.modality]}",
            f"dataset={DATASETS[self.modality]}",
            f"dataset.train_size={self.train}",
            f"dataset.validation_size={self.validation}",
            f"study.n_trials={self.trials}",
            f"study.pruner={self.pruner}",
            f"trainer.epochs={self.epochs}",
            "final.seeds=0",
        ]
        if "partial" in self.strategies:
            given += [f"strategy.num_blocks={self.num_blocks}", "strategy.search_space.num_blocks=null"]
        if "lora" in self.strategies:
            for field in ("rank", "alpha_ratio"):
                given += [f"strategy.{field}={FIXED[field]:g}", f"strategy.search_space.{field}=null"]
        return given


SMALL = (
    Case("frozen", ("frozen",), 30, 5, train=500, validation=250, baseline_trials=2),
    Case("partial, last 2 of 6 blocks", ("partial",), 4, 2, train=500, validation=250, baseline_trials=2),
    Case("LoRA r=8", ("lora",), 2, 2, train=300, validation=150),
    Case("full", ("full",), 2, 2, train=300, validation=150),
)
FULL = (
    Case("frozen, 30 trials", ("frozen",), 30, 5, baseline_trials=4),
    Case("frozen, 90 trials", ("frozen",), 90, 5, baseline_trials=4),
    Case("frozen, images, 30 trials", ("frozen",), 30, 5, 700, 300, "image", baseline_trials=2),
    Case("frozen, images, 90 trials", ("frozen",), 90, 5, 700, 300, "image", baseline_trials=2),
    Case("frozen, 8,900 examples", ("frozen",), 30, 2, train=8900, baseline_trials=2),
    Case("partial, last 2 of 6 blocks", ("partial",), 8, 3, baseline_trials=4),
    Case("LoRA r=8", ("lora",), 4, 3, baseline_trials=2),
    Case("full, text", ("full",), 4, 3, baseline_trials=2),
    Case("full, images", ("full",), 2, 2, 300, 100, "image", baseline_trials=2),
    Case("mixed", ("frozen", "partial", "lora", "full"), 4, 3, baseline_trials=2),
    Case("pruned", ("frozen", "partial", "lora", "full"), 16, 6, baseline_trials=2, pruner="hyperband"),
)
#: What the time of ours grows with: title and axis of the figure's panels, and each case with its place on the axis.
SCALING = {
    ("frozen, 1,000 examples x 5 epochs", "trials"): {
        n: Case(f"frozen, {n} trials", ("frozen",), n, 5) for n in (10, 30, 60, 90)
    },
    ("frozen, 30 trials x 5 epochs", "train examples"): {
        n: Case(f"frozen, {n} examples", ("frozen",), 30, 5, train=n) for n in (1000, 2000, 4000, 8000)
    },
    ("partial, 2 trials x 2 epochs", "blocks that train, of 6"): {
        n: Case(f"partial, last {n} blocks", ("partial",), 2, 2, num_blocks=n) for n in (1, 2, 4, 6)
    },
}


@dataclass(frozen=True)
class Measured:
    """One run of one side of a case."""

    side: str
    seconds: float
    peak_mb: float
    accuracies: dict[str, list[float]]  # of each strategy, by its trials
    measured_trials: int


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("small", "full", "scaling"), default="small")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cases", nargs="*", help="names, or beginnings of names; default: all")
    parser.add_argument("--sides", nargs="*", default=["ours", "A", "B"])
    parser.add_argument("--engine", choices=("inline", "processes"), default="processes", help="of ours")
    parser.add_argument("--baseline-trials", type=int, help="trials of each strategy that A and B run; 0 = all")
    parser.add_argument("--output", type=Path, help="where to write the measurements as JSON")
    arguments = parser.parse_args()
    console = Console()
    records: list[dict[str, Any]] = []
    if arguments.size == "scaling":
        arguments.sides = ["ours"]
    scaling = [case for cases in SCALING.values() for case in cases.values()]
    for case in {"small": SMALL, "full": FULL, "scaling": scaling}[arguments.size]:
        if arguments.cases and not any(case.name.startswith(name) for name in arguments.cases):
            continue
        if arguments.baseline_trials is not None:
            case = dataclasses.replace(case, baseline_trials=arguments.baseline_trials or None)
        for number in range(arguments.rounds):
            for result in run_round(case, number, arguments.sides, arguments.engine):
                records.append({"case": case.name, "round": number, **dataclasses.asdict(result)})
                console.print(
                    f"{case.name}, round {number + 1}: {result.side} {result.seconds:.1f} s, {result.peak_mb:,.0f} MB, "
                    f"accuracy {statistics.mean(value for own in result.accuracies.values() for value in own):.3f}",
                    highlight=False,
                )
                if arguments.output:
                    arguments.output.write_text(json.dumps(records, indent=1))
    if arguments.size == "scaling" and arguments.output:
        draw_scaling(records, arguments.output.with_suffix(".svg"))
    console.print(table(records))


def run_round(case: Case, number: int, sides: Sequence[str], engine: str) -> list[Measured]:
    """All sides of a case once, ours first: it says what the others train."""
    with tempfile.TemporaryDirectory(prefix="thawline-bench-") as folder:
        root = Path(folder)
        ours = run_ours(case, number, root, engine)
        found = [ours]
        job = root / "job.json"
        data = _data(case, root)
        for side in sides:
            if side != "ours":
                least = 2 if side == "B" else 1  # B's first trial loads what the others find loaded
                asked = None if case.baseline_trials is None else max(least, case.baseline_trials)
                trials = _sampled(root / "outputs" / "optuna.db", case, number, asked)
                job.write_text(json.dumps({**data, "trials": trials}))
                found.append(_baseline(side, case, job))
        return found


def run_ours(case: Case, number: int, root: Path, engine: str) -> Measured:
    """The sweep, once, in ``root``; ``number`` is its seed."""
    command = "compare" if len(case.strategies) > 1 else "sweep"
    arguments = [
        *("-m", "sweeper", command, f"strategy={','.join(case.strategies)}", *case.overrides()),
        *(f"engine={engine}", f"study.seed={number}", f"output_dir={root / 'outputs'}", f"cache.dir={root / 'cache'}"),
    ]
    seconds, peak = _timed([sys.executable, *arguments], root)
    accuracies = {
        _strategy_of(study, case): [
            trial.value for trial in study.trials[: case.baseline_trials] if trial.value is not None
        ]
        for study in studies_of(root / "outputs" / "optuna.db")
    }
    return Measured("ours", seconds, peak, accuracies, sum(map(len, accuracies.values())))


def _strategy_of(study: optuna.Study, case: Case) -> str:
    return next(name for name in case.strategies if f"-{name}-" in study.study_name)


def _baseline(side: str, case: Case, job: Path) -> Measured:
    arguments = [
        "-m",
        "benchmarks.baseline",
        str(job),
        str(results := job.with_name("results.json")),
        *(["--tuned"] if side == "B" else []),
    ]
    seconds, peak = _timed([sys.executable, *arguments], job.parent)
    trials = json.loads(results.read_text())
    seconds += sum(
        (case.trials - len(own)) * statistics.mean(own[1:] or own)  # the first loads what the others find loaded
        for name in case.strategies
        if (own := [trial["seconds"] for trial in trials if trial["strategy"] == name])
    )
    accuracies = {
        name: [trial["accuracy"] for trial in trials if trial["strategy"] == name] for name in case.strategies
    }
    return Measured(side, seconds, peak, accuracies, len(trials))


def _timed(command: list[str], root: Path) -> tuple[float, float]:
    """Wall seconds of a command, and the peak of the MB that it and the processes it started hold together.

    Memory is sampled, as proportional set size (shared pages count once), every two seconds: twice
    a second kept a fifth of a core busy where several processes ran.
    """
    with (root / "errors.txt").open("w+") as errors:
        started = time.perf_counter()
        process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        peak = 0.0
        while True:
            try:
                status = process.wait(timeout=2.0)
                break
            except psutil.TimeoutExpired:
                peak = max(peak, _held(process))
        seconds = time.perf_counter() - started
        errors.seek(0)
        if status:
            raise SystemExit(f"{' '.join(command)} ended with {status}:\n{errors.read()[-3000:]}")
        return seconds, peak


def _held(process: psutil.Process) -> float:
    total = 0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += one.memory_full_info().pss
    return total / 1e6


def studies_of(database: Path) -> list[optuna.Study]:
    """All studies of an Optuna database."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{database}")
    return [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]


def _sampled(database: Path, case: Case, number: int, asked: int | None) -> list[dict[str, Any]]:
    """The trials of the baselines: what ours sampled, of each strategy as many as are asked for; ``None`` = all.

    ``number`` is the seed of ours.
    """
    from sweeper.runs import INDEX, trial_seed

    trials = []
    for study in studies_of(database):
        strategy = _strategy_of(study, case)
        for trial in study.trials[:asked]:
            trials.append(
                {
                    "strategy": strategy,
                    "learning_rate": trial.params["learning_rate"],
                    "head_lr_multiplier": 10.0 if strategy in ("partial", "full") else 1.0,
                    "num_blocks": case.num_blocks,
                    "rank": FIXED["rank"],
                    "alpha": FIXED["alpha_ratio"] * FIXED["rank"],
                    "dropout": FIXED["dropout"],
                    "seed": trial_seed(number, trial.user_attrs[INDEX]),  # for the same head
                }
            )
    return trials


def _data(case: Case, root: Path) -> dict[str, Any]:
    """The rows that ours trains on, as plain files."""
    from PIL import Image

    from sweeper.assets import fetch
    from sweeper.data import load_dataset

    dataset = load_dataset(
        DATASETS[case.modality], modality=case.modality, train_size=case.train, validation_size=case.validation
    )
    folder = root / "data"
    folder.mkdir()
    for name in ("train", "validation"):
        split = getattr(dataset, name)
        inputs = list(split.inputs)
        if case.modality == "image":
            inputs = []
            for row in range(len(split.labels)):
                path = folder / f"{name}-{row}.png"
                image = split.inputs[row]
                (image if isinstance(image, Image.Image) else image.open()).convert("RGB").save(path)
                inputs.append(str(path))
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["input", "label"])
            writer.writerows(zip(inputs, split.labels.tolist(), strict=True))
    return {
        "model": str(fetch(MODELS[case.modality])),
        "modality": case.modality,
        "data": str(folder),
        "classes": len(dataset.label_names),
        "epochs": case.epochs,
        "batch_size": 32,
        "max_length": MAX_LENGTH,
    }


def table(records: list[dict[str, Any]]) -> Table:
    """Times, ratios with their spread over the rounds, accuracies and memory of each case."""
    shown = Table(box=None, pad_edge=False)
    for column in ("case", "ours", "A", "B", "measured", "vs A", "vs B", "accuracy ours / A / B", "MB ours / A / B"):
        shown.add_column(column, justify="left" if column == "case" else "right")
    for case in dict.fromkeys(record["case"] for record in records):
        sides = {
            side: [record for record in records if record["case"] == case and record["side"] == side]
            for side in ("ours", "A", "B")
        }
        cells = [case]
        for own in sides.values():
            cells.append(f"{statistics.median(record['seconds'] for record in own):.1f} s" if own else "")
        ran = {record["measured_trials"] for side in ("A", "B") for record in sides[side]}
        cells.append("/".join(map(str, sorted(ran))))
        for side in ("A", "B"):
            ratios = [
                other["seconds"] / ours["seconds"] for ours, other in zip(sides["ours"], sides[side], strict=False)
            ]
            cells.append(_spread(ratios))
        cells.append(" / ".join(_accuracies(sides)))
        cells.append(" / ".join(f"{max(r['peak_mb'] for r in own):,.0f}" if own else "" for own in sides.values()))
        shown.add_row(*cells)
    return shown


def draw_scaling(records: list[dict[str, Any]], path: Path) -> None:
    """Seconds of a whole sweep against trials, examples and depth: medians over the rounds, with their range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, len(SCALING), sharey=True)
    for axes, ((title, what), cases) in zip(panels, SCALING.items(), strict=True):
        found = {n: [r["seconds"] for r in records if r["case"] == case.name] for n, case in cases.items()}
        values = [n for n, seconds in found.items() if seconds]
        middles = [statistics.median(found[n]) for n in values]
        ends = [[m - min(found[n]) for m, n in zip(middles, values, strict=True)]]
        ends.append([max(found[n]) - m for m, n in zip(middles, values, strict=True)])
        axes.errorbar(values, middles, yerr=ends, marker="o", capsize=3, color="#0b5cad")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(what)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    panels[0].set_ylim(bottom=0)  # of all, when the highest is drawn
    panels[0].set_ylabel("seconds, from start to exit")
    figure.savefig(path, metadata={"Date": None})


def _spread(ratios: list[float]) -> str:
    if not ratios:
        return ""
    middle = f"{statistics.median(ratios):.1f}x"
    return middle if len(ratios) == 1 else f"{middle} [{min(ratios):.1f}, {max(ratios):.1f}]"


def _accuracies(sides: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The mean of each side over the trials that all of them ran."""
    every = [record["accuracies"] for records in sides.values() for record in records]
    common = {name: min(len(accuracies[name]) for accuracies in every) for name in every[0]}
    means = []
    for records in sides.values():
        values = [v for record in records for name, n in common.items() for v in record["accuracies"][name][:n]]
        means.append(f"{statistics.mean(values):.3f}" if values else "")
    return means


if __name__ == "__main__":
    main()
