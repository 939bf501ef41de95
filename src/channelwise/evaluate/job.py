"""The job of evaluating candidates: cut the slim model, repair it, call the user's function, check its answer."""

from __future__ import annotations

import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from channelwise.evaluate.candidate import Packed, unpack
from channelwise.evaluate.evaluation import EvalFn
from channelwise.evaluate.repair import Repairer
from channelwise.evaluate.scores import as_score
from channelwise.structure import Structure
from channelwise.surgery.clone import clone_module
from channelwise.surgery.slim import slim_model
from channelwise.tensors import named_tensors

log = logging.getLogger(__name__)

SEED = 0


class EvaluationJob(ABC):
    """Scores candidates that are cut from a model, repaired and given to the user's function.

    They are cut from a private clone and share its untouched tensors, which makes them cheap. A function of the user's
    that changes weights is noticed; from then on every candidate gets tensors of its own. All candidates see the same
    random numbers, so that scores do not depend on order or process and differ less by chance; the caller's random
    state is restored.
    """

    def __init__(
        self, model: nn.Module, eval_fn: EvalFn, args: Sequence[Any], repairer: Repairer | None = None
    ) -> None:
        self._model = model
        self._eval_fn = eval_fn
        self._args = tuple(args)
        self._repairer = repairer
        self._share = True
        self._checked = False
        self._clone: nn.Module | None = None
        self._marks: list[tuple[torch.Tensor, int, int]] = []
        self._device = torch.device("cpu")

    @abstractmethod
    def cut(self, model: nn.Module, payload: Any, *, share: bool) -> tuple[nn.Module, Callable[[Repairer], None]]:
        """The candidate that ``payload`` stands for, and what a repairer does to it.

        ``share``: tensors that lose nothing may be those of ``model``.
        """

    def __getstate__(self) -> dict[str, Any]:
        # A copy, because .cpu() works in place: unpacking must not take memory on the GPU that the model is on.
        return {**self.__dict__, "_model": clone_module(self._model, {}).cpu(), "_clone": None, "_marks": []}

    def prepare(self, device: torch.device) -> None:
        self._device = device
        self._clone = clone_module(self._model, {}).to(device)
        self._marks = [(t, t._version, t.data_ptr()) for t in named_tensors(self._clone).values()]

    def __call__(self, payload: Any) -> float:
        assert self._clone is not None
        candidate, repair = self.cut(self._clone, payload, share=self._share)
        candidate.eval()
        try:
            with same_randomness(self._device):
                if self._repairer is not None:
                    repair(self._repairer)
                    candidate.eval()
                return as_score(self._eval_fn(candidate, *self._args))
        finally:
            self._protect()

    def _protect(self) -> None:
        """Make good what the user's functions did to the clone, whether or not they succeeded."""
        if self._share and self._changed():
            log.warning(
                "%s the weights of the model it is given. The original is safe: every candidate now gets its own copy "
                "of all weights, which takes longer.",
                "eval_fn changes" if self._repairer is None else "eval_fn or calibration_fn changes",
            )
            self._share = False
            self.prepare(self._device)
        for tensor, _, _ in self._marks:
            tensor.grad = None

    def _changed(self) -> bool:
        """Whether the clone is no longer what it was. Values are compared once: `.data` leaves no other trace."""
        assert self._clone is not None
        if any(t._version != version or t.data_ptr() != address for t, version, address in self._marks):
            return True
        if self._checked:
            return False
        self._checked = True
        original = named_tensors(self._model)
        return any(
            tensor.dtype != original[name].dtype or not torch.equal(tensor, original[name].to(tensor.device))
            for name, tensor in named_tensors(self._clone).items()
        )


class CandidateJob(EvaluationJob):
    """Scores packed candidates, see `channelwise.evaluate.candidate`."""

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        eval_fn: EvalFn,
        args: Sequence[Any],
        repairer: Repairer | None = None,
    ) -> None:
        super().__init__(model, eval_fn, args, repairer)
        self._structure = structure

    def cut(self, model: nn.Module, payload: Packed, *, share: bool) -> tuple[nn.Module, Callable[[Repairer], None]]:
        """The slim model."""
        selection = unpack(payload, self._structure, "the payload")
        candidate = slim_model(model, self._structure, selection, share_untouched=share)
        return candidate, lambda repairer: repairer(candidate, model, self._structure, selection)


@contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch, and put back their states afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        random.seed(SEED)
        np.random.seed(SEED)
        torch.default_generator.manual_seed(SEED)
        if cuda:
            torch.cuda.manual_seed(SEED)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
