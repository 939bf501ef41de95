"""Jobs for the executors' tests; at the top level of a module so that spawned workers can import them."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from channelwise.errors import EvaluationError


@dataclass(frozen=True)
class Meeting:
    """Waits, in ``folder``, until it is attended by as many processes as that."""

    folder: Path
    processes: int

    def attend(self) -> int:
        """The number of this process, once all are there."""
        (self.folder / str(os.getpid())).touch()
        deadline = time.monotonic() + 60
        while len(list(self.folder.iterdir())) < self.processes:
            if time.monotonic() > deadline:
                raise TimeoutError("the others did not come")
            time.sleep(0.01)
        return os.getpid()


class Square:
    """Squares numbers; other payloads misbehave in the way they are called."""

    def prepare(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, payload: Any) -> float:
        if payload == "raise":
            raise KeyError("the user's own error")
        if payload == "raise own":

            class OwnError(Exception):
                """Of a class that no other process can find."""

            raise OwnError("not found")
        if payload == "score":
            raise EvaluationError("eval_fn returned None")
        if payload == "interrupt":
            raise KeyboardInterrupt
        if payload == "threads":
            return float(torch.get_num_threads())
        if payload == "pid":
            time.sleep(0.2)
            return float(os.getpid())
        if isinstance(payload, Meeting):
            return float(payload.attend())
        if payload == "hang":
            time.sleep(3600)
        if payload == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if payload == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(payload, Path):
            if not payload.exists():
                payload.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return 1.0
        time.sleep(random.random() / 100)
        return float(payload) ** 2


class NotReady(Square):
    def prepare(self, device: torch.device) -> None:
        raise ValueError("no room")


class Local(Square):
    """Holds what is defined in no module."""

    def __init__(self) -> None:
        self.local = lambda: None


class LoaderSum(Square):
    """Sums what a loader yields."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __call__(self, payload: Any) -> float:
        return float(sum(batch.sum() for batch in self.loader))


class Large(Square):
    """A job of a megabyte, as models are."""

    def __init__(self) -> None:
        self.weights = bytes(1 << 20)


class HangsUnpacking(Square):
    """What makes the model, or an import, never returns."""

    def __init__(self) -> None:
        self.state = 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        time.sleep(3600)


class DiesUnpacking(Square):
    """What a program without a main guard looks like from outside: the worker ends before it is ready."""

    def __init__(self) -> None:
        self.state = 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        os._exit(3)
