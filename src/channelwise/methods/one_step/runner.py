"""The one-step method: search for the best sub-network at a compute target, then prune to it at once."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from rich.console import Console
from torch import nn

from channelwise.api import trace
from channelwise.errors import InvalidArgumentError, ResultsFileError
from channelwise.evaluate.job import CandidateJob, EvalFn
from channelwise.evaluate.repair import Calibration, has_batch_norm
from channelwise.execution import Executor
from channelwise.execution.choice import Place, choose_place
from channelwise.inputs.batches import ForwardFn
from channelwise.inputs.check import model_device
from channelwise.methods.arguments import check_args, check_callable, check_mode, check_path
from channelwise.methods.excluded_groups import excluded_groups
from channelwise.methods.info_file import write_info
from channelwise.methods.one_step.candidates import Candidates, ranking_name, shares_kept
from channelwise.methods.one_step.priors import priors
from channelwise.methods.one_step.pruned_model import (
    DIVISOR,
    chosen_channels,
    mention_missing_repair,
    repaired_slim,
    sparse_from_slim,
)
from channelwise.methods.search_loop import SearchRun
from channelwise.methods.sensitivity import Sensitivity, SensitivityFile
from channelwise.ranking import Criterion, fingerprint, get
from channelwise.report import Summary
from channelwise.search import Key, SearchResults, Trial, latest, open_study, read_searches
from channelwise.search import get as get_strategy
from channelwise.select.widths import check_count
from channelwise.selection import Selection

log = logging.getLogger(__name__)

GPUS = ["0"]


@dataclass(frozen=True)
class _Means:
    """What a search of this process worked with, for `prune`."""

    calibration: Calibration
    candidates: Candidates


class OneStepPruningRunner:
    """Searches the sub-networks of a trained model that meet a compute target, and prunes to the best.

    Every candidate meets the target, is repaired (weights re-fitted if images are given, batch norms re-estimated) and
    scored; see EagleEye, Li et al., ECCV 2020. The model given is never modified.

    Args:
        model: The trained model.
        inputs: One tensor, or a tuple or list of tensors, with the shape and dtype of a real batch.
        folder: Where results go: ``<ModelClass>.search``, an SQLite database of all searches of the model.
        ranking: Which channels of a group go first, see `channelwise.ranking`; by default `Reconstruction` where
            weights are re-fitted and "consumer_l2" else.
        quiet: No progress bar and no summary table.
        storage: Another place for the searches: the path of a file, a database URL that several machines share, or an
            Optuna storage.

    Raises:
        InvalidArgumentError, UnsupportedModelError, TraceError: the model cannot be traced with these inputs.
    """

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
        if ranking is not None:
            get(ranking)
        check_path("folder", folder)
        self._graph = trace(model, inputs)
        self._name = type(self._graph.model).__name__
        self._folder = Path(folder)
        self._ranking = ranking
        self._quiet = quiet
        self._storage = storage if storage is not None else self._folder / f"{self._name}.search"
        self._means: dict[str, _Means] = {}

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
    ) -> None:
        """Evaluate candidates until there are ``num_subnet``, and keep every score as it comes.

        An interrupted search goes on where it stopped, and raising ``num_subnet`` later adds candidates. Searches with
        another ratio, other excludes or other options lie side by side. No candidate is evaluated twice.

        Args:
            gpus: Indices of the CUDA devices to evaluate on, in parallel if there are several. Without CUDA
                evaluations run where the model is.
            calibration_fn: Called as ``calibration_fn(model, *calib_args)`` to re-estimate the batch norms of every
                candidate, in place; see ``loader`` for doing without.
            calib_args: What ``calibration_fn`` takes after the model.
            num_subnet: How many candidates the search has, those of earlier runs and failed ones included.
            removal_ratio: Fraction of the MACs to remove, in (0, 1); None if only ``params_ratio`` is given.
            excludes: Groups to leave alone: modules, names, patterns or module types.
            eval_fn: Called as ``eval_fn(model, *eval_args)`` with a model in eval mode; returns a score: a number, a
                0-d tensor or a NumPy scalar. Random generators are seeded equally for every call.
            eval_args: What ``eval_fn`` takes after the model.
            forced: Begin this search anew; a file keeps the old one as .bak. Replaces the file of another network, too.
            with_group_conv: Prune channels that pass through grouped convolutions too (depthwise ones always are).
            loader: Calibration images, see `channelwise.inputs.batches`. Without ``calibration_fn`` batch norms are
                re-estimated on them by `channelwise.recovery.recalibrate`.
            batches: How many batches of the loader to use; by default as many as hold 1000 samples. They are read once
                and kept in memory.
            forward_fn: Called as ``forward_fn(model, batch)`` for batches that the model does not take as they are.
            compensate: Re-fit the weights of every candidate to the calibration images. None: if there are any.
            strategy: How candidates are chosen: "evolution", "cmaes", "tpe", "random", an object like these (see
                `channelwise.search`), or an Optuna sampler.
            ranking: Instead of the runner's.
            params_ratio: Fraction of the parameters to remove; together with ``removal_ratio`` both are met.
            direction: "maximize" for scores like accuracy, "minimize" for losses.
            channel_divisible: Widths of pruned layers are multiples of this.
            seed: With one worker, the same seed gives the same candidates.
            workers: Number of worker processes; by default one per entry of ``gpus``, and none without CUDA.
            executor: "ray", or the address of a Ray cluster, as in `IterativePruningRunner.ana`. None: on this machine.

        Raises:
            InvalidArgumentError: an argument is wrong, the loader yields nothing, Ray is not there.
            NothingToPruneError: no group is left.
            UnreachableTargetError: with the reachable range.
            EvaluationError: no candidate has worked yet and one failed, or ten failed in a row. Single candidates that
                fail are left out.
            ResultsFileError: the file is of another network, damaged, of a newer version, or in use by another run.
        """
        if eval_fn is None:
            raise InvalidArgumentError("search needs eval_fn: a function called as eval_fn(model, *eval_args).")
        check_callable(eval_fn)
        eval_args, calib_args = check_args(eval_args, "eval_args"), check_args(calib_args, "calib_args")
        if calibration_fn is not None:
            check_callable(calibration_fn, "calibration_fn")
        check_count("num_subnet", num_subnet)
        check_count("channel_divisible", channel_divisible)
        targets = shares_kept(removal_ratio, params_ratio)
        if compensate and loader is None:
            raise InvalidArgumentError("compensate=True needs calibration images: give loader=.")
        chosen = ranking if ranking is not None else self._ranking
        if chosen is not None:
            get(chosen)
        guided = get_strategy(strategy).guided
        place = self._placed(gpus, workers, executor)
        excluded = excluded_groups(self._graph, excludes, with_group_conv=with_group_conv)
        refit = loader is not None if compensate is None else bool(compensate)
        calibration = Calibration(
            loader, batches, forward_fn=forward_fn, function=calibration_fn, args=calib_args, refit=refit
        )
        for means in self._means.values():
            calibration.adopt(means.calibration)
        candidates = Candidates(self._graph, excluded, channel_divisible, chosen, calibration)
        space = candidates.space(targets)
        options = {
            "excluded": sorted(excluded),
            "channel_divisible": int(channel_divisible),
            "ranking": ranking_name(chosen, refit=refit),
            "compensated": refit,
            "calibrated": "function" if calibration_fn is not None else "loader" if loader is not None else "no",
            "weights": fingerprint(self._graph.tensors()),
        }
        with open_study(
            space, self._name, storage=self._storage, strategy=strategy, seed=seed, budget=num_subnet,
            direction=direction, options=options, describe=candidates.describe, forced=bool(forced),
        ) as study:  # fmt: skip
            self._means[_mark(study.key)] = _Means(calibration, candidates)
            run = SearchRun(study, num_subnet, quiet=self._quiet)
            run.mention()
            if not run.missing:
                return
            self._mention_batch_norm(calibration)
            # Also without compensation, so that a loader that yields nothing is found here and not in the workers.
            log.debug("%d batches of calibration images", len(calibration.images))
            if refit:
                calibration.gather(self._graph)
            if guided:
                sensitivity = self._sensitivity()
                first = priors(self._graph, candidates, targets, calibration, sensitivity, quiet=self._quiet)
                study.suggest(first)

            def executor_for(tasks: int) -> Executor:
                model, structure = self._graph.model, self._graph.structure
                return place.start(CandidateJob(model, structure, eval_fn, eval_args, calibration), tasks)

            run.evaluate(executor_for)

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
    ) -> nn.Module:
        """A pruned and repaired copy of the model, and a table of MACs and parameters.

        It is repaired with what `search` was given, if that was in this process, or with what is given here. Where the
        candidates' weights were re-fitted, its weights are so layer by layer (`channelwise.recovery.compensate`), which
        is better and takes longer.

        Args:
            mode: "slim": the smaller model, with the method ``sparse_state_dict()``. "sparse": original shapes, removed
                channels held at zero through training, and the method ``slim_state_dict()``.
            removal_ratio: Of the searches on file, the latest with this ratio; by default the latest of all.
            index: The number of a candidate; by default the one with the best score.
            pruning_info_path: Where to write the channels of every layer before and after, as JSON.
            channel_divisible: Widths of pruned layers are to be multiples of this. Where the search's are not, the
                nearest candidate whose widths are is taken, unscored. The default takes the candidate as it is.
            params_ratio: As ``removal_ratio``, for parameters.
            loader, batches, forward_fn, calibration_fn, calib_args: As in `search`.
            compensate: Whether to re-fit weights; None: as in the search.

        Raises:
            InvalidArgumentError, ResultsFileError.
            EvaluationError: the repair failed.
        """
        check_mode(mode)
        check_path("pruning_info_path", pruning_info_path)
        check_count("channel_divisible", channel_divisible)
        calib_args = check_args(calib_args, "calib_args")
        if calibration_fn is not None:
            check_callable(calibration_fn, "calibration_fn")
        given = Calibration(loader, batches, forward_fn=forward_fn, function=calibration_fn, args=calib_args)
        results = self.results(removal_ratio, params_ratio)
        trial = results.best if index is None else results.candidate(index)
        means = self._means.get(_mark(results.key))
        calibration = given if loader is not None or calibration_fn is not None or means is None else means.calibration
        if compensate and calibration.loader is None:
            raise InvalidArgumentError("compensate=True needs calibration images: give loader=.")
        if results.key.options.get("weights") != fingerprint(self._graph.tensors()):
            log.warning(
                "%s holds no search of the model with its present weights: scores are those of other weights.",
                results.where,
            )
        searched = means.candidates if means is not None else None
        selection = chosen_channels(self._graph, results, trial, int(channel_divisible), searched or self._ranking)
        refit = bool(results.key.options.get("compensated")) if compensate is None else compensate
        mention_missing_repair(self._graph.model, results, calibration, refit=refit)
        slim = repaired_slim(self._graph, selection, calibration, refit=refit)
        pruned = slim if mode == "slim" else sparse_from_slim(self._graph, selection, slim)
        summary = self._summary(selection, trial)
        if pruning_info_path is not None:
            write_info(pruning_info_path, self._graph.model, slim, summary)
        if not self._quiet:
            Console().print(summary.table())
        return pruned

    def results(self, removal_ratio: float | None = None, params_ratio: float | None = None) -> SearchResults:
        """The candidates and scores of the latest search, of those with these ratios if any are given.

        Searches of the model with its present weights go before others.

        Raises:
            ResultsFileError: there is no such search, or the file cannot be read.
        """
        searches = read_searches(self._storage, self._graph.structure)
        present = fingerprint(self._graph.tensors())
        # Latest last, and of empty ones none where there are others.
        searches.sort(key=lambda s: (bool(s.complete), s.key.options.get("weights") == present))
        if removal_ratio is None and params_ratio is None:
            return latest(searches)
        targets = shares_kept(removal_ratio, params_ratio)
        return latest(searches, targets)

    def ana(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not of this method: raises InvalidArgumentError that says where it belongs."""
        raise InvalidArgumentError(
            "OneStepPruningRunner has no ana: it has search and prune. ana belongs to the other runner: "
            "IterativePruningRunner(model, inputs).ana(...)."
        )

    def _placed(self, gpus: Any, workers: int | None, executor: str | None) -> Place:
        device = model_device(self._graph.model)
        # The default is no wish: where there is no such device, or eval_fn works on another, that is as well.
        place = choose_place(
            device=device, gpus=None if gpus is GPUS and workers is None else gpus, workers=workers, executor=executor
        )
        if gpus is not None and place.devices and all(d.type != "cuda" for d in place.devices) and device.type == "cpu":
            _say_once(f"No CUDA device is used (gpus={gpus!r}): candidates are evaluated on the CPU.")
        return place

    def _mention_batch_norm(self, calibration: Calibration) -> None:
        if not has_batch_norm(self._graph.model):
            log.info("%s has no batch norm with statistics: there is nothing to re-estimate.", self._name)
        elif calibration.function is None and calibration.loader is None:
            log.warning(
                "Candidates are scored with the batch-norm statistics of the full model, which says little about them. "
                "Give calibration_fn, or calibration images with loader=."
            )

    def _sensitivity(self) -> Sensitivity | None:
        """An analysis of this network in the runner's folder, as far as it goes."""
        file = SensitivityFile(self._folder / f"{self._name}.sens", self._name, self._graph.structure)
        try:
            found = file.load()
        except ResultsFileError as error:
            log.warning("The search makes no use of %s: %s", file.path, error)
            return None
        return found if found is not None and found.baseline is not None and found.scores else None

    def _summary(self, selection: Selection, trial: Trial) -> Summary:
        return Summary(
            model=self._name,
            macs_before=float(self._graph.macs()),
            macs_after=float(self._graph.macs(selection)),
            params_before=int(self._graph.params()),
            params_after=int(self._graph.params(selection)),
            score=trial.score,
            candidate=trial.number,
        )


def _mark(key: Key) -> str:
    return repr((key.digest, sorted(key.targets.items()), key.direction, sorted(key.options.items())))


@functools.cache
def _say_once(message: str) -> None:
    log.warning(message)
