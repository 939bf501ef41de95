"""What can be known of another process, and what cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from channelwise.io.process import Process, this_process

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="start times are read from /proc")


def test_a_process_that_runs_has_not_ended() -> None:
    assert not this_process().knows_ended(this_process())


def test_a_dead_process_has_ended() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert this_process().knows_ended(this_process().model_copy(update={"pid": dead.pid}))


def test_a_later_process_of_the_same_pid_is_another() -> None:
    earlier = this_process().started.rpartition("/")[0] + "/1"
    assert this_process().knows_ended(Process(pid=os.getpid(), host=this_process().host, started=earlier))


@pytest.mark.parametrize("place", ["other-boot/pid:[1]/", "{boot}/pid:[1]/", ""])
def test_of_other_machines_namespaces_and_versions_nothing_is_known(place: str) -> None:
    me = this_process()
    started = place.format(boot=me.started.split("/")[0]) + "17"
    assert not me.knows_ended(Process(pid=2**22 + 1, host=me.host, started=started))
