"""Several inputs and outputs, dictionaries, keyword arguments, non-tensor arguments, recurrences."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.networks.layers import conv_bn
from tests.networks.registry import network


@network("inputs_outputs", shapes=((2, 3, 8, 8), (2, 2, 8, 8)))
class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(2, 6), nn.Conv2d(14, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(y)], 1))


@network("inputs_outputs", make_inputs=lambda: ([torch.rand(3, 8, 10), torch.rand(3, 12, 8)],))
class ListOfImages(nn.Module):
    """A detector: images of several sizes, one result for each. Two images are two samples."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv_bn(3, 8), nn.Conv2d(8, 4, 1)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        batch = torch.stack([nn.functional.interpolate(x[None], (8, 8))[0] for x in images])
        return [{"scores": scores} for scores in self.head(self.body(batch))]


@network(
    "inputs_outputs", make_inputs=lambda: ({"image": torch.ones(2, 3, 8, 8), "more": [torch.ones(2, 3, 8, 8)], "n": 2},)
)
class DictInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv_bn(3, 8), nn.Conv2d(8, 4, 1)

    def forward(self, batch: dict) -> Tensor:
        return self.head(self.a(batch["image"] * batch["n"] + batch["more"][0]))


@network("inputs_outputs", kwargs=lambda: {"scale": 2.0, "mask": torch.rand(2, 1, 8, 8), "mode": "mul"})
class KeywordArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = conv_bn(3, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, *, scale: float = 1.0, mask: Tensor | None = None, mode: str = "none") -> Tensor:
        x = self.a(x) * scale
        return self.head(x * mask if mode == "mul" and mask is not None else x)


class Features(NamedTuple):
    fine: Tensor
    coarse: Tensor


@dataclass
class Result:
    logits: Tensor
    features: Features
    note: str = "ok"


@network("inputs_outputs", kept=("a.0", "b.0", "head"))
class DataclassOutput(nn.Module):
    """Outputs in a dataclass that holds a named tuple: all of it must be seen, so nothing of a and b may go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mid, self.b, self.head = conv_bn(3, 8), conv_bn(8, 6), conv_bn(6, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Result:
        a = self.a(x)
        b = self.b(self.mid(a))
        return Result(self.head(b), Features(a, b))


@network("inputs_outputs", kept=("head", "b.0"))
class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> OrderedDict:
        b = self.b(self.a(x))
        return OrderedDict(out=self.head(b), extra=[b, ("name", None, 3)])


@network("inputs_outputs", kept=("b.0", "head"))
class SlicedOutput(nn.Module):
    """A slice of features leaves the network, so those channels stay; the others may go or stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b = self.b(self.a(x))
        return b[:, :4], b[:, 4:].flatten(1), self.head(b)


@network("inputs_outputs", make_inputs=lambda: (torch.arange(12).view(2, 6) % 5,))
class Tokens(nn.Module):
    """Integer inputs through an embedding into convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.conv, self.head = nn.Embedding(5, 8), nn.Conv1d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.embedding(x).transpose(1, 2)).relu().amax(2))


@network("inputs_outputs", shapes=((2, 5, 6),), kept=("head", "embed"))
class Recurrent(nn.Module):
    """An LSTM between linear layers: it freezes what it touches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Linear(6, 8), nn.LSTM(8, 8, batch_first=True)
        self.mid, self.head = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mid(self.lstm(self.embed(x))[0][:, -1]).relu())


@network("inputs_outputs", shapes=((2, 3, 8, 8),))
class ConvolutionalRecurrence(nn.Module):
    """A convolutional GRU unrolled over three steps, its state made in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.gates, self.candidate = (
            conv_bn(3, 6),
            nn.Conv2d(12, 12, 3, padding=1),
            nn.Conv2d(12, 6, 3, padding=1),
        )
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encode(x)
        state = torch.zeros_like(x)
        for _ in range(3):
            reset, update = self.gates(torch.cat([x, state], 1)).sigmoid().chunk(2, 1)
            new = self.candidate(torch.cat([x, reset * state], 1)).tanh()
            state = (1 - update) * state + update * new
        return self.head(state)


@network("inputs_outputs", shapes=((3, 8, 8),))
class Unbatched(nn.Module):
    """A single image without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu())


@network("inputs_outputs", shapes=((1, 3, 8, 8),))
class LossInside(nn.Module):
    """The network returns a scalar and features averaged over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.head(self.a(x).relu())
        return y.square().mean(), y.mean(0)
