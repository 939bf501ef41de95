"""Tools of the coverage sweep that remove half of the channels of any model, each used as its documentation shows.

A tool is a generator: it yields once, when it no longer looks at the values of the model, and returns the pruned model.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

import channelwise as cw
from channelwise.inputs.tree import tensors_in

from .journal import commit

Steps = Generator[None, None, nn.Module]


def channelwise(model: nn.Module, inputs: tuple[Any, ...]) -> Steps:
    """Half of every group, the channels with the smallest weights."""
    graph = cw.trace(model, inputs)
    if not graph.groups:
        raise ValueError("no channel can be removed")
    selection = graph.select(sparsity=0.5)
    yield
    return graph.slim(selection)


def torch_pruning(model: nn.Module, inputs: tuple[Any, ...]) -> Steps:
    """Half of every group by the L2 norm, except the layers that make the outputs, as in its README."""
    import torch_pruning as tp

    pruner = tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=output_layers(model, inputs),
        # Its defaults are dictionaries that all pruners of a process would share.
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )
    groups = pruner.step(interactive=True)
    group = next(groups, None)
    yield
    while group is not None:
        group.prune()
        group = next(groups, None)
    return model


def output_layers(model: nn.Module, inputs: tuple[Any, ...]) -> list[nn.Module]:
    """Convolution and linear layers whose results reach an output on a way without another such layer."""
    made: dict[Any, nn.Module] = {}

    def remember(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            made[output.grad_fn] = module

    layers = [m for m in model.modules() if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear))]
    hooks = [layer.register_forward_hook(remember) for layer in layers]
    try:
        with torch.enable_grad():
            outputs = model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[nn.Module, None] = {}
    todo = [t.grad_fn for t in tensors_in(outputs, attributes=True) if t.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if node in made:
            found[made[node]] = None
            continue
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                todo.append(before)
    return list(found)


def modelopt(model: nn.Module, inputs: tuple[Any, ...]) -> Steps:
    """FastNAS: converted with the widths 0.5 and 1 for every layer, the smallest network exported."""
    import modelopt.torch.nas as mtn
    from modelopt.torch.nas.utils import sample
    from modelopt.torch.prune.fastnas import FastNASConfig

    config = {
        kind: {"*": {key: _half(key, value) for key, value in layers["*"].items()}}
        for kind, layers in FastNASConfig().model_dump().items()
    }
    model = mtn.convert(model, [("fastnas", config)])
    yield
    sample(model, min)
    return mtn.export(model)


def _half(key: str, value: Any) -> Any:
    if key.endswith("_ratio"):
        return (0.5, 1.0)
    return 1 if key.endswith("_divisor") else value


TOOLS: dict[str, Callable[[nn.Module, tuple[Any, ...]], Steps]] = {
    "channelwise": channelwise,
    "torch-pruning": torch_pruning,
    "ModelOpt": modelopt,
}
PACKAGES = {"torch-pruning": "torch-pruning", "ModelOpt": "nvidia-modelopt"}


def version_of(tool: str) -> str:
    """The version that is installed, ours by its commit; empty if there is none."""
    try:
        return version(PACKAGES[tool]) if tool in PACKAGES else commit()
    except PackageNotFoundError:
        return ""
