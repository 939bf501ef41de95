"""A PostgreSQL server of the machine's own package, started for a test on a free port of this machine."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Server:
    """A server on ``url`` with its data in a folder of its own."""

    def __init__(self, programs: Path, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
        self._programs, self._folder, self._data = programs, folder, folder / "data"
        # It refuses to run as root.
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:
            user = pwd.getpwnam("nobody")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._call("initdb", "-D", self._data, "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c fsync=off"
        self._options = ("-D", self._data, "-l", folder / "log", "-w", "-t", "60", "-o", options)

    def start(self) -> None:
        self._call("pg_ctl", *self._options, "start")

    def stop(self, how: str = "immediate") -> None:
        self._call("pg_ctl", "-D", self._data, "-m", how, "-w", "stop")

    def _call(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [self._programs / program, *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
            cwd=self._folder, env={**os.environ, "LC_ALL": "C"}, **self._as,
        )  # fmt: skip
        assert done.returncode == 0, f"{program}: {done.stderr}"


@contextmanager
def server() -> Iterator[Server]:
    """A running server; the test is skipped where PostgreSQL or its driver is not installed."""
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    found = [Path(path).parent for path in glob.glob("/usr/lib/postgresql/*/bin/pg_ctl")]
    found += [Path(path).parent for path in [shutil.which("pg_ctl")] if path is not None]
    if not found:
        pytest.skip("PostgreSQL is not installed (Debian package postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="channelwise-postgresql-"))
    try:
        started = Server(found[-1], folder)
        started.start()
        try:
            yield started
        finally:
            started.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
