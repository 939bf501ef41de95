"""Prune questioned groups, run the slim model with the channels as labels, and compare its program."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from torch import nn

from channelwise.selection import Selection
from channelwise.solve.build import Solution
from channelwise.structure import part_size
from channelwise.surgery.clone import clone_module
from channelwise.surgery.slim import slim_model
from channelwise.tracing.labels import LabelSpace
from channelwise.tracing.macs import Macs
from channelwise.tracing.program import Operation, Program
from channelwise.tracing.provenance import trace_numbers
from channelwise.tracing.recording import Pass, TensorLabels, Trace
from channelwise.tracing.tracer import run_labelled
from channelwise.verify.differences import Deletion, Difference, first_difference, first_meeting
from channelwise.verify.questions import asked_in
from channelwise.verify.selections import Kept, Pattern, kept_channels

logger = logging.getLogger(__name__)


class Trial(NamedTuple):
    """Which channels are removed, and which pass of the trace is repeated."""

    pattern: Pattern
    number: int


class Standard(NamedTuple):
    """What slim models are compared with: a program of the full model, and whether it and they are outlined."""

    program: Program
    outlined: bool


@dataclass(frozen=True)
class Failure:
    """What went wrong with some groups pruned in a trial; ``suspects`` are the groups that show it."""

    text: str
    suspects: frozenset[str]
    trial: Trial


@dataclass(frozen=True)
class Trials:
    """Tries slim models of a traced one; ``shared``: their untouched parameters are those of ``model`` itself.

    ``built`` are the models of the trial that runs. ``counted`` is what the last slim model kept that ran the program
    of the full one, and the MACs that ran. ``standards``: what slim models are compared with in passes in which one
    failed.
    """

    trace: Trace
    model: nn.Module
    shared: bool
    built: list[weakref.ref[nn.Module]] = field(default_factory=list)
    counted: list[tuple[Kept, float]] = field(default_factory=list)
    standards: dict[int, Standard] = field(default_factory=dict)

    def check(self, solution: Solution, asked: Collection[str], first: Trial | None = None) -> Failure | None:
        """The first failure, the likeliest trial first: all groups are pruned once, those asked about once more."""
        self.counted.clear()
        # Of two channels one alone is left, which is laid out in another way: only what is asked about is pruned then.
        every = sorted({*asked, *(g.name for g in solution.structure.groups if part_size(g) > 2)})
        if not every:
            return None
        # Without a question there is no reason to look twice: what reads widths unseen shows in eval mode.
        trials = self._every() if asked else [Trial(Pattern.UPPER, 0)]
        for trial in sorted(trials, key=lambda trial: trial != first):
            names = every if trial.pattern is Pattern.UPPER else asked
            failure = self.check_in(trial, solution, names) if names else None
            if failure is not None:
                return failure
        return None

    def _every(self) -> list[Trial]:
        """All selections in eval mode; in train mode too if code with questions does other things in it, else one."""
        asking = {question.reason.module for question in self.trace.space.questions}
        done = [_done(one.program, asking) for one in self.trace.passes]
        return [
            Trial(pattern, number)
            for number in range(len(done))
            for pattern in Pattern
            if pattern is Pattern.UPPER or number == 0 or done[number] != done[0]
        ]

    def check_in(self, trial: Trial, solution: Solution, names: Collection[str]) -> Failure | None:
        """The same in one trial."""
        failure = self._check(trial, solution, names)
        if any(model() is not None for model in self.built):
            # The garbage collector is off during a trace, and some models refer to themselves, by a hook for example.
            gc.collect()
        self.built.clear()
        return failure

    def _check(self, trial: Trial, solution: Solution, names: Collection[str]) -> Failure | None:
        """Numbers are compared only with groups pruned of which zeroing is removing."""
        exact = {group.name for group in solution.structure.groups if not group.slim_only}.intersection(names)
        if len(exact) < len(names):
            failure = self._compare(trial, solution, names, numbers=False)
            if failure is not None:
                return failure
        return self._compare(trial, solution, exact, numbers=True) if exact else None

    def _compare(self, trial: Trial, solution: Solution, names: Collection[str], *, numbers: bool) -> Failure | None:
        """Whether the slim model runs the program of the full one."""
        number = trial.number
        traced = Standard(self.trace.passes[number].program, outlined=True)
        standard = self.standards.get(number, traced)
        failure = self._compare_once(trial, solution, names, numbers, standard)
        if failure is not None and number not in self.standards:
            standard = self.standards[number] = self._standard(number)
            if standard != traced:
                return self._compare_once(trial, solution, names, numbers, standard)
        return failure

    def _compare_once(
        self, trial: Trial, solution: Solution, names: Collection[str], numbers: bool, standard: Standard
    ) -> Failure | None:
        structure = solution.structure
        kept = kept_channels(structure, names, trial.pattern)

        def failed(text: str, suspects: Collection[str]) -> Failure:
            return Failure(f"with fewer channels {text}", frozenset(suspects), trial)

        deletion = _deletion(self.trace, solution, kept)
        try:
            model = slim_model(self.model, structure, Selection(kept), share_untouched=self.shared)
        except Exception as error:
            # Not the user's code: surgery does not know a module of this kind, so its channels stay.
            logger.warning("a slim model cannot be built: %s: %s; its channels stay", type(error).__name__, error)
            return failed(f"no slim model can be built ({type(error).__name__}: {_first_line(error)})", ())
        self.built.append(weakref.ref(model))
        full = self.trace.passes[trial.number]
        counting = [norm.module for norm in structure.norms]
        # Code may keep what it made for the sizes that it saw last. The user's model may have run before, and then runs
        # as this one does the second time; what was kept shows in numbers and constants.
        for _ in range(2):
            space, macs = LabelSpace(count=self.trace.space.count), Macs(detailed=False)
            try:
                labels = _slim_labels(self.trace, deletion)
                slim = self._run(model, full.again(standard.outlined), Trace(space, labels, {}), macs)
            except Exception as error:
                module = getattr(error, "_channelwise_module", "")
                text = f"the model's code raises {type(error).__name__}: {_first_line(error)}"
                return failed(text, asked_in(self.trace, solution, module) & set(names))
            found = first_difference(standard.program, slim, deletion, numbers=numbers, counting=counting)
            found = found or first_meeting(space, deletion)
            if found is None:
                # Those of the program that `graph.macs` counts.
                self.counted[:] = [(kept, macs.total)] if trial.number == 0 else self.counted
                return None
            where = f" in {found.module}" if found.module else ""
            failure = failed(f"{found.text}{where}", self._suspects(solution, found) & set(names))
            if found.kind != "operation":
                break
        return failure

    def _standard(self, number: int) -> Standard:
        """What the full model runs if costly operators give zeros, unless its code does not run on them.

        It differs from what was traced where values decide how many elements there are, as in detectors.
        """
        full, count = self.trace.passes[number], self.trace.space.count
        if full.outlined:
            return Standard(full.program, outlined=True)
        model = clone_module(self.model, {id(p): p for p in self.model.parameters()} if self.shared else {})
        try:
            program = self._run(model, full.again(True), Trace(LabelSpace(count=count), self.trace.tensors, {}))
        except Exception as error:
            logger.debug("the model does not run on zeros: %s: %s", type(error).__name__, error)
            return Standard(full.program, outlined=False)
        nothing = Deletion(np.arange(count), np.zeros(count, bool), np.zeros(count, bool))
        same = first_difference(full.program, program, nothing) is None
        return Standard(full.program if same else program, outlined=True)

    def _run(self, model: nn.Module, one: Pass, trace: Trace, macs: Macs | None = None) -> Program:
        if self.trace.remembers:
            trace_numbers(model, [], self.model)
        run_labelled(model, one, trace, macs=macs)
        return one.program

    def _suspects(self, solution: Solution, found: Difference) -> set[str]:
        """Groups that a difference shows, and those that the module has questions about."""
        shown = solution.groups_of(np.array(found.channels, int))
        return shown or asked_in(self.trace, solution, found.module)


def _done(program: Program, modules: Collection[str]) -> list[Operation]:
    """What a program does in these modules, apart from norms and dropout, which are meant to differ in train mode."""
    return [
        one._replace(results=())
        for one in program.operations
        if one.module in modules and "batch_norm" not in one.name and "dropout" not in one.name
    ]


def _deletion(trace: Trace, solution: Solution, kept: Kept) -> Deletion:
    """What is removed, and what stays: one channel alone fills its axes, so that a run sees it stay in any case."""
    gone, stay = np.zeros_like(solution.stays), solution.stays | (solution.group_of < 0)
    for group in solution.structure.groups:
        channels = solution.channels_of(trace, group)
        gone[channels] = True
        gone[channels[kept[group.name]]] = False
        if len(kept[group.name]) == len(group.members):
            stay[channels[kept[group.name]]] = True
    return Deletion(solution.channel[: trace.space.count], gone, stay)


def _slim_labels(trace: Trace, deletion: Deletion) -> dict[str, TensorLabels]:
    """For every tensor of the slim model, the labels of the slots that are left."""
    found = {}
    for name, labels in trace.tensors.items():
        axes: list[np.ndarray | None] = []
        shape = list(labels.info.shape)
        for number, axis in enumerate(labels.axes):
            left = None if axis is None else deletion.left(axis)
            if left is not None:
                shape[number] = left.size // (labels.info.blocks if number == 1 else 1)
            axes.append(left if shape[number] > 1 else None)
        found[name] = TensorLabels(replace(labels.info, shape=tuple(shape)), tuple(axes), labels.divided)
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:160]
