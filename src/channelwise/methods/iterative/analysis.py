"""The sensitivity analysis behind ``ana``: which evaluations are missing, running them, keeping every result."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping

from channelwise.api import ChannelGraph
from channelwise.errors import ChannelwiseError
from channelwise.evaluate.candidate import Chooser, pack
from channelwise.execution import Executor, Task
from channelwise.io.lock import locked
from channelwise.methods.arguments import plural
from channelwise.methods.sensitivity import Measurement, Plan, Sensitivity, SensitivityFile
from channelwise.progress import progress
from channelwise.ranking import fingerprint
from channelwise.select.channels import choose
from channelwise.select.widths import alive_count

log = logging.getLogger(__name__)

ExecutorFor = Callable[[int], Executor]
"""Makes the executor for a number of tasks."""


class Analysis:
    """One call of ``ana``: compares what is on file with what is needed, then evaluates the difference."""

    def __init__(
        self,
        file: SensitivityFile,
        graph: ChannelGraph,
        excluded: set[str],
        chooser: Chooser,
    ) -> None:
        self._file = file
        self._structure = graph.structure
        self._plan = Plan(excluded=sorted(excluded), weights=fingerprint(graph.tensors()))
        self._chooser = chooser

    def run(self, executor_for: ExecutorFor, *, forced: bool, quiet: bool) -> None:
        """Evaluate what is missing. Finished work stays on file whatever ends the run."""
        # Where nothing would be written the folder may be read-only.
        if not forced and self._settled():
            self._mention_finished()
            return
        with locked(self._file.path):
            known = None if forced else self._file.load()
            tasks = self._tasks(known or Sensitivity())
            self._begin(known, len(tasks))
            if tasks:
                self._evaluate(tasks, executor_for, quiet)
            self._file.finish()
            if tasks:
                self._warn_if_all_equal()

    def _settled(self) -> bool:
        """Whether the file says all there is to say."""
        known = self._file.load()
        return (
            known is not None
            and known.baseline is not None
            and known.plan is not None
            and known.plan.excluded == self._plan.excluded
            and not known.missing(self._structure, self._plan.excluded)
            and not self._file.backup.exists()
        )

    def _mention_finished(self) -> None:
        log.info("%s is finished, nothing is evaluated again; forced=True repeats it.", self._file.path)

    def _tasks(self, known: Sensitivity) -> dict[str, tuple[Task, Measurement]]:
        """By label: the task and what is to be recorded of it, the score and time left open."""
        tasks: dict[str, tuple[Task, Measurement]] = {}
        most = self._alive_in_norms()
        alive = pack(
            choose(self._structure, self._chooser.weights, most, "l1", dead=self._chooser.dead), self._structure
        )
        if known.baseline is None:
            task = Task("the baseline", alive)
            tasks[task.label] = task, Measurement(score=0.0, seconds=0.0)
        missing = known.missing(self._structure, self._plan.excluded)
        packed = {}
        for level in sorted({sparsity for counts in missing.values() for sparsity in counts.values()}):
            counts = {
                group: min(kept, most.get(group, kept))
                for group, by_count in missing.items()
                for kept, sparsity in by_count.items()
                if sparsity == level
            }
            packed[level] = pack(self._chooser(counts), self._structure)
        sizes = self._structure.full()
        for group, by_count in missing.items():
            for kept, sparsity in by_count.items():
                label = f"group {group!r} at sparsity {sparsity} ({kept} of {sizes[group]} channels kept)"
                record = Measurement(group=group, kept=kept, sparsity=sparsity, score=0.0, seconds=0.0)
                tasks[label] = Task(label, {**alive, group: packed[sparsity][group]}), record
        return tasks

    def _alive_in_norms(self) -> dict[str, int]:
        """How many channels of groups that norms count an earlier pruning left: its zeros are no channels there."""
        dead = self._chooser.dead
        groups = [group for group in self._structure.groups if group.norms and dead[group.name].any()]
        return {group.name: alive_count(group, dead[group.name]) for group in groups}

    def _begin(self, known: Sensitivity | None, missing: int) -> None:
        if known is None:
            self._file.begin(self._plan, anew=True)
        elif known.plan is None or known.plan.excluded != self._plan.excluded or missing:
            if missing and known.plan is not None and known.plan.weights != self._plan.weights:
                log.warning(
                    "%s was begun with other weights; the missing evaluations use the present ones. "
                    "For an analysis of the present weights alone call ana(..., forced=True).", self._file.path
                )  # fmt: skip
            self._file.begin(self._plan, anew=False)
        if not missing:
            self._mention_finished()
        elif known is not None:
            log.info("Going on with %s: %s missing.", self._file.path, plural(missing, "evaluation"))

    def _evaluate(self, tasks: Mapping[str, tuple[Task, Measurement]], executor_for: ExecutorFor, quiet: bool) -> None:
        finished = 0
        executor = executor_for(len(tasks))
        try:
            with progress("Analysing", len(tasks), quiet=quiet) as advance:
                for result in executor.run([task for task, _ in tasks.values()]):
                    if result.error is not None:
                        raise result.error
                    record = tasks[result.task.label][1]
                    scored = record.model_copy(update={"score": result.score, "seconds": round(result.seconds, 4)})
                    self._file.append(scored)
                    finished += 1
                    advance(f"{record.group or 'baseline'} {record.sparsity:.1f}: {result.score:.4g}")
        except KeyboardInterrupt:
            log.warning("Interrupted. %s", self._so_far(finished, len(tasks)))
            raise
        except ChannelwiseError:
            log.warning("%s", self._so_far(finished, len(tasks)))
            raise
        finally:
            executor.close()

    def _warn_if_all_equal(self) -> None:
        """An eval_fn that evaluates some other model than the one it is given always returns the same."""
        known = self._file.load()
        if known is not None and {s for scores in known.scores.values() for s in scores.values()} == {known.baseline}:
            log.warning(
                "eval_fn returned %.6g for the full model and for every pruned one, so no group is more sensitive than "
                "another. Does it evaluate the model that it is given, on enough data? Correct it and call ana(..., "
                "forced=True).", known.baseline
            )  # fmt: skip

    def _so_far(self, finished: int, total: int) -> str:
        if not finished:
            return "No evaluation of this run was finished."
        if not os.path.exists(self._file.path):
            return f"{self._file.path} was deleted while the analysis was running, and what it held is lost."
        return (
            f"{finished} of {plural(total, 'evaluation')} of this run are kept in {self._file.path}; "
            "ana goes on from there when it is called again."
        )
