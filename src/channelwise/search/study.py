"""A search that lasts: asks a strategy for candidates, records their scores, and goes on where it was interrupted."""

from __future__ import annotations

import logging
import os
import time
import weakref
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from channelwise.errors import InvalidArgumentError
from channelwise.io.process import Process, this_process
from channelwise.search.proposal import new_counts
from channelwise.search.records import new_trial, read_trial, told
from channelwise.search.results import Key, SearchResults, State, Trial
from channelwise.search.signs import BEAT_SECONDS, Signs
from channelwise.search.space import Space
from channelwise.search.storage import Storage
from channelwise.search.strategy import Request, Strategy
from channelwise.search.trials import Trials
from channelwise.select.widths import is_number

log = logging.getLogger(__name__)

Prior = np.ndarray | Sequence[float] | Mapping[str, int]
Describe = Callable[[Mapping[str, int]], Mapping[str, Any]]

_STUDIES: weakref.WeakSet[SearchStudy] = weakref.WeakSet()
"""The searches of this process."""


@dataclass(frozen=True)
class Candidate:
    """A candidate to evaluate. ``counts``: kept channels by group; ``notes``: what ``describe`` said of it."""

    number: int
    counts: Mapping[str, int]
    notes: Mapping[str, Any]


class SearchStudy:
    """The open loop of a search: `ask` for a candidate, evaluate it, `tell` its score.

    Made by `open_study`. With one worker the candidates depend on nothing but the seed, the scores and the arguments,
    however often the search was interrupted.
    """

    def __init__(
        self,
        storage: Storage,
        study_id: int,
        key: Key,
        space: Space,
        strategy: Strategy,
        *,
        seed: int,
        priors: Sequence[Prior],
        budget: int,
        describe: Describe | None,
    ) -> None:
        self.key = key
        self.space = space
        self.exhausted = False
        self._storage, self._id, self._strategy = storage, study_id, strategy
        self._seed, self._budget, self._describe = seed, budget, describe
        self._sizes = space.sizes
        self._priors = _different([space.candidate(prior) for prior in priors])
        self._trials = Trials(space, key)
        self._ids: dict[int, int] = {}
        self._mine: set[int] = set()
        self._unread = 0
        _STUDIES.add(self)
        self._read()
        self._signs = Signs(storage, study_id)
        self._again: deque[Trial] = deque(self._orphans())
        self._mention_others(logging.INFO)

    @property
    def results(self) -> SearchResults:
        """What has been found so far."""
        return SearchResults(self.key, dict(self._trials.by_number), self._storage.where)

    @property
    def complete(self) -> int:
        """How many candidates have a score so far."""
        return len(self._trials.finished)

    @property
    def best(self) -> Trial | None:
        """The candidate with the best score so far; `results` takes longer, the longer the search is."""
        return self._trials.best

    def suggest(self, priors: Sequence[Prior]) -> None:
        """Further candidates that a guided strategy is to have evaluated first, see `Space.candidate`."""
        self._priors = _different([*self._priors, *map(self.space.candidate, priors)])

    def ask(self) -> Candidate | None:
        """The next candidate; those that nobody works on any more come first.

        None when the search has ``budget`` candidates, or when no other meets the targets (``exhausted`` is then set).
        """
        while True:
            if self._storage.shared:
                self._read()
                self._again = deque(self._orphans())
            while self._again:
                trial = self._again.popleft()
                taken = self._taken_over(trial) if self._storage.shared else trial
                if taken is not None:
                    self._mine.add(taken.number)
                    return Candidate(taken.number, taken.counts, taken.notes)
            if len(self._trials.by_number) >= self._budget:
                return None
            counts = new_counts(self._strategy, self._request(), self._priors, self._trials.counts)
            if counts is None:
                self.exhausted = True
                log.warning(
                    "No other candidate meets the targets: the search ends with %d instead of %d. A smaller "
                    "channel_divisible or fewer excludes leave more choice.", len(self._trials.by_number), self._budget
                )  # fmt: skip
                return None
            named = self.space.named(counts)
            notes = dict(self._describe(named)) if self._describe is not None else {}
            added = self._add(counts, notes)
            if added is not None:
                return Candidate(added.number, added.counts, added.notes)

    def tell(
        self, number: int, score: float | None = None, *, seconds: float | None = None, error: str | None = None
    ) -> Trial | None:
        """Record the score of a candidate, or with ``error`` that its evaluation failed: it is not repeated.

        Returns:
            The candidate as it is now; None if another process has taken it over.

        Raises:
            InvalidArgumentError: not a candidate being evaluated, or the score is not a finite number.
            ResultsFileError: it cannot be written.
        """
        trial = self._trials.by_number.get(number)
        if trial is None or trial.state != "running":
            raise InvalidArgumentError(f"There is no candidate {number} that is being evaluated.")
        if (score is None) == (error is None):
            raise InvalidArgumentError("Tell either the score of a candidate or the error that it ended with.")
        if score is not None and not (is_number(score) and np.isfinite(score)):
            raise InvalidArgumentError(f"The score of candidate {number} must be a finite number, not {score!r}.")
        state: State = "failed" if score is None else "complete"
        score = None if score is None else float(score)
        ended = replace(trial, state=state, score=score, seconds=seconds, error=error)
        with self._storage.errors():
            trial_id = self._trial_id(number)
            try:
                self._storage.end_trial(trial_id, score, told(ended))
            except UpdateFinishedTrialError:
                log.warning("Another process has taken over candidate %d; its score is dropped here.", number)
                self._mine.discard(number)
                return None
            self._storage.sync()
        self._mine.discard(number)
        self._trials.keep(ended)
        return ended

    def left_by_others(self) -> bool:
        """Whether there are candidates to ask for that other processes had begun.

        Waits until every other process has told its candidates or shown a sign of life, or has been silent for so long
        that it is taken for dead (`signs.SILENT_SECONDS`).
        """
        if not self._storage.shared:
            return False
        began = time.monotonic()
        while True:
            self._read()
            if self._orphans():
                return True
            if all(self._signs.shown_since(process, began) for process in self._living()):
                self._mention_others(logging.WARNING)
                return False
            time.sleep(min(1.0, BEAT_SECONDS / 4))

    def release(self) -> None:
        """Let others evaluate what this process has begun and not told."""
        self._signs.end()
        mine = sorted(self._mine)
        self._mine.clear()
        for number in mine if self._storage.shared else ():
            # Whatever another process has taken over is no longer ours to release.
            with self._storage.errors(), suppress(UpdateFinishedTrialError):
                self._storage.optuna.set_trial_user_attr(self._trial_id(number), "owner", None)

    def _request(self) -> Request:
        priors = [self.space.encode(counts) for counts in self._priors]
        return Request(
            space=self.space,
            finished=tuple(self._trials.finished),
            running=tuple(self._trials.known_running()),
            priors=np.stack(priors) if priors else np.empty((0, self.space.dims)),
            number=self._trials.last + 1,
            seed=self._seed,
            budget=self._budget,
        )

    def _add(self, counts: np.ndarray, notes: Mapping[str, Any]) -> Trial | None:
        """Record a candidate as running; None if other processes were faster with the same one, or with the last."""
        named, shares = self.space.named(counts), self.space.shares(counts)
        trial = self._create(Trial(-1, "running", named, shares=shares, notes=notes))
        if self._storage.shared:
            self._read()
            earlier = sum(number < trial.number for number in self._trials.by_number)
            if earlier >= self._budget or self._trials.repeats(trial):
                self._withdraw(trial)
                return None
        return trial

    def _create(self, trial: Trial) -> Trial:
        """Store a new running trial, in one transaction."""
        owner = this_process() if self._storage.shared else None
        if owner is not None:
            self._signs.show()
        # Of a storage that nobody else writes to, the next number is known, and asking costs milliseconds.
        number = self._trials.last + 1
        with self._storage.errors():
            shares = {name: trial.counts[name] / self._sizes[name] for name in self.space.free}
            trial_id = self._storage.add_trial(self._id, number, new_trial(trial, owner), shares)
            if self._storage.shared:
                number = self._storage.optuna.get_trial_number_from_id(trial_id)
        self._ids[number] = trial_id
        created = replace(trial, number=number, owner=owner)
        self._trials.keep(created)
        self._mine.add(number)
        return created

    def _withdraw(self, trial: Trial) -> bool:
        """Strike out a running trial; False if it has ended, or somebody else has done so."""
        with self._storage.errors():
            try:
                self._storage.optuna.set_trial_state_values(self._trial_id(trial.number), TrialState.PRUNED)
            except UpdateFinishedTrialError:
                return False
        self._trials.forget(trial.number)
        self._mine.discard(trial.number)
        return True

    def _taken_over(self, trial: Trial) -> Trial | None:
        """A new trial in the place of one that nobody works on; None if somebody else was faster."""
        if not self._withdraw(trial):
            return None
        if trial.owner is not None:
            log.warning("Candidate %d is evaluated again: %s no longer works on it.", trial.number, trial.owner)
        return self._create(replace(trial, owner=None))

    def _running(self) -> list[Trial]:
        """Unfinished trials that are not of this study object."""
        return [trial for trial in self._trials.running() if trial.number not in self._mine]

    def _orphans(self) -> list[Trial]:
        """Unfinished trials on which nobody works. A file that is held has no other process at work."""
        if not self._storage.shared:
            return self._running()
        living = self._living()
        return [trial for trial in self._running() if trial.owner not in living or self._left_behind(trial)]

    def _living(self) -> dict[Process, list[int]]:
        """The other processes at work, as far as is known, and the numbers of their candidates."""
        running: dict[Process, list[int]] = {}
        for trial in self._running():
            if trial.owner is not None and not self._left_behind(trial):
                running.setdefault(trial.owner, []).append(trial.number)
        if not running:
            return running
        self._signs.look()
        me = this_process()
        return {p: numbers for p, numbers in running.items() if not (me.knows_ended(p) or self._signs.silent(p))}

    def _left_behind(self, trial: Trial) -> bool:
        """Whether a search of this process that has ended had begun it and could not say so."""
        if trial.owner is None or trial.owner.pid != os.getpid() or trial.owner != this_process():
            return False
        return not any(trial.number in study._mine for study in _STUDIES if study._id == self._id)

    def _mention_others(self, level: int) -> None:
        for process, numbers in self._living().items():
            shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
            log.log(level, "Candidates that others evaluate: %d by %s (%s).", len(numbers), process, shown)

    def _read(self) -> None:
        """Learn what is in the storage."""
        with self._storage.errors():
            stored = self._storage.optuna.get_all_trials(self._id, deepcopy=False)
        # They are in order of number, and of those read before only the unfinished can have changed.
        old = [bisect_left(stored, number, key=_number) for number in self._trials.unfinished]
        new = range(bisect_left(stored, self._unread, key=_number), len(stored))
        for frozen in (stored[place] for place in (*old, *new)):
            self._trials.last = max(self._trials.last, frozen.number)
            known = self._trials.by_number.get(frozen.number)
            if known is not None and known.state != "running":
                continue
            trial = read_trial(frozen, self._sizes, self._storage.where)
            if trial is not None:
                self._trials.keep(trial)
            elif known is not None:
                self._trials.forget(frozen.number)
        self._unread = stored[-1].number + 1 if stored else 0

    def _trial_id(self, number: int) -> int:
        if number not in self._ids:
            self._ids[number] = self._storage.optuna.get_trial_id_from_study_id_trial_number(self._id, number)
        return self._ids[number]


def _number(trial: FrozenTrial) -> int:
    return trial.number


def _different(counts: Sequence[np.ndarray]) -> list[np.ndarray]:
    return list({tuple(c.tolist()): c for c in counts}.values())
