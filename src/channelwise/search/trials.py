"""The candidates known of a search, kept so that a search of thousands is as fast as one of tens."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from dataclasses import replace

from channelwise.search.results import Key, Trial
from channelwise.search.space import Space
from channelwise.search.strategy import Known


class Trials:
    """Trials by number, and what strategies ask of them.

    ``last``: the largest number so far. ``unfinished``: the numbers of running trials. ``finished``: those
    with a score, in order of number. ``best``: the one with the best score, of equal ones the earliest. ``counts``: how
    many trials have these counts, in order of the groups.
    """

    def __init__(self, space: Space, key: Key) -> None:
        self._space, self._key = space, key
        self.by_number: dict[int, Trial] = {}
        self.last = -1
        self.unfinished: set[int] = set()
        self.finished: list[Known] = []
        self.best: Trial | None = None
        self._running: dict[int, Known] = {}
        self.counts: Counter[tuple[int, ...]] = Counter()

    def keep(self, trial: Trial) -> None:
        """Take note of a trial that is new, or has been unfinished."""
        self.last = max(self.last, trial.number)
        if trial.number not in self.by_number:
            self.counts[self._ordered(trial)] += 1
        self.by_number[trial.number] = trial
        known = self._running.pop(trial.number, None) or Known(trial.number, self._space.encode(trial.counts))
        if trial.state == "running":
            self.unfinished.add(trial.number)
            self._running[trial.number] = known
            return
        self.unfinished.discard(trial.number)
        if trial.score is not None:
            merit = self._key.merit(trial.score)
            insort(self.finished, replace(known, merit=merit), key=lambda other: other.number)
            if self.best is None or (-merit, trial.number) < (
                -self._key.merit(self.best.score or 0.0),
                self.best.number,
            ):
                self.best = trial

    def forget(self, number: int) -> None:
        """Take a trial that has been unfinished for one that never was."""
        self.unfinished.discard(number)
        self._running.pop(number, None)
        counts = self._ordered(self.by_number.pop(number))
        self.counts[counts] -= 1
        if not self.counts[counts]:
            del self.counts[counts]

    def running(self) -> list[Trial]:
        """The unfinished trials, in order of their numbers."""
        return [self.by_number[number] for number in sorted(self.unfinished)]

    def known_running(self) -> list[Known]:
        """The same, as strategies see them."""
        return [known for _, known in sorted(self._running.items())]

    def repeats(self, trial: Trial) -> bool:
        """Whether a trial with a smaller number has the same counts."""
        return self.counts[self._ordered(trial)] > 1 and any(
            other.counts == trial.counts for number, other in self.by_number.items() if number < trial.number
        )

    def _ordered(self, trial: Trial) -> tuple[int, ...]:
        return tuple(trial.counts[name] for name in self._space.names)
