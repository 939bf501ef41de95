"""Parameters of its own for a slim model that shares untouched ones with the dense model."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from channelwise.surgery.clone import like_parameter


def own_parameters(slim: nn.Module, model: nn.Module, names: Collection[str]) -> None:
    """Give ``slim`` copies of those of its parameters ``names`` that are ``model``'s; what is tied stays tied."""
    shared = {id(p) for p in model.parameters()}
    copies = {
        id(p): like_parameter(p, p.detach().clone())
        for name, p in slim.named_parameters(remove_duplicate=False)
        if name in names and id(p) in shared
    }
    if not copies:
        return
    for module in slim.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in copies:
                module._parameters[name] = copies[id(parameter)]
