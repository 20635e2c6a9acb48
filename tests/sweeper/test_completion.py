"""Completion as bash does it: with the script that the command prints, and the line that is being typed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# What a shell does when the tab key is pressed: the line in variables, the function, the answers in COMPREPLY.
PRESS_TAB = """
eval "$(thawline -sc install=bash)"
while IFS= read -r COMP_LINE; do
    COMP_POINT=${#COMP_LINE}; words=($COMP_LINE); COMP_CWORD=$(( ${#words[@]} - 1 ))
    [ "${COMP_LINE: -1}" == " " ] && COMP_CWORD=${#words[@]}
    COMPREPLY=(); hydra_bash_completion; echo "${COMPREPLY[@]}"
done
"""


def test_a_shell_completes_commands_flags_groups_and_keys(tmp_path: Path, repository: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    program = tmp_path / "bin" / "thawline"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom sweeper.__main__ import console\nconsole()\n")
    program.chmod(0o755)
    mine = tmp_path / "conf" / "experiment" / "my_reviews.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("# @package _global_\n")
    expected = {
        "thawline sw": "sweep",
        "thawline sweep strategy=lo": "strategy=lora",
        "thawline compare strategy=lora model=mini": "model=minilm",
        "thawline experiment=my_r": "experiment=my_reviews",
        "thawline compare strategy=frozen,lo": "strategy=frozen,lora",
        "thawline compare model=minilm strategy=frozen,lora,lp": "strategy=frozen,lora,lp_ft",
        "thawline -m experiment=smoke,my_": "experiment=smoke,my_reviews",
        "thawline compare strategy=lora,lora": "",
        "thawline sweep strategy=frozen,lo": "",
        "thawline doctor --js": "--json",
    }
    done = subprocess.run(
        ["bash", "--norc", "-c", PRESS_TAB],
        input="\n".join(expected) + "\n",
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert dict(zip(expected, done.stdout.splitlines(), strict=True)) == expected
