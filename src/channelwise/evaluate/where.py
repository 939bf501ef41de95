"""Where evaluations run: GPUs, worker processes, a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from channelwise.execution.choice import Place, choose_place
from channelwise.inputs.check import model_device


@dataclass(frozen=True)
class Where:
    """Where evaluations run; by default in this process, where the model is or on the current CUDA device.

    Args:
        gpus: Indices of the CUDA devices to evaluate on, in parallel if there are several. Without CUDA evaluations
            run where the model is.
        workers: Number of worker processes; by default one per entry of ``gpus``, and none without CUDA.
        executor: "ray" evaluates on a Ray cluster (the one that ``RAY_ADDRESS`` or `ray start` on this machine
            names, or a local one started for the purpose), "ray://host:port" or "host:port" on that one; by default
            one worker per GPU, or per CPU without GPUs. "local": worker processes even if it is one. None: here.
    """

    gpus: Sequence[int | str] | None = None
    workers: int | None = None
    executor: str | None = None

    def place(self, model: nn.Module) -> Place:
        """The place for evaluations of ``model``, checked but not started.

        Raises:
            InvalidArgumentError: an argument is wrong, there is no such device, or Ray is not installed.
        """
        return choose_place(device=model_device(model), gpus=self.gpus, workers=self.workers, executor=self.executor)
