"""Which process works on something that others can see."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from channelwise.io.record import Record


class Process(Record):
    """A process. ``started``: "boot/namespace/ticks" tells it from others of the same pid and host; "" if unknown.

    The boot of the kernel stands for the machine, whose name containers change or share; the same pid is another
    process in another PID namespace, and later, when the old one has ended.
    """

    pid: int
    host: str
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def may_see_locks_of(self, other: Process) -> bool:
        """Whether this process is on the machine of ``other``, as far as is known: locks may not reach further."""
        return self.host == other.host or _boot(self.started) == _boot(other.started) != ""

    def knows_ended(self, other: Process) -> bool:
        """Whether ``other`` has ended, seen from this process; of other machines and namespaces nothing is known."""
        place = self.started.rpartition("/")[0]
        return place != "" and place == other.started.rpartition("/")[0] and _started(other.pid) != other.started


def this_process() -> Process:
    """The process that asks."""
    pid = os.getpid()
    return Process(pid=pid, host=socket.gethostname(), started=_started(pid))


def _started(pid: int) -> str:
    """What `Process.started` is of a process that runs; "" where /proc does not tell, and if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else f"{_namespace()}/{fields[19]}"
    except OSError:
        return ""


def _namespace() -> str:
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"


def _boot(started: str) -> str:
    return started.partition("/")[0] if "/" in started else ""
