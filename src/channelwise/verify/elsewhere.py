"""Makes numbers follow the channels that only other ways through a module need, not the code that the trace ran."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from channelwise.inputs.tree import output_values
from channelwise.solve.build import Ban, Solution, build
from channelwise.solve.numbers import Followed, Sizes, used_numbers
from channelwise.structure import Size, Structure
from channelwise.tracing.code.other_ways import readers
from channelwise.tracing.recording import Trace
from channelwise.verify.outputs import difference, run_once

logger = logging.getLogger(__name__)

Way = tuple[type, str]
"""A method of all modules of a class."""


def follow_elsewhere(
    trace: Trace,
    solution: Solution,
    bans: Sequence[Ban],
    slim: Callable[[Structure], nn.Module],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Solution:
    """The same solution; numbers follow with which another way gives what ``forward`` gives in the slim model, too.

    These numbers are told by equal value, see `candidates_elsewhere`.
    """
    known = {(number.module, number.attribute) for number in solution.structure.numbers}
    candidates = [c for c in trace.elsewhere if (c.module, c.attribute) not in known]
    if not candidates:
        return solution

    def with_numbers_of(ways: set[Way]) -> Solution:
        more = [
            Followed(((c.module, c.attribute),), partial(_kept, c.labels))
            for c in candidates
            if ways & {(c.cls, way) for way in readers(c.cls, c.attribute)}
        ]
        return build(trace, bans, [*used_numbers(trace), *more])

    ways = {(c.cls, way) for c in candidates for way in readers(c.cls, c.attribute)}
    trial = with_numbers_of(ways)
    try:
        agree = _that_agree(slim(trial.structure), ways, args, kwargs)
    except Exception as error:
        # What is not sure has been verified; a trace does not fail for the sake of code that it did not run.
        logger.warning("other ways than forward were not tried: %s: %s", type(error).__name__, error)
        return solution
    for cls, way in ways - agree:
        logger.info("%s.%s does not give what forward gives once channels are removed", cls.__name__, way)
    return trial if agree == ways else with_numbers_of(agree)


def _kept(labels: np.ndarray, sizes: Sizes) -> Size:
    return sizes(labels)


def _that_agree(model: nn.Module, ways: set[Way], args: Sequence[Any], kwargs: Mapping[str, Any]) -> set[Way]:
    """The ways that give what ``forward`` gives, in every call of every module of their class, in eval mode."""
    wrong: set[Way] = set()

    def compare(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        for cls, way in ways - wrong:
            if type(module) is not cls:
                continue
            # What a method raises that was written for another occasion is up to the user's code.
            try:
                found = output_values(getattr(module, way)(*inputs, **named))
            except Exception as error:
                logger.debug("%s.%s raises %s: %s", cls.__name__, way, type(error).__name__, error)
                wrong.add((cls, way))
                continue
            if difference(found, output_values(output)) is not None:
                wrong.add((cls, way))

    classes = {cls for cls, _ in ways}
    hooks = [m.register_forward_hook(compare, with_kwargs=True) for m in model.modules() if type(m) in classes]
    try:
        run_once(model, args, kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return ways - wrong
