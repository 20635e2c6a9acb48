"""Make the reports of ``docs/reports/`` anew: run their sweeps, and copy what GitHub shows.

    make examples                       # all of them, about an hour on two cores
    make examples ARGS="text"           # one of them

What ``outputs/examples`` holds is not trained again: where it is whole, this rebuilds the reports alone.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

#: Folder in ``docs/reports/`` -> what ``compare`` is told.
EXAMPLES = {
    "text": ("strategy=frozen,lora,partial,full", "study.n_trials=10"),
    "image": (
        "model=efficientnet_lite0",
        "dataset=textile",
        "dataset.image_size=160",
        "strategy=frozen,partial",
        "study.n_trials=10",
    ),
}
REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the sweeps that were asked for, and replace their reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(EXAMPLES)}; default: all")
    names = parser.parse_args().names or list(EXAMPLES)
    if unknown := set(names) - set(EXAMPLES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(EXAMPLES)}")
    for name in names:
        output = Path("outputs", "examples", name)  # reports name it, and other machines have other folders
        command = [sys.executable, "-m", "sweeper", "compare", *EXAMPLES[name], f"output_dir={output}"]
        subprocess.run(command, cwd=REPOSITORY, check=True)
        (report,) = (REPOSITORY / output / "reports").iterdir()
        target = REPOSITORY / "docs" / "reports" / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(report, target, ignore=shutil.ignore_patterns("*.html"))
        print(f"docs/reports/{name} is made of {report}")


if __name__ == "__main__":
    main()
