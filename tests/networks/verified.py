"""Networks whose code is right for some selections by chance, or wrong by little, or wrong in train mode only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.networks.registry import network


@network("verified", kept=("head", "first"), partly={"second": 4}, shapes=((2, 3, 8),))
class HalfOfAnother(nn.Module):
    """Half of the width of one tensor is where another one of that width is cut: by chance right for odd widths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 7, 3, padding=1), nn.Conv1d(3, 7, 1)
        self.head = nn.Conv1d(14, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.first(x), self.second(x)
        two[:, : one.shape[1] // 2].relu_()
        return self.head(torch.cat([one, two], 1))


@network(
    "verified", kept=("head", "last", "second"), shapes=((2, 3, 8),), telling=False
)  # its activations are all negative
class HalfOfThree(nn.Module):
    """The same in a longer network with so few channels that most selections are right by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(nn.Sequential(nn.Conv1d(3, 3, 1), nn.ReLU()) for _ in range(4)))
        self.last, self.second, self.head = nn.Conv1d(3, 3, 1), nn.Conv1d(3, 3, 1), nn.Conv1d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.last(self.stem(x))
        two = self.second(one.relu())
        two[:, one.shape[1] // 2 :] *= 2
        return self.head(two)


@network("verified", kept=("head", "aux", "primary", "cheap"), shapes=((2, 3, 8),))
class CutInTrainModeOnly(nn.Module):
    """A head for training on channels that are cut to a constant number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(6, 4, 1)
        self.primary, self.cheap = nn.Conv1d(6, 5, 1), nn.Conv1d(5, 5, 3, padding=1, groups=5)
        self.aux = nn.Conv1d(9, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        if not self.training:
            return (self.head(x),)
        y = self.primary(x)
        return self.head(x), self.aux(torch.cat([y, self.cheap(y)], 1)[:, :9])


@network("verified", kept=("head", "first", "second"), shapes=((2, 3, 8),))
class PositiveByBias(nn.Module):
    """Half of the channels is clipped, of which nothing shows before training makes some of them negative."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 8, 1), nn.Conv1d(8, 4, 1)
        nn.init.constant_(self.second.bias, 50.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y, half = self.second(x), x.shape[1] // 2
        return self.head(torch.cat([y[:, :half].relu(), y[:, half:]], 1))


@network("verified", kept=("head", "second", "aux", "first"), shapes=((2, 3, 8),))
class SwappedBesideAttention(nn.Module):
    """Uneven parts change places in train mode only, where attention drops nothing, so that outputs can be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 8, 1), nn.Conv1d(3, 8, 1)
        self.head, self.aux = nn.Conv1d(8, 4, 1), nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, z = self.first(x), self.second(x)
        attended = nn.functional.scaled_dot_product_attention(y[:, None], y[:, None], y[:, None], scale=1.0)
        if not self.training:
            return (self.head(attended[:, 0] + y),)
        return self.head(attended[:, 0] + y), self.aux(torch.cat([p.tanh() for p in z.tensor_split(2, 1)][::-1], 1))


@network("verified", kept=("head", "first", "second"), shapes=((2, 3, 8),))
class PositiveInEvalMode(nn.Module):
    """Half of the channels is clipped, of which nothing shows while all of them are positive."""

    width = 4

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, self.width, 1), nn.Conv1d(self.width, self.width, 1)
        self.head = nn.Conv1d(self.width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y, half = self.second(x), x.shape[1] // 2
        y = y if self.training else y.abs()
        return self.head(torch.cat([y[:, :half].relu(), y[:, half:]], 1))


@network("verified", kept=("head", "first", "second"), shapes=((2, 3, 8),))
class ManyPositiveInEvalMode(PositiveInEvalMode):
    """The same with so many channels that one selection shows whether code adapts."""

    width = 48


@network("verified", kept=("head", "query", "key"), shapes=((2, 3, 8),))
class FaintAttention(nn.Module):
    """Scores divided by the root of a width, which changes the outputs by less than a hundredth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 4, 1)
        self.query, self.key, self.value = nn.Conv1d(8, 9, 1), nn.Conv1d(8, 9, 1), nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = (f(x) for f in (self.query, self.key, self.value))
        scores = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
        return self.head(x + 1e-2 * (v @ scores.transpose(1, 2)))


@network("verified", partly={"first": 4}, shapes=((2, 3, 8),))
class UnevenChunksSwapped(nn.Module):
    """Chunks of three and of two channels: with fewer channels, others are in each unless both lose as many."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv1d(3, 5, 3, padding=1), nn.Conv1d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        return self.head(torch.cat([b, a], 1))


@network("verified", kept=("head", "first"), shapes=((2, 3, 8),))
class SplitForNothing(nn.Module):
    """Parts that nobody uses, the second one as large as a constant leaves it: negative, if few channels stay."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv1d(3, 11, 3, padding=1), nn.Conv1d(11, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x.split([3, x.shape[1] - 3], 1)
        return self.head(x)


# With some selections all activations of its stem are negative.
@network("verified", kept=("head", "last"), shapes=((2, 3, 8),), telling=False)
class UnevenChunksSwappedTwice(nn.Module):
    """Halves swapped twice: nothing moves where their number is even, every channel by one where it is odd."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(nn.Sequential(nn.Conv1d(3, 3, 1), nn.ReLU()) for _ in range(4)))
        self.last, self.head = nn.Conv1d(3, 11, 3, padding=1), nn.Conv1d(11, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.stem(x))
        for _ in range(2):
            x = torch.cat(x.chunk(2, 1)[::-1], 1)
        return self.head(x)


@network("verified", kept=("first", "head"), shapes=((2, 3, 8),))
class NotANumberOfFewer(nn.Module):
    """A scale that is no number as soon as a channel is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv1d(3, 24, 1), nn.Conv1d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x) * torch.tensor(x.shape[1] - 23.0).log1p()


@network("verified", kept=("head", "first"), shapes=((2, 3, 8),), trains=False)
class OnlyClasses(nn.Module):
    """Nothing but classes is returned, of features that are multiplied by how many 16 channels are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 4, 1)

    def logits(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x * (x.shape[1] // 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).argmax(1)


@network("verified", kept=("head", "first"), shapes=((2, 3, 8),), trains=False)
class ComplexNumbers(OnlyClasses):
    """A spectrum is returned."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(self.logits(x))
