"""The iterative method as programs written for the Vitis AI Optimizer call it: every argument a keyword."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NoReturn

from torch import nn

from channelwise.api import trace
from channelwise.errors import InvalidArgumentError
from channelwise.evaluate.evaluation import EvalFn, Evaluation
from channelwise.execution.where import Where
from channelwise.inputs.check import check_flag
from channelwise.methods.arguments import check_one_of, check_path
from channelwise.methods.iterative.iterative import Iterative
from channelwise.methods.options import DIVISOR, Channels
from channelwise.methods.other_names import other_names
from channelwise.methods.removal_ratio import removal
from channelwise.methods.runner import PruningRunner
from channelwise.ranking import Criterion


class IterativePruningRunner(PruningRunner):
    """`Iterative` with the arguments that users of the Vitis AI Optimizer know.

    Args:
        model: The trained model. It is never modified.
        inputs: One tensor, or a tuple or list of tensors, with the shape and dtype of a real batch.
        folder: Where results go: ``<ModelClass>.sens`` and ``<ModelClass>_ratio_<r>.spec``.
        ranking: Which channels of a group go first: a criterion's name or a callable, see `channelwise.ranking`.
        quiet: No progress bar and no summary table.

    Raises:
        InvalidArgumentError, UnsupportedModelError, TraceError: the model cannot be traced with these inputs.
    """

    @other_names(input_signature="inputs")
    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        *,
        folder: str | os.PathLike[str] = ".vai",
        ranking: str | Criterion = "l1",
        quiet: bool = False,
    ) -> None:
        Channels(ranking=ranking)  # checked before the model is traced, which takes longer
        check_path("folder", folder)
        check_flag("quiet", quiet)
        self._graph = trace(model, inputs)
        self._folder, self._ranking, self._quiet = folder, ranking, quiet

    def ana(
        self,
        eval_fn: EvalFn,
        args: Sequence[Any] = (),
        gpus: Sequence[int | str] | None = None,
        excludes: Any = None,
        forced: bool = False,
        with_group_conv: bool = False,
        *,
        workers: int | None = None,
        executor: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """See `Iterative.ana`, and for the arguments `Evaluation`, `Where` and `Channels`."""
        evaluation = Evaluation(eval_fn, args)
        method = self._method(Channels(excludes, with_group_conv, ranking=self._ranking))
        method.ana(evaluation, where=Where(gpus, workers, executor, timeout), forced=forced)

    def prune(
        self,
        removal_ratio: float | None = None,
        threshold: float | None = None,
        spec_path: str | os.PathLike[str] | None = None,
        excludes: Any = None,
        mode: str = "sparse",
        pruning_info_path: str | os.PathLike[str] | None = None,
        channel_divisible: int = DIVISOR,
    ) -> nn.Module:
        """A pruned copy of the model, see `Iterative.prune`.

        Args:
            removal_ratio: Fraction of the original model's MACs to remove, in (0, 1); met within 1 % of the MACs left
                unless ``channel_divisible`` prevents it, which is logged. Needs `ana`.
            threshold, spec_path, mode, pruning_info_path: As there. Exactly one of ``removal_ratio``, ``threshold`` and
                ``spec_path``.
            excludes: Further groups to leave alone.
            channel_divisible: Widths of pruned layers are multiples of this.
        """
        check_one_of(removal_ratio=removal_ratio, threshold=threshold, spec_path=spec_path)
        target = removal(removal_ratio) if removal_ratio is not None else None
        method = self._method(Channels(excludes, channel_divisible=channel_divisible, ranking=self._ranking))
        return method.prune(
            target, threshold=threshold, spec_path=spec_path, mode=mode, pruning_info_path=pruning_info_path
        )

    def search(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not of this method: raises InvalidArgumentError that says where it belongs."""
        raise InvalidArgumentError(
            "IterativePruningRunner has no search: it has ana and prune. search belongs to the other runner: "
            "OneStepPruningRunner(model, inputs).search(...)."
        )

    def _method(self, channels: Channels) -> Iterative:
        return Iterative(self._graph, channels, self._folder, self._quiet)
