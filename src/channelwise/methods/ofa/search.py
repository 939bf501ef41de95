"""The search among subnets: a journal, an evolution over the window, evaluations wherever they run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from channelwise.evaluate.evaluation import EvalFn, Evaluation
from channelwise.evaluate.job import EvaluationJob
from channelwise.evaluate.repair import Repair, Repairer, has_batch_norm
from channelwise.execution import Executor
from channelwise.execution.where import Where
from channelwise.inputs.check import model_device
from channelwise.methods.ofa.pareto import Pareto, pareto
from channelwise.methods.ofa.search_arguments import Effort, Metric, Window
from channelwise.methods.ofa.supernet import Supernet
from channelwise.methods.ofa.window import WindowSpace, bucket_name, buckets
from channelwise.methods.search_loop import SearchRun
from channelwise.ranking import fingerprint
from channelwise.search import Trial, open_study
from channelwise.search import get as get_strategy
from channelwise.tensors import named_tensors

log = logging.getLogger(__name__)


class SubnetJob(EvaluationJob):
    """Scores subnets given as {name of the choice: value}."""

    def __init__(
        self, model: nn.Module, supernet: Supernet, eval_fn: EvalFn, args: Sequence[Any], repairer: Repairer
    ) -> None:
        super().__init__(model, eval_fn, args, repairer)
        self._supernet = supernet

    def cut(self, model: nn.Module, payload: Any, *, share: bool) -> tuple[nn.Module, Callable[[Repairer], None]]:
        """The static subnet."""
        values = self._supernet.values(payload)
        candidate = self._supernet.extract(model, values, share_untouched=share)
        return candidate, lambda repairer: repairer.calibrate(candidate)


def search_subnets(
    supernet: Supernet,
    model: nn.Module,
    evaluation: Evaluation,
    metric: Metric,
    repair: Repair,
    window: Window,
    effort: Effort,
    where: Where,
    *,
    name: str,
    storage: Any,
    strategy: Any = None,
    seed: int = 0,
    forced: bool = False,
    quiet: bool = False,
) -> Pareto:
    """The best subnets of every bucket of MACs; see `OFAPruner.run_evolutionary_search`.

    Arguments:
        model: the supernet's model, without wrappers.
        name: of the model's class.
    """
    space, step = (
        WindowSpace(supernet.space, float(window.low) * 1e6, float(window.high) * 1e6, window.unit),
        float(window.step),
    )
    chosen = get_strategy(effort.evolution(step) if strategy is None else strategy)
    place = where.place(model_device(model))
    options = {
        "metric": metric.name, "calibrated": repair.calibrates, "weights": fingerprint(named_tensors(model)),
    }  # fmt: skip
    with open_study(
        space, name, storage=storage, strategy=chosen, seed=seed, budget=effort.evaluations,
        direction=metric.direction, options=options, forced=forced,
    ) as study:  # fmt: skip
        filled: set[int] = set()

        def status(trial: Trial) -> str:
            filled.add(int(buckets(space.space.macs(space.values(trial.counts)), step)))
            low, high = (bucket_name(bucket, step) for bucket in (min(filled), max(filled)))
            return f"{len(filled)} sizes from {low} to {high} M MACs"

        run = SearchRun(
            study, effort.evaluations, quiet=quiet, payload=lambda candidate: dict(candidate.counts), status=status
        )
        run.mention()
        if run.missing:
            if repair.calibrates == "no" and has_batch_norm(model):
                log.warning(
                    "Subnets are scored with the batch-norm statistics of the supernet, which fit none of them. Give "
                    "calibration_fn, or calibration images with loader=."
                )
            repairer = repair.repairer()

            def executor_for(tasks: int) -> Executor:
                job = SubnetJob(model, supernet, evaluation.eval_fn, evaluation.args, repairer)
                return place.start(job, tasks)

            run.evaluate(executor_for)
        return pareto(study.results, space, metric.name, step, chosen)
