"""Say which links of the documentation lead nowhere, each as ``file:line: target: what is wrong``.

python docs/links.py        # `make docs` does it first; status 1 where there are any
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

__all__ = ["broken", "links", "prose"]

FOLDER = Path(__file__).parent


def prose(markdown: str) -> str:
    """The text without its fenced blocks, on the same lines."""
    return _without(r"^ *```.*?^ *```", markdown)


def links(markdown: str) -> list[tuple[int, str]]:
    """Line and target of the links and images that lead neither to the web nor to a mailbox."""
    text = _without(r"`[^`]*`", prose(markdown))
    found = [*re.finditer(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", text)]
    found += re.finditer(r"^\[[^\]]+\]: *(\S+)", text, flags=re.MULTILINE)
    numbered = [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]
    return sorted((line, target) for line, target in numbered if not re.match(r"[a-z]+:", target))


def broken(page: Path) -> list[str]:
    """What is wrong with the links of a page, in order."""
    wrong, name = [], os.path.relpath(page)
    for line, target in links(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        destination = page.parent / path if path else page
        if not destination.exists():
            wrong.append(f"{name}:{line}: {target}: no such file")
        elif anchor and destination.suffix == ".md" and anchor not in _anchors(destination.read_text(encoding="utf-8")):
            wrong.append(f"{name}:{line}: {target}: no such heading")
    return wrong


def _anchors(markdown: str) -> set[str]:
    """What GitHub calls the headings."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(markdown), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _without(pattern: str, text: str) -> str:
    return re.sub(pattern, lambda found: "\n" * found[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    found = [problem for page in sorted(FOLDER.rglob("*.md")) for problem in broken(page)]
    print("\n".join(found), file=sys.stderr, end="\n" * bool(found))
    sys.exit(bool(found))
