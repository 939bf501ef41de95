"""The once-for-all method: a supernet out of a trained model, subnets of it, and a search among them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from channelwise.api import trace
from channelwise.errors import InvalidArgumentError
from channelwise.evaluate.arguments import check_args
from channelwise.evaluate.evaluation import EvalFn, Evaluation
from channelwise.evaluate.images import images_of
from channelwise.evaluate.repair import Repair
from channelwise.execution.where import Where
from channelwise.inputs.batches import ForwardFn
from channelwise.inputs.check import SUPERNET, check_flag
from channelwise.io.record import write_json
from channelwise.methods.arguments import check_path
from channelwise.methods.ofa.building import checked_supernet
from channelwise.methods.ofa.choices import Setting
from channelwise.methods.ofa.elastic import search_space
from channelwise.methods.ofa.pareto import Pareto, load_pareto, save_pareto
from channelwise.methods.ofa.sampling import Mode, Sampler
from channelwise.methods.ofa.search import search_subnets
from channelwise.methods.ofa.search_arguments import Effort, Metric, Window, either
from channelwise.methods.ofa.space import SearchSpace, SpaceFile
from channelwise.methods.ofa.supernet import Supernet, bare
from channelwise.methods.ofa.window import WindowSpace
from channelwise.methods.other_names import other_names
from channelwise.ranking import Criterion, get

log = logging.getLogger(__name__)


class OFAPruner:
    """Turns a trained model into a supernet whose subnets share its weights (Cai et al., Once-for-All, ICLR 2020).

    The supernet is trained with the sandwich rule (Yu and Huang, ICCV 2019), see `sandwich`. The model given is never
    modified.

    Args:
        model: The trained model; for a network of several branches, merging or grouped convolutions as well.
        inputs: One tensor, or a tuple or list of tensors, with the shape and dtype of a real batch.
        folder: Where results go.
        ranking: The order in which channels are given up: a name or a criterion of `channelwise.ranking`.
        quiet: No progress bars.

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
        ranking: str | Criterion = "consumer_l2",
        quiet: bool = False,
    ) -> None:
        get(ranking)
        check_path("folder", folder)
        self._graph = trace(model, inputs)
        self._inputs = inputs
        self._name = type(self._graph.model).__name__
        self._folder = Path(folder)
        self._ranking = ranking
        self._quiet = check_flag("quiet", quiet)
        self._supernets: dict[str, Supernet] = {}
        self._latest: Supernet | None = None
        self._sampler = Sampler()

    def ofa_model(
        self,
        expand_ratio: Sequence[float] = (0.5, 0.75, 1),
        channel_divisible: int = 8,
        excludes: Any = None,
        auto_add_excludes: bool = True,
        save_search_space: bool = False,
        *,
        elastic_kernel: bool = True,
        channel_divisble: int | None = None,
    ) -> nn.Module:
        """The supernet: a copy of the model with dynamic layers, at full width, where it computes what the model does.

        Args:
            expand_ratio: Widths of every layer as shares of the original ones, 1 among them.
            channel_divisible: Widths are multiples of this, layers too narrow for it excepted.
            excludes: Layers that keep their width: modules, names, patterns or module types.
            auto_add_excludes: The first and the last convolution keep their width, too.
            save_search_space: Write the search space to ``<folder>/<ModelClass>.space.json``.
            elastic_kernel: Square kernels of odd size above 3 can shrink to 3.
            channel_divisble: Another name of ``channel_divisible``.

        Raises:
            InvalidArgumentError: an argument is wrong.
            NothingToPruneError: no width can change.
        """
        divisor = channel_divisible if channel_divisble is None else channel_divisble
        ends, kernels = check_flag("auto_add_excludes", auto_add_excludes), check_flag("elastic_kernel", elastic_kernel)
        check_flag("save_search_space", save_search_space)
        space = search_space(self._graph, expand_ratio, divisor, excludes, ends=ends, kernels=kernels)
        supernet, model = checked_supernet(self._graph, space, self._ranking, self._inputs)
        self._latest = self._supernets[supernet.digest] = supernet
        if save_search_space:
            path = self._folder / f"{self._name}.space.json"
            write_json(path, SpaceFile(model=self._name, choices=supernet.space.setting(supernet.space.maximum)))
        return model

    @property
    def search_space(self) -> SearchSpace:
        """What the latest supernet can choose; print it for a table with the reachable MACs.

        Raises:
            InvalidArgumentError: `ofa_model` has not been called.
        """
        return self._supernet().space

    def reset_search_space(self, candidates: Mapping[str, Sequence[int]] | Setting) -> SearchSpace:
        """Leave fewer candidates in the latest supernet's search space, or bring back those it was built with.

        Args:
            candidates: Candidates by name of the choice, or a setting with shorter candidate lists. Choices that are
                not named have all candidates again.

        Raises:
            InvalidArgumentError: not a part of what the supernet was built with.
        """
        supernet = self._supernet()
        supernet.space = supernet.built.subset(candidates)
        return supernet.space

    @other_names(model="ofa_model", kind="mode")
    def sample_subnet(
        self, ofa_model: nn.Module, mode: Mode = "random", *, seed: int | None = None
    ) -> tuple[nn.Module, Setting]:
        """Make the largest, the smallest or a random subnet the one that the supernet runs, in place.

        Args:
            ofa_model: The supernet, a copy of it, or a wrapper such as DistributedDataParallel around it.
            mode: "max", "min" or "random".
            seed: For "random": the same seed gives the same subnet. By default Python's ``random`` decides; under
                ``torch.distributed`` all processes get the same subnets, whatever their random states are, if all call
                this equally often. Train and eval mode count for themselves, so one process may evaluate alone.

        Returns:
            The model given, and the setting: plain JSON, for `set_subnet` and `get_static_subnet`.

        Raises:
            InvalidArgumentError: another mode, or not a supernet of this pruner.
        """
        supernet = self._supernet_of(ofa_model)
        values = self._sampler.values(supernet.space, mode, seed, ofa_model.training)
        supernet.activate(ofa_model, values)
        return ofa_model, supernet.space.setting(values)

    @other_names(model="ofa_model")
    def sample_random_subnet(self, ofa_model: nn.Module) -> tuple[nn.Module, Setting]:
        """``sample_subnet(ofa_model, "random")``."""
        return self.sample_subnet(ofa_model, "random")

    @other_names(model="ofa_model")
    def sample_random_subnet_within_range(
        self, ofa_model: nn.Module, min_macs: float, max_macs: float
    ) -> tuple[float, Setting]:
        """Make a random subnet of these MACs (of one sample, in millions) the one that the supernet runs, in place.

        Returns:
            Its MACs in millions, and its setting.

        Raises:
            InvalidArgumentError: not a supernet of this pruner, or no such numbers.
            UnreachableTargetError: no subnet is in the range; with what can be reached.
        """
        supernet = self._supernet_of(ofa_model)
        asked = Window(min_macs, max_macs, step=1, unit="macs")
        window = WindowSpace(supernet.space, asked.low * 1e6, asked.high * 1e6, asked.unit)
        values = window.project(window.encode(self._sampler.values(supernet.space, "random", None, ofa_model.training)))
        supernet.activate(ofa_model, values)
        return float(supernet.space.macs(values)) / 1e6, supernet.space.setting(values)

    def check_dynamic_subnet_setting(self, setting: Setting) -> bool:
        """Whether the latest supernet has a subnet with this setting; what is wrong with it is logged."""
        try:
            self._supernet().built.values(setting)
        except InvalidArgumentError as error:
            log.error("%s", error)
            return False
        return True

    def set_subnet(self, ofa_model: nn.Module, setting: Setting) -> nn.Module:
        """Make the subnet of a setting the one that the supernet runs, in place.

        Raises:
            InvalidArgumentError: a setting of another network, or with a value that is not a candidate.
        """
        supernet = self._supernet_of(ofa_model)
        supernet.activate(ofa_model, supernet.built.values(setting))
        return ofa_model

    @other_names(dynamic_subnet="ofa_model", dynamic_subnet_setting="setting")
    def get_static_subnet(
        self, ofa_model: nn.Module, setting: Setting | None = None
    ) -> tuple[nn.Module, Setting, float, float]:
        """A subnet as a plain model: the user's own classes, nothing dynamic, with copies of the weights.

        Without ``setting`` it is the one that the supernet runs.

        Its batch-norm statistics are those that the supernet has, which no subnet trained for itself: re-estimate them,
        with `channelwise.recovery.recalibrate` for example.

        Returns:
            The model, its setting, MACs of one sample in millions, parameters in millions.

        Raises:
            InvalidArgumentError: as in `set_subnet`.
        """
        supernet = self._supernet_of(ofa_model)
        values = supernet.active(ofa_model) if setting is None else supernet.built.values(setting)
        static = supernet.extract(ofa_model, values)
        space = supernet.built
        return static, space.setting(values), float(space.macs(values)) / 1e6, float(space.params(values)) / 1e6

    def reset_bn_running_stats_for_calibration(self, model: nn.Module) -> None:
        """Make every batch norm of ``model`` forget its statistics and average those of all batches to come equally.

        Only batch norms are put into train mode. Pass batches through, then call ``model.eval()``.
        `channelwise.recovery.recalibrate` does all of this, and more exactly.
        """
        norms = [m for m in bare(model).modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        if not norms:
            log.info("%s has no batch norm with statistics: there is nothing to re-estimate.", type(model).__name__)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True

    @other_names(model="ofa_model")
    def run_evolutionary_search(
        self,
        ofa_model: nn.Module,
        calibration_fn: Callable[..., Any] | None = None,
        calib_args: Sequence[Any] = (),
        eval_fn: EvalFn | None = None,
        eval_args: Sequence[Any] = (),
        evaluation_metric: str = "acc1",
        min_or_max_metric: str = "max",
        min_flops: float | None = None,
        max_flops: float | None = None,
        flops_step: float | None = None,
        parent_popu_size: int = 16,
        iteration: int = 10,
        mutate_size: int = 8,
        mutate_prob: float = 0.2,
        crossover_size: int = 4,
        *,
        min_macs: float | None = None,
        max_macs: float | None = None,
        macs_step: float | None = None,
        loader: Any = None,
        batches: int | None = None,
        forward_fn: ForwardFn | None = None,
        strategy: Any = None,
        seed: int = 0,
        gpus: Sequence[int | str] | None = None,
        workers: int | None = None,
        executor: str | None = None,
        timeout: float | None = None,
        storage: Any = None,
        forced: bool = False,
    ) -> Pareto:
        """The best subnet of every size between two budgets, by evolution over the whole window.

        Every subnet is extracted, its batch norms are re-estimated, and it is scored; the supernet stays as it is.
        Scores are kept in ``<folder>/<ModelClass>.ofa`` as they come: an interrupted search goes on, more ``iteration``
        later add subnets, and nothing is evaluated twice. A supernet that was trained on is searched anew.

        Args:
            ofa_model: The trained supernet, or a wrapper around it.
            calibration_fn: Called as ``calibration_fn(subnet, *calib_args)`` to re-estimate batch norms in place;
                without it they are re-estimated on ``loader`` by `channelwise.recovery.recalibrate`.
            calib_args: What ``calibration_fn`` takes after the model.
            eval_fn: Called as ``eval_fn(subnet, *eval_args)`` with a model in eval mode; returns a number.
            eval_args: What ``eval_fn`` takes after the model.
            evaluation_metric: The name of that number in the result.
            min_or_max_metric: "max" if larger is better, else "min".
            min_flops, max_flops: The window, MACs of one sample in millions; by default all that can be reached.
            flops_step: Width of a bucket, of which the best subnet is returned, in millions of MACs; 10 by default.
            parent_popu_size: Subnets of the first generation.
            iteration: Generations after it.
            mutate_size, crossover_size: Children of one and of two parents in a generation.
            mutate_prob: The probability that a mutation changes a choice.
            min_macs, max_macs, macs_step: Other names of the three arguments in FLOPs.
            loader, batches, forward_fn, gpus, workers, executor, timeout: As in `OneStepPruningRunner.search`.
            strategy: Instead of the evolution, one of `channelwise.search`.
            seed: With one worker, the same seed gives the same subnets.
            storage: As in `OneStepPruningRunner`.
            forced: Begin this search anew.

        Returns:
            By MACs in millions, rounded to ``flops_step`` ("230", "240"): ``net_id``, ``mode``, the metric under its
            own name, ``flops`` and ``macs`` and ``params`` in millions, ``subnet_setting``. ``net_id`` says how the
            subnet was found: net_evo_<generation>_<random, mutate or crossover>_<number>.

        Raises:
            InvalidArgumentError: an argument is wrong.
            UnreachableTargetError: no subnet is in the window; with the reachable range.
            EvaluationError, ResultsFileError: as in `OneStepPruningRunner.search`.
        """
        supernet = self._supernet_of(ofa_model)
        if eval_fn is None:
            raise InvalidArgumentError("The search needs eval_fn: a function called as eval_fn(model, *eval_args).")
        evaluation = Evaluation(eval_fn, check_args(eval_args, "eval_args"))
        repair = Repair(images_of(loader, batches, forward_fn), calibration_fn, calib_args)
        space = supernet.space
        window = Window(
            either("min_flops", min_flops, "min_macs", min_macs, float(space.macs(space.minimum)) / 1e6),
            either("max_flops", max_flops, "max_macs", max_macs, float(space.macs(space.maximum)) / 1e6),
            either("flops_step", flops_step, "macs_step", macs_step, 10),
            "flops" if (min_macs, max_macs, macs_step) == (None, None, None) else "macs",
        )
        effort = Effort(parent_popu_size, iteration, mutate_size, mutate_prob, crossover_size)
        place = storage if storage is not None else self._folder / f"{self._name}.ofa"
        return search_subnets(
            supernet, bare(ofa_model), evaluation, Metric(evaluation_metric, min_or_max_metric), repair, window, effort,
            Where(gpus, workers, executor, timeout), name=self._name, storage=place, strategy=strategy, seed=seed,
            forced=check_flag("forced", forced), quiet=self._quiet,
        )  # fmt: skip

    def save_subnet_config(self, pareto: Pareto | Setting, path: str | os.PathLike[str]) -> None:
        """Write the result of a search, or a single setting, as JSON that people can read, whole or not at all.

        Raises:
            InvalidArgumentError: ``pareto`` is neither.
            ResultsFileError: it cannot be written.
        """
        check_path("path", path, optional=True)
        save_pareto(pareto, path)

    def load_subnet_config(self, path: str | os.PathLike[str]) -> Any:
        """Read what `save_subnet_config` wrote. If there is a supernet, the settings have to be of it.

        Raises:
            ResultsFileError: no such file, damaged, of another version, or of another supernet.
        """
        check_path("path", path, optional=True)
        return load_pareto(path, self._latest.built if self._latest is not None else None)

    def _supernet(self) -> Supernet:
        if self._latest is None:
            raise InvalidArgumentError("There is no supernet yet: call ofa_model() first.")
        return self._latest

    def _supernet_of(self, model: Any) -> Supernet:
        digest = bare(model).__dict__.get(SUPERNET)
        supernet = self._supernets.get(digest) if digest is not None else None
        if supernet is None:
            self._supernet()
            raise InvalidArgumentError(
                f"This {type(bare(model)).__name__} is not a supernet of this pruner: give the model that "
                "pruner.ofa_model() returned, a copy of it, or a wrapper around one."
            )
        return supernet
