"""The guides name what exists: files, functions, `make` targets, keys; and the text speaks of the project alone.

Nothing of the project is imported here: sources are read as syntax trees, so that most of these tests take no time.
"""

from __future__ import annotations

import ast
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "docs"))

from links import broken, links, prose  # noqa: E402

PACKAGES = ("sweeper", "strategies", "reports")
GUIDES = [
    *("ARCHITECTURE.md", "README.md", "CONTRIBUTING.md", "SECURITY.md"),
    *sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").rglob("*.md")),
]
#: What a run writes, or a package at run time: files of no repository.
WRITTEN = {"report.md", "data_size.md", "summary.md"}
#: Files in which a machine's path or a foreign name may stand.
EXEMPT = ("LICENSE", "constraints.txt", "tests/")

FOREIGN = {
    "a path of one machine": r"(?<![\w.~$}>/-])/(?:work|root|tmp|home/\w+|Users/\w+)\b",
    "the word 'session'": r"(?i)(?<![\w.])sessions?\b",
    "the number of an issue": r"(?i)\bissues? ?#?\d|(?<![\w\"'&(/])#\d{1,5}(?![\w-])",
    "the host of a registry": r"(?i)\b(?:pypi\.org|pythonhosted\.org|anaconda\.org|docker\.io|ghcr\.io|npmjs\.\w+)\b",
}


# --- reading markdown --------------------------------------------------------------------------------------------


def fences(markdown: str) -> list[str]:
    return re.findall(r"^ *```[^\n]*\n(.*?)^ *```", markdown, flags=re.MULTILINE | re.DOTALL)


def spans(markdown: str) -> list[str]:
    """What stands in backticks outside of fenced blocks."""
    found = re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", prose(markdown), flags=re.DOTALL)
    return [" ".join(text.split()) for _, text in found]


def read(path: str) -> str:
    return (REPOSITORY / path).read_text(encoding="utf-8")


# --- what the repository holds -----------------------------------------------------------------------------------


@functools.cache
def files() -> tuple[str, ...]:
    """Every file of the repository, new ones included, as git sees it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"needs a clone and git, to tell the project's files from others: {error}")
    return tuple(name for name in listed.split("\0") if name and (REPOSITORY / name).is_file())


def modules() -> list[str]:
    return [name for name in files() if name.endswith(".py") and name.split("/")[0] in PACKAGES]


@functools.cache
def names_of(path: str) -> dict[str, ast.stmt]:
    """What a Python file defines or imports, methods and fields as ``Class.name``."""
    found: dict[str, ast.stmt] = {}

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[prefix + node.name] = node
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    found.update({prefix + n.id: node for n in ast.walk(target) if isinstance(n, ast.Name)})
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[prefix + node.target.id] = node
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found.update({prefix + (alias.asname or alias.name): node for alias in node.names})
            elif isinstance(node, ast.If | ast.Try):
                collect([*node.body, *node.orelse], prefix)

    collect(ast.parse(read(path)).body, "")
    return found


def ends_with(path: str, ending: str) -> bool:
    return path == ending or path.endswith(f"/{ending}")


def path_problem(token: str) -> str | None:
    """What is wrong with a word in backticks, if it looks like a path of the repository; else ``None``.

    It looks like one if it begins with a name of the top level, or ends like a source file. ``study.py`` and
    ``data/text.py`` stand for the files whose paths end so. What comes after ``<`` or ``{`` is left open.
    """
    token = re.sub(r":\d+$", "", token.rstrip(".,;:"))
    if not re.fullmatch(r"[\w.*<>{},/-]+", token) or token.startswith(("/", "--")):
        return None
    fixed = re.split(r"[<{]", token)[0]
    if fixed != token:
        token = fixed.rpartition("/")[0]
    tops = {name.split("/")[0] for name in files()}
    if token in tops or ("/" in token and token.split("/")[0] in tops):
        if "*" in token:
            return None if any(REPOSITORY.glob(token)) else f"{token} matches nothing"
        known = {*files(), *(str(folder) for name in files() for folder in PurePosixPath(name).parents)}
        return None if token.rstrip("/") in known else f"{token} does not exist"
    if re.fullmatch(r"[\w./-]*\w\.(?:py|md|toml|j2|yaml|yml)", token) and token not in WRITTEN:
        foreign_yaml = token.endswith((".yaml", ".yml")) and "/" not in token  # artifacts; a user's own
        if not foreign_yaml and not any(ends_with(name, token) for name in files()):
            return f"no file's path ends with {token}"
    return None


def name_problem(token: str) -> str | None:
    """What is wrong with ``file.py::Class.method`` or ``package.module.name``; ``None`` if nothing or neither."""
    if match := re.fullmatch(r"([\w./-]+\.py)::([\w.]+)(?:\(.*\))?", token):
        ending, name = match.groups()
        paths = [path for path in files() if ends_with(path, ending)]
        if not paths:
            return f"{token}: no file's path ends with {ending}"
        return None if any(name in names_of(path) for path in paths) else f"{token}: {', '.join(paths)} has no {name}"
    if not re.fullmatch(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+(?:\(.*\))?", token):
        return None
    parts = token.partition("(")[0].split(".")
    for length in range(len(parts), 0, -1):
        base = "/".join(parts[:length])
        for path in (f"{base}.py", f"{base}/__init__.py"):
            if path in files():
                name = ".".join(parts[length:])
                return None if not name or name in names_of(path) else f"{token}: {path} has no {name}"
    return f"{token}: there is no such module"


# --- the guides name what exists ---------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", GUIDES)
def test_files_and_names_in_backticks_exist(guide: str) -> None:
    problems = []
    for span in spans(read(guide)):
        found = name_problem(span)
        if not found and "::" not in span:
            found = next((problem for word in span.split() if (problem := path_problem(word))), None)
        problems += [found] if found else []
    assert not problems, f"{guide} names what is not there:\n" + "\n".join(dict.fromkeys(problems))


@pytest.mark.parametrize("guide", GUIDES)
def test_links_lead_somewhere(guide: str) -> None:
    assert not broken(REPOSITORY / guide)


def test_a_broken_link_is_named_by_file_and_line_before_the_site_is_built(tmp_path: Path) -> None:
    page, program = tmp_path / "page.md", shutil.copy(REPOSITORY / "docs/links.py", tmp_path)
    page.write_text(
        "# A page\n\n```text\n[no link](x.md)\n```\n`[nor\nthis](y.md)`, [but this](there.md) and [that](#here)\n"
    )
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    expected = ["page.md:7: #here: no such heading", "page.md:7: there.md: no such file"]
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (1, "", expected)
    page.write_text("# A page\n\n[itself](page.md#a-page), [the web](https://example.com)\n")
    assert subprocess.run([sys.executable, program], cwd=tmp_path, timeout=60).returncode == 0


def test_pages_of_the_site_link_to_each_other_alone() -> None:
    """What lies outside of ``docs/`` is not on the site: such files are named, not linked."""
    outside = {
        f"{guide}: {target}"
        for guide in GUIDES
        if guide.startswith("docs/")
        for _, target in links(read(guide))
        if not (REPOSITORY / guide).parent.joinpath(target).resolve().is_relative_to(REPOSITORY / "docs")
    }
    assert not outside


def test_the_site_builds_whole_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    """Strict: a broken link or anchor ends the build. Links are checked above as GitHub shows them, here as built."""
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "zensical.toml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout
    pages = sorted((tmp_path / "site").rglob("*.html"))
    built = {page.relative_to(tmp_path / "site").with_suffix(".md").as_posix() for page in pages}
    in_navigation = set(re.findall(r'"([\w/]+\.md)"', read("zensical.toml")))
    sources = {name.removeprefix("docs/") for name in GUIDES if name.startswith("docs/")}
    assert sources == in_navigation == built - {"404.md"}
    loaded = r'<(?:script|img|iframe)[^>]*\ssrc="?(?:https?:)?//|<link[^>]*rel="?(?:stylesheet|preconnect)[^>]*//'
    assert not [page.name for page in pages if re.search(loaded, page.read_text(encoding="utf-8"))]


def test_the_reference_of_keys_is_what_its_generator_writes() -> None:
    command = [sys.executable, "-c", "import generate; print(generate.page(), end='')"]
    folder = REPOSITORY / "docs"
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == read("docs/configuration.md"), "run `make docs` and commit docs/configuration.md"


def test_the_map_names_every_module_and_folder() -> None:
    named = set(spans(read("ARCHITECTURE.md")))
    wanted = [name for name in modules() if not name.endswith("/__init__.py")]
    wanted += [name for name in files() if name.startswith("reports/templates/")]
    wanted += sorted({f"{name.split('/')[0]}/" for name in files() if "/" in name and not name.startswith(".")})
    missing = [name for name in wanted if name not in named]
    assert not missing, "ARCHITECTURE.md has no line for:\n" + "\n".join(missing)


def make_words(line: str) -> Iterator[str]:
    """The arguments of every ``make`` in a line of shell."""
    for command in re.split(r"[;&|()]+", re.sub(r"(^|\s)#.*", "", line)):
        words = re.sub(r"\"[^\"]*\"|'[^']*'", "", command).removeprefix("$ ").split()
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        if words and words[0] == "make":
            yield from words[1:]


def make_problems(line: str) -> list[str]:
    """Targets and variables that the Makefile does not have. Make itself says nothing about unknown variables."""
    makefile = read("Makefile")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, flags=re.MULTILINE))
    problems = []
    for word in make_words(line):
        if re.fullmatch(r"[a-z][a-z-]*", word) and word not in targets:
            problems.append(f"make {word}: no such target; there are {', '.join(sorted(targets))}")
        elif (match := re.match(r"([A-Z_]+)=", word)) and match[1] not in variables:
            problems.append(f"{match[1]}=: no such variable; there are {', '.join(sorted(variables))}")
    return problems


@pytest.mark.parametrize("guide", [*GUIDES, "CHANGELOG.md"])
def test_make_commands_in_the_guides_exist(guide: str) -> None:
    text = read(guide)
    lines = [*spans(text), *(line for block in fences(text) for line in block.splitlines())]
    problems = [problem for line in lines for problem in make_problems(line)]
    assert not problems, f"{guide}:\n" + "\n".join(dict.fromkeys(problems))


def test_make_commands_in_configurations_and_messages_exist() -> None:
    problems = []
    for name in files():
        if name.endswith(".yaml") and name.startswith("conf/"):
            lines = [line.lstrip("# ") for line in read(name).splitlines() if line.startswith("#")]
        elif name in modules():
            lines = re.findall(r"`(make [^`]+)`", read(name))
        else:
            continue
        problems += [f"{name}: {problem}" for line in lines for problem in make_problems(line)]
    assert not problems, "\n".join(problems)


# --- the text speaks of the project alone ------------------------------------------------------------------------


def test_the_text_speaks_of_the_project_alone() -> None:
    problems = []
    for name in files():
        if name.startswith(EXEMPT):
            continue
        try:
            lines = read(name).splitlines()
        except UnicodeDecodeError:
            continue  # no text
        for number, line in enumerate(lines, start=1):
            problems += [
                f"{name}:{number}: {what}: {match[0]}"
                for what, pattern in FOREIGN.items()
                if (match := re.search(pattern, line))
            ]
    assert not problems, "What a reader of the project cannot use:\n" + "\n".join(problems)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("see /tmp/x", True),
        ("run in /home/me/thawline", True),
        ("THAWLINE_CACHE=/root/.cache", True),
        ("an earlier session showed", True),
        ("fixes issue 12", True),
        ("as in #12.", True),
        ("served from files.pythonhosted.org", True),
        ("outputs/root/work and ~/.cache/thawline", False),
        ("<folder>/tmp", False),
        ('_POINT = "#4c6f91", "#123"', False),
        ("@pytest.fixture(scope=...)  # 12 obsessions", False),
        ("[one](#1-first)", False),
    ],
)
def test_foreign_text_is_told_from_ordinary_text(line: str, found: bool) -> None:
    assert any(re.search(pattern, line) for pattern in FOREIGN.values()) == found


# --- keys and public names are documented ------------------------------------------------------------------------


def config_keys() -> Iterator[tuple[str, bool]]:
    """``study.n_trials`` and the like with whether the line of the field, or the one above it, has a comment."""
    lines = read("sweeper/config.py").splitlines()
    classes = {name: node for name, node in names_of("sweeper/config.py").items() if isinstance(node, ast.ClassDef)}

    def keys_of(cls: ast.ClassDef, prefix: str) -> Iterator[tuple[str, bool]]:
        for node in cls.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                group = classes.get(ast.unparse(node.annotation))
                if group:
                    yield from keys_of(group, f"{node.target.id}.")
                else:
                    above = lines[node.lineno - 2].strip().startswith("#")
                    yield f"{prefix}{node.target.id}", above or "#" in lines[(node.end_lineno or node.lineno) - 1]

    yield from keys_of(classes["Config"], "")


def keys_in_yaml() -> set[str]:
    """Every key of ``conf/`` as a user would type it; files of a group define that group's keys."""
    found = set()
    for name in files():
        if name.startswith("conf/") and name.endswith(".yaml"):
            group = "" if name.count("/") == 1 else name.split("/")[1]
            if "# @package _global_" in read(name):
                group = ""
            above: list[tuple[int, str]] = []
            for match in re.finditer(r"^( *)([a-z_]+):", read(name), flags=re.MULTILINE):
                above = [(depth, key) for depth, key in above if depth < len(match[1])]
                found.add(".".join([*([group] if group else []), *(key for _, key in above), match[2]]))
                above.append((len(match[1]), match[2]))
    return found


def test_every_configuration_key_is_explained_or_shown() -> None:
    keys = dict(config_keys())
    assert {"study.n_trials", "trainer.epochs", "output_dir"} <= set(keys), "the keys are not read any more"
    shown = keys_in_yaml() | {span.partition("=")[0] for guide in GUIDES for span in spans(read(guide))}
    missing = [key for key, commented in keys.items() if not commented and key not in shown]
    assert not missing, "Say in sweeper/config.py what it means, or show it in conf/ or a guide:\n" + "\n".join(missing)


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_list_their_public_names_and_explain_them(package: str) -> None:
    problems = []
    for path in modules():
        if not path.startswith(f"{package}/"):
            continue
        tree = ast.parse(read(path))
        definitions = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
        public = [node.name for node in definitions if not node.name.startswith("_")]
        names = names_of(path)
        if ast.get_docstring(tree) is None:
            problems.append(f"{path} has no docstring")
        if "__all__" not in names:
            problems += [f"{path} defines {', '.join(public)} and has no __all__"] if public else []
            continue
        listed = ast.literal_eval(names["__all__"].value)  # type: ignore[attr-defined]
        problems += [f"{path} lists {name}, which it does not have" for name in listed if name not in names]
        problems += [
            f"{path}: {node.name} has no docstring"
            for node in definitions
            if node.name in listed and ast.get_docstring(node) is None
        ]
    assert not problems, "\n".join(problems)
