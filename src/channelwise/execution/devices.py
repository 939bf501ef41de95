"""Which devices evaluations use: the user's ``gpus`` and ``workers`` against what this machine has."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Iterable
from numbers import Integral

import torch

from channelwise.errors import InvalidArgumentError
from channelwise.select.widths import is_number

log = logging.getLogger(__name__)


def choose_devices(gpus: object, model_device: torch.device) -> list[torch.device]:
    """The devices for evaluations.

    Args:
        gpus: None, or device indices as ints or strings, e.g. ``[0, 1]``, ``["0"]`` or ``"0,1"``.
        model_device: Where the user's model is.

    Returns:
        One device per entry of ``gpus``. On a machine without CUDA the model's own device, whatever was asked for.
        For None the devices to try in turn: the model's own, preceded by the current CUDA device if there is one.
    """
    indices = None if gpus is None else device_indices(gpus)
    available = torch.cuda.device_count()
    if not available:
        if indices is None:
            log.info("No CUDA device here: evaluations run on %s.", model_device)
        else:
            many = " one by one" if len(indices) > 1 else ""
            _say_once(f"gpus={gpus!r}: there is no CUDA device here. Evaluations run{many} on {model_device}.")
        return [model_device]
    if indices is None:
        if model_device.type != "cpu":
            return [model_device]
        current = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
        return [torch.device("cuda", current), model_device]
    for index in indices:
        if index >= available:
            raise InvalidArgumentError(
                f"gpus={gpus!r}: there is no device {index}; this machine has {available}: {list(range(available))}."
            )
    return [torch.device("cuda", index) for index in indices]


@functools.cache
def _say_once(text: str) -> None:
    log.warning("%s", text)


def check_workers(workers: object) -> int | None:
    """``workers`` as a number of processes, None for the default."""
    if workers is None:
        return None
    if isinstance(workers, bool) or not isinstance(workers, Integral) or workers < 1:
        raise InvalidArgumentError(f"workers={workers!r}: must be a number of processes, 1 or more, or None.")
    return int(workers)


def check_timeout(timeout: object) -> float | None:
    """``timeout`` in seconds, None for no end."""
    if timeout is None:
        return None
    if not is_number(timeout) or not 0 < timeout < math.inf:
        raise InvalidArgumentError(f"timeout={timeout!r}: must be a number of seconds above 0, or None.")
    return float(timeout)


def usable_cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_indices(gpus: object) -> list[int]:
    """``gpus`` as numbers, whether or not there are such devices."""
    entries: Iterable[object]
    if isinstance(gpus, str):
        entries = gpus.split(",")
    elif isinstance(gpus, Iterable):
        entries = gpus
    else:
        entries = [gpus]
    indices = []
    for entry in entries:
        text = str(entry).strip().removeprefix("cuda:")
        if isinstance(entry, bool) or not text.isdecimal():
            raise InvalidArgumentError(f"gpus={gpus!r}: must be device indices such as [0, 1] or ['0', '1'].")
        indices.append(int(text))
    if not indices:
        raise InvalidArgumentError("gpus is empty: give device indices such as [0], or None for the default.")
    return indices
