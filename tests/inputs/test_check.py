"""What cannot be traced is refused with a reason; wrappers that only change how a model runs are taken off."""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.data import DataLoader, TensorDataset

from channelwise.errors import InvalidArgumentError, UnsupportedModelError
from channelwise.inputs.check import _check_match, check_model


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))


X = torch.zeros(1, 3, 8, 8)


def test_plain_model_is_returned_itself() -> None:
    model = network()
    assert check_model(model, X) is model


@pytest.mark.parametrize("inputs", [X, (X,), [X], {"input": X}, (X, None, "mode", {"deep": [X]})])
def test_tensors_tuples_lists_and_dicts_are_inputs(inputs: Any) -> None:
    check_model(network(), inputs)


def test_data_parallel_is_unwrapped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    with caplog.at_level(logging.INFO):
        assert check_model(nn.DataParallel(model), X) is model
    assert "DataParallel" in caplog.text


def test_distributed_data_parallel_is_unwrapped() -> None:
    model = network()
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    assert check_model(wrapped, X) is model


def test_compiled_model_is_unwrapped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    with caplog.at_level(logging.INFO):
        assert check_model(nn.DataParallel(torch.compile(model)), X) is model
    assert "torch.compile" in caplog.text


def test_model_compiled_in_place_is_used_without_its_compiled_call() -> None:
    model = network()
    model.compile()
    plain = check_model(model, X)
    assert plain._compiled_call_impl is None
    assert model._compiled_call_impl is not None
    assert plain[0].weight is model[0].weight


def compiled_part() -> nn.Module:
    return nn.Sequential(torch.compile(network()))


def quantised() -> nn.Module:
    return torch.ao.nn.quantized.Conv2d(3, 4, 3)


def prepared() -> nn.Module:
    model = nn.Sequential(network())
    model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    return torch.ao.quantization.prepare(model)


def test_a_float_model_made_to_be_quantised_later_is_accepted() -> None:
    model = nn.Sequential(network(), torch.ao.nn.quantized.FloatFunctional(), torch.ao.quantization.QuantStub())
    assert check_model(model, X) is model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: torch.jit.trace(network(), X), "the model is a .*script the result"),
        (lambda: nn.Sequential(torch.jit.trace(network(), X)), "module '0' is a "),
        (lambda: nn.Sequential(nn.Identity(), quantised()), "module '1' is quantised"),
        (lambda: nn.Sequential(nn.Identity(), torch.ao.nn.quantized.QFunctional()), "module '1' is quantised"),
        (prepared, "module '0.0.activation_post_process' is .*before prepare"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "0.weight has no shape yet .*forward pass"),
        (lambda: network().to("meta"), "0.weight is on the meta device"),
        (compiled_part, "module '0' is compiled"),
    ],
    ids=["scripted", "scripted part", "quantised", "quantised function", "prepared", "lazy", "meta", "compiled part"],
)
@pytest.mark.filterwarnings("ignore")
def test_models_that_cannot_be_taken_apart_are_refused(build: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        check_model(build(), X)


class Holder:
    """No module, but it holds one, as trainers and pipelines do."""

    def __init__(self) -> None:
        self.model = network()


class Facade(nn.Module):
    """As ultralytics.YOLO: a module around the model, whose train() trains."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def __call__(self, source: Any) -> Any:
        raise AssertionError("predicts")

    def train(self, mode: bool = True) -> Any:
        raise AssertionError("trains")


class Called(nn.Module):
    """Runs without a forward."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("model", [Called(), "instance"])
def test_what_can_run_without_a_forward_of_its_class_is_accepted(model: Any) -> None:
    if model == "instance":
        model = nn.Module()
        model.forward = lambda x: x
    assert check_model(model, X) is model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Conv2d, "the class Conv2d.* Give an instance"),
        ({"weight": X}, "dict.*load_state_dict"),
        (lambda x: x, "function"),
        (None, "NoneType None"),
        ("model.pt", "str 'model.pt'.* load_state_dict"),
        (Holder(), r"It holds a Sequential: give its \.model"),
        (Facade(), r"Facade has no forward.* It holds a Sequential: give its \.model"),
        (nn.ModuleList([network()]), r"ModuleList has no forward.* It holds a Sequential: give its \[0\]"),
    ],
)
def test_what_is_no_module_is_refused(model: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        check_model(model, X)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((1, 3, 8, 8), re.escape("Did you mean torch.randn(1, 3, 8, 8)?")),
        (np.zeros((1, 3, 8, 8)), "torch.from_numpy"),
        ("image.png", "str 'image.png'"),
        ([], "holds no tensor"),
        (network(), "the order is"),
        (DataLoader(TensorDataset(X)), r"DataLoader.* images, labels = next\(iter\(loader\)\)"),
    ],
)
def test_what_holds_no_tensor_is_refused(inputs: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        check_model(network(), inputs)


def test_type_mismatch_names_both_types() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"inputs are torch.float64 and the model is torch.float32 \(0.weight\)"
    ):
        check_model(network(), X.double())


def test_device_mismatch_names_both_devices() -> None:
    with pytest.raises(InvalidArgumentError, match=r"inputs are on meta and the model is on cpu \(0.weight\)"):
        _check_match(network(), [X.to("meta")])


def test_whole_number_inputs_have_no_type_to_match() -> None:
    check_model(nn.Embedding(5, 3), torch.zeros(1, 4, dtype=torch.long))


def test_mixed_precision_models_take_any_floating_input() -> None:
    check_model(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double()), torch.zeros(1, 3).double())


@pytest.mark.parametrize(("inputs", "said"), [(X[0], True), (X, False), (torch.zeros(2, 3, 8), False)])
def test_one_image_without_a_batch_axis_is_mentioned(
    inputs: torch.Tensor, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    check_model(network(), inputs)
    assert ("look like one sample without a batch axis" in caplog.text) is said


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"batch is empty: the first tensor has shape \(0, 3\)"):
        check_model(nn.Linear(3, 2), torch.ones(0, 3))


def test_keyword_arguments_must_be_a_mapping() -> None:
    with pytest.raises(InvalidArgumentError, match="kwargs must be a dict"):
        check_model(nn.Linear(3, 2), torch.ones(1, 3), 3)  # type: ignore[arg-type]


def test_inputs_without_values_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"meta device, .* torch.randn\(1, 3, 8, 8\)"):
        check_model(network(), {"x": [X.to("meta")]})
    with pytest.raises(InvalidArgumentError, match=r"nested tensor.*to_padded_tensor"):
        check_model(network(), torch.nested.nested_tensor([X[0], X[0]]))


def test_weights_that_hold_other_tensors_are_refused_with_the_way_out() -> None:
    """As those of torchao's quantised layers, and of DTensor."""
    model = network()
    weight = model[0].weight.detach()
    model[0].weight = nn.Parameter(TwoTensor(weight, weight))
    with pytest.raises(UnsupportedModelError, match=r"0\.weight is a TwoTensor.*Prune the plain model, and quantise"):
        check_model(model, X)


def test_plain_subclasses_of_tensors_are_weights_and_inputs() -> None:
    class Mine(torch.Tensor):
        pass

    model = network()
    model[0].weight = nn.Parameter(model[0].weight.detach().as_subclass(Mine))
    check_model(model, X.as_subclass(Mine))
