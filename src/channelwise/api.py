"""The public face: trace a model once, then ask for groups, costs, selections, slim and sparse models."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from channelwise import cost
from channelwise.errors import InvalidArgumentError
from channelwise.inputs.calls import running
from channelwise.inputs.check import check_flag, check_model
from channelwise.inputs.example import as_arguments, own_copy
from channelwise.inputs.tree import tensors_in
from channelwise.ranking import Criterion
from channelwise.report.graph import graph_table
from channelwise.select.channels import select
from channelwise.select.excludes import match_excludes
from channelwise.selection import Selection
from channelwise.solve.build import build, group_labels
from channelwise.structure import Cause, Frozen, Group, Reason, Structure
from channelwise.surgery import slim_model, sparse_model
from channelwise.surgery.clone import clone_module
from channelwise.tensors import named_tensors
from channelwise.tracing.dispatch import WritesParameters
from channelwise.tracing.recording import Trace
from channelwise.tracing.tracer import trace_passes, undisturbed_randomness
from channelwise.verify import verified

logger = logging.getLogger(__name__)


class ChannelGraph:
    """The channels of a model: which must be kept or removed together, which must stay and why, and what they cost.

    Made by `trace`. It keeps a reference to the model and never changes it. ``structure`` is the plain data behind it.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        self.model = model
        self.structure = structure

    @property
    def groups(self) -> tuple[Group, ...]:
        """The channel groups, in the order of the model's parameters."""
        return self.structure.groups

    @property
    def frozen(self) -> tuple[Frozen, ...]:
        """Slots that must stay, with the reasons."""
        return self.structure.frozen

    def tensors(self) -> dict[str, torch.Tensor]:
        """The model's parameters and buffers as they are now, by the names used in ``structure``."""
        names = self.structure.tensors
        return {name: tensor for name, tensor in named_tensors(self.model).items() if name in names}

    def macs(self, selection: Selection | None = None) -> float:
        """MACs of one sample with this selection (all channels if None): exact, without running anything."""
        return cost.macs(self.structure, self._counts(selection))

    def params(self, selection: Selection | None = None) -> int:
        """Number of parameters with this selection (all channels if None), shared ones counted once."""
        return cost.params(self.structure, self._counts(selection))

    def select(
        self,
        *,
        macs: float | None = None,
        params: float | None = None,
        sparsity: float | Mapping[Any, float] | None = None,
        ranking: str | Criterion = "l1",
        channel_divisible: int = 1,
        min_channels: int = 1,
        excludes: Any = (),
        limits: float | Mapping[Any, float] | None = None,
        allocation: Literal["uniform", "global"] = "uniform",
    ) -> Selection:
        """Choose channels by ``macs=`` or ``params=`` (share kept) or ``sparsity=`` (share removed).

        See `channelwise.select.channels.select` for the arguments and for what it raises.
        """
        return select(
            self.structure, self.tensors(), macs=macs, params=params, sparsity=sparsity, ranking=ranking,
            channel_divisible=channel_divisible, min_channels=min_channels, excludes=excludes, limits=limits,
            allocation=allocation, model=self.model,
        )  # fmt: skip

    def slim(self, selection: Selection) -> nn.Module:
        """A smaller model of the user's own classes without the removed channels. The original is not changed."""
        return slim_model(self.model, self.structure, selection)

    def sparse(self, selection: Selection) -> nn.Module:
        """A model of the original shapes whose removed channels are zero and stay zero in training.

        Raises:
            InvalidArgumentError: the selection removes channels for which zeroing is not the same as removing.
        """
        return sparse_model(self.model, self.structure, selection)

    def _counts(self, selection: Selection | None) -> Mapping[str, int]:
        if selection is None:
            return self.structure.full()
        if not isinstance(selection, Selection):
            raise InvalidArgumentError(f"Give a selection, such as graph.select(macs=0.5) makes, not {selection!r}.")
        return selection.check(self.structure).counts()

    def __str__(self) -> str:
        return graph_table(self.structure)

    def __repr__(self) -> str:
        name = type(self.model).__name__
        return (
            f"<ChannelGraph of {name}: {len(self.groups)} groups, {self.macs():.4g} MACs, {self.params():,} parameters>"
        )


def trace(
    model: nn.Module,
    inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    excludes: Any = (),
    verify: bool = True,
) -> ChannelGraph:
    """Run the model once in eval and once in train mode and find its channels.

    Arguments:
        model: any module that runs on the inputs. DataParallel, DistributedDataParallel and compiled models are
            unwrapped. The model, its buffers, gradients and flags and the random state stay as they are.
        inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments, shaped like a real
            batch, on the model's device. Values do not matter. The first axis of the first tensor is the batch; a list
            of images (C, H, W), as an argument of its own, is as many samples.
        kwargs: further keyword arguments of the model.
        excludes: modules, module types, names or patterns of layers whose channels stay; see `match_excludes`.
        verify: prune what depends on numbers in the model's code once and compare, and freeze what does not adapt.

    Raises:
        UnsupportedModelError: scripted, quantised or lazy models, or one that cannot be copied.
        InvalidArgumentError: inputs that are no tensors, or are on another device or of another type than the model.
        TraceError: the model raises on these inputs in eval mode; the message holds the original one.
    """
    check_flag("verify", verify)
    model = check_model(model, inputs, kwargs)
    args, named = as_arguments(inputs, kwargs)
    args, named = own_copy(args), own_copy(named)
    tensors = tensors_in([list(args), named])
    with undisturbed_randomness([*tensors, *model.parameters()]), _no_garbage_collection():
        with running(model, inputs, args, named):
            recorded, shared = _recorded(model, args, named)
        _exclude(recorded, excludes, model)
        if not verify:
            return ChannelGraph(model, build(recorded).structure)
        return ChannelGraph(model, verified(recorded, model, args, named, shared=shared))


def _recorded(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Trace, bool]:
    """The trace, and whether the private copy shared the user's parameters: not if the model writes into its own."""

    def record(shared: bool, original: nn.Module | None) -> Trace:
        copies = {id(p): p for p in model.parameters()} if shared else {}
        return trace_passes(clone_module(model, copies), args, kwargs, shared=shared, original=original)

    try:
        return _writing_allowed(record, model)
    except Exception as error:
        # Code that asks for the very type of a number may not run on one that remembers its origin.
        found = _writing_allowed(record, None)
        logger.info("numbers of attributes do not follow the channels, as the code wants plain ones: %s", error)
        return found


def _writing_allowed(
    record: Callable[[bool, nn.Module | None], Trace], original: nn.Module | None
) -> tuple[Trace, bool]:
    """A trace on the user's parameters, or on copies of them if the model writes into its own."""
    try:
        return record(True, original), True
    except WritesParameters:
        return record(False, original), False


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A trace makes many small objects and no cycles; collecting would take a third of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _exclude(recorded: Trace, excludes: Any, model: nn.Module) -> None:
    """Freeze the channels that the user wants to stay."""
    if not excludes:
        return
    structure = build(recorded).structure
    for name in match_excludes(structure, excludes, model):
        recorded.space.freeze(
            group_labels(recorded, structure.group(name)),
            Reason("excluded", "", "excluded by the user", Cause.EXCLUDED),
        )
