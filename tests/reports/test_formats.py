"""Numbers for people, and text that stays text."""

from __future__ import annotations

import shlex

import pandas as pd
import pytest

from reports import formats
from reports.verdict import Rule


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formats.count(770), "770"),
        (formats.count(148_226), "148 k"),
        (formats.count(999_999), "1 M"),
        (formats.count(22_700_000), "22.7 M"),
        (formats.count(0), "0"),
        (formats.count(float("nan")), formats.MISSING),
        (formats.size(590_000), "590 kB"),
        (formats.duration(0.04), "40 ms"),
        (formats.duration(3.44), "3.4 s"),
        (formats.duration(59.7), "1 min"),
        (formats.duration(72), "1 min 12 s"),
        (formats.duration(3605), "1 h"),
        (formats.duration(90_000), "1 d 1 h"),
        (formats.percent(0.6533), "0.65 %"),
        (formats.percent(100), "100 %"),
        (formats.percent(0.00004), "&lt; 0.001 %"),
        (formats.score_interval(0.755, 0.738, 0.772), "0.755 [0.738, 0.772]"),
        (formats.score_interval(0.755, float("nan"), float("nan")), "0.755"),
        (formats.signed(-0.0001), "0.000"),
        (formats.signed(-0.02), "\N{MINUS SIGN}0.020"),
        (formats.setting(8.0), "8"),
        (formats.setting(3.123e-5), "3.12e-05"),
        (formats.setting("linear"), "linear"),
    ],
)
def test_numbers(shown, expected):
    assert shown == expected


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), pd.NA, pd.NaT, "", "  "])
def test_missing_values_are_one_dash(value):
    assert formats.is_missing(value) and formats.setting(value) == formats.MISSING


def test_text_is_inert():
    assert formats.escape("a|b\n<script>") == "a\\|b &lt;script&gt;"
    assert formats.escape("learning_rate") == "learning_rate"
    assert formats.escape("_x_ *y* [z](u)") == "\\_x\\_ \\*y\\* \\[z\\](u)"
    assert formats.escape("# no heading") == "\\# no heading"
    assert len(formats.escape("x" * 1000)) == 240
    assert formats.code("a|`b`\nc") == "`a\\|'b' c`"
    assert formats.fence("```\nevil\n```").startswith("````\n")


def test_empty_columns_are_dropped():
    table = formats.markdown_table(["a", "b", "c"], [["1", formats.MISSING, "3"], ["4", "", "6"]])
    assert table.splitlines()[0] == "| a | c |" and formats.markdown_table(["a"], []) == ""


@pytest.mark.parametrize("names", [["../../it's <b>&|"], ["a`b $x\\"], ["007"], ["x\\'y", "null"], ["a,b"], ["a[/x]b"]])
def test_a_rebuild_command_survives_markdown_the_shell_and_hydra(names):
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from markdown_it import MarkdownIt

    span = MarkdownIt("commonmark").parseInline(formats.rebuild_command(*names))[0].children[0]
    assert span.type == "code_inline"
    *program, override = shlex.split(span.content)
    assert program == ["python", "-m", "sweeper", "report"]
    value = OverridesParser.create().parse_override(override).value()
    assert [str(name) for name in (value if isinstance(value, list) else [value])] == names


def test_harmless_names_are_rebuilt_by_make():
    assert formats.rebuild_command("c-1.b_2", "d") == "`make report COMPARISON=c-1.b_2,d`"
    command = 'make report COMPARISON=d ARGS="output_dir=outputs/a"'
    assert formats.rebuild_command("d", output_dir="outputs/a") == f"`{command}`"
    assert "'output_dir='\"'\"'a b'" in formats.rebuild_command("d", output_dir="a b")
    options = Rule(delta=0.02, max_trainable_params=5e6).options(0.95)
    command = 'make report COMPARISON=d ARGS="report.delta=0.02 report.max_trainable_params=5000000"'
    assert formats.rebuild_command("d", options=options) == f"`{command}`"
    command = "thawline report report.comparison=c-1.b_2,d output_dir=outputs/a report.delta=0.02"
    asked = {"output_dir": "outputs/a", "options": ["report.delta=0.02"], "installed": True}
    assert formats.rebuild_command("c-1.b_2", "d", **asked) == f"`{command}`"
    assert Rule().options(0.9) == ["report.confidence=0.9"]


def test_a_class_is_named_by_its_number_and_never_fails():
    names = ["rotten", "fresh"]
    given = [formats.class_name(label, names) for label in (1, "0", "2", "²", "fresh")]
    assert given == ["fresh", "rotten", "2", "²", "fresh"]
    assert formats.class_name(1, {"of": "another shape"}) == "1"
