"""Two runs on the same results: the second is refused and told by whom, and what died has no lock any more."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from channelwise.errors import ResultsFileError
from channelwise.io import held
from channelwise.io.lock import locked
from channelwise.io.process import Process, this_process


def test_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "a"):
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_second_run_on_the_same_results_is_refused_and_the_first_keeps_its_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "a"):
        for _ in range(2):
            refused = pytest.raises(ResultsFileError, match=f"Process {os.getpid()} on .* another folder")
            with refused, locked(tmp_path / "a"):
                pass
        assert json.loads((tmp_path / "a.lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "a.lock").exists()


HOLDER = """
import os, sys, time
from channelwise.io.lock import locked
with locked(sys.argv[1]):
    if sys.argv[2] == "fork":
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, b"here")
            time.sleep(60)
        os.read(read, 4)
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path, *, fork: bool = False, wrapper: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    command = [*wrapper, sys.executable, "-c", HOLDER, str(path), "fork" if fork else "alone"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("fork", [False, True])
def test_lock_of_a_killed_process_is_taken_over_though_its_children_live(
    tmp_path: Path, fork: bool, caplog: pytest.LogCaptureFixture
) -> None:
    process = holder(tmp_path / "a", fork=fork)
    try:
        with pytest.raises(ResultsFileError, match=f"Process {process.pid} on "), locked(tmp_path / "a"):
            pass
        process.kill()
        process.wait()
        with locked(tmp_path / "a"):
            assert json.loads((tmp_path / "a.lock").read_text())["pid"] == os.getpid()
    finally:
        end(process)
    assert "Took over" in caplog.text
    assert os.listdir(tmp_path) == []


NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not namespaces(), reason="makes PID namespaces, which not everybody may")
def test_lock_of_a_process_in_another_pid_namespace_is_respected(tmp_path: Path) -> None:
    # A container with the host's name: its pid means another process here, or none.
    process = holder(tmp_path / "a", wrapper=NAMESPACE)
    try:
        with pytest.raises(ResultsFileError, match="is working on the same results"), locked(tmp_path / "a"):
            pass
    finally:
        end(process)
    deadline = time.monotonic() + 10
    while (tmp_path / "a.lock").exists() and time.monotonic() < deadline:
        try:
            with locked(tmp_path / "a"):
                pass
        except ResultsFileError:  # the kernel has not ended all of the namespace yet
            time.sleep(0.05)
    assert os.listdir(tmp_path) == []


def test_lock_that_another_machine_has_left_is_respected(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    owner = Process(pid=2**22 + 1, host="another", started="another-boot/pid:[1]/1")
    lock.write_text(owner.model_dump_json())
    with pytest.raises(ResultsFileError, match=r"Process 4194305 on another .*delete a\.lock"), locked(tmp_path / "a"):
        pass
    assert Process.model_validate_json(lock.read_bytes()) == owner


def test_lock_that_a_container_of_another_name_on_this_machine_has_left_is_taken_over(tmp_path: Path) -> None:
    owner = this_process().model_copy(update={"host": "another", "pid": 2**22 + 1})
    (tmp_path / "a.lock").write_text(owner.model_dump_json())
    with locked(tmp_path / "a"):
        pass


@pytest.mark.parametrize("text", ["", '{"pid": 1, "ho', '{"pid": 4194305, "host": "HOST", "started": "17"}'])
def test_lock_cut_short_or_of_an_older_version_is_taken_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.lock").write_text(text.replace("HOST", this_process().host))
    with locked(tmp_path / "a"):
        pass
    assert os.listdir(tmp_path) == []


def test_only_its_own_lock_file_is_deleted(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with locked(tmp_path / "a"):
        lock.unlink()  # by hand
        lock.write_text("of another run")
    assert lock.read_text() == "of another run"


def test_lock_whose_owner_ends_between_opening_and_holding_it_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock_file = tmp_path / "a", held._lock

    def late(file: held.FileIO) -> None:
        monkeypatch.setattr(held, "_lock", lock_file)
        (tmp_path / "a.lock").unlink()
        lock_file(file)

    monkeypatch.setattr(held, "_lock", late)
    with locked(path):
        assert (tmp_path / "a.lock").exists()


def test_file_system_without_locks_is_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(_: held.FileIO) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(held, "_lock", missing)
    with locked(tmp_path / "a"):
        pass
    assert "has no locks (" in caplog.text
