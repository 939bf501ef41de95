"""The sandwich rule: every training step sees the largest, the smallest and a few random subnets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext

from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.inputs.check import describe
from channelwise.methods.ofa.choices import Setting
from channelwise.methods.ofa.pruner import OFAPruner
from channelwise.methods.ofa.sampling import Mode
from channelwise.select.widths import is_number


def sandwich(
    pruner: OFAPruner, ofa_model: nn.Module, n_random: int = 2, *, step: int | None = None
) -> Iterator[tuple[nn.Module, Setting]]:
    """The subnets of one training step: the largest, the smallest, then random ones (Yu and Huang, ICCV 2019).

    Each is the one that ``ofa_model`` runs while the loop's body runs; gradients add up over them:

        >>> optimizer.zero_grad()
        >>> for subnet, setting in sandwich(pruner, ofa_model):
        ...     criterion(subnet(images), labels).backward()
        >>> optimizer.step()

    Under DistributedDataParallel the processes exchange their gradients once, after the last subnet.

    Args:
        pruner: Who built the supernet.
        ofa_model: The supernet, or a wrapper such as DistributedDataParallel around it.
        n_random: How many random subnets.
        step: The number of the training step; with it the random subnets depend on nothing else, so a resumed training
            sees the same ones.

    Raises:
        InvalidArgumentError: not a supernet of this pruner, or ``n_random`` is not a whole number of at least 0.
    """
    if not is_number(n_random) or n_random % 1 or not 0 <= n_random < math.inf:
        raise InvalidArgumentError(f"n_random={n_random!r}: must be a whole number of at least 0.")
    if not callable(getattr(pruner, "sample_subnet", None)):
        raise InvalidArgumentError(f"pruner must be the OFAPruner that made the supernet, not {describe(pruner)}.")
    if step is not None and (not is_number(step) or not abs(step) < math.inf or step % 1):
        raise InvalidArgumentError(f"step={step!r}: must be the number of the training step, a whole one.")
    modes: list[Mode] = ["max", "min", *["random"] * int(n_random)]  # type: ignore[list-item]
    wrapped = getattr(ofa_model, "_orig_mod", ofa_model)
    parallel = wrapped if isinstance(wrapped, nn.parallel.DistributedDataParallel) else None
    for number, mode in enumerate(modes):
        seed = None if step is None else 1009 * int(step) + number
        last = number == len(modes) - 1
        with nullcontext() if parallel is None or last else parallel.no_sync():
            yield pruner.sample_subnet(ofa_model, mode, seed=seed if mode == "random" else None)
