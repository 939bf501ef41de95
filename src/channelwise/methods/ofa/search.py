"""The search among subnets: a journal, an evolution over the window, evaluations wherever they run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.evaluate.arguments import check_args, check_callable
from channelwise.evaluate.evaluation import EvalFn
from channelwise.evaluate.images import images_of
from channelwise.evaluate.job import EvaluationJob
from channelwise.evaluate.repair import Repair, Repairer, has_batch_norm
from channelwise.execution import Executor
from channelwise.execution.where import Where
from channelwise.inputs.batches import ForwardFn
from channelwise.inputs.check import model_device
from channelwise.methods.ofa.evolution import FrontEvolution
from channelwise.methods.ofa.pareto import Pareto, pareto
from channelwise.methods.ofa.supernet import Supernet
from channelwise.methods.ofa.window import WindowSpace
from channelwise.methods.search_loop import SearchRun
from channelwise.ranking import fingerprint
from channelwise.search import get as get_strategy
from channelwise.search import open_study
from channelwise.select.widths import check_count, is_number
from channelwise.tensors import named_tensors

log = logging.getLogger(__name__)

DIRECTIONS = {"max": "maximize", "min": "minimize", "maximize": "maximize", "minimize": "minimize"}


@dataclass(frozen=True)
class Evaluation:
    """How subnets are scored: the user's functions, or a loader to re-estimate batch norms on, and where they run."""

    calibration_fn: Callable[..., Any] | None
    calib_args: Sequence[Any]
    eval_fn: EvalFn
    eval_args: Sequence[Any]
    metric: str
    direction: str
    loader: Any = None
    batches: int | None = None
    forward_fn: ForwardFn | None = None
    gpus: Sequence[int | str] | None = None
    workers: int | None = None
    executor: str | None = None

    def __post_init__(self) -> None:
        if self.eval_fn is None:
            raise InvalidArgumentError("The search needs eval_fn: a function called as eval_fn(model, *eval_args).")
        check_callable(self.eval_fn)
        if self.calibration_fn is not None:
            check_callable(self.calibration_fn, "calibration_fn")
        check_args(self.eval_args, "eval_args")
        check_args(self.calib_args, "calib_args")
        taken = {"net_id", "mode", "flops", "macs", "params", "subnet_setting"}
        if not isinstance(self.metric, str) or not self.metric or self.metric in taken:
            raise InvalidArgumentError(
                f"evaluation_metric={self.metric!r}: must be the name of what eval_fn returns, such as 'acc1', and "
                f"none of {', '.join(sorted(taken))}."
            )
        if self.direction not in DIRECTIONS:
            raise InvalidArgumentError(
                f"min_or_max_metric={self.direction!r}: must be 'max' (larger is better) or 'min'."
            )


@dataclass(frozen=True)
class Effort:
    """How much is searched: the sizes of `FrontEvolution`'s populations and the number of generations."""

    population: int
    generations: int
    mutations: int
    mutate_prob: float
    crossovers: int

    def __post_init__(self) -> None:
        check_count("parent_popu_size", self.population)
        for name, value in (
            ("iteration", self.generations), ("mutate_size", self.mutations), ("crossover_size", self.crossovers),
        ):  # fmt: skip
            if not is_number(value) or value != int(value) or value < 0:
                raise InvalidArgumentError(f"{name}={value!r}: must be a whole number of at least 0.")
        if not is_number(self.mutate_prob) or not 0 <= self.mutate_prob <= 1:
            raise InvalidArgumentError(f"mutate_prob={self.mutate_prob!r}: must be a probability, in [0, 1].")

    @property
    def evaluations(self) -> int:
        """How many subnets are evaluated, all in all."""
        return int(self.population + self.generations * (self.mutations + self.crossovers))


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
        return candidate, lambda repairer: repairer.statistics(candidate)


def search_subnets(
    supernet: Supernet,
    model: nn.Module,
    evaluation: Evaluation,
    window: tuple[float, float],
    step: float,
    effort: Effort,
    *,
    name: str,
    storage: Any,
    strategy: Any = None,
    seed: int = 0,
    forced: bool = False,
    quiet: bool = False,
) -> Pareto:
    """The best subnets of every bucket of ``step`` million MACs; see `OFAPruner.run_evolutionary_search`.

    Arguments:
        model: the supernet's model, without wrappers.
        window: the least and the most MACs, in millions.
        name: of the model's class.
    """
    space = WindowSpace(supernet.space, *_checked_window(window, step))
    chosen = strategy if strategy is not None else FrontEvolution(
        int(effort.population), int(effort.mutations), float(effort.mutate_prob), int(effort.crossovers), float(step)
    )  # fmt: skip
    chosen = get_strategy(chosen)
    images = images_of(evaluation.loader, evaluation.batches, evaluation.forward_fn)
    repair = Repair(images, evaluation.calibration_fn, evaluation.calib_args)
    place = Where(evaluation.gpus, evaluation.workers, evaluation.executor).place(model_device(model))
    options = {
        "metric": evaluation.metric,
        "calibrated": repair.calibrates,
        "weights": fingerprint(named_tensors(model)),
    }
    with open_study(
        space, name, storage=storage, strategy=chosen, seed=seed, budget=effort.evaluations,
        direction=DIRECTIONS[evaluation.direction],  # type: ignore[arg-type]
        options=options, forced=forced,
    ) as study:  # fmt: skip

        def status() -> str:
            filled = pareto(study.results, space, evaluation.metric, step, chosen)
            return f"{len(filled)} sizes from {next(iter(filled))} to {next(reversed(filled))} M MACs"

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
                job = SubnetJob(model, supernet, evaluation.eval_fn, evaluation.eval_args, repairer)
                return place.start(job, tasks)

            run.evaluate(executor_for)
        return pareto(study.results, space, evaluation.metric, step, chosen)


def _checked_window(window: tuple[Any, Any], step: Any) -> tuple[float, float]:
    for name, value in (("min_flops", window[0]), ("max_flops", window[1]), ("flops_step", step)):
        if not is_number(value) or value <= 0:
            raise InvalidArgumentError(f"{name}={value!r}: must be a positive number, MACs in millions.")
    low, high = window
    if low > high:
        raise InvalidArgumentError(f"min_flops={low:g} is above max_flops={high:g} (MACs in millions).")
    return float(low) * 1e6, float(high) * 1e6
