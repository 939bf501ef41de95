"""How much memory a device has left."""

from __future__ import annotations

import os
from pathlib import Path

import torch

UNKNOWN = 4 << 30
"""Assumed where the system gives no number."""


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be taken on ``device``; on the host the memory that the system calls available."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (OSError, ValueError, AttributeError):
        return UNKNOWN
