"""The head of a Ray cluster dies: an error that can be caught, in place of Ray's end of the whole program."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.execution.test_workers import environment

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

DRIVER = """
import sys, time, torch
from channelwise.errors import EvaluationError
from channelwise.execution import Task
from channelwise.execution.ray import RayCluster
from tests.execution.jobs import Square
cluster = RayCluster(Square(), device=torch.device("cpu"), address=sys.argv[1], workers=2)
try:
    for result in cluster.run(Task(f"task {n}", "pid") for n in range(100000)):
        print("result", flush=True)
except EvaluationError as error:
    print("caught:", error, flush=True)
cluster.close()
time.sleep(70)  # Ray ends programs that are still connected after a minute
print("still here", flush=True)
"""


def test_a_head_that_dies_is_an_error_and_the_program_lives(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Sockets of Ray lie in it, whose paths must be short.
    folder = tempfile.mkdtemp(prefix="ray")
    settings = {**environment(), "RAY_AUTH_MODE": "disabled"}
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        f"--port={port}",
        "--num-cpus=2",
        "--block",
    ]
    command += ["--include-dashboard=false", f"--temp-dir={folder}", "--disable-usage-stats"]
    (tmp_path / "driver.py").write_text(DRIVER)
    said = tmp_path / "said"
    with said.open("w") as output, (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=settings, start_new_session=True)
        try:
            _wait_for(tmp_path / "head.log", "Ray runtime started")
            arguments = [sys.executable, str(tmp_path / "driver.py"), f"127.0.0.1:{port}"]
            driver = subprocess.Popen(arguments, stdout=output, stderr=output, env=settings)
            _wait_for(said, "result\n")
            servers = [p for p in psutil.Process(head.pid).children(recursive=True) if p.name() == "gcs_server"]
            assert len(servers) == 1
            servers[0].kill()
            assert driver.wait(240) == 0, said.read_text()[-3000:]
        finally:
            for process in psutil.Process(head.pid).children(recursive=True):
                process.kill()
            os.kill(head.pid, signal.SIGKILL)
            head.wait()
            shutil.rmtree(folder, ignore_errors=True)
    assert f":{port} is gone: " in said.read_text()
    assert "What is finished is kept" in said.read_text()
    assert "still here" in said.read_text()


def _wait_for(file: Path, text: str) -> None:
    give_up = time.monotonic() + 180
    while not file.exists() or text not in file.read_text():
        assert time.monotonic() < give_up, f"{file.name}: {file.read_text()[-3000:]}"
        time.sleep(0.2)
