"""The HTML page says what the markdown says, needs nothing else, and runs nothing that was logged."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import shutil
import subprocess

import pytest

import reports
from reports.html import page_parts, sort_value
from tests.reports.conftest import HOSTILE, KNOWN


@pytest.fixture(scope="module")
def pages(uri, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    built = (reports.build_report(uri, reports_dir=folder, comparison=name) for name in (KNOWN, HOSTILE))
    return {report.comparison: report.path.with_suffix(".html").read_text(encoding="utf-8") for report in built}


def body(markdown: str, **figures: str) -> str:
    return page_parts(markdown, figures, ["lora"], css="", script="")["body"]


def test_page_allows_its_own_script_and_no_address(pages):
    page = pages[KNOWN]
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1])
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1 and f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert not re.search(r"""(?:src|href)=["'](?!#)|@import|url\((?!#)""", page)  # nothing is fetched


def test_page_holds_every_table_and_figure_of_the_markdown(pages, uri, tmp_path):
    report = reports.build_report(uri, reports_dir=tmp_path, comparison=KNOWN)
    markdown = report.path.read_text(encoding="utf-8")
    page = pages[KNOWN]
    assert page.count("<table>") == len(re.findall(r"^\| :?---", markdown, flags=re.MULTILINE))
    assert page.count("<figure>") == markdown.count("![") > 2
    assert page.count("<h2") == len(re.findall(r"^## ", markdown, flags=re.MULTILINE))
    assert "<details>\n<summary>Configuration of the chosen strategy</summary>" in page
    assert '<tr data-strategy="lora">' in page and '<g class="mark" data-strategy="lora">' in page


def test_logged_markup_is_text(pages):
    page = pages[HOSTILE]
    assert "<img" not in page and page.count("<script") == 1
    assert "a|b &lt;img src=x&gt; $x$ `c`" in page
    assert body("<b onclick=x>\n\n<details>\n<summary>a <i>\n") == (
        "<p>&lt;b onclick=x&gt;</p>\n<details>\n<p>&lt;summary&gt;a &lt;i&gt;</p>\n"
    )
    assert body("x <i>y</i> [z](javascript:alert(1))") == "<p>x &lt;i&gt;y&lt;/i&gt; [z](javascript:alert(1))</p>\n"
    assert body("![a <i>](https://example.org/x.svg)") == "<p>a &lt;i&gt;</p>\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("148 k", 148e3), ("22.7 M (mean 3 M)", 22.7e6), ("1 min 12 s", 72.0), ("593 kB", 593e3), ("0.65 %", 0.65),
        ("0.755 [0.738, 0.772]", 0.755), ("\N{MINUS SIGN}0.059 [\N{MINUS SIGN}0.07, 0.01]", -0.059),
        ("tie, \N{MINUS SIGN}0.004 [0, 1]", -0.004), ("best", 0.0), ("620 (62.0 %)", 620.0), ("2 of 3", 2.0),
        ("< 0.001 %", 0.001), ("2 d 3 h", 183_600.0), ("340 ms", 0.34), ("3.1e-4", 3.1e-4), ("12,808", 12_808.0),
        ("lora", None), ("8bit", None), ("", None), ("learning_rate = 3", None),
        ("500 to 5,000 examples: full fine-tuning", None), ("3 (one lost its test score)", 3.0),
    ],
)  # fmt: skip
def test_cells_sort_by_their_number(text, value):
    assert sort_value(text) == (None if value is None else pytest.approx(value))


PROBE = """<script>
const out = [];
const row = document.querySelector('tr[data-strategy="lora"]');
row.cells[0].dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
out.push(document.body.classList.contains("focused"), row.classList.contains("on"));
const mark = [...document.querySelectorAll('.mark[data-strategy="full"]')].find((one) => one.querySelector("path"));
mark.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
out.push(row.classList.contains("on"), document.getElementById("values").textContent.startsWith("full: 0.811"));
const head = [...document.querySelectorAll("th")].find((one) => one.textContent.startsWith("test accuracy"));
for (const way of ["ascending", "descending"]) {
  head.querySelector("button").click();
  out.push(head.getAttribute("aria-sort") === way);
  out.push([...head.closest("table").tBodies[0].rows].map((one) => one.cells[0].textContent).join("/"));
}
document.title = JSON.stringify(out);
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_marks_rows_and_tables_answer_in_a_browser(pages, tmp_path):
    def shown(page: str, name: str) -> tuple[str, str]:
        path = tmp_path / name
        path.write_text(page, encoding="utf-8")
        command = ["chromium", "--headless", "--no-sandbox", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        done = subprocess.run(
            [*command, "--enable-logging=stderr", path.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        title = html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, flags=re.DOTALL)[1])
        return title, done.stderr

    # The probe is a foreign script: it runs only where the policy is taken out, and not beside it.
    blocked, said = shown(pages[KNOWN].replace("</body>", f"{PROBE}</body>"), "blocked.html")
    assert blocked == "minilm on review_lines: 3 strategies" and "Content Security Policy" in said
    free = re.sub(r"<meta http-equiv=[^>]+>", "", pages[KNOWN]).replace("</body>", f"{PROBE}</body>")
    order = ["majority class", "TF-IDF + logistic regression", "frozen", "lora", "full"]
    up, down = "/".join(order), "/".join(reversed(order))
    assert shown(free, "free.html")[0] == f'[true,true,false,true,true,"{up}",true,"{down}"]'
