"""Find out by trying whether the user's code adapts: prune questioned groups, run again; correct it or freeze them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from channelwise.graph.channels import build, components, group_labels
from channelwise.graph.context import tensors_in
from channelwise.graph.labels import LabelSpace, Question
from channelwise.graph.recording import Followed, TensorLabels, Trace
from channelwise.graph.structure import Cause, Group, Reason, Structure
from channelwise.graph.tracer import output_tensors, run_labelled, undisturbed_randomness

logger = logging.getLogger(__name__)

Kept = Mapping[str, np.ndarray]
Surgeon = Callable[[Structure, Kept], nn.Module]
Site = tuple[type | str, int]
"""A place in the code of a class: the how-manieth question in a module of it."""


@dataclass(frozen=True)
class _Failure:
    """What went wrong with some groups pruned; ``suspects`` are the groups that look guilty, if anything tells.

    ``module``: where the model's code raised.
    """

    text: str
    suspects: frozenset[str] = frozenset()
    raised: bool = False
    module: str = ""


Asked = dict[str, list[Question]]
"""The groups with questions, and all questions about each."""

_Attempt = tuple[Structure, Asked, _Failure | None]
"""A structure, its groups with questions, and what went wrong with all of them pruned."""


@dataclass(frozen=True)
class Verifier:
    """Runs pruned models of a traced one.

    ``slim`` and ``masked`` build the slim and the masked model of a selection from weights of which none is constant.
    """

    trace: Trace
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    slim: Surgeon
    masked: Surgeon

    def run(self) -> Structure:
        """The structure in which every questioned group has been seen to adapt, or is frozen with the reason.

        Where code does not adapt, numbers that its modules keep are made to follow the channels first, for all modules
        of a class; only if that does not help do channels stay.
        """
        banned: list[tuple[np.ndarray, Reason]] = []
        following: set[Followed] = set()
        tried: set[Followed] = set()
        sites = _sites(self.trace)
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
        asked = _asked(self.trace, structure)
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

    def check(self, structure: Structure, names: Sequence[str]) -> _Failure | None:
        """Prune about half of these groups: do the same labels meet in the slim model, and is it the masked one?"""
        wanted = set(names)
        exact = {g.name for g in structure.groups if g.exact and g.name in wanted}
        failure, outputs = self._labels_meet(structure, half(structure, wanted))
        # Of exact groups the outputs tell: a new tensor may just happen to have as many elements as there are channels.
        if failure is not None and (failure.raised or not failure.suspects <= exact):
            return failure
        if not exact:
            return None
        kept = half(structure, exact)
        if exact != wanted:
            failure, outputs = self._labels_meet(structure, kept)
            if failure is not None and failure.raised:
                return failure
        expected = run_once(self.masked(structure, kept), self.args, self.kwargs)
        text = difference(outputs, expected)
        return None if text is None else _Failure(text)

    def _labels_meet(self, structure: Structure, kept: Kept) -> tuple[_Failure | None, list[torch.Tensor]]:
        """Trace the slim model with the channels as labels: only slots of one channel may meet."""
        channel = components(self.trace.space)
        frozen = np.zeros(int(channel.max()) + 1, bool)
        frozen[channel[list(self.trace.space.reasons)]] = True
        second = Trace(LabelSpace(count=frozen.size), {}, {})
        second.tensors = _slim_labels(self.trace, structure, kept, channel)
        try:
            model = self.slim(structure, kept)
        except Exception as error:
            # Not the user's code: surgery does not know a module of this kind, so its channels stay.
            logger.warning("a slim model cannot be built: %s: %s; its channels stay", type(error).__name__, error)
            return _Failure(
                f"no slim model can be built ({type(error).__name__}: {_first_line(error)})", raised=True
            ), []
        try:
            _, output = run_labelled(model, self.args, self.kwargs, second, record=False, freeze_outputs=False)
        except Exception as error:
            # Whatever the user's code raises with fewer channels: it does not adapt.
            module = getattr(error, "_channelwise_module", "")
            text = f"with fewer channels the model's code raises {type(error).__name__}: {_first_line(error)}"
            return _Failure(text, frozenset(_asked_in(self.trace, structure, module)), True, module), []
        a, b = second.space.all_pairs()
        known = np.concatenate([frozen, np.ones(max(second.space.count - frozen.size, 0), bool)])
        wrong = (a != b) & ~(known[a] & known[b])
        if wrong.any():
            guilty = np.unique(np.concatenate([a[wrong], b[wrong]]))
            membership = _Membership(self.trace, structure)
            names = membership.names_of(membership.of_channel[guilty[guilty < frozen.size]])
            return _Failure("with fewer channels other channels meet than before", frozenset(names)), output
        return None, output

    def _guilty(self, structure: Structure, names: Sequence[str], failure: _Failure) -> list[str]:
        """The groups that make the check fail, found by bisection among the suspects first."""
        suspects = [n for n in names if n in failure.suspects]
        known = {"fails": len(suspects) == len(names), "likely": True}
        if suspects and (found := self._bisect(structure, suspects, **known)):
            return found
        return self._bisect(structure, names, fails=True)

    def _bisect(self, structure: Structure, names: Sequence[str], fails: bool, likely: bool = False) -> list[str]:
        """Groups among these that make the check fail.

        ``fails``: it is known to fail with all of them pruned; ``likely``: that is assumed until one is left.
        """
        if not fails and not (likely and len(names) > 1):
            if self.check(structure, names) is None:
                return []
            fails = True
        if len(names) == 1:
            return list(names)
        half = len(names) // 2
        found = self._bisect(structure, names[:half], fails=False)
        found += self._bisect(structure, names[half:], fails=False, likely=not found)
        return found if found or not fails else [self._last_of_several(structure, names)]

    def _last_of_several(self, structure: Structure, names: Sequence[str]) -> str:
        """The check fails with all of these but with neither half: the one that completes the first failing run."""
        passes, fails = len(names) // 2, len(names)
        while fails - passes > 1:
            middle = (passes + fails) // 2
            if self.check(structure, names[:middle]) is None:
                passes = middle
            else:
                fails = middle
        return names[fails - 1]

    def _ban(self, structure: Structure, name: str, question: Question, text: str) -> tuple[np.ndarray, Reason]:
        asked = question.reason
        return group_labels(self.trace, structure.group(name)), Reason(
            asked.operation, asked.module, f"{asked.text}, and {text}", Cause.CODE
        )


def _sites(trace: Trace) -> dict[int, Site]:
    """The site of every question, by the question's id."""
    counts: Counter[str] = Counter()
    found = {}
    for question in trace.space.questions:
        module = question.reason.module
        found[id(question)] = (trace.types.get(module, module), counts[module])
        counts[module] += 1
    return found


class _Membership:
    """Which group every label is in."""

    def __init__(self, trace: Trace, structure: Structure) -> None:
        channel = components(trace.space)
        group_of = np.full(int(channel.max()) + 1, -1)
        for number, group in enumerate(structure.groups):
            slots = group.slots[0]
            axis = trace.tensors[slots.tensor].axes[slots.axis]
            assert axis is not None
            group_of[channel[axis[slots.index[:, 0]]]] = number
        self.names = [group.name for group in structure.groups]
        self.of_channel, self.of_label = group_of, group_of[channel]

    def names_of(self, groups: np.ndarray) -> set[str]:
        """The names of groups, given by their numbers; -1 is none."""
        return {self.names[k] for k in np.unique(groups).tolist() if k >= 0}


def _asked(trace: Trace, structure: Structure) -> Asked:
    """The groups touched by questions."""
    membership = _Membership(trace, structure)
    found: Asked = {}
    for question in trace.space.questions:
        for name in membership.names_of(membership.of_label[question.labels]):
            found.setdefault(name, []).append(question)
    return found


def _asked_in(trace: Trace, structure: Structure, module: str) -> set[str]:
    """The groups touched by questions of a module."""
    asked = [q.labels for q in trace.space.questions if q.reason.module == module]
    membership = _Membership(trace, structure)
    return membership.names_of(membership.of_label[np.concatenate(asked)]) if asked else set()


def half(structure: Structure, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Remove the first and the last channel and a third to a half of the others, so that any fixed number shows.

    Numbers that adapt (half of the width, a quarter) are right only for selections that are balanced, which a user's
    is not. So most of what stays is in the upper half, and groups lose differently many: code may need two groups to
    keep as many channels without saying so.
    """
    wanted = set(names)
    random = np.random.default_rng(0)
    kept = {}
    for position, group in enumerate(structure.groups):
        indices = np.arange(group.size)
        # Multiples of the golden ratio: neighbours, which are the ones that meet, are far apart.
        share = 0.5 + 0.2 * (position * 0.618034 % 1)
        kept[group.name] = _half_of(group, random, share) if group.name in wanted else indices
    return kept


def _half_of(group: Group, random: np.random.Generator, share: float) -> np.ndarray:
    parts = np.zeros(group.size, int) if group.parts is None else group.parts
    chosen = []
    for part in np.unique(parts):
        members = np.flatnonzero(parts == part)
        inner = members[1:-1] if members.size > 2 else members[1:]
        count = min(max(int(members.size * share), 1), inner.size)
        upper = inner[-(count + 1) :]
        chosen.append(random.choice(upper, count, replace=False))
    return np.sort(np.concatenate(chosen))


def _slim_labels(trace: Trace, structure: Structure, kept: Kept, channel: np.ndarray) -> dict[str, TensorLabels]:
    """For every tensor of the slim model, the channel of each of its slots."""
    stays = np.ones(int(channel.max()) + 1, bool)
    for group in structure.groups:
        removed = np.setdiff1d(np.arange(group.size), kept[group.name])
        slots = group.slots[0]
        axis = trace.tensors[slots.tensor].axes[slots.axis]
        assert axis is not None
        stays[channel[axis[slots.index[removed, 0]]]] = False
    found = {}
    for name, labels in trace.tensors.items():
        axes: list[np.ndarray | None] = []
        shape = list(labels.info.shape)
        for number, axis in enumerate(labels.axes):
            mine = None if axis is None else channel[axis][stays[channel[axis]]]
            if mine is not None:
                shape[number] = mine.size // (labels.info.blocks if number == 1 else 1)
            axes.append(mine if shape[number] > 1 else None)
        info = labels.info
        found[name] = TensorLabels(
            type(info)(name, tuple(shape), info.is_parameter, info.module, info.blocks), tuple(axes)
        )
    return found


def run_once(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The outputs of the model in eval mode, in which it is left; the random state stays as it is."""
    with torch.no_grad(), undisturbed_randomness(tensors_in([list(args), dict(kwargs)])):
        torch.manual_seed(0)
        return output_tensors(model.eval()(*args, **kwargs))


def difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> str | None:
    """What differs between two lists of outputs, or None."""
    if len(found) != len(expected):
        return "with fewer channels there are other outputs"
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            return f"with fewer channels an output has the shape {tuple(a.shape)} instead of {tuple(b.shape)}"
        if not a.is_floating_point():
            continue
        a, b = a.double(), b.double()
        finite = a.isfinite() & b.isfinite()
        if not finite.any():
            continue
        scale = b[finite].abs().max().item() + 1e-12
        if (a[finite] - b[finite]).abs().max().item() > _tolerance(found) * scale:
            return "with fewer channels the output is not that of the model with these channels set to zero"
    return None


def _tolerance(outputs: Sequence[torch.Tensor]) -> float:
    """Relative to the largest output; rounding in narrow types must not look like a mismatch."""
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in outputs)
    return 0.1 if half else 2e-3


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:160]
