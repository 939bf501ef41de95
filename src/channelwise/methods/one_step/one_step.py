"""The one-step method: search for the best sub-network at a target of compute, then prune to it at once."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from channelwise.api import ChannelGraph
from channelwise.errors import ResultsFileError
from channelwise.evaluate.candidate import NOTE, pack
from channelwise.evaluate.evaluation import Evaluation
from channelwise.evaluate.job import CandidateJob
from channelwise.evaluate.repair import Repair, has_batch_norm
from channelwise.execution import Executor
from channelwise.execution.where import Where
from channelwise.inputs.check import check_flag, model_device
from channelwise.methods.arguments import check_kinds, check_mode, check_path
from channelwise.methods.excluded_groups import excluded_groups
from channelwise.methods.info_file import pruning_info, write_info, write_unasked
from channelwise.methods.one_step.priors import priors
from channelwise.methods.one_step.pruned_model import (
    mention_missing_repair,
    repaired_slim,
    score_of,
    selection_of,
    sparse_from_slim,
)
from channelwise.methods.one_step.ranking import ranked, ranking_name
from channelwise.methods.one_step.space import candidate_space
from channelwise.methods.options import Channels, SearchOptions, Target
from channelwise.methods.search_loop import SearchRun
from channelwise.methods.sensitivity import Sensitivity, SensitivityFile
from channelwise.methods.spec_file import write_spec
from channelwise.methods.summary import summary_of
from channelwise.ranking import fingerprint
from channelwise.search import SearchResults, latest, open_study, read_searches
from channelwise.search import get as get_strategy

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class OneStep:
    """Searches the sub-networks of a trained model that meet a target, and prunes to the best.

    Every candidate meets the target, is repaired (weights re-fitted if images are given, batch norms re-estimated) and
    scored; see EagleEye, Li et al., ECCV 2020. The model is never modified. All that lasts is in the storage, so
    `prune` does the same in the process that searched and in any other.

    Args:
        graph: The traced model, from `channelwise.trace`.
        repair: How candidates are repaired, and the pruned model.
        channels: Which channels may go, and which go first.
        folder: Where results go: ``<ModelClass>.search``, an SQLite database of all searches of the model.
        storage: Another place for the searches: the path of a file, a database URL that several machines share, or an
            Optuna storage.
        quiet: No progress bar and no summary table.

    Raises:
        InvalidArgumentError: ``graph`` or ``folder`` is something else.
    """

    graph: ChannelGraph
    repair: Repair = Repair()
    channels: Channels = Channels()
    folder: str | os.PathLike[str] = ".vai"
    storage: Any = None
    quiet: bool = False

    def __post_init__(self) -> None:
        check_kinds(
            (self.graph, "graph", ChannelGraph, "channelwise.trace(model, inputs)"),
            (self.repair, "repair", Repair, "Repair(images)"),
            (self.channels, "channels", Channels, "Channels(excludes=[...])"),
        )
        check_path("folder", self.folder)
        check_flag("quiet", self.quiet)

    def search(
        self,
        target: Target,
        evaluation: Evaluation,
        *,
        options: SearchOptions = SearchOptions(),
        where: Where = Where(),
        forced: bool = False,
    ) -> SearchResults:
        """Evaluate candidates until there are as many as ``options`` say, and keep every score as it comes.

        An interrupted search goes on where it stopped, and raising the number of candidates later adds some. Searches
        for another target, or with other channels or another repair, lie side by side. No candidate is evaluated twice.

        Args:
            target: The shares of MACs and parameters that every candidate keeps, within 1 %.
            evaluation: How candidates are scored.
            options: How many candidates there are, and how they are chosen.
            where: Where evaluations run.
            forced: Begin this search anew; a file keeps the old one as .bak. Replaces the file of another network, too.

        Raises:
            InvalidArgumentError: an argument is wrong, the loader yields nothing, Ray is not there.
            NothingToPruneError: no group is left.
            UnreachableTargetError: with the reachable range.
            EvaluationError: no candidate has worked yet and one failed, or ten failed in a row. Single candidates that
                fail are left out.
            ResultsFileError: the file is of another network, damaged, of a newer version, or in use by another run.
        """
        check_kinds(
            (target, "target", Target, "Target(macs=0.5)"),
            (evaluation, "evaluation", Evaluation, "Evaluation(eval_fn, args)"),
            (options, "options", SearchOptions, "SearchOptions(candidates=100)"),
            (where, "where", Where, "Where(workers=2)"),
        )
        graph, channels, repair = self.graph, self.channels, self.repair
        guided = get_strategy(options.strategy).guided
        place = where.place(model_device(graph.model))
        excluded = excluded_groups(graph, channels.excludes, with_group_conv=channels.with_group_conv)
        refit = repair.refits
        chooser = ranked(graph, channels.ranking, repair, refit=refit)
        space = candidate_space(chooser, excluded, channels.channel_divisible, target)
        conditions = {
            **self.conditions(), "excluded": sorted(excluded), "weights": fingerprint(graph.tensors())
        }  # fmt: skip
        with open_study(
            space, self._name, storage=self._storage, strategy=options.strategy, seed=options.seed,
            budget=options.candidates, direction=options.direction, options=conditions,
            describe=lambda counts: {NOTE: pack(chooser(counts), graph.structure)}, forced=check_flag("forced", forced),
        ) as study:  # fmt: skip
            run = SearchRun(study, options.candidates, payload=lambda one: one.notes.get(NOTE), quiet=self.quiet)
            run.mention()
            if not run.missing:
                return study.results
            self._mention_batch_norm()
            repairer = repair.repairer(graph, refit=refit)
            if guided:
                study.suggest(priors(graph, chooser, space, repair.images, self._sensitivity(), quiet=self.quiet))

            def executor_for(tasks: int) -> Executor:
                job = CandidateJob(graph.model, graph.structure, evaluation.eval_fn, evaluation.args, repairer)
                return place.start(job, tasks)

            run.evaluate(executor_for)
            return study.results

    def prune(
        self,
        target: Target | None = None,
        *,
        index: int | None = None,
        mode: str = "slim",
        pruning_info_path: str | os.PathLike[str] | None = None,
        evaluation: Evaluation | None = None,
    ) -> nn.Module:
        """A pruned and repaired copy of the model, and a table of MACs and parameters.

        Writes the channels that stay to ``<ModelClass>_ratio_<r>_best.spec`` (r is the fraction of MACs removed, and an
        index stands in the place of "best") and the sizes of all layers, which the model has as ``_pruning_info``, too.

        Where the search re-fitted weights, the candidate's repair and others that take longer are tried, and the best
        is kept (`channelwise.recovery.repair`). ``channel_divisible`` takes the nearest candidate whose widths are such
        multiples, unscored, unless it is the default or fits the search.

        Args:
            target: Of the searches on file, the latest with this target; by default the latest of all.
            index: The number of a candidate; by default the one with the best score.
            mode: "slim": the smaller model, with the method ``sparse_state_dict()``. "sparse": original shapes, removed
                channels held at zero through training, and the method ``slim_state_dict()``.
            pruning_info_path: Where to write the sizes of all layers before and after, as JSON; by default
                ``<ModelClass>_ratio_<r>_pruning_info.json``.
            evaluation: How the search scored candidates, to say which repair is best. Without it, it is the one whose
                outputs are nearest to the dense model's on calibration images that the repair does not see.

        Raises:
            InvalidArgumentError, ResultsFileError.
            EvaluationError: the repair failed.
        """
        check_mode(mode)
        check_path("pruning_info_path", pruning_info_path, optional=True)
        if evaluation is not None:
            check_kinds((evaluation, "evaluation", Evaluation, "Evaluation(eval_fn, args)"))
        graph, repair = self.graph, self.repair
        results = self.results(target)
        trial = results.best if index is None else results.candidate(index)
        if results.key.options.get("weights") != fingerprint(graph.tensors()):
            log.warning(
                "%s holds no search of the model with its present weights: scores are those of other weights.",
                results.where,
            )
        selection = selection_of(graph, results, trial, self.channels, repair)
        refit = bool(results.key.options.get("compensated")) if repair.compensate is None else repair.compensate
        mention_missing_repair(graph.model, results, repair, refit=refit)
        score = None if evaluation is None else score_of(evaluation, results.key)
        slim = repaired_slim(graph, selection, repair, refit=refit, score=score)
        pruned = slim if mode == "slim" else sparse_from_slim(graph, selection, slim)
        summary = summary_of(graph, selection, trial)
        info = pruned.__dict__["_pruning_info"] = pruning_info(graph.model, slim, summary)
        asked = results.key.targets.get("macs")
        ratio = 1 - asked if asked is not None else round(summary.removal_ratio, 3)
        place = Path(self.folder) / f"{self._name}_ratio_{ratio:g}"
        write_unasked(
            place.with_name(f"{place.name}_{'best' if index is None else int(index)}.spec"),
            lambda path: write_spec(path, graph.structure, selection, summary),
        )
        if pruning_info_path is not None:
            write_info(pruning_info_path, info)
        else:
            write_unasked(place.with_name(f"{place.name}_pruning_info.json"), lambda path: write_info(path, info))
        if not self.quiet:
            Console().print(summary.table())
        return pruned

    def results(self, target: Target | None = None) -> SearchResults:
        """The candidates and scores of the latest search, of those with this target if it is given.

        Searches of the model with its present weights go before others.

        Raises:
            ResultsFileError: there is no such search, or the file cannot be read.
        """
        if target is not None:
            check_kinds((target, "target", Target, "Target(macs=0.5)"))
        searches = read_searches(self._storage, self.graph.structure)
        present = fingerprint(self.graph.tensors())
        # The latest comes last. A search without scores comes before all others.
        searches.sort(key=lambda s: (bool(s.complete), s.key.options.get("weights") == present))
        return latest(searches) if target is None else latest(searches, target.shares, target.words)

    def conditions(self) -> dict[str, Any]:
        """What a search records of how its candidates were made: searches under other conditions are kept apart."""
        return {
            "channel_divisible": int(self.channels.channel_divisible),
            "ranking": ranking_name(self.channels.ranking, refit=self.repair.refits),
            "compensated": self.repair.refits,
            "calibrated": self.repair.calibrates,
            **({"statistics": "paired"} if self.repair.calibrates == "loader" else {}),
        }

    @property
    def _name(self) -> str:
        return type(self.graph.model).__name__

    @property
    def _storage(self) -> Any:
        return self.storage if self.storage is not None else Path(self.folder) / f"{self._name}.search"

    def _mention_batch_norm(self) -> None:
        if not has_batch_norm(self.graph.model):
            log.info("%s has no batch norm with statistics: there is nothing to re-estimate.", self._name)
        elif self.repair.calibrates == "no":
            log.warning(
                "Candidates are scored with the batch-norm statistics of the full model, which says little about them. "
                "Give calibration_fn, or calibration images with loader=."
            )

    def _sensitivity(self) -> Sensitivity | None:
        """An analysis of this network in the folder, as far as it goes."""
        file = SensitivityFile(Path(self.folder) / f"{self._name}.sens", self._name, self.graph.structure)
        try:
            found = file.load()
        except ResultsFileError as error:
            log.warning("The search makes no use of %s: %s", file.path, error)
            return None
        return found if found is not None and found.baseline is not None and found.scores else None
