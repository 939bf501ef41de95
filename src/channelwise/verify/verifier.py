"""Does the user's code adapt? Questioned groups are pruned, programs compared, and what does not adapt is frozen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from channelwise.solve.build import Ban, Solution, build, group_labels
from channelwise.structure import Cause, Reason, part_size
from channelwise.tracing.recording import Trace
from channelwise.verify.questions import Asked, Site, asked_of, sites_of
from channelwise.verify.trial import Failure, Trials

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verifier:
    """Answers the questions of a trace by running slim models."""

    trace: Trace
    trials: Trials

    def run(self) -> tuple[Solution, list[Ban]]:
        """The solution in which every questioned group has been seen to adapt, and what had to stay for that."""
        bans: list[Ban] = []
        sites = sites_of(self.trace)
        met: set[frozenset[Site]] = set()
        failure: Failure | None = None
        while True:
            solution = build(self.trace, bans)
            asked = asked_of(self.trace, solution)
            failure = self.trials.check(solution, sorted(asked), failure.trial if failure else None)
            if failure is None:
                return solution, bans
            # Where the same code failed in another module of its class, a failure here is not another story.
            places = {name: frozenset(sites[id(question)] for question in asked[name]) for name in asked}
            again = [name for name in asked if places[name] in met]
            names = sorted({*asked, *(g.name for g in solution.structure.groups if part_size(g) > 2)})
            guilty = again if failure.suspects & set(again) else self._guilty(solution, names, failure)
            met |= {places[name] for name in guilty if name in places}
            logger.debug("verification: %s because of %s", sorted(guilty), failure.text)
            bans += [self._ban(solution, asked, name, failure.text) for name in guilty]

    def _guilty(self, solution: Solution, names: Sequence[str], failure: Failure) -> list[str]:
        """The groups that make the check fail, found by bisection among the suspects first."""
        suspects = [name for name in names if name in failure.suspects]
        if suspects:
            found = self._bisect(solution, suspects, failure, fails=len(suspects) == len(names), likely=True)
            if found:
                return found
        return self._bisect(solution, names, failure, fails=True)

    def _bisect(
        self, solution: Solution, names: Sequence[str], failure: Failure, *, fails: bool, likely: bool = False
    ) -> list[str]:
        """Groups among these that make the check fail.

        ``fails``: it is known to fail with all of them pruned; ``likely``: that is assumed until one is left.
        """
        if not fails and not (likely and len(names) > 1):
            if self.trials.check_in(failure.trial, solution, names) is None:
                return []
            fails = True
        if len(names) == 1:
            return list(names)
        half = len(names) // 2
        found = self._bisect(solution, names[:half], failure, fails=False)
        found += self._bisect(solution, names[half:], failure, fails=False, likely=not found)
        return found if found or not fails else [self._last_of_several(solution, names, failure)]

    def _last_of_several(self, solution: Solution, names: Sequence[str], failure: Failure) -> str:
        """The check fails with all of these but with neither half: the one that completes the first failing run."""
        passes, fails = len(names) // 2, len(names)
        while fails - passes > 1:
            middle = (passes + fails) // 2
            if self.trials.check_in(failure.trial, solution, names[:middle]) is None:
                passes = middle
            else:
                fails = middle
        return names[fails - 1]

    def _ban(self, solution: Solution, asked: Asked, name: str, text: str) -> Ban:
        labels = group_labels(self.trace, solution.structure.group(name))
        if name not in asked:
            return labels, Reason("code", "", text, Cause.CODE)
        question = asked[name][-1].reason
        return labels, Reason(question.operation, question.module, f"{question.text}, and {text}", Cause.CODE)
