"""A PostgreSQL server on this machine, of Debian's package: started, restarted and killed by tests."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["Server", "serve"]

PASSWORD = "a-password-of-the-test"


class Server:
    """A cluster of its own in ``folder``, on a free port of 127.0.0.1; it refuses to run as root."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://thawline:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        self._user = "postgres" if os.getuid() == 0 else None
        folder.mkdir()
        if self._user:
            shutil.chown(folder, self._user)
            for parent in folder.parents:  # pytest's own are for their owner alone
                if parent.stat().st_uid == 0 and not parent.stat().st_mode & 1:
                    parent.chmod(parent.stat().st_mode | 0o011)
        (secret := folder / "password").write_text(PASSWORD)
        secret.chmod(0o644)
        self._call("initdb", "-U", "thawline", "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync", "-D", "data")
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories='' -c fsync=off"
        self._call("pg_ctl", "-w", "-D", "data", "-l", "log", "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; ``immediate`` is what a crash looks like to its clients."""
        self._call("pg_ctl", "-w", "-D", "data", "-m", mode, "stop")

    def _call(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._binaries / program, *arguments],
            cwd=self._folder,
            user=self._user,
            group=self._user,
            stdin=subprocess.DEVNULL,
            stdout=(out := (self._folder / "out")).open("ab"),
            stderr=subprocess.STDOUT,
            timeout=120,
        )
        assert done.returncode == 0, out.read_text()


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Run a server; the test is skipped where PostgreSQL or its driver is missing."""
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'thawline[postgresql]'")
    found = [*Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), *filter(None, [shutil.which("pg_ctl")])]
    if not found:
        pytest.skip("needs a PostgreSQL server: apt install postgresql")
    if os.getuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip("needs a user postgres, because PostgreSQL does not run as root")
    server = Server(Path(found[0]).resolve().parent, folder)
    try:
        yield server
    finally:
        server.stop()
