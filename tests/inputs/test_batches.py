"""Loaders are read as users mean them, and what cannot be read is refused with the way out."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import channelwise as cw
from channelwise.errors import EvaluationError, InvalidArgumentError
from channelwise.inputs.batches import MANY, batches_of, check_loader, evaluating, forward, moved
from channelwise.ranking import Reconstruction, Taylor


class Two(nn.Module):
    """A model of two inputs that says what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, a: Tensor, b: Tensor | None = None) -> tuple[Any, Any]:
        return a, b


X, Y = torch.ones(2, 3), torch.zeros(2)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (X, (X, None)),
        ((X, Y), (X, None)),
        ([X], (X, None)),
        (((X, Y), 5), (X, Y)),
        (([X, Y], None), (X, Y)),
        ({"a": X, "b": Y}, (X, Y)),
        (({"a": X, "b": Y}, "target"), (X, Y)),
    ],
    ids=["tensor", "with targets", "one item", "tuple of inputs", "list of inputs", "dict", "dict and target"],
)
def test_each_form_of_a_batch_reaches_the_model(batch: Any, expected: tuple[Any, Any]) -> None:
    seen = forward(Two(), batch)
    assert all(a is b for a, b in zip(seen, expected, strict=True))


def test_forward_fn_gets_the_batch_as_it_is() -> None:
    batch = {"image": X, "name": "cat"}
    assert forward(Two(), batch, lambda model, b: model(b["image"], b["name"])) == (X, "cat")


def test_tensors_go_to_the_models_device_and_keep_their_type() -> None:
    Pair = namedtuple("Pair", ["image", "more"])
    batch = Pair(X.half(), {"ids": [Y.long(), "text"]})
    there = moved(batch, torch.device("meta"))
    assert isinstance(there, Pair)
    assert there.image.is_meta
    assert there.image.dtype == torch.float16
    assert there.more["ids"][0].is_meta
    assert there.more["ids"][0].dtype == torch.int64
    assert there.more["ids"][1] == "text"
    assert moved(batch, torch.device("cpu")) is batch


@pytest.mark.parametrize("batch", [("cat", X), {"name": "cat"}, 3, [], None])
def test_a_batch_without_a_tensor_is_told(batch: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="no tensor as its input"):
        forward(Two(), batch)


def test_inputs_that_forward_does_not_take_are_told_with_its_arguments() -> None:
    with pytest.raises(InvalidArgumentError, match=r"Two.forward\(a, b\).*pixels.*forward_fn"):
        forward(Two(), {"pixels": X})
    with pytest.raises(InvalidArgumentError, match=r"3 input"):
        forward(Two(), ((X, X, X), Y))


def test_an_error_inside_the_model_is_the_cause_of_one_that_names_the_batch() -> None:
    class Broken(Two):
        def forward(self, a: Tensor, b: Tensor | None = None) -> tuple[Any, Any]:
            raise TypeError("inside")

    with pytest.raises(EvaluationError, match=r"Broken raised TypeError on a batch .*: inside\.") as caught:
        forward(Broken(), X)
    assert isinstance(caught.value.__cause__, TypeError)


def test_no_more_batches_are_read_than_asked_for() -> None:
    source = iter([1, 2, 3])
    assert list(batches_of(source, 2)) == [1, 2]
    assert next(source) == 3
    assert list(batches_of([1, 2, 3])) == [1, 2, 3]


def test_an_empty_loader_is_an_error_that_says_why() -> None:
    with pytest.raises(InvalidArgumentError, match=r"yields nothing\.$"):
        list(batches_of([]))
    spent = (x for x in [X])
    assert len(list(batches_of(spent))) == 1
    with pytest.raises(InvalidArgumentError, match="read only once"):
        list(batches_of(spent))
    with pytest.raises(InvalidArgumentError, match="drop_last"):
        list(batches_of(DataLoader(TensorDataset(X), batch_size=8, drop_last=True)))


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (X, "is a tensor"),
        ({"a": X}, "is a dict"),
        (TensorDataset(X), "DataLoader"),
        (None, "None"),
        ("images/", "images/"),
        (lambda: [X], "function"),
        (nn.Sequential(nn.ReLU()), "Sequential"),
    ],
    ids=["tensor", "dict", "dataset", "none", "path", "function", "model"],
)
def test_what_is_no_loader_is_refused_at_once(loader: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        batches_of(loader)


@pytest.mark.parametrize("batches", [0, -1, 2.5, True, "all"])
def test_a_number_of_batches_that_is_none_is_refused(batches: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="batches="):
        batches_of([X], batches)


def test_a_generator_is_refused_where_it_is_read_again() -> None:
    check_loader([X], repeated=True)
    with pytest.raises(InvalidArgumentError, match="only once"):
        check_loader((x for x in [X]), repeated=True)


def test_evaluating_restores_the_flag_of_each_module() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2))).train()
    model[1][0].eval()
    before = [m.training for m in model.modules()]
    with contextlib.suppress(KeyError), evaluating(model):
        assert not any(m.training for m in model.modules())
        raise KeyError
    assert [m.training for m in model.modules()] == before


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return itertools.repeat(torch.ones(3))


class TooFew(list[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return itertools.repeat(X)


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (itertools.repeat(X), "a repeat"),
        (DataLoader(Stream(), batch_size=2), "a DataLoader"),
        (TooFew([X]), "a TooFew"),
        ([X] * (MANY + 1), ""),
        (DataLoader(TensorDataset(torch.ones(MANY + 1, 3))), ""),
    ],
    ids=["generator", "stream", "wrong length", "list", "loader"],
)
def test_a_loader_that_may_have_no_end_is_said_after_many_batches(
    loader: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(list(itertools.islice(batches_of(loader), MANY + 1))) == MANY + 1
    told = [record.getMessage() for record in caplog.records if "batches=" in record.getMessage()]
    assert len(told) == bool(said)
    assert all(f"{MANY} batches of {said} have been read" in message for message in told)


def test_a_stream_is_read_as_far_as_batches_says(caplog: pytest.LogCaptureFixture) -> None:
    loader = itertools.repeat(X)
    assert len(list(batches_of(loader, MANY + 5))) == MANY + 5
    assert not caplog.records


class StoppedError(Exception):
    """Enough has been read."""


class NoEnd:
    """A loader that the test ends."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from [torch.randn(2, 3, 8, 8)] * (MANY + 1)
        raise StoppedError


USES: dict[str, Callable[[nn.Module, cw.ChannelGraph, cw.Selection], object]] = {
    "recalibrate": lambda net, *_: cw.recovery.recalibrate(net, NoEnd()),
    "compensate": lambda _, graph, kept: cw.recovery.compensate(graph.slim(kept), graph, kept, NoEnd()),
    "reconstruction": lambda _, graph, __: graph.select(macs=0.5, ranking=Reconstruction(NoEnd())),
    "taylor": lambda _, graph, __: graph.select(macs=0.5, ranking=Taylor(torch.sum, NoEnd(), batches=None)),
}


@pytest.mark.parametrize("use", list(USES))
def test_all_that_read_images_say_so(use: str, caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), nn.Flatten()).eval()
    graph = cw.trace(net, torch.randn(1, 3, 8, 8))
    with pytest.raises(StoppedError), caplog.at_level(logging.WARNING):
        USES[use](net, graph, graph.select(macs=0.5))
    assert "it does not say how many it has" in caplog.text
