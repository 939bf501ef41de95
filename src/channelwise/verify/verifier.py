"""Find out by trying whether the user's code adapts: prune questioned groups, run again; correct it or freeze them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from channelwise.solve.build import build, group_labels
from channelwise.structure import Cause, Reason, Structure
from channelwise.tracing.labels import Question
from channelwise.tracing.recording import Candidate, Followed, SameWidth, Trace
from channelwise.verify.questions import Asked, Membership, Site, asked_of, sites_of
from channelwise.verify.tryout import Failure, Tryout

logger = logging.getLogger(__name__)

_Attempt = tuple[Structure, Asked, Failure | None]
"""A structure, its groups with questions, and what went wrong with all of them pruned."""

_NUMBERS_OF_HEADS = ("num_heads", "heads", "n_heads", "nhead", "num_attention_heads")
"""Attributes that stand for groups of channels in all classes, so that no failure needs to show that they follow."""

_Join = tuple[int, int]
"""Two runs of labels that were joined, by their ids."""


@dataclass(frozen=True)
class Verifier:
    """Answers the questions of a trace by trying pruned models out."""

    trace: Trace
    tryout: Tryout

    def run(self) -> Structure:
        """The structure in which every questioned group has been seen to adapt, or is frozen with the reason.

        Where code does not adapt, numbers that its modules keep are made to follow the channels first, for all modules
        of a class. Then channels go together whose numbers the code takes to be equal, then numbers follow that no
        operation saw. Only if nothing helps do channels stay.
        """
        banned: list[tuple[np.ndarray, Reason]] = []
        following = {(c.cls, c.attribute) for c in self.trace.candidates if c.attribute in _NUMBERS_OF_HEADS}
        tried = set(following)
        doubtful: set[Followed] = set()
        joined: set[_Join] = set()
        sites = sites_of(self.trace)
        met: set[frozenset[Site]] = set()
        structure, asked, failure = self._attempt(banned, following)
        while failure is not None:
            attempt, more = self._with_more_numbers(following, failure, asked, tried)
            if attempt is None:
                attempt = self._with_joined_widths(structure, following, failure, asked, joined)
                if attempt is not None:
                    logger.debug("verification: equally wide channels go together now: %s", failure.text)
                    structure, asked, failure = attempt
                    # What did not help before may now.
                    tried = set(following)
                    continue
                attempt, more = self._with_more_numbers(following, failure, asked, tried, compared=True)
            if attempt is not None:
                logger.debug("verification: %s follow the channels now: %s", more, failure.text)
                structure, asked, failure = attempt
                following |= more
                doubtful |= more if len(more) > 1 else set()
                continue
            # Where the same code failed in another module of its class, a failure here is not another story.
            places = {name: frozenset(sites[id(question)] for question in asked[name]) for name in asked}
            again = [name for name in asked if places[name] in met]
            guilty = again if failure.suspects & set(again) else self.tryout.guilty(structure, sorted(asked), failure)
            met |= {places[name] for name in guilty}
            logger.debug("verification: %s because of %s", sorted(guilty), failure.text)
            banned = [self._ban(structure, name, asked[name][-1], failure.text) for name in guilty]
            structure, asked, failure = self._attempt(banned, following, failure)
        return self._fewest(structure, following, doubtful)

    def _with_more_numbers(
        self, following: set[Followed], failure: Failure, asked: Asked, tried: set[Followed], compared: bool = False
    ) -> tuple[_Attempt | None, set[Followed]]:
        """An attempt in which this failure is gone as more numbers follow, and these numbers; those are now tried.

        ``compared``: numbers that no operation saw.
        """
        among = self.trace.compared if compared else self.trace.candidates
        likely, all_of_them = (self._keepers(failure, asked, among, alone) for alone in (False, True))
        for numbers in (likely, all_of_them):
            if numbers <= tried:
                continue
            more = numbers - tried if numbers is likely else numbers
            tried |= numbers
            attempt = self._attempt((), following | more, failure)
            if attempt[2] is None or (attempt[2].text, attempt[2].module) != (failure.text, failure.module):
                return attempt, more
        return None, set()

    def _with_joined_widths(
        self, structure: Structure, following: set[Followed], failure: Failure, asked: Asked, tried: set[_Join]
    ) -> _Attempt | None:
        """An attempt in which this failure is gone as channels that must be equally many go together, index by index.

        ``x.reshape(n, t, c)`` with the ``c`` of another tensor is right as long as both keep equally many; so is code
        in which one number stands for several runs of channels.
        """
        classes = {self.trace.types[place] for place in self._places(failure, asked) if place in self.trace.types}
        by_number = [
            SameWidth(c.module, c.labels, other)
            for c in self.trace.candidates
            if (c.cls, c.attribute) in following and {c.cls, self.trace.types[c.seen]} & classes
            for other in c.others
        ]
        by_size = [same for same in self.trace.same_widths if self.trace.types[same.module] in classes]
        ways = [by_number, by_size, by_number + by_size]
        alive = Membership(self.trace, structure).of_label >= 0
        # Joined with what stays, an axis of space that is as long as there are heads for example, channels stay, too.
        free = [[same for same in pairs if alive[same.read].any() and alive[same.given].any()] for pairs in ways]
        for pairs in (*free, *ways):
            joins = {(id(same.read), id(same.given)) for same in pairs}
            if joins <= tried:
                continue
            attempt = self._joined(pairs, following, failure)
            if attempt is not None:
                tried |= joins
                return attempt
        tried |= {(id(same.read), id(same.given)) for same in by_number + by_size}
        return None

    def _joined(self, pairs: Sequence[SameWidth], following: set[Followed], failure: Failure) -> _Attempt | None:
        """An attempt with these runs joined; None, and all as before, if they had to stay or the failure was there."""
        space = self.trace.space
        before = len(space.pairs)
        for same in pairs:
            space.join(same.read, same.given)
        attempt = self._attempt((), following, failure)
        alive = Membership(self.trace, attempt[0]).of_label
        if any((alive[same.read] >= 0).any() for same in pairs) and not failure.is_like(attempt[2]):
            return attempt
        del space.pairs[before:]
        space.solved = None
        return None

    def _attempt(
        self,
        banned: Sequence[tuple[np.ndarray, Reason]],
        following: Collection[Followed],
        before: Failure | None = None,
    ) -> _Attempt:
        """The structure, its groups with questions, and what went wrong with all of them pruned.

        ``before``: what went wrong in the last attempt, which is tried first.
        """
        structure = build(self.trace, banned, following)
        asked = asked_of(self.trace, structure)
        first = None if before is None else before.trial
        return structure, asked, self.tryout.check(structure, sorted(asked), first) if asked else None

    def _fewest(self, structure: Structure, following: set[Followed], doubtful: set[Followed]) -> Structure:
        """The same without numbers that just happen to be as large as a number of channels.

        ``doubtful``: those that follow since a failure, which was gone then, but not for any of them alone.
        """
        known = {(self.trace.types[number.module], number.attribute) for number in structure.numbers}
        for one in sorted(doubtful & known, key=str):
            trial, _, failure = self._attempt((), following - {one})
            if failure is None:
                structure, following = trial, following - {one}
        return structure

    def _keepers(self, failure: Failure, asked: Asked, among: Sequence[Candidate], alone: bool) -> set[Followed]:
        """The numbers that may be the reason of a failure: of modules where it was raised, or questions are from.

        ``alone``: also those that may be in a tuple by chance.
        """
        places = self._places(failure, asked)
        if failure.raised:
            path = failure.module.split(".")
            places |= {".".join(path[:depth]) for depth in range(len(path))}
        return {(c.cls, c.attribute) for c in among if c.seen in places and alone >= c.alone}

    def _places(self, failure: Failure, asked: Asked) -> set[str]:
        """The module where the code raised, else those that the questions about the suspects are from."""
        if failure.raised:
            return {failure.module}
        return {asked[name][-1].reason.module for name in failure.suspects & set(asked) or set(asked)}

    def _ban(self, structure: Structure, name: str, question: Question, text: str) -> tuple[np.ndarray, Reason]:
        asked = question.reason
        return group_labels(self.trace, structure.group(name)), Reason(
            asked.operation, asked.module, f"{asked.text}, and {text}", Cause.CODE
        )
