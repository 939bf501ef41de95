"""The one-step method as programs written for the Vitis AI Optimizer call it: every argument a keyword."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NoReturn

from torch import nn

from channelwise.api import trace
from channelwise.errors import InvalidArgumentError
from channelwise.evaluate.arguments import check_args
from channelwise.evaluate.evaluation import EvalFn, Evaluation
from channelwise.evaluate.images import Images, images_of
from channelwise.evaluate.repair import Repair
from channelwise.execution.where import Where
from channelwise.inputs.batches import ForwardFn
from channelwise.inputs.check import check_flag
from channelwise.methods.arguments import check_path
from channelwise.methods.one_step.one_step import OneStep
from channelwise.methods.options import DIVISOR, Channels, SearchOptions, Target
from channelwise.methods.other_names import other_names
from channelwise.methods.removal_ratio import removal
from channelwise.methods.runner import PruningRunner
from channelwise.ranking import Criterion
from channelwise.search import SearchResults
from channelwise.select.widths import check_count

log = logging.getLogger(__name__)

GPUS = ["0"]


class OneStepPruningRunner(PruningRunner):
    """`OneStep` with the arguments that users of the Vitis AI Optimizer know.

    It remembers what a search was given for the repair: `prune` uses that where it is given nothing.

    Args:
        model: The trained model. It is never modified.
        inputs: One tensor, or a tuple or list of tensors, with the shape and dtype of a real batch.
        folder, storage, quiet: See `OneStep`.
        ranking: Which channels of a group go first, see `Channels`.

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
        ranking: str | Criterion | None = None,
        quiet: bool = False,
        storage: Any = None,
    ) -> None:
        Channels(ranking=ranking)  # checked before the model is traced, which takes longer
        check_path("folder", folder)
        check_flag("quiet", quiet)
        self._graph = trace(model, inputs)
        self._folder, self._ranking, self._quiet, self._storage = folder, ranking, quiet, storage
        self._images: list[Images] = []
        self._searched: list[tuple[Target, OneStep, Evaluation]] = []

    def search(
        self,
        gpus: Sequence[int | str] | None = GPUS,
        calibration_fn: Callable[..., Any] | None = None,
        calib_args: Sequence[Any] = (),
        num_subnet: int = 200,
        removal_ratio: float | None = 0.5,
        excludes: Any = (),
        eval_fn: EvalFn | None = None,
        eval_args: Sequence[Any] = (),
        forced: bool = False,
        with_group_conv: bool = False,
        *,
        loader: Any = None,
        batches: int | None = None,
        forward_fn: ForwardFn | None = None,
        compensate: bool | None = None,
        strategy: Any = "evolution",
        ranking: str | Criterion | None = None,
        params_ratio: float | None = None,
        direction: Literal["maximize", "minimize"] = "maximize",
        channel_divisible: int = DIVISOR,
        seed: int = 0,
        workers: int | None = None,
        executor: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Evaluate candidates until there are ``num_subnet``, see `OneStep.search`.

        Args:
            gpus, workers, executor, timeout: See `Where`.
            calibration_fn, calib_args, compensate: See `Repair`.
            loader, batches, forward_fn: See `Images`. Without ``calibration_fn`` batch norms are re-estimated on them.
            num_subnet: How many candidates the search has, those of earlier runs and failed ones included.
            removal_ratio: Fraction of the MACs to remove, in (0, 1); None if only ``params_ratio`` is given.
            params_ratio: Fraction of the parameters to remove; together with ``removal_ratio`` both are met.
            eval_fn, eval_args: See `Evaluation`.
            excludes, with_group_conv, channel_divisible: See `Channels`. ``ranking`` goes before the runner's.
            strategy, direction, seed: See `SearchOptions`.
            forced: Begin this search anew.
        """
        if eval_fn is None:
            raise InvalidArgumentError("search needs eval_fn: a function called as eval_fn(model, *eval_args).")
        evaluation = Evaluation(eval_fn, check_args(eval_args, "eval_args"))
        check_count("num_subnet", num_subnet)
        options = SearchOptions(num_subnet, strategy, direction, seed)
        target = removal(removal_ratio, params_ratio)
        repair = Repair(self._read(loader, batches, forward_fn), calibration_fn, calib_args, compensate)
        ranking = ranking if ranking is not None else self._ranking
        method = self._method(repair, Channels(excludes, with_group_conv, channel_divisible, ranking))
        # The default means: no preference. Without such a device, or if eval_fn works on another, that one is used.
        where = Where(None if gpus is GPUS and workers is None else gpus, workers, executor, timeout)
        self._searched.append((target, method, evaluation))
        try:
            method.search(target, evaluation, options=options, where=where, forced=forced)
        except InvalidArgumentError:
            self._searched.pop()  # what was wrong is no help to prune
            raise

    def prune(
        self,
        mode: str = "slim",
        removal_ratio: float | None = None,
        index: int | None = None,
        pruning_info_path: str | os.PathLike[str] | None = None,
        channel_divisible: int = DIVISOR,
        *,
        params_ratio: float | None = None,
        loader: Any = None,
        batches: int | None = None,
        forward_fn: ForwardFn | None = None,
        calibration_fn: Callable[..., Any] | None = None,
        calib_args: Sequence[Any] = (),
        compensate: bool | None = None,
        eval_fn: EvalFn | None = None,
        eval_args: Sequence[Any] = (),
    ) -> nn.Module:
        """A pruned and repaired copy of the model, see `OneStep.prune`.

        It is repaired with what is given here. Where nothing is, it is repaired with what this runner's `search` was
        given, its ``eval_fn`` included; in another process there is nothing, and a warning says so.

        Args:
            mode, index, pruning_info_path: See `OneStep.prune`.
            removal_ratio, params_ratio: Of the searches on file, the latest with these; by default the latest of all.
            channel_divisible: Widths of pruned layers are to be multiples of this. Where the search's are not, the
                nearest candidate whose widths are is taken, unscored. The default takes the candidate as it is.
            loader, batches, forward_fn, calibration_fn, calib_args: As in `search`.
            compensate: Whether to re-fit weights; None: as in the search.
            eval_fn, eval_args: What says which of several repairs is best, see `OneStep.prune`.
        """
        channels = Channels(channel_divisible=channel_divisible, ranking=self._ranking)
        repair = Repair(self._read(loader, batches, forward_fn), calibration_fn, calib_args)
        key = self.results(removal_ratio, params_ratio).key
        evaluation = None if eval_fn is None else Evaluation(eval_fn, check_args(eval_args, "eval_args"))
        for target, method, scored_by in reversed(self._searched):
            if target.shares == key.targets and method.conditions().items() <= key.options.items():
                channels = replace(channels, ranking=method.channels.ranking)
                if repair.calibrates == "no":
                    repair, evaluation = method.repair, evaluation or scored_by
                break
        method = self._method(replace(repair, compensate=compensate), channels)
        return method.prune(
            Target(**key.targets), index=index, mode=mode, pruning_info_path=pruning_info_path, evaluation=evaluation
        )

    def results(self, removal_ratio: float | None = None, params_ratio: float | None = None) -> SearchResults:
        """The candidates and scores of the latest search, of those with these ratios, see `OneStep.results`."""
        given = removal_ratio is not None or params_ratio is not None
        target = removal(removal_ratio, params_ratio) if given else None
        return self._method(Repair(), Channels()).results(target)

    def ana(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not of this method: raises InvalidArgumentError that says where it belongs."""
        raise InvalidArgumentError(
            "OneStepPruningRunner has no ana: it has search and prune. ana belongs to the other runner: "
            "IterativePruningRunner(model, inputs).ana(...)."
        )

    def _method(self, repair: Repair, channels: Channels) -> OneStep:
        return OneStep(self._graph, repair, channels, self._folder, self._storage, self._quiet)

    def _read(self, loader: Any, batches: int | None, forward_fn: ForwardFn | None) -> Images | None:
        """The images of a loader; one that a search was given is not read again."""
        for known in self._images:
            if loader is not None and known.come_from(loader, batches, forward_fn):
                return known
        images = images_of(loader, batches, forward_fn)
        self._images += [] if images is None else [images]
        return images
