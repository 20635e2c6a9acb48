"""A hub on this machine: enough of the Hugging Face hub's protocol for its own clients to run against it unmodified.

Models are uploaded by git LFS's batch protocol. The other way, xet, is chosen by the client alone, where its library is
installed, and is switched off in these clients.

They are pointed at it by ``HF_ENDPOINT``, which they read once, on import: in a process of their own, which
:class:`Client` starts.
"""

from __future__ import annotations

import base64
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

#: Runs a command line of ours, or after -c Python, in a fork for each line of input, so that all share the imports.
_LOOP = """
import json, os, sys
import datasets, sweeper.commands, sweeper.comparison
from huggingface_hub.utils import http_backoff
from sweeper.__main__ import main
http_backoff.__kwdefaults__["base_wait_time"] = 0.01  # as often as ever, but not for half a minute
for line in sys.stdin:
    arguments, printed, environment = json.loads(line)
    child = os.fork()
    if child == 0:
        file = os.open(printed, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(environment)
        if arguments[0] == "-c":
            exec(arguments[1], {"__name__": "__main__"})
            sys.stdout.flush()
            os._exit(0)
        sys.argv = ["sweeper", *arguments]
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

# In a path as it is sent, where the slashes of a revision such as refs/convert/parquet are quoted.
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_UPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main")
_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
_OBJECT = re.compile(r"/lfs/(verify/)?([0-9a-f]{64})")
#: Who ``user`` is, by what the token may do; the token's name is its role.
_ROLES = ("write", "read")


@dataclass(frozen=True)
class _Repository:
    folder: Path
    gated: bool
    private: bool = False

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
        uploads: folder of what is uploaded, a folder for each repository and one for LFS's objects.
        refused: path, as a regular expression -> status and message with which it is answered.
        cut: path, as a regular expression, at which it hangs up in the middle of what is sent to it; empty = none.
        commits: repository and message of each commit.
    """

    url: str = ""
    requests: list[str] = field(default_factory=list)
    silent: bool = False
    uploads: Path = Path()
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    cut: str = ""
    commits: list[tuple[str, str]] = field(default_factory=list)
    _repositories: dict[tuple[str, str], dict[str, _Repository]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        folder: Path,
        *,
        kind: str = "models",
        revision: str = "main",
        gated: bool = False,
        private: bool = False,
    ) -> None:
        """Serve a folder as a revision of ``user/name``; ``kind`` is ``models`` or ``datasets``."""
        self._repositories.setdefault((kind, name), {})[revision] = _Repository(folder, gated, private)

    def account(self, authorization: str | None) -> dict[str, Any] | None:
        """What ``whoami`` says to the bearer of a token, which is called by its role; nothing of any other."""
        role = (authorization or "").removeprefix("Bearer ")
        if role not in _ROLES:
            return None
        organisations = [{"name": "team"}, {"name": "others"}]
        return {"type": "user", "name": "user", "orgs": organisations, "auth": {"accessToken": {"role": role}}}

    def commit(self, name: str, kind: str = "models", revision: str = "main") -> str:
        """The commit that a revision names."""
        return self._repositories[kind, name][revision].commit

    def environment(self, home: Path) -> dict[str, str]:
        """Of a client process whose cache is ``home``; nothing of the user's own token or cache."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        }
        return {
            **kept,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }

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

    def run(self, *arguments: str, status: int = 0, **environment: str) -> str:
        """Run ``python -m sweeper``, or ``-c`` and Python, which must end with this status; what it printed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with tempfile.NamedTemporaryFile("r") as printed:
            self._process.stdin.write(json.dumps([arguments, printed.name, environment]) + "\n")
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

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what was asked for is in ``Hub.requests``."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {unquote(url.path)}")
        if self.hub.cut and re.search(self.hub.cut, url.path):
            self.rfile.read(1000)
            self.close_connection = True
            return
        body = self._body()
        refused = next((answer for path, answer in self.hub.refused.items() if re.search(path, url.path)), None)
        if self.hub.silent:
            self.close_connection = True
        elif refused is not None:
            self._error(refused[0], "", refused[1])
        elif self._write(url.path, body):
            pass
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

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _write(self, path: str, body: bytes) -> bool:
        """Answer a request of those that upload, and say if it was one."""
        account = self.hub.account(self.headers.get("Authorization"))
        if match := _OBJECT.fullmatch(path):  # of a storage server, which knows no accounts
            self._object(match[2], body, verify=bool(match[1]))
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif path not in ("/api/whoami-v2", "/api/repos/create") and not (
            _UPLOAD.fullmatch(path) or _BATCH.fullmatch(path)
        ):
            return False
        elif account is None:
            self._error(401, "", "Invalid credentials in Authorization header")
        elif path == "/api/whoami-v2":
            self._json(account)
        elif account["auth"]["accessToken"]["role"] != "write":
            self._error(403, "", "You must use a token that may write")
        elif path == "/api/repos/create":
            self._create(json.loads(body), account)
        elif match := _BATCH.fullmatch(path):
            self._batch(json.loads(body)["objects"])
        elif match := _UPLOAD.fullmatch(path):
            repository = self.hub.revisions("models", match[1]).get("main")
            if repository is None:
                self._error(404, "RepoNotFound", "Repository not found")
            elif match[2] == "preupload":
                self._preupload(repository, json.loads(body)["files"])
            else:
                self._commit(match[1], repository, [json.loads(line) for line in body.splitlines()])
        return True

    def _validate(self, card: str) -> None:
        from huggingface_hub import ModelCard

        try:
            ModelCard(card)
            self._json({"errors": [], "warnings": []})
        except ValueError as error:
            self._send(400, json.dumps({"errors": [{"message": str(error)}]}).encode(), "application/json", {})

    def _create(self, asked: dict[str, Any], account: dict[str, Any]) -> None:
        owner = asked["organization"] or account["name"]
        name = f"{owner}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{name}"}
        if owner not in (account["name"], "team"):
            self._error(403, "", f"You don't have the rights to create a model under the namespace {owner}")
        elif self.hub.revisions("models", name):
            self._send(
                409,
                json.dumps({"error": "You already created this model repo", **url}).encode(),
                "application/json",
                {},
            )
        else:
            folder = self.hub.uploads / owner / asked["name"]
            folder.mkdir(parents=True)
            (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
            self.hub.add(name, folder, private=asked.get("visibility") == "private")
            self._json(url)

    def _preupload(self, repository: _Repository, files: list[dict[str, Any]]) -> None:
        """Which way each file goes, and what the repository has of that name."""
        answers = []
        for file in files:
            there, lfs = repository.folder / file["path"], file["path"].endswith(".safetensors")
            oid = None
            if there.is_file():
                oid = hashlib.sha256(there.read_bytes()).hexdigest() if lfs else _etag(there)
            mode = "lfs" if lfs else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def _batch(self, objects: list[dict[str, Any]]) -> None:
        answers = []
        for asked in objects:
            at = f"{self.hub.url}/lfs"
            actions = {"upload": {"href": f"{at}/{asked['oid']}"}, "verify": {"href": f"{at}/verify/{asked['oid']}"}}
            stored = (self.hub.uploads / "lfs" / asked["oid"]).is_file()
            answers.append({**asked, **({} if stored else {"actions": actions})})
        self._json({"transfer": "basic", "objects": answers})

    def _object(self, oid: str, body: bytes, *, verify: bool) -> None:
        path = self.hub.uploads / "lfs" / oid
        if verify:
            right = path.is_file() and path.stat().st_size == json.loads(body)["size"]
            self._json({}) if right else self._error(422, "", "it was not uploaded")
        elif hashlib.sha256(body).hexdigest() != oid:
            self._error(400, "", "the content is not that of its name")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(body)
            self._json({})

    def _commit(self, name: str, repository: _Repository, lines: list[dict[str, Any]]) -> None:
        for line in lines[1:]:
            path = repository.folder / line["value"]["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                path.write_bytes(base64.b64decode(line["value"]["content"]))
            elif line["key"] == "lfsFile":
                path.write_bytes((self.hub.uploads / "lfs" / line["value"]["oid"]).read_bytes())
            else:
                path.unlink()
        self.hub.commits.append((name, lines[0]["value"]["summary"]))
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{repository.commit}", "commitOid": repository.commit})

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
        elif revisions[revision].private and self.hub.account(self.headers.get("Authorization")) is None:
            self._error(401, "RepoNotFound", "Repository not found")
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
            facts = {
                "id": name,
                "sha": repository.commit,
                "siblings": siblings,
                "tags": [],
                "private": repository.private,
            }
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
