"""Outputs of slim models, compared with what the user's own code computes without the removed channels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from channelwise.api import ChannelGraph
from channelwise.inputs.example import doubled, number_of_samples
from channelwise.inputs.tree import tensors_in
from channelwise.selection import Selection, removed_channels
from channelwise.surgery import clone_module, masked_model
from channelwise.testing.chance import WithoutChance
from channelwise.testing.missing import Missing, Numbers, with_holes
from channelwise.testing.selections import only
from channelwise.testing.slim import unfused_attention
from channelwise.testing.values import distance, nudged, shape_of

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}
"""Relative to the largest value of an output, by type; 1e-2 for narrower types."""

IN_TRAINING = 100
"""So many times as much in train mode: batch norm over the few values of an example divides by small deviations."""

UNTOLD = 1e-3
"""Relative; where rounding may change outputs by more than this, they do not tell whether the slim model is right."""


@dataclass(frozen=True)
class _Expected:
    """Outputs without some channels; ``unclear`` are operators that may have got them wrong."""

    outputs: list[Tensor]
    unclear: frozenset[str] = frozenset()
    numbers: tuple[Numbers, ...] = ()


@dataclass(frozen=True)
class _Verdict:
    """Whether outputs agree; ``unclear``: why they may differ though the slim model is right.

    ``raised``: that they agree as far as rounding lets them. ``granted``: numbers taken from the slim model.
    """

    agrees: bool
    error: float = 0.0
    unclear: str = ""
    raised: str = ""
    granted: str = ""


_Way = Callable[..., _Expected]
"""``way(selection, train=, noise=, seed=)`` runs the user's code without the removed channels."""


def two_samples(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """At least two samples, which batch norm needs in train mode."""
    return (args, kwargs) if number_of_samples(args, kwargs) > 1 else (doubled(args), doubled(kwargs))


class Comparison:
    """Compares slim models of one traced model, and keeps what there is to report.

    ``error``: the largest one in eval mode. ``raised``: where rounding changes more than the tolerance, which was
    raised. ``granted``: numbers made of sizes that were taken from the slim model. ``uncompared``: what could not be
    compared, and why.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, args: Any, kwargs: Any, *, allow_rounding: bool) -> None:
        self.model, self.graph, self.structure = model, graph, graph.structure
        self.inputs, self.two = (args, kwargs), two_samples(args, kwargs)
        self.allow_rounding = allow_rounding
        self.dense = self.run(clone_module(model, {}))
        floats = [t.dtype for t in self.dense if t.is_floating_point()]
        self.tolerance = max((TOLERANCE.get(dtype, 1e-2) for dtype in floats), default=1e-2)
        self.error = 0.0
        self.raised: list[str] = []
        self.granted: list[str] = []
        self.uncompared: list[str] = []

    def in_eval_mode(self, selection: Selection) -> None:
        """Assert that the slim model computes what the user's code does without the removed channels."""
        for way, part in self._ways(selection):
            self._compare(way, part, train=False)

    def in_train_mode(self, selection: Selection) -> bool:
        """The same in train mode, with random numbers at their average; False where the outputs tell nothing."""
        try:
            self.run(clone_module(self.model, {}), train=True)
        except Exception as error:
            return self.pass_over(f"train mode: the dense model raises {type(error).__name__}: {error}")
        compared = [self._compare(way, part, train=True) for way, part in self._ways(selection)]
        return all(compared)

    def run(self, model: nn.Module, *, train: bool = False, noise: bool = False, seed: int = 0) -> list[Tensor]:
        """Outputs of ``model``, whose mode and running statistics may change; ``noise``: as rounding makes it."""
        args, kwargs = self.two if train else self.inputs
        if noise:
            args, kwargs = nudged(args), nudged(kwargs)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), WithoutChance() if train else nullcontext():
            torch.manual_seed(seed)
            return tensors_in(model.train(train)(*copy.deepcopy(args), **copy.deepcopy(kwargs)), attributes=True)

    def check_outputs(self, selection: Selection, *, first_axes: bool, telling: bool) -> float:
        """Assert that outputs have the dense model's shapes, are finite and changed; returns how much, relative."""
        outputs = self.run(self.graph.slim(selection))
        shapes, dense = ([shape_of(t)[0 if first_axes else 1 :] for t in found] for found in (outputs, self.dense))
        assert shapes == dense, f"output shapes of the slim model: {shapes}, of the dense one: {dense}"
        changed = distance(outputs, self.dense)
        if telling:
            for what, found in (("dense", self.dense), ("slim", outputs)):
                assert all(bool(t.isfinite().all()) for t in found), f"outputs of the {what} model are not finite"
            told = changed > self.tolerance or not removed_channels(self.structure, selection)
            assert told, "outputs do not change with the pruning: they cannot tell whether it is right"
        return changed

    def _ways(self, selection: Selection) -> Iterator[tuple[_Way, Selection]]:
        """A masked model must be right where it may stand for the removal; for the rest there are models with holes."""
        masked = only(self.structure, selection, {g.name for g in self.structure.groups if not g.slim_only})
        if masked != selection:
            yield self._without, selection
        if masked == selection or removed_channels(self.structure, masked):
            yield self._masked, masked

    def _masked(self, selection: Selection, **how: Any) -> _Expected:
        return _Expected(self.run(masked_model(self.model, self.structure, selection), **how))

    def _without(self, selection: Selection, instead: Sequence[Numbers] = (), **how: Any) -> _Expected:
        model = with_holes(self.model, self.structure, selection)
        with unfused_attention(), Missing(instead) as missing:
            try:
                outputs = self.run(model, **how)
            except Exception as error:  # code that does not expect NaN
                return _Expected([], frozenset({f"{type(error).__name__}: {error}"}))
        return _Expected(outputs, frozenset(missing.unclear), tuple(missing.numbers))

    def _compare(self, way: _Way, selection: Selection, *, train: bool) -> bool:
        """Assert that the slim model is right, or report what is not clear; False if that is so."""
        verdict = self._verdict(way, selection, train)
        if verdict.agrees:
            self.error = self.error if train else max(self.error, verdict.error)
            self.raised += [verdict.raised] if verdict.raised else []
            self.granted += [f"{_mode(train)}: {verdict.granted}"] if verdict.granted else []
            return True
        if not verdict.unclear:
            other = "masked model" if way == self._masked else "full model that leaves removed channels out"
            raise AssertionError(
                f"the slim model and the {other} differ by {verdict.error:.2e} relative in {_mode(train)}; "
                f"pruned alone, these groups differ:\n{self._blame(way, selection, train)}\n{self.graph}"
            )
        if way == self._without:
            return self._pass_over_some(selection, verdict.unclear, train)
        return self.pass_over(f"{_mode(train)}: {verdict.unclear}")

    def _verdict(self, way: _Way, selection: Selection, train: bool) -> _Verdict:
        expected = way(selection, train=train)
        if train and distance(way(selection, train=True, seed=1).outputs, expected.outputs) > 0:
            return _Verdict(False, unclear="outputs depend on random numbers")
        slim = self.run(self.graph.slim(selection), train=train)
        error = distance(slim, expected.outputs)
        limit = self.tolerance * (IN_TRAINING if train else 1)
        numbers = self._other_numbers(selection, expected, train) if error > limit and expected.numbers else []
        if numbers:
            way = partial(way, instead=numbers)
            pairs = zip(expected.numbers, numbers, strict=True)
            granted = ", ".join(dict.fromkeys(f"{name} by {b} for {a}" for (name, a), (_, b) in pairs if a != b))
            expected = way(selection, train=train)
            error = distance(slim, expected.outputs)
        else:
            granted = ""
        if error <= limit:
            return _Verdict(True, error, granted=granted)
        if expected.unclear:
            return _Verdict(False, error, ", ".join(sorted(expected.unclear)))
        rounding = 4 * distance(way(selection, train=train, noise=True).outputs, expected.outputs)
        if train and rounding > UNTOLD:
            return _Verdict(False, error, f"rounding alone changes outputs by {rounding:.0e}")
        if self.allow_rounding and error <= min(rounding, UNTOLD):
            raised = f"{_mode(train)}: outputs differ by {error:.1e}, rounding of the inputs changes {rounding:.1e}"
            return _Verdict(True, error, raised=raised, granted=granted)
        return _Verdict(False, error)

    def _other_numbers(self, selection: Selection, expected: _Expected, train: bool) -> list[Numbers]:
        """Numbers that code makes of sizes: in the full model they count all channels. None where they are equal."""
        model = self.graph.slim(selection)
        with unfused_attention(), Missing() as missing:
            self.run(model, train=train)
        same = [name for name, _ in missing.numbers] == [name for name, _ in expected.numbers]
        return missing.numbers if same and missing.numbers != list(expected.numbers) else []

    def _pass_over_some(self, selection: Selection, unclear: str, train: bool) -> bool:
        """Report the groups of which it is not clear what is right, and compare the others."""
        removed = removed_channels(self.structure, selection)
        counted = [g.name for g in self.structure.groups if g.slim_only and g.name in removed]
        alone = {name: self._verdict(self._without, only(self.structure, selection, {name}), train) for name in counted}
        wrong = {name for name, v in alone.items() if not v.agrees and not v.unclear}
        hidden = {name: v.unclear for name, v in alone.items() if v.unclear}
        if not wrong and not hidden:
            hidden = dict.fromkeys(counted, unclear)
        if wrong or len(hidden) < len(counted):
            self._compare(self._without, only(self.structure, selection, wrong or removed.keys() - hidden), train=train)
        return self.pass_over(*(f"{name} in {_mode(train)}: {why}" for name, why in hidden.items()))

    def pass_over(self, *what: str) -> bool:
        """Report what cannot be compared; False."""
        self.uncompared += what
        return False

    def _blame(self, way: _Way, selection: Selection, train: bool) -> str:
        """One line for every group that breaks the outputs alone."""
        guilty = []
        for name in removed_channels(self.structure, selection):
            group = self.structure.group(name)
            try:
                verdict = self._verdict(way, only(self.structure, selection, {name}), train)
                said = "" if verdict.agrees else f"{verdict.error:.2e} {verdict.unclear}"
            except Exception as problem:
                said = f"{type(problem).__name__}: {problem}"
            if said:
                guilty.append(f"  {name} ({group.size} channels of {', '.join(group.layers)}): {said}")
        return "\n".join(guilty[:20]) or "  (none: only together)"


def _mode(train: bool) -> str:
    return "train mode" if train else "eval mode"
