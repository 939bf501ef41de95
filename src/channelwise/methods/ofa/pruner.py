"""The once-for-all method: a supernet out of a trained model, subnets of it, and a search among them."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from channelwise.channel_graph import trace
from channelwise.errors import InvalidArgumentError
from channelwise.files import write_json
from channelwise.methods.arguments import check_path
from channelwise.methods.ofa.building import checked_supernet, search_space
from channelwise.methods.ofa.choices import SearchSpace, Setting, SpaceFile
from channelwise.methods.ofa.supernet import MARK, Supernet, bare
from channelwise.ranking import Criterion, get

log = logging.getLogger(__name__)

Mode = Literal["max", "min", "random"]


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
        self._quiet = quiet
        self._supernets: dict[str, Supernet] = {}
        self._latest: Supernet | None = None
        self._drawn = 0

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
        space = search_space(
            self._graph, expand_ratio, divisor, excludes, ends=bool(auto_add_excludes), kernels=bool(elastic_kernel)
        )
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
        supernet.space = supernet.built.subset(_candidates(supernet.built, candidates))
        return supernet.space

    def sample_subnet(
        self, ofa_model: nn.Module, mode: Mode = "random", *, seed: int | None = None
    ) -> tuple[nn.Module, Setting]:
        """Make the largest, the smallest or a random subnet the one that the supernet runs, in place.

        Args:
            ofa_model: The supernet, a copy of it, or a wrapper such as DistributedDataParallel around it.
            mode: "max", "min" or "random".
            seed: For "random": the same seed gives the same subnet. By default Python's ``random`` decides; under
                ``torch.distributed`` a model in training mode gets the same subnets on every process, whatever their
                random states are, if all call this equally often.

        Returns:
            The model given, and the setting: plain JSON, for `set_subnet` and `get_static_subnet`.

        Raises:
            InvalidArgumentError: another mode, or no supernet of this pruner.
        """
        supernet = self._supernet_of(ofa_model)
        space = supernet.space
        if mode == "max":
            values = space.maximum
        elif mode == "min":
            values = space.minimum
        elif mode == "random":
            values = space.random(self._generator(ofa_model, seed))
        else:
            raise InvalidArgumentError(f"mode={mode!r}: must be 'max', 'min' or 'random'.")
        supernet.activate(ofa_model, values)
        return ofa_model, space.setting(values)

    def set_subnet(self, ofa_model: nn.Module, setting: Setting) -> nn.Module:
        """Make the subnet of a setting the one that the supernet runs, in place.

        Raises:
            InvalidArgumentError: a setting of another network, or with a value that is no candidate.
        """
        supernet = self._supernet_of(ofa_model)
        supernet.activate(ofa_model, supernet.built.values(setting))
        return ofa_model

    def get_static_subnet(self, ofa_model: nn.Module, setting: Setting) -> tuple[nn.Module, Setting, float, float]:
        """A subnet as a plain model: the user's own classes, nothing dynamic, with copies of the weights.

        Its batch-norm statistics are those that the supernet has, which no subnet trained for itself: re-estimate them,
        with `channelwise.recovery.recalibrate` for example.

        Returns:
            The model, its setting, MACs of one sample in millions, parameters in millions.

        Raises:
            InvalidArgumentError: as in `set_subnet`.
        """
        supernet = self._supernet_of(ofa_model)
        values = supernet.built.values(setting)
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

    def _supernet(self) -> Supernet:
        if self._latest is None:
            raise InvalidArgumentError("There is no supernet yet: call ofa_model() first.")
        return self._latest

    def _supernet_of(self, model: Any) -> Supernet:
        digest = bare(model).__dict__.get(MARK)
        supernet = self._supernets.get(digest) if digest is not None else None
        if supernet is None:
            self._supernet()
            raise InvalidArgumentError(
                f"This {type(bare(model)).__name__} is no supernet of this pruner: give the model that "
                "pruner.ofa_model() returned, a copy of it, or a wrapper around one."
            )
        return supernet

    def _generator(self, model: nn.Module, seed: int | None) -> random.Random:
        if seed is not None:
            return random.Random(seed)
        if model.training and torch.distributed.is_available() and torch.distributed.is_initialized():
            # Not the global generator: processes seed it differently. Evaluations on one process must not count.
            self._drawn += 1
            return random.Random(f"channelwise {self._drawn}")
        return random._inst


def _candidates(space: SearchSpace, wanted: Any) -> dict[str, list[int]]:
    if isinstance(wanted, Mapping):
        return {name: list(values) for name, values in wanted.items()}
    space.values(wanted)
    keys = {"width": "candidate_out_channel_list", "kernel": "candidate_kernel_size_list"}
    return {choice.name: list(entry[keys[choice.kind]]) for choice, entry in zip(space.choices, wanted, strict=True)}
