"""Small disks, where the system allows to mount them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PAGE = 4096


class Disk:
    """A file system of one megabyte in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def leave(self, pages: int) -> None:
        """Fill it up to so many pages of 4096 bytes."""
        self.free()
        with self._filler.open("wb") as file:
            room = os.statvfs(self.path).f_bavail - pages
            if room > 0:
                os.posix_fallocate(file.fileno(), 0, room * PAGE)

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def names(self) -> list[str]:
        return sorted(set(os.listdir(self.path)) - {self._filler.name})

    def read_only(self) -> None:
        self._run("mount", "-o", "remount,ro", str(self.path))

    def unmount(self) -> None:
        self._run("umount", str(self.path))

    @staticmethod
    def _run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)


def _mounted(path: Path) -> bool:
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    if sys.platform != "linux" or not _mounted(path):
        pytest.skip("no right to mount a small disk (root has it)")
    mounted = Disk(path)
    try:
        yield mounted
    finally:
        mounted.unmount()


@pytest.fixture
def read_only(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Callable[[Path], None]], Path]]:
    """Has a folder filled, and gives it when nothing in it can be written any more. Only a mount stops root."""
    if os.geteuid() == 0:
        disk: Disk = request.getfixturevalue("disk")

        def mount(fill: Callable[[Path], None]) -> Path:
            fill(disk.path)
            disk.read_only()
            return disk.path

        yield mount
        return
    folder = tmp_path / "folder"
    folder.mkdir()

    def protect(fill: Callable[[Path], None]) -> Path:
        fill(folder)
        folder.chmod(0o500)
        return folder

    yield protect
    folder.chmod(0o700)
