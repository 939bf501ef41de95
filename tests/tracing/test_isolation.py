"""Tracing and slimming leave the user's model and process as they were, and slim models are ordinary modules."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
import warnings
from collections import OrderedDict, UserDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

import channelwise
from channelwise.errors import ChannelwiseError, InvalidArgumentError, TraceError, UnsupportedModelError
from channelwise.structure import Cause
from tests.networks.architectures import MobileNet
from tests.networks.composites import AuxiliaryHead, WantsTargets
from tests.networks.expectations import why
from tests.networks.layers import Between, conv_bn
from tests.networks.unknown import CustomOperation


class Resident(nn.Module):
    """A model with everything that a trace could disturb: dropout, statistics, hooks, gradients, attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 8), nn.Dropout2d(0.5), conv_bn(8, 6))
        self.head = nn.Conv2d(6, 4, 1)
        self.calls = 0
        self.settings = {"width": 8}
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.fails:
            raise KeyError("in the middle of the user's forward")
        return self.head(x)


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def resident() -> tuple[Resident, list[str]]:
    """A model with gradients, mixed training flags, and hooks of its user that log into the list returned."""
    model, log = Resident(), []
    model(image()).square().mean().backward()
    model.train()
    model.body[2].eval()
    model.body[0][0].register_forward_hook(lambda *_: log.append("forward"))
    model.head.register_forward_pre_hook(lambda *_: log.append("pre"))
    model.head.register_full_backward_hook(lambda *_: log.append("backward"))
    return model, log


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that must not change: identities and values of tensors, gradients, flags, hooks, attributes."""
    found: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        gradient = tensor.grad
        found[name] = (id(tensor), tensor.data_ptr(), tensor._version, tensor.tolist(), tensor.requires_grad)
        found[f"{name}.grad"] = None if gradient is None else (id(gradient), gradient.tolist())
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        hooks = [list(getattr(module, k)) for k in vars(module) if k.endswith("hooks")]
        found[f"module {name}"] = (id(module), type(module), repr(plain), hooks)
    return found


def global_hook_counts() -> list[int]:
    return [len(v) for k, v in vars(global_hooks).items() if k.startswith("_global") and k.endswith("hooks")]


@contextmanager
def nothing_changes(model: nn.Module) -> Iterator[None]:
    """Asserts that the model, the random state, the grad mode and global hooks are as before."""
    before, random, hooks, grad = snapshot(model), torch.get_rng_state(), global_hook_counts(), torch.is_grad_enabled()
    dtype = torch.get_default_dtype()
    yield
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert global_hook_counts() == hooks
    assert torch.is_grad_enabled() == grad
    assert torch.get_default_dtype() == dtype


def traced(model: nn.Module, x: Tensor | None = None) -> tuple[Any, nn.Module]:
    graph = channelwise.trace(model, image() if x is None else x)
    return graph, graph.slim(graph.select(sparsity=0.5))


def test_tracing_changes_nothing() -> None:
    model, _ = resident()
    x = image()
    with nothing_changes(model):
        channelwise.trace(model, x)
    assert x.grad is None


def test_slimming_and_counting_change_nothing() -> None:
    model, _ = resident()
    graph = channelwise.trace(model, image())
    with nothing_changes(model):
        selection = graph.select(macs=0.5)
        graph.slim(selection)
        graph.sparse(selection)
        graph.macs(selection)
        str(graph)


def test_a_failing_forward_changes_nothing() -> None:
    model, _ = resident()
    model.fails = True
    x = image()
    with nothing_changes(model), pytest.raises(ChannelwiseError, match="in the middle of the user's forward"):
        channelwise.trace(model, x)


class CountsItself(nn.Module):
    """Writes into its parameters at every call, and has a number that keeps `hidden` from being pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.hidden, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.calls = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.calls.add_(1)
            self.stem.weight.mul_(0.9)
        return self.head(self.hidden(self.stem(x)).reshape(x.shape[0], 8, *x.shape[2:])) + self.calls


def test_a_model_that_writes_into_its_parameters_keeps_them() -> None:
    model, x = CountsItself(), image()
    with nothing_changes(model):
        graph = channelwise.trace(model, x)
    assert [group.name for group in graph.groups] == ["stem"]


def test_inputs_are_not_written() -> None:
    model = Between(nn.ReLU(inplace=True))
    model.register_forward_pre_hook(lambda module, args: args[0].mul_(2))
    x = image()
    before = x.clone()
    channelwise.trace(model, x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("container", [dict, OrderedDict, UserDict], ids=lambda kind: kind.__name__)
def test_inputs_in_a_dict_of_any_class_are_not_written(container: Any) -> None:
    class Doubles(Resident):
        def forward(self, batch: Any) -> Tensor:
            return super().forward(batch["x"].mul_(2))

    x = image()
    before = x.clone()
    channelwise.trace(Doubles(), (container(x=x),))
    assert torch.equal(x, before)


def test_hooks_of_the_user_still_run_afterwards() -> None:
    model, log = resident()
    channelwise.trace(model, image())
    log.clear()
    model(image()).square().mean().backward()
    assert log == ["forward", "pre", "backward"]


def test_tracing_twice_gives_the_same_groups() -> None:
    model, _ = resident()
    x = image()
    first, second = channelwise.trace(model, x), channelwise.trace(model, x)
    assert [(g.name, g.size) for g in first.groups] == [(g.name, g.size) for g in second.groups]
    assert first.structure.digest() == second.structure.digest()


def test_tracing_works_under_no_grad_and_inference_mode() -> None:
    model, x = Resident(), image()
    expected = channelwise.trace(model, x).structure.digest()
    with torch.no_grad():
        assert channelwise.trace(model, x).structure.digest() == expected
    with torch.inference_mode():
        assert channelwise.trace(model, x).structure.digest() == expected


def test_training_flags_do_not_change_the_result() -> None:
    x = image()
    digests = {channelwise.trace(AuxiliaryHead().train(mode), x).structure.digest() for mode in (True, False)}
    assert len(digests) == 1


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


def test_a_training_path_that_wants_targets_is_noted() -> None:
    graph = channelwise.trace(WantsTargets(), image())
    assert any("train" in note and "targets should not be None" in note for note in graph.structure.notes)
    assert graph.groups


def test_frozen_reasons_name_operation_and_module() -> None:
    graph = channelwise.trace(CustomOperation(), image())
    assert why(graph, "second.0") == {(Cause.NO_RULE, "")}
    graph = channelwise.trace(nn.Sequential(Between(lambda x: x.sort(1)[0]), nn.Conv2d(4, 4, 1)), image())
    assert why(graph, "0.first") == {(Cause.FIXED, "0")}
    operations = {r.operation for f in graph.frozen for r in f.reasons if f.tensor == "0.first.weight"}
    assert "aten.sort.default" in operations


def test_outputs_are_frozen_with_a_reason() -> None:
    graph = channelwise.trace(Resident(), image())
    assert why(graph, "head") == {(Cause.OUTPUT, "")}


def test_printed_graph_names_groups_and_frozen_layers() -> None:
    text = str(channelwise.trace(CustomOperation(), image()))
    for part in ("first.0", "third.0", "second.0", "sorted_channels"):
        assert part in text


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.randn(2, 3, 8, 8),),
        [torch.randn(2, 3, 8, 8)],
        torch.randn(2, 3, 8, 8),
    ],
    ids=["tuple", "list", "tensor"],
)
def test_inputs_may_be_a_tensor_a_tuple_or_a_list(inputs: Any) -> None:
    assert channelwise.trace(Resident(), inputs).groups


class TakesDict(nn.Module):
    """A model of one dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Resident()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"out": self.net(batch["x"])}


def test_a_dict_of_inputs_holds_keyword_arguments() -> None:
    assert channelwise.trace(Resident(), {"x": image()}).groups


def test_a_positional_argument_may_be_a_dict() -> None:
    assert channelwise.trace(TakesDict(), ({"x": image()},)).groups


def test_inputs_may_be_keyword_arguments() -> None:
    assert channelwise.trace(Resident(), (), kwargs={"x": image()}).groups


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.randn(2, 4, 8, 8), "channels"),
        (torch.randn(2, 3, 8, 8).double(), "dtype|type"),
        ((image(), image()), "argument"),
        (None, "tensor"),
        ("image.png", "tensor"),
    ],
    ids=["shape", "dtype", "too many", "none", "string"],
)
def test_wrong_inputs_are_an_error_of_ours(inputs: Any, message: str) -> None:
    model, _ = resident()
    with nothing_changes(model), pytest.raises((TraceError, InvalidArgumentError), match=message):
        channelwise.trace(model, inputs)


def _scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(Resident().eval(), image(), check_trace=False)


def _quantised() -> nn.Module:
    from torch.ao.nn import quantized

    return nn.Sequential(quantized.Linear(4, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_scripted, "[Ss]cript"),
        (_quantised, "[Qq]uanti"),
        (lambda: nn.Sequential(nn.LazyConv2d(8, 3)), "[Ll]azy"),
        (lambda: "not a model", "Module"),
        (lambda: Resident, "Module|class|instance"),
    ],
    ids=["scripted", "quantised", "lazy", "string", "class"],
)
def test_unsupported_models_are_refused(build: Any, message: str) -> None:
    with pytest.raises((UnsupportedModelError, InvalidArgumentError), match=message):
        channelwise.trace(build(), image())


def test_wrappers_are_removed() -> None:
    model = Resident()
    expected = channelwise.trace(model, image()).structure.digest()
    assert channelwise.trace(nn.DataParallel(model), image()).structure.digest() == expected
    assert channelwise.trace(torch.compile(model), image()).structure.digest() == expected


def test_a_model_without_parameters_has_no_groups() -> None:
    assert not channelwise.trace(nn.ReLU(), image()).groups


def test_excluded_layers_stay() -> None:
    graph = channelwise.trace(Resident(), image())
    kept = graph.select(sparsity=0.5, excludes=("body.0.0",)).counts()
    assert kept == {g.name: g.size if "body.0.0" in g.layers else g.size // 2 for g in graph.groups}
    assert {g.size for g in graph.groups if "body.0.0" in g.layers} == {8}


def test_excludes_that_match_nothing_are_an_error() -> None:
    with pytest.raises(InvalidArgumentError, match="nowhere"):
        channelwise.trace(Resident(), image()).select(sparsity=0.5, excludes=("nowhere.*",))
