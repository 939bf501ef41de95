"""The iterative method: measure once how the score reacts to pruning each group, then prune to any ratio."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from torch import nn

from channelwise.api import trace
from channelwise.errors import InvalidArgumentError, NothingToPruneError, ResultsFileError
from channelwise.evaluate.job import CandidateJob, EvalFn
from channelwise.execution import Executor
from channelwise.execution.choice import choose_place
from channelwise.inputs.check import model_device
from channelwise.methods.arguments import (
    check_args,
    check_callable,
    check_mode,
    check_one_target,
    check_path,
    listed,
    plural,
)
from channelwise.methods.excluded_groups import excluded_groups
from channelwise.methods.info_file import write_info
from channelwise.methods.iterative.analysis import Analysis
from channelwise.methods.iterative.targets import Targets
from channelwise.methods.sensitivity import Sensitivity, SensitivityFile
from channelwise.methods.spec_file import read_spec, write_spec
from channelwise.ranking import Criterion, bind, get
from channelwise.report import Summary
from channelwise.select.excludes import match_excludes
from channelwise.select.widths import check_count
from channelwise.selection import Selection
from channelwise.surgery.slim import attach_sparse_state_dict

log = logging.getLogger(__name__)


class IterativePruningRunner:
    """Analyses a trained model once, then prunes it to any ratio.

    Prune a little, retrain the sparse model, load its weights into a fresh original model, make a new runner, prune
    more: channels once removed stay removed. The model given is never modified.

    Args:
        model: The trained model.
        inputs: One tensor, or a tuple or list of tensors, with the shape and dtype of a real batch.
        folder: Where results go: ``<ModelClass>.sens`` and ``<ModelClass>_ratio_<r>.spec``.
        ranking: Which channels of a group go first: a criterion's name or a callable, see `channelwise.ranking`.
        quiet: No progress bar and no summary table.

    Raises:
        InvalidArgumentError, UnsupportedModelError, TraceError: the model cannot be traced with these inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        *,
        folder: str | os.PathLike[str] = ".vai",
        ranking: str | Criterion = "l1",
        quiet: bool = False,
    ) -> None:
        get(ranking)
        check_path("folder", folder)
        self._graph = trace(model, inputs)
        self._name = type(self._graph.model).__name__
        self._folder = Path(folder)
        self._ranking = ranking
        self._quiet = quiet

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
    ) -> None:
        """Evaluate the model and every group at sparsities 0.1 to 0.9, and save the scores as they come.

        An interrupted analysis goes on where it stopped, a finished one is not repeated.

        Args:
            eval_fn: Called as ``eval_fn(model, *args)`` with a model in eval mode; returns a score: a number, a 0-d
                tensor or a NumPy scalar. Larger may be better or worse. Random generators are seeded equally for
                every call.
            args: What ``eval_fn`` takes after the model.
            gpus: Indices of the CUDA devices to evaluate on, in parallel if there are several; None for the current
                device. Without CUDA evaluations run where the model is.
            excludes: Groups to leave alone: modules, names, patterns or module types. `prune` leaves them alone too.
            forced: Repeat a finished analysis, or replace that of another network.
            with_group_conv: Analyse channels that pass through grouped convolutions too (depthwise ones always are).
            workers: Number of worker processes; by default one per entry of ``gpus``, and none without CUDA.
            executor: "ray" evaluates on a Ray cluster (the one that ``RAY_ADDRESS`` or `ray start` on this machine
                names, or a local one started for the purpose), "ray://host:port" or "host:port" on that one; by default
                one worker per GPU, or per CPU without GPUs. None: on this machine.

        Raises:
            EvaluationError: ``eval_fn`` raised, or returned no finite number; the message names the group.
            ResultsFileError: the file is of another network, damaged, in use by another run, or cannot be written.
            NothingToPruneError: no group is left.
        """
        check_callable(eval_fn)
        args = check_args(args)
        structure, model = self._graph.structure, self._graph.model
        place = choose_place(device=model_device(model), gpus=gpus, workers=workers, executor=executor)
        excluded = excluded_groups(self._graph, excludes, with_group_conv=with_group_conv)

        def executor_for(tasks: int) -> Executor:
            return place.start(CandidateJob(model, structure, eval_fn, args), tasks)

        analysis = Analysis(self._file(), self._graph, excluded, self._ranking)
        analysis.run(executor_for, forced=bool(forced), quiet=self._quiet)

    def prune(
        self,
        removal_ratio: float | None = None,
        threshold: float | None = None,
        spec_path: str | os.PathLike[str] | None = None,
        excludes: Any = None,
        mode: str = "sparse",
        pruning_info_path: str | os.PathLike[str] | None = None,
        channel_divisible: int = 2,
    ) -> nn.Module:
        """A pruned copy of the model.

        Writes ``<ModelClass>_ratio_<r>.spec`` into the runner's folder and prints a table of MACs and parameters.

        Args:
            removal_ratio: Fraction of the original model's MACs to remove, in (0, 1); met within 1 % of the MACs left
                unless ``channel_divisible`` prevents it, which is logged. Needs `ana`.
            threshold: Tolerated relative loss of score, each group pruned alone. Needs `ana`.
            spec_path: A .spec file to repeat. Exactly one of these three.
            excludes: Further groups to leave alone.
            mode: "sparse": original shapes, removed channels held at zero through training, and the method
                ``slim_state_dict()``. "slim": the smaller model, with the method ``sparse_state_dict()``.
            pruning_info_path: Where to write the channels of every layer before and after, as JSON.
            channel_divisible: Widths of pruned layers are multiples of this.

        Raises:
            InvalidArgumentError, ResultsFileError, NothingToPruneError.
            UnreachableTargetError: with the reachable range.
        """
        check_one_target(removal_ratio, threshold, spec_path)
        check_mode(mode)
        check_path("pruning_info_path", pruning_info_path)
        check_count("channel_divisible", channel_divisible)
        structure, model = self._graph.structure, self._graph.model
        if not structure.groups:
            raise NothingToPruneError("No channel group is left to prune: all channels are frozen, see graph.frozen.")
        full = match_excludes(structure, excludes, model)
        slim_only = self._slim_only(full) if mode == "sparse" else set()
        full |= slim_only
        ranking = bind(self._ranking, model, structure)
        if spec_path is not None:
            spec = read_spec(spec_path, structure)
            selection = Targets(structure, self._graph.tensors(), full, channel_divisible, ranking).spec(spec)
        else:
            sensitivity, left_alone = self._sensitivity()
            why = _why_full(left_alone - full, slim_only)
            full |= left_alone
            targets = Targets(structure, self._graph.tensors(), full, channel_divisible, ranking, why)
            if removal_ratio is not None:
                selection = targets.removal_ratio(float(removal_ratio), sensitivity)
            else:
                assert threshold is not None
                selection = targets.threshold(float(threshold), sensitivity)
        summary = self._summary(selection)
        if summary.macs_after == summary.macs_before:
            log.warning("Nothing is removed: no group allows it under this target.")
        pruned = self._build(selection, mode)
        if pruning_info_path is not None:
            slim = pruned if mode == "slim" else self._graph.slim(selection)
            write_info(pruning_info_path, model, slim, summary)
        if spec_path is None:
            ratio = float(removal_ratio) if removal_ratio is not None else round(summary.removal_ratio, 3)
            write_spec(self._folder / f"{self._name}_ratio_{ratio:g}.spec", structure, selection, summary)
        if not self._quiet:
            Console().print(summary.table())
        return pruned

    def search(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not of this method: raises InvalidArgumentError that says where it belongs."""
        raise InvalidArgumentError(
            "IterativePruningRunner has no search: it has ana and prune. search belongs to the other runner: "
            "OneStepPruningRunner(model, inputs).search(...)."
        )

    def _build(self, selection: Selection, mode: str) -> nn.Module:
        if mode == "sparse":
            return self._graph.sparse(selection)
        return attach_sparse_state_dict(self._graph.slim(selection), self._graph.structure, selection)

    def _slim_only(self, full: set[str]) -> set[str]:
        slim_only = [g for g in self._graph.structure.groups if g.slim_only and g.name not in full]
        if slim_only:
            log.info(
                "mode='sparse' leaves %s full, where zeros are not the same as removal (mode='slim' may use them): %s.",
                plural(len(slim_only), "group"), listed([f"{g.name} ({g.inexact_because})" for g in slim_only]),
            )  # fmt: skip
        return {g.name for g in slim_only}

    def _sensitivity(self) -> tuple[Sensitivity, set[str]]:
        """The finished analysis and the groups it left alone."""
        file = self._file()
        sensitivity = file.load()
        if sensitivity is None:
            raise ResultsFileError(
                f"There is no analysis of {self._name} ({file.path}): call runner.ana(eval_fn, ...) first."
            )
        left_alone = set(sensitivity.plan.excluded) if sensitivity.plan else set()
        missing = sum(map(len, sensitivity.missing(self._graph.structure, left_alone).values()))
        missing += sensitivity.baseline is None
        if missing:
            raise ResultsFileError(
                f"The analysis in {file.path} is not finished, {plural(missing, 'evaluation')} missing: call "
                "runner.ana(eval_fn, ...) again, it goes on where it stopped."
            )
        return sensitivity, left_alone

    def _summary(self, selection: Selection) -> Summary:
        return Summary(
            model=self._name,
            macs_before=float(self._graph.macs()),
            macs_after=float(self._graph.macs(selection)),
            params_before=int(self._graph.params()),
            params_after=int(self._graph.params(selection)),
        )

    def _file(self) -> SensitivityFile:
        return SensitivityFile(self._folder / f"{self._name}.sens", self._name, self._graph.structure)


def _why_full(left_alone: set[str], slim_only: set[str]) -> str:
    """For errors: which groups stay full besides those that the excludes of this `prune` mean."""
    text = ""
    if left_alone:
        text += f" ana left {plural(len(left_alone), 'group')} alone: {listed(sorted(left_alone))}."
    if slim_only:
        text += (
            f" mode='sparse' leaves {plural(len(slim_only), 'group')} full that mode='slim' may prune: "
            f"{listed(sorted(slim_only))}."
        )
    return text
