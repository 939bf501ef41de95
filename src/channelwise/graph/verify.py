"""Find out by trying whether the user's code adapts: prune questioned groups, run again; correct it or freeze them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from channelwise.graph.channels import build, components, group_labels
from channelwise.graph.comparing import (
    difference,
    difference_in_double,
    gap,
    in_doubt,
    nudged,
    run_once,
    seed_generators,
)
from channelwise.graph.context import tensors_in
from channelwise.graph.labels import LabelSpace, Question
from channelwise.graph.questioned import Asked, Membership, Site, asked_in, asked_of, sites_of, slim_labels
from channelwise.graph.recording import Followed, Trace
from channelwise.graph.structure import Cause, Reason, Structure
from channelwise.graph.tracer import doubled, run_labelled
from channelwise.graph.trials import removed_in, trials

logger = logging.getLogger(__name__)

Kept = Mapping[str, np.ndarray]
Surgeon = Callable[[Structure, Kept], nn.Module]

Trial = tuple[int, bool]
"""Which selection is tried, and whether in train mode."""


@dataclass(frozen=True)
class _Failure:
    """What went wrong with some groups pruned; ``suspects`` are the groups that look guilty, if anything tells.

    ``module``: where the model's code raised. ``trial``: which selection showed it.
    """

    text: str
    suspects: frozenset[str] = frozenset()
    raised: bool = False
    module: str = ""
    trial: Trial = (0, False)


_Attempt = tuple[Structure, Asked, _Failure | None]
"""A structure, its groups with questions, and what went wrong with all of them pruned."""


@dataclass(frozen=True)
class Verifier:
    """Runs pruned models of a traced one.

    ``slim`` and ``masked`` build the slim and the masked model of a selection from weights of which none is constant.
    ``trains``: the model runs in train mode and does something else there, which is tried, too.
    """

    trace: Trace
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    slim: Surgeon
    masked: Surgeon
    trains: bool = False

    def run(self) -> Structure:
        """The structure in which every questioned group has been seen to adapt, or is frozen with the reason.

        Where code does not adapt, numbers that its modules keep are made to follow the channels first, for all modules
        of a class; only if that does not help do channels stay.
        """
        banned: list[tuple[np.ndarray, Reason]] = []
        following: set[Followed] = set()
        tried: set[Followed] = set()
        sites = sites_of(self.trace)
        met: set[frozenset[Site]] = set()
        structure, asked, failure = self._attempt(banned, following)
        while failure is not None:
            attempt, more = self._with_more_numbers(following, failure, asked, tried)
            if attempt is not None:
                logger.debug("verification: %s follow the channels now: %s", more, failure.text)
                structure, asked, failure = attempt
                following |= more
                continue
            # Where the same code failed in another module of its class, a failure here is not another story.
            places = {name: frozenset(sites[id(question)] for question in asked[name]) for name in asked}
            again = [name for name in asked if places[name] in met]
            guilty = again if failure.suspects & set(again) else self._guilty(structure, sorted(asked), failure)
            met |= {places[name] for name in guilty}
            logger.debug("verification: %s because of %s", sorted(guilty), failure.text)
            banned = [self._ban(structure, name, asked[name][-1], failure.text) for name in guilty]
            structure, asked, failure = self._attempt(banned, following)
        return self._fewest(structure, following)

    def _with_more_numbers(
        self, following: set[Followed], failure: _Failure, asked: Asked, tried: set[Followed]
    ) -> tuple[_Attempt | None, set[Followed]]:
        """An attempt in which this failure is gone as more numbers follow, and these numbers; those are now tried."""
        likely, all_of_them = (self._keepers(failure, asked, alone) for alone in (False, True))
        for numbers in (likely, all_of_them):
            if numbers <= tried:
                continue
            more = numbers - tried if numbers is likely else numbers
            tried |= numbers
            attempt = self._attempt((), following | more)
            if attempt[2] is None or (attempt[2].text, attempt[2].module) != (failure.text, failure.module):
                return attempt, more
        return None, set()

    def _attempt(self, banned: Sequence[tuple[np.ndarray, Reason]], following: Collection[Followed]) -> _Attempt:
        """The structure, its groups with questions, and what went wrong with all of them pruned."""
        structure = build(self.trace, banned, following)
        asked = asked_of(self.trace, structure)
        return structure, asked, self.check(structure, sorted(asked)) if asked else None

    def _fewest(self, structure: Structure, following: set[Followed]) -> Structure:
        """The same without numbers that just happen to be as large as a number of channels."""
        following = {(self.trace.types[number.module], number.attribute) for number in structure.numbers}
        for one in sorted(following, key=str) if len(following) > 1 else ():
            trial, _, failure = self._attempt((), following - {one})
            if failure is None:
                structure, following = trial, following - {one}
        return structure

    def _keepers(self, failure: _Failure, asked: Asked, alone: bool) -> set[Followed]:
        """The numbers that may be the reason of a failure: of modules where it was raised, or questions are from.

        ``alone``: also those that may be in a tuple by chance.
        """
        if failure.raised:
            path = failure.module.split(".")
            places = {".".join(path[:depth]) for depth in range(len(path) + 1)}
        else:
            places = {asked[name][-1].reason.module for name in failure.suspects & set(asked) or set(asked)}
        return {(c.cls, c.attribute) for c in self.trace.candidates if c.seen in places and alone >= c.alone}

    def check(self, structure: Structure, names: Sequence[str], only: Trial | None = None) -> _Failure | None:
        """Prune part of these groups, in several ways or in one: the first failure."""
        modes = (False, True) if self.trains else (False,)
        several = [(number, train) for number in trials(structure, names) for train in modes]
        for trial in several if only is None else (only,):
            failure = self._check(structure, set(names), trial)
            if failure is not None:
                return replace(failure, trial=trial)
        return None

    def _check(self, structure: Structure, wanted: set[str], trial: Trial) -> _Failure | None:
        """In one trial: do the same labels meet in the slim model, and is it the masked one?"""
        number, train = trial
        exact = {g.name for g in structure.groups if g.exact and g.name in wanted}
        kept = removed_in(structure, exact, number)
        if number and exact == wanted:
            # Labels tell who is guilty; after a first trial there is hardly ever anybody.
            try:
                failure, outputs = None, self._run(self.slim(structure, kept), train)
            except Exception:
                failure, outputs = self._labels_meet(structure, kept, train)
        else:
            failure, outputs = self._labels_meet(structure, removed_in(structure, wanted, number), train)
        # Of exact groups the outputs tell: a new tensor may just happen to have as many elements as there are channels.
        if failure is not None and (failure.raised or not failure.suspects <= exact):
            return failure
        if not exact:
            return None
        if exact != wanted:
            failure, outputs = self._labels_meet(structure, kept, train)
            if failure is not None and failure.raised:
                return failure
        text = self._compare(structure, kept, outputs, train)
        return None if text is None else _Failure(text)

    def _compare(self, structure: Structure, kept: Kept, outputs: list[torch.Tensor], train: bool) -> str | None:
        """What differs between these outputs of a slim model and those of the masked one."""
        expected = self._run(self.masked(structure, kept), train)
        text = difference(outputs, expected)
        if text is not None and train and self._unstable(structure, kept, expected):
            return None
        if text is None and not train and in_doubt(outputs, expected):
            models = partial(self.slim, structure, kept), partial(self.masked, structure, kept)
            text = difference_in_double(*models, self.args, self.kwargs)
        return text

    def _unstable(self, structure: Structure, kept: Kept, expected: list[torch.Tensor]) -> bool:
        """Whether other random numbers, or rounding that batch norm over few values blows up, change these outputs."""
        again = self._run(self.masked(structure, kept), True, seed=1)
        args, kwargs = self._arguments(True)
        masked = copy.deepcopy(self.masked(structure, kept))
        noisy = run_once(masked, nudged(list(args)), nudged(dict(kwargs)), train=True)
        return gap(again, expected) > 0 or difference(noisy, expected) is not None

    def _run(self, model: nn.Module, train: bool, seed: int = 0) -> list[torch.Tensor]:
        if not train:
            return run_once(model, self.args, self.kwargs, seed=seed)
        # In train mode buffers change, which pruned models may share.
        return run_once(copy.deepcopy(model), *self._arguments(train), train=True, seed=seed)

    def _arguments(self, train: bool) -> tuple[Sequence[Any], Mapping[str, Any]]:
        if train and self.trace.batch == 1:
            return doubled(list(self.args)), doubled(dict(self.kwargs))
        return self.args, self.kwargs

    def _labels_meet(self, structure: Structure, kept: Kept, train: bool) -> tuple[_Failure | None, list[torch.Tensor]]:
        """Trace the slim model with the channels as labels: only slots of one channel may meet."""
        channel = components(self.trace.space)
        frozen = np.zeros(int(channel.max()) + 1, bool)
        frozen[channel[list(self.trace.space.reasons)]] = True
        second = Trace(LabelSpace(count=frozen.size), {}, {})
        second.tensors = slim_labels(self.trace, structure, kept, channel)
        try:
            model = self.slim(structure, kept)
            model = copy.deepcopy(model).train() if train else model
        except Exception as error:
            # Not the user's code: surgery does not know a module of this kind, so its channels stay.
            logger.warning("a slim model cannot be built: %s: %s; its channels stay", type(error).__name__, error)
            return _Failure(
                f"no slim model can be built ({type(error).__name__}: {_first_line(error)})", raised=True
            ), []
        try:
            args, kwargs = self._arguments(train)
            seed_generators(tensors_in([list(args), dict(kwargs)]), 0)
            _, output = run_labelled(model, args, kwargs, second, record=False, freeze_outputs=False)
        except Exception as error:
            # Whatever the user's code raises with fewer channels: it does not adapt.
            module = getattr(error, "_channelwise_module", "")
            text = f"with fewer channels the model's code raises {type(error).__name__}: {_first_line(error)}"
            return _Failure(text, frozenset(asked_in(self.trace, structure, module)), True, module), []
        a, b = second.space.all_pairs()
        known = np.concatenate([frozen, np.ones(max(second.space.count - frozen.size, 0), bool)])
        wrong = (a != b) & ~(known[a] & known[b])
        if wrong.any():
            guilty = np.unique(np.concatenate([a[wrong], b[wrong]]))
            membership = Membership(self.trace, structure)
            names = membership.names_of(membership.of_channel[guilty[guilty < frozen.size]])
            return _Failure("with fewer channels other channels meet than before", frozenset(names)), output
        return None, output

    def _guilty(self, structure: Structure, names: Sequence[str], failure: _Failure) -> list[str]:
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
            if self.check(structure, names, trial) is None:
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
            if self.check(structure, names[:middle], trial) is None:
                passes = middle
            else:
                fails = middle
        return names[fails - 1]

    def _ban(self, structure: Structure, name: str, question: Question, text: str) -> tuple[np.ndarray, Reason]:
        asked = question.reason
        return group_labels(self.trace, structure.group(name)), Reason(
            asked.operation, asked.module, f"{asked.text}, and {text}", Cause.CODE
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:160]
