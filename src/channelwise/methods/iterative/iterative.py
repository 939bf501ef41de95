"""The iterative method: measure once how the score reacts to pruning each group, then prune to any target."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from torch import nn

from channelwise.api import ChannelGraph
from channelwise.errors import SAYS_WHY, NothingToPruneError, ResultsFileError
from channelwise.evaluate.candidate import Chooser
from channelwise.evaluate.evaluation import Evaluation
from channelwise.evaluate.job import CandidateJob
from channelwise.execution import Executor
from channelwise.execution.where import Where
from channelwise.inputs.check import check_flag, model_device
from channelwise.methods.arguments import (
    check_kinds,
    check_mode,
    check_one_of,
    check_path,
    check_threshold,
    listed,
    plural,
)
from channelwise.methods.excluded_groups import excluded_groups
from channelwise.methods.info_file import pruning_info, write_info, write_unasked
from channelwise.methods.iterative.analysis import Analysis
from channelwise.methods.iterative.targets import Targets
from channelwise.methods.options import Channels, Target
from channelwise.methods.sensitivity import Sensitivity, SensitivityFile
from channelwise.methods.spec_file import read_spec, write_spec
from channelwise.methods.summary import summary_of
from channelwise.ranking import bind
from channelwise.select.excludes import match_excludes
from channelwise.surgery.slim import attach_sparse_state_dict

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Iterative:
    """Analyses a trained model once, then prunes it to any target.

    Prune a little, retrain the sparse model, load its weights into a fresh original model, trace that, prune more:
    channels once removed stay removed. The model is never modified. All that lasts is in the folder.

    Args:
        graph: The traced model, from `channelwise.trace`.
        channels: Which channels may go, and which go first.
        folder: Where results go: ``<ModelClass>.sens`` and ``<ModelClass>_ratio_<r>.spec``.
        quiet: No progress bar and no summary table.

    Raises:
        InvalidArgumentError: ``graph`` or ``folder`` is something else.
    """

    graph: ChannelGraph
    channels: Channels = Channels()
    folder: str | os.PathLike[str] = ".vai"
    quiet: bool = False

    def __post_init__(self) -> None:
        check_kinds(
            (self.graph, "graph", ChannelGraph, "channelwise.trace(model, inputs)"),
            (self.channels, "channels", Channels, "Channels(excludes=[...])"),
        )
        check_path("folder", self.folder)
        check_flag("quiet", self.quiet)

    def ana(self, evaluation: Evaluation, *, where: Where = Where(), forced: bool = False) -> None:
        """Evaluate the model and every group at sparsities 0.1 to 0.9, and save the scores as they come.

        An interrupted analysis goes on where it stopped, a finished one is not repeated. Larger scores may be better or
        worse. Groups that ``channels`` leaves alone are not analysed, and `prune` leaves them alone too.

        Args:
            evaluation: How candidates are scored.
            where: Where evaluations run.
            forced: Repeat a finished analysis, or replace that of another network.

        Raises:
            EvaluationError: ``eval_fn`` raised, or returned no finite number; the message names the group.
            ResultsFileError: the file is of another network, damaged, in use by another run, or cannot be written.
            InvalidArgumentError: there is no such device or executor.
            NothingToPruneError: no group is left.
        """
        check_kinds(
            (evaluation, "evaluation", Evaluation, "Evaluation(eval_fn, args)"),
            (where, "where", Where, "Where(workers=2)"),
        )
        place = where.place(model_device(self.graph.model))
        channels, structure = self.channels, self.graph.structure
        excluded = excluded_groups(self.graph, channels.excludes, with_group_conv=channels.with_group_conv)

        def executor_for(tasks: int) -> Executor:
            return place.start(CandidateJob(self.graph.model, structure, evaluation.eval_fn, evaluation.args), tasks)

        analysis = Analysis(self._file(), self.graph, excluded, self._chooser())
        analysis.run(executor_for, forced=check_flag("forced", forced), quiet=self.quiet)

    def prune(
        self,
        target: Target | None = None,
        *,
        threshold: float | None = None,
        spec_path: str | os.PathLike[str] | None = None,
        mode: str = "sparse",
        pruning_info_path: str | os.PathLike[str] | None = None,
    ) -> nn.Module:
        """A pruned copy of the model.

        Writes ``<ModelClass>_ratio_<r>.spec`` (r is the fraction of MACs removed) and the sizes of all layers before
        and after, which the model has as ``_pruning_info`` too, and prints a table of MACs and parameters.

        Args:
            target: Share of the original model's MACs or parameters to keep; met within 1 % unless
                ``channel_divisible`` prevents it, which is logged. Needs `ana`.
            threshold: Tolerated relative loss of score, each group pruned alone. Needs `ana`.
            spec_path: A .spec file to repeat. Exactly one of these three.
            mode: "sparse": original shapes, removed channels held at zero through training, and the method
                ``slim_state_dict()``. "slim": the smaller model, with the method ``sparse_state_dict()``.
            pruning_info_path: Where to write the sizes of all layers before and after, as JSON; by default
                ``<ModelClass>_ratio_<r>_pruning_info.json``.

        Raises:
            InvalidArgumentError, ResultsFileError, NothingToPruneError.
            UnreachableTargetError: with the reachable range.
        """
        check_one_of(target=target, threshold=threshold, spec_path=spec_path)
        if target is not None:
            check_kinds((target, "target", Target, "Target(macs=0.5)"))
        tolerated = check_threshold(threshold) if threshold is not None else None
        check_path("spec_path", spec_path, optional=True)
        check_mode(mode)
        check_path("pruning_info_path", pruning_info_path, optional=True)
        structure, model, channels = self.graph.structure, self.graph.model, self.channels
        if not structure.groups:
            raise NothingToPruneError(f"No channel group is left to prune: all channels are frozen, {SAYS_WHY}.")
        full = match_excludes(structure, channels.excludes, model)
        slim_only = self._slim_only(full) if mode == "sparse" else set()
        full |= slim_only
        if spec_path is not None:
            spec = read_spec(spec_path, structure)
            selection = Targets(self._chooser(), full, channels.channel_divisible).spec(spec)
        else:
            sensitivity, left_alone = self._sensitivity()
            why = _why_full(left_alone - full, slim_only)
            targets = Targets(self._chooser(), full | left_alone, channels.channel_divisible, why)
            if target is not None:
                selection = targets.budget(target, sensitivity)
            else:
                assert tolerated is not None
                selection = targets.threshold(tolerated, sensitivity)
        summary = summary_of(self.graph, selection)
        if summary.macs_after == summary.macs_before:
            log.warning("Nothing is removed: no group allows it under this target.")
        slim = attach_sparse_state_dict(self.graph.slim(selection), structure, selection)
        pruned = slim if mode == "slim" else self.graph.sparse(selection)
        info = pruned.__dict__["_pruning_info"] = pruning_info(model, slim, summary)
        asked = target.macs if target is not None else None
        ratio = 1 - asked if asked is not None else round(summary.removal_ratio, 3)
        place = Path(self.folder) / f"{self._name}_ratio_{ratio:g}"
        if pruning_info_path is not None:
            write_info(pruning_info_path, info)
        if spec_path is None:
            write_spec(place.with_name(f"{place.name}.spec"), structure, selection, summary)
        if pruning_info_path is None:
            write_unasked(place.with_name(f"{place.name}_pruning_info.json"), lambda path: write_info(path, info))
        if not self.quiet:
            Console().print(summary.table())
        return pruned

    def _chooser(self) -> Chooser:
        ranking = "l1" if self.channels.ranking is None else self.channels.ranking
        return Chooser(self.graph, lambda: bind(ranking, self.graph.model, self.graph.structure))

    def _slim_only(self, full: set[str]) -> set[str]:
        slim_only = [g for g in self.graph.structure.groups if g.slim_only and g.name not in full]
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
        missing = sum(map(len, sensitivity.missing(self.graph.structure, left_alone).values()))
        missing += sensitivity.baseline is None
        if missing:
            raise ResultsFileError(
                f"The analysis in {file.path} is not finished, {plural(missing, 'evaluation')} missing: call "
                "runner.ana(eval_fn, ...) again, it goes on where it stopped."
            )
        return sensitivity, left_alone

    def _file(self) -> SensitivityFile:
        return SensitivityFile(Path(self.folder) / f"{self._name}.sens", self._name, self.graph.structure)

    @property
    def _name(self) -> str:
        return type(self.graph.model).__name__


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
