"""Slim models are ordinary modules of the user's own classes."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import channelwise
from tests.networks.architectures import MobileNet
from tests.networks.resident import Resident, image, resident


def traced(model: nn.Module, x: Tensor | None = None) -> tuple[Any, nn.Module]:
    graph = channelwise.trace(model, image() if x is None else x)
    return graph, graph.slim(graph.select(sparsity=0.5))


def test_slim_model_has_the_users_classes_flags_and_no_new_hooks() -> None:
    model, _ = resident()
    _, slim = traced(model)
    for (name, ours), (_, theirs) in zip(slim.named_modules(), model.named_modules(), strict=True):
        assert type(ours) is type(theirs), name
        assert ours.training == theirs.training, name
        assert len(ours._forward_hooks) == len(theirs._forward_hooks), name
        assert len(ours._forward_pre_hooks) == len(theirs._forward_pre_hooks), name
    assert slim.settings == model.settings
    assert slim.settings is not model.settings


def test_slim_model_shares_no_tensor_with_the_original() -> None:
    model = Resident()
    _, slim = traced(model)
    ours = {t.untyped_storage().data_ptr() for t in [*slim.parameters(), *slim.buffers()]}
    assert not ours & {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}


def test_slim_model_attributes_are_those_of_its_tensors() -> None:
    _, slim = traced(Resident())
    assert slim.body[0][0].out_channels == 4
    assert slim.body[0][1].num_features == 4
    assert (slim.body[2][0].in_channels, slim.body[2][0].out_channels) == (4, 3)
    assert slim.head.in_channels == 3
    assert "4, kernel_size" in repr(slim.body[0][0])


def test_slim_model_deep_copies_and_pickles() -> None:
    _, slim = traced(MobileNet().eval())
    x = image()
    expected = slim(x)
    assert torch.equal(copy.deepcopy(slim)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(slim))(x), expected)
    file = io.BytesIO()
    torch.save(slim, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), expected)


def test_slim_model_exports() -> None:
    _, slim = traced(MobileNet().eval())
    x = image()
    program = torch.export.export(slim, (x,))
    torch.testing.assert_close(program.module()(x), slim(x))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="needs a C++ compiler")
def test_slim_model_compiles() -> None:
    _, slim = traced(MobileNet().eval())
    x = image()
    torch.testing.assert_close(torch.compile(slim)(x), slim(x), rtol=1e-4, atol=1e-5)


def test_slim_model_scripts() -> None:
    _, slim = traced(Resident().eval().body)
    x = image()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.trace(slim, x)
    torch.testing.assert_close(scripted(x), slim(x))


def test_slim_model_keeps_the_memory_format() -> None:
    model = Resident().to(memory_format=torch.channels_last)
    _, slim = traced(model)
    for name, parameter in slim.named_parameters():
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_slim_model_keeps_the_dtype(dtype: torch.dtype) -> None:
    model = Resident().to(dtype)
    _, slim = traced(model, image().to(dtype))
    assert {p.dtype for p in slim.parameters()} == {dtype}
    assert slim.eval()(image().to(dtype)).dtype == dtype


def test_slim_model_keeps_requires_grad() -> None:
    model = Resident()
    model.body[0].requires_grad_(False)
    _, slim = traced(model)
    assert [p.requires_grad for p in slim.parameters()] == [p.requires_grad for p in model.parameters()]


def test_slim_model_has_no_gradients_of_the_original() -> None:
    model, _ = resident()
    _, slim = traced(model)
    for name, parameter in slim.named_parameters():
        assert parameter.grad is None or parameter.grad.shape == parameter.shape, name


def test_keeping_everything_gives_an_equal_model() -> None:
    model = Resident().eval()
    graph = channelwise.trace(model, image())
    slim, x = graph.slim(graph.select(sparsity=0.0)), image()
    assert torch.equal(slim(x), model(x))
    assert graph.params(graph.select(sparsity=0.0)) == graph.params()
