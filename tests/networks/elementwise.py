"""Element-wise operations: every activation, arithmetic in place and not, clamps, where."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import QuantStub
from torch.nn import functional as F

from tests.networks.layers import Between, Pair
from tests.networks.registry import add, network

ACTIVATIONS = [
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink,
    nn.Hardshrink, nn.RReLU,
]  # fmt: skip
for activation in ACTIVATIONS:
    add(f"{activation.__name__}", "elementwise", lambda activation=activation: Between(activation()))
for activation in (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Hardswish, nn.Hardtanh, nn.Mish):
    build = lambda activation=activation: Between(activation(inplace=True))  # noqa: E731
    add(f"{activation.__name__}_in_place", "elementwise", build)
add("Threshold", "elementwise", lambda: Between(nn.Threshold(0.1, 0.0)))
add("GELU_tanh", "elementwise", lambda: Between(nn.GELU("tanh")))
add("PReLU_single", "elementwise", lambda: Between(nn.PReLU()))
add("PReLU_per_channel", "elementwise", lambda: Between(nn.PReLU(8)), smaller=("op.weight",))

UNARY = {
    "abs": torch.abs,
    "neg": lambda x: -x,
    "exp": torch.exp,
    "log1p": lambda x: x.abs().log1p(),
    "sqrt": lambda x: (x.square() + 1).sqrt(),
    "rsqrt": lambda x: (x.square() + 1).rsqrt(),
    "sin_cos": lambda x: x.sin() + x.cos(),
    "erf": torch.erf,
    "sign": lambda x: x.sign() * x,
    "reciprocal": lambda x: (x.abs() + 1).reciprocal(),
    "pow_number": lambda x: x**3,
    "pow_of_number": lambda x: 2.0**x,
    "scalars": lambda x: (1 - x) * 2 / 3 + 0.5,
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp_min": lambda x: x.clamp_min(0.1),
    "clamp_tensors": lambda x: x.clamp(torch.tensor(-0.5, dtype=x.dtype), torch.tensor(0.5, dtype=x.dtype)),
    "where_scalar": lambda x: torch.where(x > 0, x, 0.1),
    "where_tensor": lambda x: torch.where(x > 0, x, x * 0.1),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "logical": lambda x: x * ((x > 0) & ~(x > 1)).to(x.dtype),
    "maximum": lambda x: torch.maximum(x, x.flip(-1)),
    "minimum_scalar": lambda x: torch.minimum(x, torch.zeros((), dtype=x.dtype)),
    "lerp": lambda x: torch.lerp(x, x.flip(2), 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.5),
    "nan_to_num": torch.nan_to_num,
    "dtypes": lambda x: x.float().double().to(x.dtype).type_as(x),
    "clone_contiguous": lambda x: x.clone().contiguous(),
    "detach": lambda x: x.detach() + x,
    "zeros_like": lambda x: x + torch.zeros_like(x) + torch.ones_like(x) + torch.full_like(x, 0.5),
    "new_zeros": lambda x: x + x.new_zeros(x.shape) + torch.zeros(x.shape, dtype=x.dtype),
    "remainder_floor": lambda x: x - x.floor() + x.remainder(1.5),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
}
for name, function in UNARY.items():
    add(f"unary_{name}", "elementwise", lambda function=function: Between(function))
for dropout in (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout):
    add(f"{dropout.__name__}", "elementwise", lambda dropout=dropout: Between(dropout(0.3)))


def in_place(x: Tensor) -> Tensor:
    """In-place operations on the activation and on views of it."""
    x.add_(1).mul_(2).relu_()
    x[:, :, 1:] += 1
    x[..., 0].mul_(0.5)
    x += x.flip(-1)
    x[:, :, 0, 0] = 0
    return x.sub_(0.1).clamp_(-1, 3)


def filled(x: Tensor) -> Tensor:
    """A fresh buffer of the activation's shape is written part by part."""
    out = torch.empty_like(x)
    out[:, :, ::2] = x[:, :, ::2]
    out[:, :, 1::2].copy_(x[:, :, 1::2] * 2)
    return out


def copied_by_channels(x: Tensor) -> Tensor:
    """A preallocated tensor receives two activations along its channels."""
    out = x.new_zeros(x.shape[0], 2 * x.shape[1], *x.shape[2:])
    out[:, : x.shape[1]] = x
    out[:, x.shape[1] :] = x.relu()
    return out


add("in_place_views", "elementwise", lambda: Between(in_place), trains=False)
add("buffer_filled_by_rows", "elementwise", lambda: Between(filled))
add("buffer_filled_by_channels", "elementwise", lambda: Between(copied_by_channels, after=16), kept=("head", "first"))

BINARY = {
    "add": lambda a, b: a + b,
    "add_alpha": lambda a, b: torch.add(a, b, alpha=0.5),
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / (b.abs() + 1),
    "pow": lambda a, b: (a.abs() + 0.1) ** b,
    "where": lambda a, b: torch.where(a > b, a, b),
    "in_place": lambda a, b: a.add_(b).mul_(b),
    "atan2": torch.atan2,
    "addcmul": lambda a, b: torch.addcmul(a, a, b),
    "gate": lambda a, b: a.sigmoid() * b.tanh(),
    "mean_of_stack": lambda a, b: torch.stack([a, b]).mean(0),
    "sum_of_list": lambda a, b: sum([a, b, a * b]),
}
for name, function in BINARY.items():
    add(f"binary_{name}", "elementwise", lambda function=function: Pair(function, 8))


@network("elementwise")
class RawScales(nn.Module):
    """Raw parameters as scales and shifts: LayerScale, a scalar, and one with its batch axis missing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.gamma, self.shift = nn.Parameter(torch.full((1, 8, 1, 1), 1e-6)), nn.Parameter(torch.zeros(8, 1, 1))
        self.alpha = nn.Parameter(torch.zeros(()))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.gamma * self.second(x.relu()) + self.shift
        return self.head(x * self.alpha)


@network("elementwise", kept=("first", "head"))
class ConstantAlongChannels(nn.Module):
    """A constant made in the code, added along the channels: they must stay, and the reason must say so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x) + torch.arange(8, dtype=x.dtype).view(1, 8, 1, 1))


@network("elementwise", smaller=("scale",))
class BufferAlongChannels(nn.Module):
    """A buffer along the channels is sliced like a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 8).view(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x) * self.scale)


@network("elementwise")
class QuantisedLater(nn.Module):
    """A float model made to be quantised: it adds, multiplies and concatenates by modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.functions, self.stub = FloatFunctional(), QuantStub()
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        do = self.functions
        x = self.first(self.stub(x))
        y = do.add_relu(x, do.mul_scalar(self.second(x.relu()), 0.5))
        return self.head(do.cat([do.add(x, y), do.mul(x, do.add_scalar(y, 1.0))], 1))


@network("elementwise")
class ConstantAlongSpace(nn.Module):
    """Constants that vary over space only do not concern the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x) + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype))
