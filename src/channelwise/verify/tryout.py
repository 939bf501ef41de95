"""Try a pruned model out: do the same channels meet in it, and is it the masked one? If not, who is guilty?"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from channelwise.inputs.example import doubled
from channelwise.inputs.tree import tensors_in
from channelwise.structure import Structure
from channelwise.tracing.context import MacRecord
from channelwise.tracing.labels import LabelSpace
from channelwise.tracing.recording import Trace
from channelwise.tracing.tracer import run_labelled
from channelwise.verify.built import Built
from channelwise.verify.comparing import (
    Maker,
    difference,
    difference_in_double,
    gap,
    in_double,
    in_doubt,
    nudged,
    run_once,
    seed_generators,
)
from channelwise.verify.layers import of_layers, of_stable_layers, tell
from channelwise.verify.questions import Membership, asked_in, asked_of, uses_of
from channelwise.verify.slim_labels import only_ones, slim_labels
from channelwise.verify.trials import Kept, removed_in, trials

logger = logging.getLogger(__name__)

Surgeon = Callable[[Structure, Kept, int], nn.Module]
"""Builds a pruned model for a trial, by its number: in each, other signs have what layers add to their channels.

Channels that are all positive in one, so that clipping them does not show, are not in another.
"""


class Trial(NamedTuple):
    """Which selection is tried, whether in train mode, and whether of exact groups alone.

    Code may be right only where groups before and behind a norm lose in proportion: one kind alone shows it.
    """

    number: int
    train: bool = False
    exact_alone: bool = False


_FIRST = Trial(0)

_UNTOLD = "what the network returns tells nothing about them: trace it on inputs on which it finds something"


@dataclass(frozen=True)
class Failure:
    """What went wrong with some groups pruned; ``suspects`` are the groups that look guilty, if anything tells.

    ``raised``: the model's code did, in ``module``, or made products there that are not of its channels' size.
    ``trial``: which selection showed it.
    """

    text: str
    suspects: frozenset[str] = frozenset()
    raised: bool = False
    module: str = ""
    trial: Trial = _FIRST

    def is_like(self, other: Failure | None) -> bool:
        """Whether the other is the same but for the numbers that it names."""
        if other is None or self.module != other.module:
            return False
        return _NUMBER.sub("", self.text) == _NUMBER.sub("", other.text)


_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Tryout:
    """Builds and runs pruned models of a traced one.

    ``slim`` and ``masked`` build the slim and the masked model of a selection from weights of which none is constant;
    these models may write into their buffers, and into their parameters if the traced one does; ``built`` notes them.
    """

    trace: Trace
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    slim: Surgeon
    masked: Surgeon
    built: Built

    def check(self, structure: Structure, names: Sequence[str], first: Trial | None = None) -> Failure | None:
        """Prune part of these groups, in several ways, of which one may be the likeliest to fail: the first failure."""
        for trial in sorted(self._trials(structure, names), key=lambda trial: trial != first):
            failure = self.check_in(trial, structure, names)
            if failure is not None:
                return failure
        return None

    def check_in(self, trial: Trial, structure: Structure, names: Sequence[str]) -> Failure | None:
        """The same in one way."""
        failure = self._check(structure, frozenset(names), trial)
        self.built.release()
        return None if failure is None else replace(failure, trial=trial)

    def _trials(self, structure: Structure, names: Sequence[str]) -> list[Trial]:
        """In train mode too where it differs, but only once where it draws random numbers, which takes longer."""
        asked = asked_of(self.trace, structure)
        numbers = trials(structure, uses_of(self.trace, structure, {name: asked[name] for name in names}))
        found = []
        for number in numbers:
            found.append(Trial(number))
            if self.trace.trains_differently and not (number and self.trace.trains_randomly):
                found.append(Trial(number, train=True))
        if self.trace.computes_differently and not (self.trace.trains_differently or self.trace.trains_randomly):
            # What does not show in eval mode, half of the channels clipped where all are positive, may show here.
            found += [Trial(number, train=True) for number in numbers]
        exact = _exact(structure, names)
        if exact and exact != _comparable(structure, names):
            found.append(Trial(max(numbers[-1], 1), exact_alone=True))
        return found

    def _check(self, structure: Structure, wanted: frozenset[str], trial: Trial) -> Failure | None:
        """In one trial: is the slim model the masked one, and where none can be, do the same labels meet?"""
        wanted = _exact(structure, wanted) if trial.exact_alone else wanted
        comparable = _comparable(structure, wanted)
        # Of these the outputs tell: a new tensor may just happen to have as many elements as there are channels.
        told = comparable - self._in_questioned_norms(structure)
        if self.trace.dead_ends:
            # Nothing of these shows in outputs.
            told = frozenset()
        outputs: list[torch.Tensor] | None = None
        if not wanted <= told:
            failure, outputs = self._labels_meet(structure, removed_in(structure, wanted, trial.number), trial)
            if failure is not None and (failure.raised or not failure.suspects <= told):
                return failure
        if not comparable:
            return None
        kept = removed_in(structure, comparable, trial.number)
        if outputs is None or comparable != wanted or (trial.train and self.trace.trains_randomly):
            failure, outputs = self._outputs(structure, kept, trial)
            if failure is not None and failure.raised:
                return failure
        return self._compare(structure, kept, outputs, trial)

    def _outputs(self, structure: Structure, kept: Kept, trial: Trial) -> tuple[Failure | None, list[torch.Tensor]]:
        """The outputs of a slim model; if its code raises, labels tell where."""
        try:
            return None, self._run(self.slim(structure, kept, trial.number), trial.train)
        except Exception:
            return self._labels_meet(structure, kept, trial)

    def _in_questioned_norms(self, structure: Structure) -> set[str]:
        """Groups in norms whose code may know numbers: the masked model runs that code on the kept channels as well."""
        questioned = {question.reason.module for question in self.trace.space.questions}
        return {g.name for g in structure.groups if not questioned.isdisjoint(g.norms)}

    def _compare(self, structure: Structure, kept: Kept, outputs: list[torch.Tensor], trial: Trial) -> Failure | None:
        """What differs between these outputs of a slim model and those of the masked one."""
        slim, masked = (partial(make, structure, kept, trial.number) for make in (self.slim, self.masked))
        expected = self._run(masked(), trial.train)
        text = difference(outputs, expected)
        if trial.train:
            return None if text is None or self._unstable(masked, expected) else Failure(text)
        if in_doubt(outputs, expected) if text is None else not in_double(expected):
            # What is picked by comparing values, the best boxes for example, may be others after rounding.
            exactly = difference_in_double(slim, masked, self.args, self.kwargs)
            text = text if exactly is None else exactly or None
        if text is None and not tell(expected):
            text = self._compare_layers(slim, masked)
        return None if text is None else Failure(text)

    def _compare_layers(self, slim: Maker, masked: Maker) -> str | None:
        """What differs in the layers of both models, where what they return tells nothing."""
        both = of_layers(slim, masked, self.args, self.kwargs)
        if not any(t.numel() for t in both[1]):
            return _UNTOLD
        text = difference(*both)
        if text is None and not in_doubt(*both):
            return None
        if not in_double(both[1]):
            exactly = difference_in_double(slim, masked, self.args, self.kwargs, of_stable_layers)
            if exactly is not None:
                return exactly or None
        return None if text is None else difference(*of_stable_layers(slim, masked, self.args, self.kwargs))

    def _unstable(self, masked: Maker, expected: list[torch.Tensor]) -> bool:
        """Whether other random numbers, or rounding that batch norm over few values blows up, change these outputs."""
        again = self._run(masked(), True, seed=1)
        args, kwargs = self._arguments(True)
        noisy = run_once(masked(), nudged(list(args)), nudged(dict(kwargs)), train=True)
        return gap(again, expected) > 0 or difference(noisy, expected) is not None

    def _run(self, model: nn.Module, train: bool, seed: int = 0) -> list[torch.Tensor]:
        return run_once(model, *self._arguments(train), train=train, seed=seed)

    def _arguments(self, train: bool) -> tuple[Sequence[Any], Mapping[str, Any]]:
        if train and self.trace.batch == 1:
            return doubled(list(self.args)), doubled(dict(self.kwargs))
        return self.args, self.kwargs

    def _labels_meet(self, structure: Structure, kept: Kept, trial: Trial) -> tuple[Failure | None, list[torch.Tensor]]:
        """Trace the slim model with the channels as labels: only slots of one channel may meet."""
        channel = self.trace.space.components()
        frozen = np.zeros(int(channel.max()) + 1, bool)
        frozen[channel[list(self.trace.space.reasons)]] = True
        # One channel alone fills its axes, so that a trace sees it stay, as it would in any case.
        frozen[only_ones(self.trace, structure, kept, channel)] = True
        second = Trace(LabelSpace(count=frozen.size), {}, {})
        second.tensors = slim_labels(self.trace, structure, kept, channel)
        try:
            model = self.slim(structure, kept, trial.number).train(trial.train)
        except Exception as error:
            # Not the user's code: surgery does not know a module of this kind, so its channels stay.
            logger.warning("a slim model cannot be built: %s: %s; its channels stay", type(error).__name__, error)
            return Failure(
                f"no slim model can be built ({type(error).__name__}: {_first_line(error)})", raised=True
            ), []
        try:
            args, kwargs = self._arguments(trial.train)
            seed_generators(tensors_in([list(args), dict(kwargs)]), 0)
            ctx, output = run_labelled(model, args, kwargs, second, record=False, freeze=False)
        except Exception as error:
            # Whatever the user's code raises with fewer channels: it does not adapt.
            module = getattr(error, "_channelwise_module", "")
            text = f"with fewer channels the model's code raises {type(error).__name__}: {_first_line(error)}"
            return Failure(text, frozenset(asked_in(self.trace, structure, module)), True, module), []
        a, b = second.space.all_pairs()
        known = np.concatenate([frozen, np.ones(max(second.space.count - frozen.size, 0), bool)])
        wrong = (a != b) & ~(known[a] & known[b])
        if wrong.any():
            guilty = np.unique(np.concatenate([a[wrong], b[wrong]]))
            membership = Membership(self.trace, structure)
            names = membership.names_of(membership.of_channel[guilty[guilty < frozen.size]])
            return Failure("with fewer channels other channels meet than before", frozenset(names)), output
        found = None if trial.train else self._products(structure, kept, ctx.macs, trial)
        return found, output

    def _products(self, structure: Structure, kept: Kept, made: Sequence[MacRecord], trial: Trial) -> Failure | None:
        """The first product of a slim model that is of another size than the structure says."""
        others = _other_products(structure, kept, made, self.trace.batch)
        if others:
            # Of what a model finds in its inputs, boxes for example, there may be more or less.
            whole = removed_in(structure, (), trial.number)
            second = Trace(LabelSpace(), {}, {})
            model = self.slim(structure, whole, trial.number).eval()
            ctx, _ = run_labelled(model, self.args, self.kwargs, second, record=False, freeze=False)
            varying = _other_products(structure, whole, ctx.macs, self.trace.batch)
            others = [position for position in others if position not in varying]
        if not others:
            return None
        module, operation = made[others[0]].module, made[others[0]].operation
        text = f"with fewer channels {operation} in {module or 'the model'} is of another size"
        return Failure(text, frozenset(asked_in(self.trace, structure, module)), True, module)

    def guilty(self, structure: Structure, names: Sequence[str], failure: Failure) -> list[str]:
        """The groups that make the check fail, found by bisection among the suspects first."""
        suspects = [n for n in names if n in failure.suspects]
        known: dict[str, Any] = {"trial": failure.trial, "fails": len(suspects) == len(names), "likely": True}
        if suspects and (found := self._bisect(structure, suspects, **known)):
            return found
        return self._bisect(structure, names, failure.trial, fails=True)

    def _bisect(
        self, structure: Structure, names: Sequence[str], trial: Trial, fails: bool, likely: bool = False
    ) -> list[str]:
        """Groups among these that make the check fail.

        ``fails``: it is known to fail with all of them pruned; ``likely``: that is assumed until one is left.
        """
        if not fails and not (likely and len(names) > 1):
            if self.check_in(trial, structure, names) is None:
                return []
            fails = True
        if len(names) == 1:
            return list(names)
        half = len(names) // 2
        found = self._bisect(structure, names[:half], trial, fails=False)
        found += self._bisect(structure, names[half:], trial, fails=False, likely=not found)
        return found if found or not fails else [self._last_of_several(structure, names, trial)]

    def _last_of_several(self, structure: Structure, names: Sequence[str], trial: Trial) -> str:
        """The check fails with all of these but with neither half: the one that completes the first failing run."""
        passes, fails = len(names) // 2, len(names)
        while fails - passes > 1:
            middle = (passes + fails) // 2
            if self.check_in(trial, structure, names[:middle]) is None:
                passes = middle
            else:
                fails = middle
        return names[fails - 1]


def _other_products(structure: Structure, kept: Kept, made: Sequence[MacRecord], batch: int) -> list[int]:
    """Which of the products that were made are not of the size that the structure says for these channels.

    None if other modules made some: code may take another way for fewer channels, about which outputs have to tell.
    The same product may be another operation, by how its factors lie in memory.
    """
    counts = {name: len(channels) for name, channels in kept.items()}
    if [term.module for term in structure.macs] != [record.module for record in made]:
        return []
    return [
        position
        for position, (term, record) in enumerate(zip(structure.macs, made, strict=True))
        if not math.isclose(
            term.scale * batch * math.prod(size(counts) for size in term.factors),
            record.scale * math.prod(length for _, length in record.factors),
        )
    ]


def _comparable(structure: Structure, names: Collection[str]) -> frozenset[str]:
    return frozenset(g.name for g in structure.groups if not g.slim_only).intersection(names)


def _exact(structure: Structure, names: Collection[str]) -> frozenset[str]:
    return frozenset(g.name for g in structure.groups if g.exact).intersection(names)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:160]
