"""The oracle: on any model, removing channels must equal zeroing them, and every number about it must be true."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from channelwise.api import ChannelGraph, trace
from channelwise.inputs.example import as_arguments, cast, doubled, number_of_samples
from channelwise.inputs.tree import tensors_in
from channelwise.selection import Selection
from channelwise.surgery import clone_module, masked_model, slim_state_dict, sparse_state_dict
from channelwise.testing.chance import WithoutChance
from channelwise.testing.modules import check_modules, prunable_share, randomise, settle_statistics
from channelwise.testing.selections import only, random_selection, unbalanced_selection
from channelwise.testing.values import digest, distance, equal, nudged, shape_of

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}
UNTOLD = 1e-3
"""Relative; where rounding may change outputs by more than this, they do not tell whether the slim model is right."""


@dataclass(frozen=True)
class OracleReport:
    """What `check_oracle` found: shares are fractions, MACs are for one sample, ``error`` is relative."""

    graph: ChannelGraph
    selection: Selection
    slim: nn.Module
    prunable: float
    macs: tuple[float, float]
    params: tuple[int, int]
    error: float
    changed: float
    compared_in_training: bool
    trained: bool
    notes: tuple[str, ...]


def check_oracle(
    model: nn.Module,
    inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    share: float = 0.5,
    seed: int = 0,
    select: Callable[[ChannelGraph], Selection] | None = None,
    dtype: torch.dtype | None = torch.float64,
    min_pruned: float | None = None,
    count: bool = True,
) -> OracleReport:
    """Trace ``model``, keep a random ``share`` of every group, and check the slim model in every way known.

    Arguments:
        model: never changed; a copy is cast to ``dtype`` and its constant parameters and statistics are randomised,
            so that no zero-initialised scale hides a wrong path.
        inputs: what ``channelwise.trace`` takes; floating point tensors are cast to ``dtype``.
        share: kept fraction of every channel group, in (0, 1).
        select: makes the selection to check, in place of a random ``share``.
        dtype: ``torch.float64`` (outputs agree to 1e-8 relative), ``torch.float32`` (1e-5), or None: as it is.
            A network that makes more of rounding than that may differ as much as inputs with such noise make it.
        count: compare MACs with the flop counter, and the first axes of the outputs; not for a model whose work
            depends on what it sees, such as a detector that looks at more boxes the more it finds.
        min_pruned: the least share of the output channels of convolution and linear modules that must be prunable.

    Returns:
        An `OracleReport`, with the graph, the selection and the slim model for further checks.

    Raises:
        AssertionError: saying what disagrees, and which channel groups cause it when pruned alone.
    """
    model = clone_module(model, {})
    if dtype is not None:
        model.to(dtype)
    randomise(model, seed)
    args, named = as_arguments(inputs, kwargs)
    args, named = cast(args, dtype), cast(named, dtype)
    settle_statistics(model, *_two_samples(args, named), seed)
    before = {name: digest(tensor) for name, tensor in model.state_dict().items()}

    graph = trace(model, args, kwargs=named)
    everything = select(graph) if select else random_selection(graph, share, seed)
    compared = {group.name for group in graph.groups if not group.slim_only}
    comparable = only(graph.structure, everything, compared)
    check = _Check(model, graph, args, named)

    error, changed = check.same_outputs(comparable)
    uneven = only(graph.structure, unbalanced_selection(graph, seed), compared)
    check.same_outputs(uneven)
    in_training = dtype == torch.float64 and all(map(check.same_outputs_in_training, (comparable, uneven)))
    check.state_dicts(comparable)
    slim = graph.slim(everything)
    check_modules(model, slim)
    check.sizes(slim, everything)
    for selection in (everything,) if comparable == everything else (everything, comparable):
        check.costs(selection, macs=count)
    check.runs(slim, first_axes=count)
    trained = check.trains(slim)
    for name, tensor in model.state_dict().items():
        assert digest(tensor) == before[name], f"tracing or pruning changed {name} of the user's model"

    prunable = prunable_share(model, graph.structure)
    if min_pruned is not None:
        assert prunable >= min_pruned, (
            f"only {prunable:.1%} of the output channels of convolutions and linear layers can be pruned, "
            f"expected {min_pruned:.1%}\n{graph}"
        )
    return OracleReport(
        graph=graph,
        selection=everything,
        slim=slim,
        prunable=prunable,
        macs=(graph.macs(), graph.macs(everything)),
        params=(graph.params(), graph.params(everything)),
        error=error,
        changed=changed,
        compared_in_training=in_training,
        trained=trained,
        notes=tuple(graph.structure.notes),
    )


def _two_samples(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """At least two samples, which batch norm needs in train mode."""
    return (args, kwargs) if number_of_samples(args, kwargs) > 1 else (doubled(args), doubled(kwargs))


class _Check:
    """The comparisons of one traced model."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model, self.graph, self.args, self.kwargs = model, graph, args, kwargs
        self.batch = max(number_of_samples(args, kwargs), 1)
        self.two = _two_samples(args, kwargs)
        self.dense = self.run(clone_module(model, {}))
        floats = [t for t in self.dense if t.is_floating_point()]
        self.tolerance = max((TOLERANCE.get(t.dtype, 1e-2) for t in floats), default=1e-2)

    def run(self, model: nn.Module, *, train: bool = False, seed: int = 0) -> list[Tensor]:
        """Outputs of ``model``, whose mode and running statistics may change."""
        args, kwargs = self.two if train else (self.args, self.kwargs)
        return self.run_on(model, args, kwargs, train=train, seed=seed)

    def run_on(self, model: nn.Module, args: Any, kwargs: Any, *, train: bool, seed: int = 0) -> list[Tensor]:
        """The same on other inputs."""
        chance = WithoutChance() if train else nullcontext()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), chance:
            torch.manual_seed(seed)
            return tensors_in(model.train(train)(*copy.deepcopy(args), **copy.deepcopy(kwargs)), attributes=True)

    def slim(self, selection: Selection, *, train: bool = False) -> list[Tensor]:
        """Outputs of a slim model."""
        return self.run(self.graph.slim(selection), train=train)

    def masked(self, selection: Selection, *, train: bool = False, seed: int = 0) -> list[Tensor]:
        """Outputs of a masked model."""
        return self.run(masked_model(self.model, self.graph.structure, selection), train=train, seed=seed)

    def same_outputs(self, selection: Selection) -> tuple[float, float]:
        """Assert slim == masked; returns the relative error, and the relative change against the dense model."""
        masked = self.masked(selection)
        error = distance(self.slim(selection), masked)
        limit = max(self.limit(train=False), min(self.rounding(error, selection, masked, train=False), UNTOLD))
        self.demand(error, limit, selection, train=False)
        return error, distance(masked, self.dense)

    def same_outputs_in_training(self, selection: Selection) -> bool:
        """The same in train mode, if the dense model runs there, with random numbers at their average.

        The outputs may depend on no others, drawn in numpy for example, nor on rounding alone: batch norm over two
        values that hardly differ is the sign of their difference.
        """
        try:
            self.run(clone_module(self.model, {}), train=True)
        except Exception:
            return False
        masked = self.masked(selection, train=True)
        if not masked or distance(self.masked(selection, train=True, seed=1), masked) > 0:
            return False
        error = distance(self.slim(selection, train=True), masked)
        rounding = self.rounding(error, selection, masked, train=True)
        if rounding > UNTOLD:
            return False
        self.demand(error, max(self.limit(train=True), rounding), selection, train=True)
        return True

    def limit(self, *, train: bool) -> float:
        """Of a relative error; batch norm over the few values of an example divides rounding by small deviations."""
        return self.tolerance * (100 if train else 1)

    def rounding(self, error: float, selection: Selection, masked: list[Tensor], *, train: bool) -> float:
        """What rounding may change in the outputs of a masked model, if the error is too large for the usual limit.

        A difference of large numbers, for example, or one more batch norm blows it up. Inputs with as much noise tell.
        """
        if error <= self.limit(train=train):
            return 0.0
        args, kwargs = self.two if train else (self.args, self.kwargs)
        model = masked_model(self.model, self.graph.structure, selection)
        return 4 * distance(self.run_on(model, nudged(args), nudged(kwargs), train=train), masked)

    def demand(self, error: float, limit: float, selection: Selection, *, train: bool) -> None:
        """Raise if the error is too large, with the groups to blame."""
        if error > limit:
            raise AssertionError(
                f"slim and masked models differ by {error:.2e} relative in {'train' if train else 'eval'} mode; "
                f"pruned alone, these groups differ:\n{self.blame(selection, train)}\n{self.graph}"
            )

    def blame(self, selection: Selection, train: bool) -> str:
        """One line for every group that breaks the outputs alone."""
        guilty = []
        for group in self.graph.structure.groups:
            alone = only(self.graph.structure, selection, {group.name})
            if len(alone.kept[group.name]) == group.size:
                continue
            try:
                masked = self.masked(alone, train=train)
                error = distance(self.slim(alone, train=train), masked)
                wrong = error > max(self.limit(train=train), self.rounding(error, alone, masked, train=train))
                verdict = f"{error:.2e}" if wrong else ""
            except Exception as problem:
                verdict = f"{type(problem).__name__}: {problem}"
            if verdict:
                guilty.append(f"  {group.name} ({group.size} channels of {', '.join(group.layers)}): {verdict}")
        return "\n".join(guilty[:20]) or "  (none: only together)"

    def state_dicts(self, selection: Selection) -> None:
        """Assert that state dicts convert both ways between the slim and the masked model."""
        structure = self.graph.structure
        slim = self.graph.slim(selection).state_dict()
        masked = masked_model(self.model, structure, selection).state_dict()
        for what, got, want in (
            ("slim_state_dict", slim_state_dict(masked, structure, selection), slim),
            ("sparse_state_dict", sparse_state_dict(slim, structure, selection, self.model.state_dict()), masked),
        ):
            assert list(got) == list(want), f"{what}: keys differ: {sorted(set(got) ^ set(want)) or 'their order'}"
            for name, value in want.items():
                same = equal(got[name], value) if isinstance(value, Tensor) else got[name] == value
                assert same, f"{what}: {name} differs ({shape_of(got[name])} against {shape_of(value)})"

    def costs(self, selection: Selection, *, macs: bool = True) -> None:
        """Assert that the analytic MACs and parameters are those of the slim model."""
        slim = self.graph.slim(selection).eval()
        params = sum(p.numel() for p in slim.parameters())
        said = self.graph.params(selection)
        assert said == params, f"graph.params says {said}, the slim model has {params}"
        if not macs:
            return
        try:
            # Under no_grad the counter stumbles over expanded parameters.
            counted = self.counted(slim, gradients=True)
        except RuntimeError:
            # Some code writes in place where autograd forbids it.
            counted = self.counted(slim, gradients=False)
        analytic = self.graph.macs(selection)
        assert abs(analytic - counted) <= 1e-9 * max(counted, 1), (
            f"graph.macs says {analytic:.1f}, the flop counter {counted:.1f} on the slim model"
        )

    def counted(self, model: nn.Module, *, gradients: bool) -> float:
        """MACs of one sample by torch's flop counter, which knows no fused encoder layers."""
        grad = torch.set_grad_enabled(gradients)
        with unfused_attention(), grad, FlopCounterMode(display=False) as counter:
            model(*copy.deepcopy(self.args), **copy.deepcopy(self.kwargs))
        return counter.get_total_flops() / 2 / self.batch

    def runs(self, slim: nn.Module, *, first_axes: bool = True) -> None:
        """Assert that the slim model gives outputs of the dense model's shapes."""
        found = self.run(clone_module(slim, {}))
        shapes, dense = ([shape_of(t)[0 if first_axes else 1 :] for t in outputs] for outputs in (found, self.dense))
        assert shapes == dense, f"output shapes of the slim model: {shapes}, of the dense one: {dense}"

    def sizes(self, slim: nn.Module, selection: Selection) -> None:
        """Assert that every slim tensor has the shape that the structure promises."""
        counts = selection.counts()
        state = {**dict(slim.named_parameters(remove_duplicate=False)), **dict(slim.named_buffers())}
        for name, sizes in self.graph.structure.tensor_sizes.items():
            promised = tuple(size(counts) for size in sizes)
            assert shape_of(state[name]) == promised, f"{name} has shape {shape_of(state[name])}, promised {promised}"

    def trains(self, slim: nn.Module) -> bool:
        """One SGD step in train mode; False when the dense model cannot do that either."""
        try:
            if not self.step(clone_module(self.model, {})):
                return False
        except Exception:
            return False
        model = clone_module(slim, {})
        assert self.step(model), "the dense model can be trained, the slim one cannot"
        for name, parameter in model.named_parameters():
            finite = parameter.grad is None or bool(parameter.grad.isfinite().all())
            assert finite, f"the gradient of {name} is not finite after one step of the slim model"
            assert bool(parameter.isfinite().all()), f"{name} is not finite after one step of the slim model"
        return True

    def step(self, model: nn.Module) -> bool:
        parameters = [p for p in model.train().parameters() if p.requires_grad]
        if not parameters:
            return False
        optimizer = torch.optim.SGD(parameters, lr=1e-3)
        args, kwargs = copy.deepcopy(self.two)
        outputs = [t for t in tensors_in(model(*args, **kwargs), attributes=True) if t.is_floating_point()]
        loss = sum((t.square().mean() for t in outputs), torch.zeros(()))
        if not loss.requires_grad:
            return False
        loss.backward()
        optimizer.step()
        return True


@contextmanager
def unfused_attention() -> Iterator[None]:
    """The flop counter knows no fused encoder layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # The counter of older versions does not know the kernel that fuses attention on a CPU.
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
