"""The candidates known of a search, kept so that a search of thousands is as fast as one of tens."""

from __future__ import annotations

from bisect import insort
from collections import Counter

from channelwise.search.results import Key, Trial
from channelwise.search.space import Space
from channelwise.search.strategy import Known


class Trials:
    """Trials by number, and what strategies ask of them.

    ``last``: the largest number so far. ``unfinished``: the numbers of running trials. ``finished``: those
    with a score, in order of number. ``counts``: how many trials have these counts, in order of the groups.
    """

    def __init__(self, space: Space, key: Key) -> None:
        self._space, self._key = space, key
        self.by_number: dict[int, Trial] = {}
        self.last = -1
        self.unfinished: set[int] = set()
        self.finished: list[Known] = []
        self.counts: Counter[tuple[int, ...]] = Counter()

    def keep(self, trial: Trial) -> None:
        """Take note of a trial that is new, or has been unfinished."""
        self.last = max(self.last, trial.number)
        if trial.number not in self.by_number:
            self.counts[self._ordered(trial)] += 1
        self.by_number[trial.number] = trial
        if trial.state == "running":
            self.unfinished.add(trial.number)
            return
        self.unfinished.discard(trial.number)
        if trial.score is not None:
            known = Known(trial.number, self._space.encode(trial.counts), self._key.merit(trial.score))
            insort(self.finished, known, key=lambda other: other.number)

    def forget(self, number: int) -> None:
        """Take a trial that has been unfinished for one that never was."""
        self.unfinished.discard(number)
        counts = self._ordered(self.by_number.pop(number))
        self.counts[counts] -= 1
        if not self.counts[counts]:
            del self.counts[counts]

    def running(self) -> list[Trial]:
        """The unfinished trials, in order of their numbers."""
        return [self.by_number[number] for number in sorted(self.unfinished)]

    def known_running(self) -> list[Known]:
        """The same, as strategies see them."""
        return [Known(trial.number, self._space.encode(trial.counts)) for trial in self.running()]

    def repeats(self, trial: Trial) -> bool:
        """Whether a trial with a smaller number has the same counts."""
        return self.counts[self._ordered(trial)] > 1 and any(
            other.counts == trial.counts for number, other in self.by_number.items() if number < trial.number
        )

    def _ordered(self, trial: Trial) -> tuple[int, ...]:
        return tuple(trial.counts[name] for name in self._space.names)
