"""Networks whose modules keep numbers of channels in attributes: without them following, nothing could be pruned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.networks.registry import network


class PartialConvolution(nn.Module):
    """FasterNet: the first quarter of the channels is convolved, the rest stays as it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.touched = width // 4
        self.untouched = width - self.touched
        self.conv = nn.Conv2d(self.touched, self.touched, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, [self.touched, self.untouched], dim=1)
        return torch.cat([self.conv(a), b], 1)


@network("numbers")
class PartialConvolutions(nn.Module):
    """Two of them in residual blocks of one stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.mix = nn.ModuleList(PartialConvolution(16) for _ in range(2))
        self.grow = nn.ModuleList(nn.Conv2d(16, 24, 1) for _ in range(2))
        self.shrink = nn.ModuleList(nn.Conv2d(24, 16, 1) for _ in range(2))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for mix, grow, shrink in zip(self.mix, self.grow, self.shrink, strict=True):
            x = x + shrink(grow(mix(x)).relu())
        return self.head(x)


class SelectiveKernels(nn.Module):
    """SKNet: every path has its share of the input channels; ``out_channels`` is never read while it runs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.paths = width, width, 2
        self.convs = nn.ModuleList(nn.Conv2d(width // 2, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.split(x, self.in_channels // self.paths, 1)
        return sum(conv(piece).relu() for conv, piece in zip(self.convs, pieces, strict=True))


@network("numbers")
class SelectiveKernelNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 16, 3), SelectiveKernels(16)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x).relu()))


class Scales(nn.Module):
    """Res2Net: one 3x3 convolution after the other, each for a few channels more."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.expand = nn.Conv2d(12, 4 * width, 1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.merge = nn.Conv2d(4 * width, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.split(self.expand(x).relu(), self.width, 1)
        out, last = [], pieces[0]
        for k, conv in enumerate(self.convs):
            last = conv(last if k == 0 else last + pieces[k]).relu()
            out.append(last)
        return self.merge(torch.cat([*out, pieces[3]], 1)) + x


@network("numbers")
class ScaleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 12, 3), Scales(6), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)))


class DualPath(nn.Module):
    """DPN: of one convolution's output some channels are added and the others appended."""

    def __init__(self) -> None:
        super().__init__()
        self.added = 10
        self.conv = nn.Conv2d(10, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.cat([x + y[:, : self.added], y[:, self.added :]], 1)


@network("numbers")
class DualPathNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 10, 3), DualPath(), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x).relu()).relu())


@network("numbers")
class WidthInViews(nn.Module):
    """The network's own module keeps a width for views of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 10, 3), nn.Conv2d(10, 4, 1)
        self.gate, self.width = nn.Parameter(torch.rand(10) + 0.5), 10

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x) * self.gate.view(1, self.width, 1, 1))


class Holder(nn.Module):
    """Keeps a number that only its parent's code reads."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 10
        self.conv = nn.Conv2d(16, 10, 1)

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        return hidden + self.conv(torch.cat([hidden, context], 1))


@network("numbers")
class NumberOfAChild(nn.Module):
    """RAFT: the encoder's channels are split at a number that another module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.update, self.head = nn.Conv2d(3, 16, 3), Holder(), nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        hidden, context = torch.split(x, [self.update.hidden, x.shape[1] - self.update.hidden], 1)
        return self.head(self.update(hidden.tanh(), context.relu()))


@network("numbers", kept=("first", "head"))
class NumberOfTwoMeanings(nn.Module):
    """As many channels as pixels, in one number: if it followed the channels, the size of the image would change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.gate, self.eight = nn.Parameter(torch.rand(8) + 0.5), 8

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.interpolate(self.first(x), size=(self.eight, self.eight))
        return self.head(x * self.gate.view(1, self.eight, 1, 1))


class Branches(nn.Module):
    """InceptionNeXt and MambaOut: sizes of a split in a tuple, of which three are equal."""

    def __init__(self, width: int, branch: int) -> None:
        super().__init__()
        self.sizes = (width - 3 * branch, branch, branch, branch)
        self.convs = nn.ModuleList(nn.Conv2d(branch, branch, 3, padding=1, groups=branch) for _ in range(3))
        self.merge = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        rest, *pieces = torch.split(x, self.sizes, 1)
        return self.merge(torch.cat([rest, *(conv(p) for conv, p in zip(self.convs, pieces, strict=True))], 1))


@network("numbers")
class TupleOfSizes(nn.Module):
    """Once with all sizes different from each other's sums, once with four equal ones; and one in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.unequal = nn.Conv2d(3, 22, 3), Branches(22, 4)
        self.second, self.equal = nn.Conv2d(22, 16, 1), Branches(16, 4)
        self.last, self.view, self.head = nn.Conv2d(16, 14, 1), Shape(14), nn.Conv2d(14, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.equal(self.second(self.unequal(self.first(x)).relu()))
        return self.head(self.view(self.last(x.relu())))


class Shape(nn.Module):
    """MetaFormer's scale: the shape in which a parameter is viewed, in a list."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shape = nn.Parameter(torch.rand(width) + 0.5), [width, 1, 1]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(self.shape)


class SharedNumber(nn.Module):
    """SHViT: one number for two widths, of which nothing else says that they are equal; one of them has to stay."""

    def __init__(self, width: int, touched: int) -> None:
        super().__init__()
        self.width, self.touched, self.inner = width, touched, 6
        self.qkv, self.merge = nn.Conv2d(touched, 2 * 6 + touched, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, [self.touched, self.width - self.touched], 1)
        q, k, v = torch.split(self.qkv(a), [self.inner, self.inner, self.touched], 1)
        q, k, v = q.flatten(2), k.flatten(2), v.flatten(2)
        v = v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)
        return self.merge(torch.cat([v.reshape(x.shape[0], self.touched, *x.shape[2:]), b], 1))


@network("numbers")
class SharedNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 26, 3), nn.Conv2d(26, 4, 1)
        self.blocks = nn.ModuleList(SharedNumber(26, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@network("numbers", smaller=("first.weight", "parts.0.weight", "parts.1.weight"))
class OneNumberForSeveral(nn.Module):
    """Cascaded groups: queries and keys of every head are split off by one number, values by another."""

    def __init__(self) -> None:
        super().__init__()
        self.key_dim, self.value_dim = 6, 10
        self.first, self.head = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(20, 4, 1)
        self.parts = nn.ModuleList(nn.Conv2d(10, 22, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        outputs, carried = [], 0
        for part, piece in zip(self.parts, self.first(x).chunk(2, 1), strict=True):
            q, k, v = part(piece + carried).split([self.key_dim, self.key_dim, self.value_dim], 1)
            weights = (q.flatten(2).transpose(1, 2) @ k.flatten(2)).softmax(-1)
            carried = (v.flatten(2) @ weights.transpose(1, 2)).view(v.shape[0], self.value_dim, *v.shape[2:])
            outputs.append(carried)
        return self.head(torch.cat(outputs, 1))


@network("numbers", partly={"mixer.qkv": 20}, smaller=("first.weight", "mixer.qkv.weight", "mixer.proj.weight"))
class SingleQuery(nn.Module):
    """MobileViTv2: a query of one channel is split off, keys and values by the width in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mixer, self.head = nn.Conv2d(3, 10, 3), LinearAttention(10), nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixer(self.first(x)))


class LinearAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.qkv, self.proj = width, nn.Conv2d(width, 1 + 2 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).split([1, self.width, self.width], 1)
        context = (key * query.flatten(2).softmax(-1).view_as(query)).sum((2, 3), keepdim=True)
        return self.proj(value.relu() * context)


class FocalModulation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.project, self.context = nn.Conv2d(width, 2 * width + 2, 1), nn.Conv2d(width, width, 3, padding=1)
        self.merge = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[1]
        query, context, gates = self.project(x).split((width, width, 2), 1)
        near = self.context(context).tanh()
        focal = near * gates[:, :1] + near.mean((2, 3), keepdim=True) * gates[:, 1:]
        return x + self.merge(query * focal)


@network(
    "numbers",
    partly={"blocks.0.project": 24, "blocks.1.project": 24},
    smaller=("stem.weight", "blocks.0.project.weight", "blocks.1.context.weight", "blocks.1.merge.weight"),
)
class SplitByWidthOfInput(nn.Module):
    """FocalNet of transformers: channels are split by the width of the layer's input, and into a few gates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1)
        self.blocks = nn.Sequential(FocalModulation(12), FocalModulation(12))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class CheckedEmbedding(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.num_channels, self.projection = channels, nn.Conv2d(channels, width, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.num_channels:
            raise ValueError(f"{self.num_channels} channels are expected, not {x.shape[1]}")
        return self.projection(x).relu()


@network("numbers", smaller=("stages.0.projection.weight", "stages.1.projection.weight"))
class ChecksItsWidth(nn.Module):
    """Patch embeddings of transformers: what they refuse is not what an operation would."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(CheckedEmbedding(3, 10), CheckedEmbedding(10, 14))
        self.head = nn.Conv2d(14, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x))
