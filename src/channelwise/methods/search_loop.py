"""The loop of a search: asks for candidates as workers become free, tells their scores, and stops when all fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from channelwise.errors import EvaluationError, ResultsFileError
from channelwise.execution import Executor, Result, Task
from channelwise.methods.arguments import plural
from channelwise.progress import progress
from channelwise.search import Candidate, SearchStudy, Trial

log = logging.getLogger(__name__)

FAILURES = 10
"""So many failed candidates in a row end a search: something is wrong with more than the candidates."""
EQUAL = 5
"""So many candidates with one and the same score are said to be suspicious."""


class SearchRun:
    """Evaluates what is missing of a study up to ``budget`` candidates. Finished ones stay, whatever ends the run.

    ``payload``: what the job gets of a candidate. ``status``: called with every complete candidate, and returns what
    else is shown of the progress.
    """

    def __init__(
        self,
        study: SearchStudy,
        budget: int,
        *,
        payload: Callable[[Candidate], Any],
        quiet: bool,
        status: Callable[[Trial], str] | None = None,
    ) -> None:
        self._study, self._budget, self._quiet = study, budget, quiet
        self._more, self._said = status, ""
        self._payload = payload
        self._numbers: dict[str, int] = {}
        # Failures in a row, not recorded yet: if nothing works, they are to be repeated once that is corrected.
        self._failed: list[Result] = []

    @property
    def missing(self) -> int:
        """Candidates to be evaluated, if no other process takes part."""
        results = self._study.results
        return max(0, self._budget - len(results.complete) - len(results.failed))

    def mention(self) -> None:
        """Say what an earlier run has left to do."""
        results = self._study.results
        finished = len(results.complete) + len(results.failed)
        if not self.missing:
            log.info(
                "The search in %s has %s, nothing is evaluated again; a larger number adds candidates, forced=True "
                "begins anew.", self._where, plural(finished, "candidate")
            )  # fmt: skip
        elif finished:
            log.info("Going on with %s: %s missing.", self._where, plural(self.missing, "candidate"))

    def evaluate(self, executor_for: Callable[[int], Executor]) -> None:
        """Evaluate them; ``executor_for`` makes an executor for so many tasks.

        Raises:
            EvaluationError: no candidate has worked yet and one failed, or too many failed in a row.
        """
        missing = self.missing
        if self._more is not None:
            for trial in self._study.results.complete:
                self._said = self._more(trial)
        executor = executor_for(missing)
        try:
            with progress(
                f"Searching {self._study.key.model}", self._budget, done=self._budget - missing, quiet=self._quiet
            ) as advance:
                more = True
                while more:
                    for result in executor.run(self._tasks()):
                        self._tell(result)
                        advance(self._status())
                    self._record_failures()
                    more = self._study.left_by_others()
        except KeyboardInterrupt:
            log.warning("Interrupted. %s", self._so_far())
            raise
        except ResultsFileError:  # it says what is kept
            raise
        except Exception:
            log.warning("%s", self._so_far())
            raise
        finally:
            executor.close()
        self._conclude()

    def _tasks(self) -> Iterator[Task]:
        while (candidate := self._study.ask()) is not None:
            label = f"candidate {candidate.number}"
            self._numbers[label] = candidate.number
            yield Task(label, self._payload(candidate))

    def _tell(self, result: Result) -> None:
        if result.error is None:
            self._record_failures()
            trial = self._study.tell(self._numbers.pop(result.task.label), result.score, seconds=result.seconds)
            if trial is not None and self._more is not None:
                self._said = self._more(trial)
            return
        self._failed.append(result)
        if not self._study.complete:
            raise result.error
        if len(self._failed) == FAILURES:
            raise EvaluationError(
                f"{FAILURES} candidates failed one after the other. They are evaluated again when search is called "
                f"again. The last one: {result.error}"
            ) from result.error
        log.warning("%s It is left out.", _sentence(result.error))

    def _record_failures(self) -> None:
        for result in self._failed:
            number = self._numbers.pop(result.task.label)
            self._study.tell(number, error=str(result.error), seconds=result.seconds)
        self._failed.clear()

    def _status(self) -> str:
        best = self._study.best
        if best is None:
            return ""
        return f"best {best.score:.4g} (candidate {best.number})" + (f", {self._said}" if self._said else "")

    def _conclude(self) -> None:
        results = self._study.results
        complete = results.complete
        if len(complete) >= EQUAL and len({trial.score for trial in complete}) == 1:
            log.warning(
                "eval_fn returned %.6g for every candidate, so none is better than another. Does it evaluate the model "
                "that it is given, on enough data? Correct it and call search(..., forced=True).", complete[0].score
            )  # fmt: skip
        log.info(
            "The best of %s is candidate %d with a score of %.6g.",
            plural(len(complete), "candidate"), results.best.number, results.best.score,
        )  # fmt: skip

    def _so_far(self) -> str:
        finished = self._study.complete
        if not finished:
            return "No candidate has been finished."
        return (
            f"{plural(finished, 'candidate')} of {self._budget} are kept in {self._where}; search goes on from there "
            "when it is called again."
        )

    @property
    def _where(self) -> str:
        return self._study.results.where


def _sentence(error: Exception) -> str:
    text = str(error)
    return text if text.endswith((".", "!", "?")) else f"{text}."
