"""MACs and parameters of a model as it is, counted in one run by PyTorch's own counter."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from channelwise.inputs.batches import evaluating
from channelwise.inputs.calls import running
from channelwise.inputs.check import check_model
from channelwise.inputs.example import as_arguments, number_of_samples, own_copy
from channelwise.report.summary import quantity


def model_complexity(
    model: nn.Module, inputs: Any, return_flops: bool = False, readable: bool = False, verbose: bool = False
) -> tuple[Any, Any]:
    """Multiply-accumulates of one sample, and parameters that are trained.

    Runs the model once in eval mode, without gradients. A sparse model counts as much as the dense one.

    Args:
        model: Any module that runs on the inputs.
        inputs: One tensor, or a tuple, list or dict of tensors like a real batch.
        return_flops: Give floating point operations, two for every multiply-accumulate, in the place of MACs.
        readable: Give both as text with a unit, such as "4.089 G".
        verbose: Print a table with the MACs of all modules that have any.

    Returns:
        MACs and parameters.

    Raises:
        InvalidArgumentError, UnsupportedModelError, TraceError: what is given is no model, or does not fit the inputs.
    """
    model = check_model(model, inputs)
    args, kwargs = as_arguments(inputs)
    samples = number_of_samples(args, kwargs) or 1
    counter = FlopCounterMode(display=False)
    with running(model, inputs, args, kwargs), torch.no_grad(), evaluating(model), counter:
        model(*own_copy(args), **own_copy(kwargs))
    operations = counter.get_total_flops() / samples
    work = operations if return_flops else operations / 2
    params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if verbose:
        table = Table("module", "MACs", title=type(model).__name__)
        for name, counts in counter.get_flop_counts().items():
            macs = sum(counts.values()) / samples / 2
            if macs:
                table.add_row(name, quantity(macs))
        Console().print(table)
    return (quantity(work), quantity(params)) if readable else (work, params)
