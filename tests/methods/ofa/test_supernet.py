"""A supernet is the original at full width, and every subnet is a plain network: checked on every kind of layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from channelwise.errors import NothingToPruneError
from channelwise.methods.ofa import OFAPruner
from channelwise.testing.values import distance
from tests.methods.ofa.supernets import INPUTS, Checked, small
from tests.networks import NETWORKS
from tests.test_torchvision import FIXED_SIZE, SIDES, build

models = pytest.importorskip("torchvision.models")

# Small networks of tests/networks, one or two of every kind of structure.
REGISTERED = [
    "ResidualIfSameWidth", "OneModuleTwoNames", "SplitAttention", "GatedConvolution", "AddOfCat",
    "PartialConvolution", "split_glu", "split_chunk_four", "Checkpointed", "MovingCenter", "weight_norm",
    "weight_norm_old", "weight_norm_of_all", "weight_norm_over_inputs", "spectral_norm", "spectral_norm_old",
    "scaled", "TiedAutoencoder",
]  # fmt: skip


class ConvNeXtBlock(nn.Module):
    """Layer scale as a bare parameter, layer norm behind a permutation, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale = nn.Parameter(torch.full((16, 1, 1), 1e-6))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(self.mix(x).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        return self.head((x + self.scale * y).mean((2, 3)))


class Dense(nn.Module):
    """Every layer reads all before it, with a norm in front (DenseNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 + 8 * i) for i in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(16 + 8 * i, 8, 3, padding=1) for i in range(3))
        self.head = nn.Conv2d(40, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(norm(x).relu())], 1)
        return self.head(self.norms[3](x).relu())


class SqueezeExcite(nn.Module):
    """A depthwise convolution with a gate of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)
        self.depthwise, self.second = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16)
        self.squeeze, self.excite, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.depthwise(self.norm(self.expand(x)).relu())).relu()
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(x * gate)


class Shuffled(nn.Module):
    """Halves, a branch of one of them, and a channel shuffle (ShuffleNetV2); a grouped convolution behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.grouped, self.norm, self.head = nn.Conv2d(16, 24, 3, groups=2), nn.BatchNorm2d(24), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        x = torch.cat([a, self.branch(b).relu()], 1)
        x = x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return self.head(self.norm(self.grouped(x)).relu())


class Decoder(nn.Module):
    """Plain and grouped transposed convolutions with a skip connection (U-Net)."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 16, 3, 2, 1)
        self.up, self.norm = nn.ConvTranspose2d(16, 12, 2, 2), nn.GroupNorm(3, 24)
        self.last, self.act = nn.ConvTranspose2d(24, 8, 4, 2, 1, groups=4), nn.PReLU(8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x).relu()
        x = self.up(self.deep(skip).relu(), output_size=skip.shape[2:])
        return self.head(self.act(self.last(self.norm(torch.cat([x, skip], 1)).relu())))


class Flattened(nn.Module):
    """A linear layer reads several positions of every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3, 2), nn.InstanceNorm2d(8, affine=True), nn.Conv2d(8, 12, 3)
        self.hidden, self.last, self.head = nn.Linear(12 * 4, 20), nn.BatchNorm1d(20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.hidden(self.b(self.norm(self.a(x))).relu().flatten(1))).relu())


class Volumes(nn.Module):
    """1-d and 3-d layers."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv, norm = (nn.Conv1d, nn.Conv3d)[dims == 3], (nn.BatchNorm1d, nn.BatchNorm3d)[dims == 3]
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose3d)[dims == 3]
        self.a, self.b = nn.Sequential(conv(3, 8, 3), norm(8), nn.PReLU(8)), conv(8, 8, 3, padding=1, groups=8)
        self.c, self.head = transposed(8, 12, 3, groups=2), conv(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x))).relu())


class OwnLayer(nn.Conv2d):
    """A user's subclass with code of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1))) * 0.5


class Repeated(nn.Module):
    """A module called twice, two layers with one weight, a synchronised norm, a user's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = OwnLayer(3, 16, 3), nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.SyncBatchNorm(16))
        self.one, self.two, self.head = nn.Conv2d(16, 12, 1), nn.Conv2d(16, 12, 1), nn.Conv2d(12, 4, 1)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x)).relu()
        x = self.body(x).relu()
        return self.head((self.one(x) + self.two(x.flip(-1))).relu())


STRUCTURES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "residual, depthwise, elastic kernel": (small, INPUTS),
    "without norms": (lambda: small(norm=False), INPUTS),
    "ConvNeXt": (ConvNeXtBlock, torch.randn(2, 3, 16, 16)),
    "DenseNet": (Dense, INPUTS),
    "squeeze-excite": (SqueezeExcite, INPUTS),
    "shuffle, grouped": (Shuffled, INPUTS),
    "transposed, group norm, PReLU": (Decoder, torch.randn(2, 3, 16, 16)),
    "flatten, linear, instance norm": (Flattened, INPUTS),
    "1-d": (lambda: Volumes(1), torch.randn(3, 3, 9)),
    "3-d": (lambda: Volumes(3), torch.randn(2, 3, 5, 5, 5)),
    "shared, repeated, subclass, sync": (Repeated, INPUTS),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(name: str) -> None:
    make, inputs = STRUCTURES[name]
    torch.manual_seed(0)
    checked = Checked(make(), inputs)
    space = checked.pruner.search_space
    assert not [c.fixed for c in space.choices if "does not adapt" in c.fixed]
    assert space.macs(space.minimum) < 0.7 * space.macs(space.maximum)


@pytest.mark.parametrize("name", REGISTERED)
def test_unusual_networks(name: str) -> None:
    network = NETWORKS[name]
    checked = Checked(network.model(), network.inputs(), trains=network.trains)
    fixed = [c.fixed for c in checked.pruner.search_space.choices if "does not adapt" in c.fixed]
    # The tied autoencoder uses the weight of a layer that it does not call.
    assert bool(fixed) == (name == "TiedAutoencoder"), fixed


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, network in NETWORKS.items() if network.kwargs is None])
def test_every_small_network(name: str) -> None:
    network = NETWORKS[name]
    try:
        Checked(network.model(), network.inputs(), trains=network.trains)
    except NothingToPruneError:
        pytest.skip("nothing can be pruned")


def test_full_width_is_the_original_in_single_precision() -> None:
    model = models.resnet18(num_classes=10).eval()
    x = torch.randn(2, 3, 64, 64)
    supernet = OFAPruner(model, x, quiet=True).ofa_model()
    with torch.no_grad():
        for train in (False, True):
            error = distance([supernet.train(train)(x)], [model.train(train)(x)])
            assert error < 1e-5, f"{error:.1e} relative"


TORCHVISION = {
    "shufflenet_v2_x0_5": 32, "regnet_y_400mf": 64, "efficientnet_b0": 32, "mobilenet_v3_small": 32, "googlenet": 64,
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    side = TORCHVISION[name]
    checked = Checked(build(name), torch.randn(2, 3, side, side), subnets=1, channel_divisible=8)
    space = checked.pruner.search_space
    assert not [c.fixed for c in space.choices if "does not adapt" in c.fixed]
    assert space.macs(space.minimum) < 0.4 * space.macs(space.maximum)


def test_auxiliary_heads_train() -> None:
    """GoogLeNet gives three outputs in train mode, traced in eval mode or in train mode."""
    model = build("googlenet", aux_logits=True).train()
    x = torch.randn(2, 3, 64, 64)
    pruner = OFAPruner(model, x, quiet=True)
    supernet = pruner.ofa_model()
    for mode in ("max", "min", "random"):
        outputs = pruner.sample_subnet(supernet, mode, seed=0 if mode == "random" else None)[0].train()(x)  # type: ignore[arg-type]
        assert [tuple(t.shape) for t in outputs] == [(2, 1000)] * 3
        sum(t.square().mean() for t in outputs).backward()
    assert all(p.grad is not None for p in supernet.parameters())


# More than 600 M parameters: the copies that a check compares do not fit into 24 GiB.
HUGE = {"regnet_y_128gf", "vit_h_14"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in models.list_models(module=models) if n not in {*TORCHVISION, *HUGE}])
def test_every_classification_model(name: str) -> None:
    side = SIDES.get(name, FIXED_SIZE.get(name.split("_")[0], 64))
    Checked(build(name), torch.randn(2, 3, side, side), subnets=1, channel_divisible=8)


class Changeable(nn.Module):
    """From some moment on another network every time it runs."""

    runs: Iterator[int] = itertools.repeat(1)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu()) * float(next(self.runs))


def test_a_network_that_is_another_every_time_is_refused_and_not_tried_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pruner = OFAPruner(Changeable().eval(), torch.randn(1, 3, 12, 12), quiet=True)
    monkeypatch.setattr(Changeable, "runs", itertools.count(1))
    with pytest.raises(NothingToPruneError, match="Changeable cannot be a supernet: at full width already"):
        pruner.ofa_model()
