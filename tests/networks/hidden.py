"""Dependencies on channels that no tensor operation shows: numbers from shapes, values that leave torch, state."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.networks.layers import Between, conv_bn
from tests.networks.registry import add, network


def by_parity(x: Tensor) -> Tensor:
    """Another path for another number of channels."""
    return x.relu() if x.shape[1] % 8 == 0 else x.sigmoid()


# The shape of an activation enters the values: slim and masked models differ unless that is found out.
FROM_SHAPE = {
    "scaled_by_width": lambda x: x * x.shape[1] ** -0.5,
    "divided_by_size": lambda x: x / x.numel(),
    "mean_by_hand": lambda x: x - x.sum(1, keepdim=True) / x.shape[1],
    "branch_on_width": by_parity,
    "width_of_view": lambda x: x * x.flatten(1).shape[-1],
    "length_of_list": lambda x: x / len(x.unbind(1)),
    "arange_of_width": lambda x: x * torch.arange(x.shape[1], dtype=x.dtype).view(1, -1, 1, 1),
    "linspace_of_width": lambda x: x + torch.linspace(0, 1, x.shape[1], dtype=x.dtype).view(-1, 1, 1),
    "eye_of_width": lambda x: torch.einsum("nchw,cd->ndhw", x, torch.eye(x.shape[1], dtype=x.dtype)),
}
for name, function in FROM_SHAPE.items():
    add(f"hidden_{name}", "hidden", lambda function=function: Between(function), kept=("head", "first"))

# name: (operation, can the channels of the first convolution be removed?)
VALUES = {
    "tolist": (lambda x: x * max(x.flatten().tolist()), False),
    "numpy_array": (lambda x: x + torch.as_tensor(x.detach().numpy()[:, ::-1].copy()), False),
    "data": (lambda x: x * x.data.mean(1, keepdim=True), True),
    "bool": (lambda x: x if bool((x > 100).any()) else x * 0.5, True),
    "format": (lambda x: x * float(f"{x.sum():.3f}"), True),
    "argmax_item": (lambda x: x * int(x.sum((0, 2, 3)).argmax()), False),
    "unique": (lambda x: x * x.round().unique().numel(), False),
    "quantile": (lambda x: x * x.flatten(1).quantile(0.9, dim=1)[:, None, None, None], False),
    "where_indices": (lambda x: x * len(torch.where(x > 0)[0]), False),
    "histogram": (lambda x: x * x.detach().histc(10)[3], False),
    "random_mask": (lambda x: x * (torch.zeros_like(x).bernoulli(0.0) + 1), True),
    "similarity": (lambda x: x * F.cosine_similarity(x, x.flip(-1), dim=1)[:, None], True),
    "distance": (lambda x: x * torch.cdist(x.flatten(2).mT, x.flatten(2).mT).mean(), False),
    "multinomial_free_sort": (lambda x: x[:, x.abs().sum((0, 2, 3)).argsort()], False),
}
for name, (function, prunable) in VALUES.items():
    add(
        f"value_{name}",
        "hidden",
        lambda function=function: Between(function),
        kept=("head",) if prunable else ("head", "first"),
        inexact=("first",) if name in ("data", "bool") else (),
    )


class Index(nn.Module):
    """Channels picked by an index in a buffer."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.register_buffer("order", torch.tensor([3, 0, 7, 5, 1, 2, 6, 4]))
        self.register_buffer("mask", torch.tensor([1, 0, 1, 1, 0, 1, 0, 1]).bool())

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "index":
            return x[:, self.order]
        if self.how == "index_select":
            return x.index_select(1, self.order)
        if self.how == "gather":
            return x.gather(1, self.order.view(1, -1, 1, 1).expand_as(x))
        if self.how == "index_add":
            return torch.zeros_like(x).index_add(1, self.order, x)
        if self.how == "where":
            return torch.where(self.mask.view(1, -1, 1, 1), x, torch.zeros_like(x))
        return x * self.mask.view(-1, 1, 1)


for how in ("index", "index_select", "gather", "index_add"):
    add(f"buffer_{how}", "hidden", lambda how=how: Between(Index(how)), kept=("head", "first"))
for how in ("where", "mask"):
    add(f"buffer_{how}", "hidden", lambda how=how: Between(Index(how)))


@network("hidden")
class MovingCenter(nn.Module):
    """A buffer that training moves by the batch's mean and that every pass subtracts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.register_buffer("center", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.training:
            self.center.mul_(0.9).add_(x.detach().mean((0, 2, 3)), alpha=0.1)
        return self.head((x - self.center[:, None, None]).relu())


@network("hidden")
class Checkpointed(nn.Module):
    """Activation checkpointing in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 6), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(checkpoint(self.b, x, use_reentrant=False) if self.training else self.b(x))


def swish(x: Tensor) -> Tensor:
    """What timm scripts for its activations."""
    return x * x.sigmoid()


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    scripted_swish = torch.jit.script(swish)


add("scripted_function", "hidden", lambda: Between(lambda x: scripted_swish(x)))


@network("hidden")
class OneModuleTwoNames(nn.Module):
    """A convolution registered under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.b, self.head = self.a, nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.first(x)).relu()))


@network("hidden", partly={"mid": 4})
class SlicedWeight(nn.Module):
    """A slimmable layer: a constant slice of another layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mid, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head(F.conv2d(x, self.mid.weight[:4], self.mid.bias[:4]))


@dataclass
class Box:
    value: Tensor


class Plain:
    def __init__(self, value: Tensor):
        self.value = value


@network("hidden", kept=("a.0", "head"))
class ListOfObjects(nn.Module):
    """Outputs inside dataclasses inside a list inside a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 6), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.a(x)
        return {"boxes": [Box(x), Box(self.head(self.b(x)))]}


@network("hidden", kept=("a.0", "head"))
class ListOfPlainObjects(nn.Module):
    """Outputs in an object of which nothing is known, inside a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 6), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        return [Plain(x), self.head(self.b(x))]


@network("hidden")
class StoredActivation(nn.Module):
    """An activation kept as an attribute by one module and read by another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 8), nn.Conv2d(8, 4, 1)
        self.memory: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        self.memory = x
        y = self.b(x)
        return self.head(y + self.memory)


@network("hidden")
class WidthFromAttribute(nn.Module):
    """A view by a layer's attribute, which surgery corrects."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x.view(x.shape[0], self.first.out_channels, -1).mean(2))


@network("hidden", kept=("head", "second"))
class ResidualIfSameWidth(nn.Module):
    """Whether there is a shortcut is decided by attributes in every call, which pruning must not flip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x)
        return self.head(y + x if y.shape == x.shape else y)


@network("hidden", kept=("head", "a", "offset"))
class Deformable(nn.Module):
    """torchvision's deformable convolution: an operator of another library."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops import DeformConv2d

        self.stem, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.offset, self.deform = nn.Conv2d(8, 18, 3, padding=1), DeformConv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.stem(x).relu())
        return self.head(self.deform(x, self.offset(x)))
