"""A model with everything that a trace could disturb, and what tells whether it was disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from tests.networks.layers import conv_bn


class Resident(nn.Module):
    """A model with everything that a trace could disturb: dropout, statistics, hooks, gradients, attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 8), nn.Dropout2d(0.5), conv_bn(8, 6))
        self.head = nn.Conv2d(6, 4, 1)
        self.calls = 0
        self.settings = {"width": 8}
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.fails:
            raise KeyError("in the middle of the user's forward")
        return self.head(x)


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def resident() -> tuple[Resident, list[str]]:
    """A model with gradients, mixed training flags, and hooks of its user that log into the list returned."""
    model, log = Resident(), []
    model(image()).square().mean().backward()
    model.train()
    model.body[2].eval()
    model.body[0][0].register_forward_hook(lambda *_: log.append("forward"))
    model.head.register_forward_pre_hook(lambda *_: log.append("pre"))
    model.head.register_full_backward_hook(lambda *_: log.append("backward"))
    return model, log


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that must not change: identities and values of tensors, gradients, flags, hooks, attributes."""
    found: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        gradient = tensor.grad
        found[name] = (id(tensor), tensor.data_ptr(), tensor._version, tensor.tolist(), tensor.requires_grad)
        found[f"{name}.grad"] = None if gradient is None else (id(gradient), gradient.tolist())
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        hooks = [list(getattr(module, k)) for k in vars(module) if k.endswith("hooks")]
        found[f"module {name}"] = (id(module), type(module), repr(plain), hooks)
    return found


def global_hook_counts() -> list[int]:
    return [len(v) for k, v in vars(global_hooks).items() if k.startswith("_global") and k.endswith("hooks")]


@contextmanager
def nothing_changes(model: nn.Module) -> Iterator[None]:
    """Asserts that the model, the random state, the grad mode and global hooks are as before."""
    before, random, hooks, grad = snapshot(model), torch.get_rng_state(), global_hook_counts(), torch.is_grad_enabled()
    dtype = torch.get_default_dtype()
    yield
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert global_hook_counts() == hooks
    assert torch.is_grad_enabled() == grad
    assert torch.get_default_dtype() == dtype
