"""The oracle of supernets: what must hold for every network, whatever its layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from channelwise.inputs.example import cast
from channelwise.inputs.tree import tensors_in
from channelwise.methods.ofa import OFAPruner, Setting
from channelwise.methods.ofa.layers import Dynamic
from channelwise.surgery import clone_module, sparse_state_dict
from channelwise.testing import check_modules, randomise
from channelwise.testing.modules import settle_statistics
from channelwise.testing.slim import unfused_attention
from channelwise.testing.values import distance, equal
from channelwise.tracing.macs import formulas_for_torch


class Checked:
    """A supernet of ``model`` for which everything below has been asserted."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        kwargs: Mapping[str, Any] | None = None,
        *,
        subnets: int = 2,
        tolerance: float = 1e-9,
        trains: bool = True,
        **options: Any,
    ) -> None:
        model = clone_module(model, {})
        randomise(model)
        self.args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
        self.kwargs = dict(kwargs or {})
        settle_statistics(model, self.args, self.kwargs)
        self.model, self.tolerance, self.trains = model.eval(), tolerance, trains
        before = clone_module(model, {})
        self.pruner = OFAPruner(model, inputs, quiet=True)
        options = {"expand_ratio": [0.3, 0.5, 1], "channel_divisible": 1, "auto_add_excludes": False, **options}
        self.supernet = self.pruner.ofa_model(**options)
        self.structure = self.pruner.search_space.structure

        self.full_width_is_the_original()
        self.checkpoints_fit()
        settings = [self.pruner.sample_subnet(self.supernet, "min")[1]]
        settings += [self.pruner.sample_subnet(self.supernet, seed=i)[1] for i in range(subnets)]
        for setting in settings:
            self.subnet(setting)
        for (name, a), (_, b) in zip(model.state_dict().items(), before.state_dict().items(), strict=True):
            assert equal(a, b), f"the user's {name} changed"
        check_modules(before, model)

    def run(
        self, model: nn.Module, *, train: bool = False, dtype: torch.dtype | None = None, seed: int = 0
    ) -> list[Tensor]:
        """The outputs; ``model`` changes in train mode, and with a dtype."""
        args, kwargs = copy.deepcopy((cast(self.args, dtype), cast(self.kwargs, dtype)))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return tensors_in(model.to(dtype).train(train)(*args, **kwargs), attributes=True)

    def full_width_is_the_original(self) -> None:
        """In eval mode; in train mode with the buffers after it, up to the order of channels. Both in float64."""
        theirs, ours = clone_module(self.model, {}), copy.deepcopy(self.supernet)
        error = distance(self.run(ours, dtype=torch.float64), self.run(theirs, dtype=torch.float64))
        assert error <= self.tolerance, f"full width differs from the original by {error:.1e}"
        try:
            expected = self.run(clone_module(theirs, {}), train=True, dtype=torch.float64)
        except Exception:
            assert not self.trains
            return
        again = self.run(theirs, train=True, dtype=torch.float64, seed=1)
        if distance(again, expected) > 0:
            return  # dropout: what is dropped depends on the order of channels
        error = distance(self.run(ours, train=True, dtype=torch.float64), expected)
        assert error <= 1e4 * self.tolerance, f"in train mode, full width differs from the original by {error:.1e}"
        buffers = dict(ours.named_buffers())
        for name, buffer in theirs.named_buffers():
            a, b = buffers[name].flatten().sort().values, buffer.flatten().sort().values
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=f"{name} after a training step")

    def checkpoints_fit(self) -> None:
        """Keys and shapes are those of the original; strict loading works both ways."""
        theirs, ours = self.model.state_dict(), self.supernet.state_dict()
        extra = [name for name in ours if name.endswith("_matrix")]
        shapes = {name: tuple(t.shape) for name, t in ours.items() if isinstance(t, Tensor) and name not in extra}
        assert shapes == {name: tuple(t.shape) for name, t in theirs.items() if isinstance(t, Tensor)}
        for name in extra:
            del ours[name]
        clone_module(self.model, {}).load_state_dict(ours)
        loaded = copy.deepcopy(self.supernet)
        loaded.load_state_dict(theirs)
        expected = self.run(clone_module(self.model, {}), dtype=torch.float64)
        error = distance(self.run(loaded, dtype=torch.float64), expected)
        assert error <= self.tolerance, "the loaded original weights do not compute what the original does"

    def subnet(self, setting: Setting) -> nn.Module:
        """Everything about one subnet; returns the static model."""
        self.pruner.set_subnet(self.supernet, setting)
        static, config, macs, params = self.pruner.get_static_subnet(self.supernet, setting)
        assert config == setting
        ours, theirs = self.run(self.supernet), self.run(static)
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert equal(a, b), f"dynamic and static differ by {distance([a], [b]):.1e}\n{setting}"
        check_modules(self.model.eval(), static)
        for module in static.modules():
            assert not isinstance(module, Dynamic)
        assert round(params * 1e6) == sum(p.numel() for p in static.parameters())
        counted = self.flops(static) / 2
        assert abs(macs * 1e6 - counted) <= 1e-6 * max(counted, 1), f"{macs * 1e6} MACs said, {counted} counted"
        self.attributes_agree(static)
        if self.trains:
            self.gradients_agree(static, setting)
        return static

    def attributes_agree(self, static: nn.Module) -> None:
        ours = dict(self.supernet.named_modules())
        for name, module in static.named_modules():
            for key, value in vars(module).items():
                if isinstance(value, (int, tuple, str)) and not key.startswith("_") and key != "training":
                    assert ours[name].__dict__[key] == value, (
                        f"{name}.{key}: {ours[name].__dict__[key]}, static {value}"
                    )

    def gradients_agree(self, static: nn.Module, setting: Setting) -> None:
        """Those of the active slices are the static subnet's, all others are exactly zero."""
        space = self.pruner.search_space
        if len(space.kernels(space.values(setting))):
            return
        supernet = self.pruner._supernet_of(self.supernet)
        self.supernet.zero_grad()
        static.zero_grad()
        self.backward(self.supernet)
        self.backward(static)
        selection = supernet.selection(space.values(setting))
        zeros = {n: p.new_zeros(p.shape) for n, p in static.named_parameters()}
        grads = {n: p.grad if p.grad is not None else zeros[n] for n, p in static.named_parameters()}
        wide = sparse_state_dict(grads, self.structure, selection)
        active = sparse_state_dict(
            {n: torch.ones_like(p) for n, p in static.named_parameters()}, self.structure, selection
        )
        for name, parameter in self.supernet.named_parameters():
            grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            assert not grad[active[name] == 0].any(), f"{name} has a gradient outside its active slices"
            torch.testing.assert_close(
                grad,
                wide[name],
                rtol=1e-4,
                atol=1e-5 * float(wide[name].abs().max()) + 1e-12,
                msg=f"gradient of {name}",
            )
        self.supernet.zero_grad()

    def backward(self, model: nn.Module) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs = tensors_in(model.eval()(*copy.deepcopy(self.args), **copy.deepcopy(self.kwargs)), attributes=True)
        loss = sum((t.square().mean() for t in outputs if t.is_floating_point()), torch.zeros(()))
        if loss.requires_grad:
            loss.backward()

    def flops(self, model: nn.Module) -> float:
        batch = next(t.shape[0] for t in tensors_in((self.args, self.kwargs), attributes=True))
        counter = FlopCounterMode(display=False, custom_mapping=formulas_for_torch())
        with unfused_attention(), counter:
            model.eval()(*copy.deepcopy(self.args), **copy.deepcopy(self.kwargs))
        return counter.get_total_flops() / batch


class Small(nn.Module):
    """Elastic groups: the residual one of ``stem`` and ``second``, ``first``, the depthwise one of ``expand``."""

    def __init__(self, norm: bool = True, kernel: int = 5) -> None:
        super().__init__()

        def block(i: int, o: int, k: int, groups: int = 1) -> nn.Sequential:
            layers = [nn.Conv2d(i, o, k, padding=k // 2, groups=groups, bias=not norm)]
            return nn.Sequential(*layers, *([nn.BatchNorm2d(o)] if norm else []), nn.ReLU())

        self.stem = block(3, 16, 3)
        self.first, self.second = block(16, 24, 3), block(24, 16, 3)
        self.expand, self.depthwise = block(16, 32, 1), block(32, 32, kernel, groups=32)
        self.project = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.second(self.first(x))
        x = self.project(self.depthwise(self.expand(x)))
        return self.head(x.mean((2, 3)))


INPUTS = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([0, 3, 1, 4])


def small(norm: bool = True, kernel: int = 5) -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Small(norm, kernel)
        randomise(model)
        settle_statistics(model, (INPUTS,), {})
        return model.eval()


def supernet(model: nn.Module | None = None, **options: Any) -> tuple[OFAPruner, nn.Module]:
    """A pruner and its supernet, of the small network by default."""
    pruner = OFAPruner(small() if model is None else model, INPUTS, quiet=True)
    return pruner, pruner.ofa_model(**{"expand_ratio": [0.25, 0.5, 1], "channel_divisible": 4, **options})


@torch.no_grad()
def outputs(model: nn.Module, inputs: Tensor = INPUTS) -> Tensor:
    return model.eval()(inputs)
