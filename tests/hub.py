"""A hub on this machine: enough of the Hugging Face hub's protocol for its own clients to run against it unmodified.

They are pointed at it by ``HF_ENDPOINT``, which they read once, on import: in a process of their own, which
:class:`Client` starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["Client", "Hub", "serve"]

#: Runs a command line of ours in a fork for each line of input, so that all of them share the imports.
_LOOP = """
import json, os, sys
import datasets, sweeper.commands, sweeper.comparison
from sweeper.__main__ import main
for line in sys.stdin:
    arguments, printed = json.loads(line)
    child = os.fork()
    if child == 0:
        file = os.open(printed, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = ["sweeper", *arguments]
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

# In a path as it is sent, where the slashes of a revision such as refs/convert/parquet are quoted.
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class _Repository:
    folder: Path
    gated: bool

    @property
    def commit(self) -> str:
        """40 hex digits that change with the files."""
        digest = hashlib.sha1()
        for path in self.files():
            digest.update(path.relative_to(self.folder).as_posix().encode() + path.read_bytes())
        return digest.hexdigest()

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def entry(self, path: Path) -> dict[str, Any]:
        name = path.relative_to(self.folder).as_posix()
        return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}

    def entries(self, below: str, recursive: bool) -> list[dict[str, Any]]:
        """What a listing of the folder ``below`` shows."""
        root = self.folder / below
        paths = sorted(root.rglob("*") if recursive else root.iterdir()) if root.is_dir() else []
        return [
            self.entry(path)
            if path.is_file()
            else {"type": "directory", "path": path.relative_to(self.folder).as_posix(), "size": 0, "oid": "0" * 40}
            for path in paths
        ]


@dataclass
class Hub:
    """Repositories by kind and name, and what was asked for.

    Attributes:
        url: for ``HF_ENDPOINT``; empty while it does not run.
        requests: method and path of each request, in order.
        silent: whether it hangs up without an answer.
    """

    url: str = ""
    requests: list[str] = field(default_factory=list)
    silent: bool = False
    _repositories: dict[tuple[str, str], dict[str, _Repository]] = field(default_factory=dict)

    def add(
        self, name: str, folder: Path, *, kind: str = "models", revision: str = "main", gated: bool = False
    ) -> None:
        """Serve a folder as a revision of ``user/name``; ``kind`` is ``models`` or ``datasets``."""
        self._repositories.setdefault((kind, name), {})[revision] = _Repository(folder, gated)

    def commit(self, name: str, kind: str = "models", revision: str = "main") -> str:
        """The commit that a revision names."""
        return self._repositories[kind, name][revision].commit

    def environment(self, home: Path) -> dict[str, str]:
        """Of a client process whose cache is ``home``; nothing of the user's own token or cache."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        }
        return {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def revisions(self, kind: str, name: str) -> dict[str, _Repository]:
        """What a repository holds, by the names and the commits of its revisions; empty where there is none."""
        named = self._repositories.get((kind, name), {})
        return {**named, **{repository.commit: repository for repository in named.values()}}


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Client:
    """A process that has the hub's clients talk to ``hub`` with an empty cache; to be used with ``with``."""

    def __init__(self, hub: Hub, home: Path) -> None:
        repository = Path(__file__).resolve().parents[1]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=repository,
            env=hub.environment(home),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def run(self, *arguments: str, status: int = 0) -> str:
        """Run ``python -m sweeper`` with these arguments, which must end with this status; what it printed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.NamedTemporaryFile("r") as printed:
            self._process.stdin.write(json.dumps([arguments, printed.name]) + "\n")
            self._process.stdin.flush()
            found, text = self._process.stdout.readline().strip(), printed.read()
        assert found == str(status), text
        return text


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what was asked for is in ``Hub.requests``."""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        url = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {unquote(url.path)}")
        if self.hub.silent:
            self.close_connection = True
        elif match := _FILE.fullmatch(url.path):
            kind, (name, revision, file) = "datasets" if match[1] else "models", map(unquote, match.groups()[1:])
            self._repository(kind, name, revision, lambda repository: self._file(repository, file))
        elif match := _API.fullmatch(url.path):
            kind, name, what, revision, below = (part and unquote(part) for part in match.groups())
            asked = {**parse_qs(url.query), **self._form(body)}
            self._repository(
                kind,
                name,
                revision or "main",
                lambda repository: self._api(repository, kind, name, what, below or "", asked),
            )
        else:
            self._error(404, "", "no such page")

    def _form(self, body: bytes) -> dict[str, Any]:
        """The fields of a request's body, JSON or of a form."""
        if not body:
            return {}
        if "json" in self.headers.get("Content-Type", ""):
            return dict(json.loads(body))
        return dict(parse_qs(body.decode()))

    def _repository(self, kind: str, name: str, revision: str, answer: Any) -> None:
        revisions = self.hub.revisions(kind, name)
        if not revisions:  # whether it does not exist or is private, the hub does not say
            self._error(401, "RepoNotFound", "Repository not found")
        elif revision not in revisions:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif revisions[revision].gated:
            token = self.headers.get("Authorization")
            self._error(403 if token else 401, "GatedRepo", f"Access to {name} is restricted")
        else:
            answer(revisions[revision])

    def _api(
        self, repository: _Repository, kind: str, name: str, what: str | None, below: str, asked: dict[str, Any]
    ) -> None:
        if what == "tree":
            self._json(repository.entries(below, "true" in str(asked.get("recursive", "")).lower()))
        elif what == "paths-info":
            known = {entry["path"]: entry for entry in repository.entries("", recursive=True)}
            wanted = asked.get("paths", [])
            self._json([known[path] for path in ([wanted] if isinstance(wanted, str) else wanted) if path in known])
        else:
            siblings = [
                {"rfilename": entry["path"]} for entry in repository.entries("", True) if entry["type"] == "file"
            ]
            facts = {"id": name, "sha": repository.commit, "siblings": siblings, "tags": [], "private": False}
            self._json({**facts, "modelId": name} if kind == "models" else facts)

    def _file(self, repository: _Repository, name: str) -> None:
        path = repository.folder / name
        if path not in repository.files():
            self._error(404, "EntryNotFound", "Entry not found", commit=repository.commit)
            return
        content, status, extra = path.read_bytes(), 200, {}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), int(match[2] or len(content) - 1)
            status, extra = 206, {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            content = content[first : last + 1]
        headers = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes", **extra}
        self._send(status, content, "application/octet-stream", headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), "application/json", {})

    def _error(self, status: int, code: str, message: str, commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        kept = {name: value for name, value in headers.items() if value}
        self._send(status, json.dumps({"error": message}).encode(), "application/json", kept)

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _etag(path: Path) -> str:
    """As git names a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
