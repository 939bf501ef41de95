"""Slim models on disk: what is saved comes back in a fresh original model, or nothing changes and an error says why."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import channelwise as cw
from channelwise.errors import InvalidArgumentError, ResultsFileError, UnsupportedModelError
from channelwise.structure import ModuleSizes, Size
from channelwise.surgery.checkpoint import load, save
from channelwise.surgery.slim import slim_model
from tests.surgery.small_networks import (
    CONV_NET_KEPT,
    GROUPED_KEPT,
    ConvNet,
    conv_net,
    depthwise_net,
    group,
    grouped_net,
    image,
    norm_slots,
    select,
    structure,
)

NETWORKS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (conv_net, CONV_NET_KEPT),
    "depthwise": (depthwise_net, {"stem": [1, 2, 6]}),
    "grouped": (grouped_net, GROUPED_KEPT),
    "grouped transposed": (lambda: grouped_net(transposed=True), GROUPED_KEPT),
}


def slim_conv_net() -> nn.Module:
    model, found = conv_net()
    return slim_model(model, found, select(found, **CONV_NET_KEPT)).eval()


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        name: (
            type(module),
            {k: v for k, v in module.__dict__.items() if not isinstance(v, dict)},
            list(module.state_dict()),
        )
        for name, module in model.named_modules()
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    assert snapshot(model) == before
    assert all(tensor is tensors[name] for name, tensor in model.named_parameters())


def rewrite(
    path: Path, change: Callable[[dict[str, Any]], None], *, signed: bool = False, **tensors: torch.Tensor
) -> None:
    """Write the file again with ``change`` made to its header and some tensors replaced.

    ``signed``: with the digest of the new header, as if a program had written it so.
    """
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["channelwise"])
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header)
    if signed:
        content = {name: header[name] for name in ("modules", "shapes", "aliases", "attributes", "complex")}
        header["digest"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    stored.update({name.replace("__", "."): tensor for name, tensor in tensors.items()})
    save_file(stored, path, metadata={"channelwise": json.dumps(header)})


@pytest.mark.parametrize("through", ["file", "state dict"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_fresh_model_becomes_the_slim_one(network: str, through: str, tmp_path: Path) -> None:
    make, kept = NETWORKS[network]
    model, found = make()
    slim = slim_model(model, found, select(found, **kept)).eval()
    source: Any = slim.state_dict()
    if through == "file":
        source = tmp_path / "slim.safetensors"
        save(slim, source)
    fresh = make()[0].eval()
    assert load(fresh, source) is fresh
    x = image()
    assert torch.equal(fresh(x), slim(x))
    assert str(fresh) == str(slim)
    fresh.train()(x).sum().backward()


def test_parameterless_norms_come_back_from_a_file(tmp_path: Path) -> None:
    model, found, _ = _with_layer_norm()
    slim = slim_model(model, found, select(found, g=[1, 5]))
    save(slim, tmp_path / "slim.safetensors")
    fresh = load(_with_layer_norm()[0], tmp_path / "slim.safetensors")
    assert fresh[1].normalized_shape == (2,)
    assert fresh[3].unflattened_size == (1, 2)
    x = torch.randn(2, 3)
    assert torch.equal(fresh(x), slim(x))


def test_parameterless_norms_come_back_from_a_state_dict_with_the_structure() -> None:
    model, found, _ = _with_layer_norm()
    slim = slim_model(model, found, select(found, g=[1, 5]))
    fresh = load(_with_layer_norm()[0], slim.state_dict(), structure=found)
    assert fresh[1].normalized_shape == (2,)
    x = torch.randn(2, 3)
    assert torch.equal(fresh(x), slim(x))


def _with_layer_norm() -> tuple[nn.Module, Any, Any]:
    model = nn.Sequential(
        nn.Linear(3, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 8), nn.Unflatten(1, (1, 8))
    )
    every, kept = np.arange(8), Size(0, (("g", 1),))
    sizes = ModuleSizes((Size(2), kept), (Size(2), kept))
    found = structure(
        model,
        group(
            "g", *[(name, 0, every) for name in ("0.weight", "0.bias", "2.weight", "2.bias")], ("2.weight", 1, every)
        ),
        calls={"1": sizes, "3": ModuleSizes((Size(2), kept), (Size(2), Size(1), kept))},
    )
    return model, found, kept


def test_shapes_that_no_selection_gives_are_refused() -> None:
    model, found, _ = _with_layer_norm()
    state = slim_model(model, found, select(found, g=[1, 5])).state_dict()
    state["2.weight"] = torch.zeros(2, 3)
    with pytest.raises(InvalidArgumentError, match=r"has shape \(.*\), the other tensors ask for \("):
        load(_with_layer_norm()[0], state, structure=found)


def test_the_given_model_keeps_its_flags_and_the_file_its_dtype(tmp_path: Path) -> None:
    save(slim_conv_net().half(), tmp_path / "slim.safetensors")
    fresh = ConvNet().to(memory_format=torch.channels_last).eval()
    fresh.conv1.weight.requires_grad_(False)
    load(fresh, tmp_path / "slim.safetensors")
    assert fresh.conv2.weight.dtype == torch.float16
    assert fresh.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert [p.requires_grad for p in fresh.parameters()] == [False] + [True] * 6
    assert not fresh.bn.training
    assert isinstance(fresh.conv1.weight, nn.Parameter)


def test_a_model_on_the_meta_device_gets_real_tensors(tmp_path: Path) -> None:
    slim = slim_conv_net()
    save(slim, tmp_path / "slim.safetensors")
    with torch.device("meta"):
        fresh = nn.Module.__new__(ConvNet)
        nn.Module.__init__(fresh)
        fresh.conv1, fresh.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        fresh.conv2, fresh.fc = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(96, 5)
    x = image()
    assert torch.equal(load(fresh, tmp_path / "slim.safetensors").eval()(x), slim(x))


def test_shared_tensors_and_plain_buffers_come_back(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False))
        model[2].weight = model[0].weight
        model.register_buffer("hidden", torch.arange(6.0), persistent=False)
        model.register_buffer("phase", torch.ones(6, dtype=torch.complex64))
        return model

    model, every = make(), np.arange(6)
    entries = [("0.weight", 0, every), ("0.weight", 1, every), ("hidden", 0, every), ("phase", 0, every)]
    found = structure(model, group("g", *entries), aliases={"2.weight": "0.weight"})
    slim = slim_model(model, found, select(found, g=[0, 4]))
    save(slim, tmp_path / "slim.safetensors")
    fresh = load(make(), tmp_path / "slim.safetensors")
    assert fresh[2].weight is fresh[0].weight
    assert torch.equal(fresh[0].weight, slim[0].weight)
    assert fresh.hidden.tolist() == [0, 4]
    assert fresh.phase.dtype == torch.complex64
    assert "hidden" not in fresh.state_dict()
    assert fresh[2].in_features == 2


class Positions(nn.Module):
    """ConViT: a buffer that is computed for the size of the first image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.register_buffer("rows", torch.zeros(1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.rows.shape[0] != x.shape[2]:
            self.rows = torch.arange(float(x.shape[2]))[:, None]
        return self.head(x + self.rows)


def test_a_buffer_that_is_computed_while_the_model_runs_comes_back(tmp_path: Path) -> None:
    x, model = torch.randn(2, 3, 8, 8), Positions()
    graph = cw.trace(model, x)
    slim = graph.slim(graph.select(sparsity=0.5)).eval()
    expected = slim(x)
    cw.save(slim, tmp_path / "slim.safetensors")
    loaded = cw.load(Positions(), tmp_path / "slim.safetensors").eval()
    assert loaded.rows.shape == slim.rows.shape
    assert torch.equal(loaded(x), expected)


def test_a_state_dict_cannot_bring_back_a_buffer_that_is_not_persistent() -> None:
    model = nn.Sequential(nn.Linear(3, 8, bias=False))
    model.register_buffer("hidden", torch.arange(8.0), persistent=False)
    found = structure(model, group("g", ("0.weight", 0, np.arange(8)), ("hidden", 0, np.arange(8))))
    state = slim_model(model, found, select(found, g=[0, 4])).state_dict()
    with pytest.raises(InvalidArgumentError, match=r"buffer hidden .*use channelwise.save"):
        load(model, state, structure=found)


def test_the_state_dict_of_a_wrapped_model_is_understood() -> None:
    slim = slim_conv_net()
    fresh = load(ConvNet(), {f"module.{name}": tensor for name, tensor in slim.state_dict().items()})
    assert fresh.conv2.weight.shape == slim.conv2.weight.shape


def test_saving_a_wrapped_model_saves_the_model(tmp_path: Path) -> None:
    slim = slim_conv_net()
    save(nn.DataParallel(slim), tmp_path / "slim.safetensors")
    assert torch.equal(load(ConvNet(), tmp_path / "slim.safetensors").fc.weight, slim.fc.weight)


def test_the_loaded_model_shares_no_memory_with_the_state_dict() -> None:
    slim = slim_conv_net()
    fresh = load(ConvNet(), slim.state_dict())
    assert fresh.fc.weight.data_ptr() != slim.fc.weight.data_ptr()


def test_the_header_is_readable(tmp_path: Path) -> None:
    save(slim_conv_net(), tmp_path / "slim.safetensors")
    with safe_open(tmp_path / "slim.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["channelwise"])
    assert (header["version"], header["model"]) == (1, "ConvNet")
    assert header["attributes"]["conv2"] == {"in_channels": 5, "out_channels": 2, "groups": 1}
    assert header["shapes"]["conv2.weight"] == [2, 5, 3, 3]


class Other(ConvNet):
    """The same tensors in another class."""


def _wider() -> nn.Module:
    model = ConvNet()
    model.conv2 = nn.Conv2d(4, 6, 3, padding=1)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Other, "is ConvNet in what is loaded and Other in the given model"),
        (lambda: nn.Sequential(nn.ReLU()), "not of the architecture of the given model"),
        (_wider, r"conv2.weight has shape \(2, 5, 3, 3\), which is not a slim version of its shape \(6, 4, 3, 3\)"),
    ],
)
def test_another_architecture_is_refused_and_left_alone(
    make: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    save(slim_conv_net(), tmp_path / "slim.safetensors")
    model = make()
    before, tensors = snapshot(model), dict(model.named_parameters())
    with pytest.raises(ResultsFileError, match=message):
        load(model, tmp_path / "slim.safetensors")
    assert_unchanged(model, before, tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.bias": None}, "tensor 'fc.bias' is missing in what is loaded"),
        ({"more": torch.ones(1)}, "tensor 'more' is present in what is loaded and missing in the given model"),
        (
            {"fc.weight": torch.ones(5)},
            r"fc.weight has shape \(5,\), which is not a slim version of its shape \(5, 96\)",
        ),
        ({"fc.weight": torch.ones(5, 0)}, r"fc.weight has shape \(5, 0\), which is not a slim version"),
        ({"bn.running_mean": torch.ones(3)}, r"bn.weight has shape \(5,\) and bn.running_mean has shape \(3,\)"),
        ({"conv2.bias": torch.ones(1)}, r"conv2.weight has shape \(2, 5, 3, 3\) and conv2.bias has shape \(1,\)"),
        ({"fc.bias": np.ones(5)}, "fc.bias is a ndarray in the state dict, not a tensor; torch.as_tensor makes one"),
        ({"fc.bias": torch.ones(5, device="meta")}, "fc.bias is on the meta device, without values"),
        ({"fc.bias": torch.ones(5).to_sparse()}, "fc.bias is a torch.sparse_coo tensor in the state dict"),
        ({7: torch.ones(5)}, "a state dict has names of tensors as its keys, not int 7"),
        (
            {"model": {"fc.bias": torch.ones(5)}},
            r"'model' is a dict; if that is the state dict, give source\['model'\]",
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(change: dict[Any, Any], message: str) -> None:
    state = {**slim_conv_net().state_dict(), **change}
    model = ConvNet()
    before, tensors = snapshot(model), dict(model.named_parameters())
    with pytest.raises(InvalidArgumentError, match=message):
        load(model, {name: value for name, value in state.items() if value is not None})
    assert_unchanged(model, before, tensors)


def test_a_failure_while_attributes_are_set_leaves_the_model_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(slim_conv_net(), tmp_path / "slim.safetensors")
    model = ConvNet()
    before, tensors = snapshot(model), dict(model.named_parameters())

    def fail(*args: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("channelwise.surgery.install._set_attributes", fail)
    with pytest.raises(RuntimeError, match="no"):
        load(model, tmp_path / "slim.safetensors")
    assert_unchanged(model, before, tensors)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slim.safetensors"
    save(slim_conv_net(), path)
    rewrite(path, lambda header: header.update(version=2, novelty=1))
    with pytest.raises(ResultsFileError, match="format version 2, this channelwise reads up to 1: update"):
        load(ConvNet(), path)


@pytest.mark.parametrize(
    ("change", "tensors", "message"),
    [
        (lambda h: h["shapes"].update({"fc.bias": [4]}), {}, r"says \[4\] for fc.bias, the tensor has \[5\]"),
        (lambda h: None, {"fc__bias": torch.ones(3)}, r"says \[5\] for fc.bias, the tensor has \[3\]"),
        (lambda h: h.update(digest="0"), {}, "edited or damaged"),
        (lambda h: next(iter(h["attributes"].values())).update(groups=7), {}, "edited or damaged"),
        (lambda h: h.pop("modules"), {}, "header of .* was edited or damaged: modules"),
        (lambda h: h.update(modules=3), {}, "header of .* was edited or damaged: modules"),
    ],
)
def test_an_edited_file_is_refused(
    change: Callable[[dict[str, Any]], None], tensors: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "slim.safetensors"
    save(slim_conv_net(), path)
    rewrite(path, change, **tensors)
    with pytest.raises(ResultsFileError, match=message):
        load(ConvNet(), path)


@pytest.mark.parametrize("from_the_end", [1, 200])
def test_a_bit_that_flipped_in_a_tensor_is_told(from_the_end: int, tmp_path: Path) -> None:
    path = tmp_path / "slim.safetensors"
    save(slim_conv_net(), path)
    content = bytearray(path.read_bytes())
    content[-from_the_end] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(ResultsFileError, match=r"tensors of .*slim.safetensors were edited or damaged"):
        load(ConvNet(), path)


def test_a_type_that_changed_in_the_header_is_told(tmp_path: Path) -> None:
    path = tmp_path / "slim.safetensors"
    save(slim_conv_net(), path)
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(ResultsFileError, match=r"tensors of .*slim.safetensors were edited or damaged"):
        load(ConvNet(), path)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "tensors", "message"),
    [
        (lambda h: h["attributes"]["conv2"].update(in_channels=-5), {}, "conv2.in_channels is -5 there"),
        (lambda h: h["attributes"]["conv2"].update(in_channels=4.5), {}, "conv2.in_channels is 4.5 there"),
        (lambda h: h["attributes"]["conv2"].update(in_channels=True), {}, "conv2.in_channels is True there"),
        (lambda h: h["attributes"]["conv2"].update(in_channels=[5, 5]), {}, r"conv2.in_channels is \[5, 5\] there"),
        (lambda h: h["attributes"]["conv2"].update(in_channels=nested(150)), {}, "conv2.in_channels is"),
        (lambda h: h["attributes"].update({"": {"training": "no"}, "bn": {r"a['\x']": 1}, "conv2": {}}), {}, None),
        (lambda h: h.update(complex=["fc.bias"]), {}, "fc.bias cannot be complex"),
        (lambda h: h.update(complex=["bn.num_batches_tracked"]), {}, "bn.num_batches_tracked cannot be complex"),
        (lambda h: None, {"fc__bias": torch.ones(5, dtype=torch.int32)}, "fc.bias is of torch.int32"),
        (lambda h: None, {"fc__bias": torch.ones(5, dtype=torch.bool)}, "fc.bias is of torch.bool"),
    ],
)
def test_a_file_with_odd_content_is_refused_by_name(
    change: Callable[[dict[str, Any]], None], tensors: dict[str, torch.Tensor], message: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "slim.safetensors"
    save(slim_conv_net(), path)
    rewrite(path, change, signed=True, **tensors)
    model = ConvNet()
    before, present = snapshot(model), dict(model.named_parameters())
    if message is None:
        load(model, path)
        return
    with pytest.raises(ResultsFileError, match=rf"slim.safetensors.*{message}"):
        load(model, path)
    assert_unchanged(model, before, present)


@pytest.mark.parametrize("depth", [300, 20_000])
def test_a_header_that_is_nested_deeply_is_refused(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "slim.safetensors"
    save(slim_conv_net(), path)
    header = f'{{"version": 1, "modules": {"[" * depth}{"]" * depth}}}'
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(stored, path, metadata={"channelwise": header})
    with pytest.raises(ResultsFileError, match=r"header of .*slim.safetensors was edited or damaged"):
        load(ConvNet(), path)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (torch.eye(2).to_sparse(), "odd is a torch.sparse_coo tensor"),
        (torch.ones(2, device="meta"), "odd is on the meta device"),
        (torch.empty(2, dtype=torch.bits8), "odd is of torch.bits8, which safetensors files cannot hold"),
    ],
)
def test_tensors_that_no_file_can_hold_are_refused_by_name(odd: torch.Tensor, message: str, tmp_path: Path) -> None:
    slim = slim_conv_net()
    slim.register_buffer("odd", odd)
    with pytest.raises(UnsupportedModelError, match=message):
        save(slim, tmp_path / "slim.safetensors")
    assert not any(tmp_path.iterdir())


def test_sizes_that_are_numbers_of_numpy_are_saved(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(np.int64(3), 4), nn.LayerNorm((np.int64(4),)))

    slim = make()
    save(slim, tmp_path / "slim.safetensors")
    assert torch.equal(load(make(), tmp_path / "slim.safetensors")[0].weight, slim[0].weight)


@pytest.mark.parametrize("path", ["", "a\0b", b"slim.safetensors"])
def test_what_names_no_file_is_refused(path: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="file must be given as a path, not"):
        save(slim_conv_net(), path)
    with pytest.raises(InvalidArgumentError, match="file must be given as a path, not"):
        load(ConvNet(), path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slim.safetensors"
    save(slim_conv_net(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ResultsFileError, match="damaged"):
        load(ConvNet(), path)


def test_other_files_are_refused_with_the_way_out(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "foreign.safetensors")
    torch.save({"a": torch.ones(1)}, tmp_path / "pickled.pt")
    for name in ("foreign.safetensors", "pickled.pt"):
        with pytest.raises(ResultsFileError, match="pass the loaded dict itself"):
            load(ConvNet(), tmp_path / name)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsFileError, match="There is no file"):
        load(ConvNet(), tmp_path / "nothing.safetensors")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe):
        with pytest.raises(ResultsFileError, match=f"{path} is a folder, a device or a pipe"):
            load(ConvNet(), path)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(slim_conv_net(), tmp_path / "slim.safetensors")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("unpickled")

    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load"):
        monkeypatch.setattr(name, fail)
    load(ConvNet(), tmp_path / "slim.safetensors")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_rest(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slim.safetensors"
    path.write_text("old")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(ResultsFileError, match=r"Cannot write .*slim.safetensors: No space left on device"):
        save(slim_conv_net(), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["slim.safetensors"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsFileError, match=r"Cannot write .*file/slim.safetensors"):
        save(slim_conv_net(), tmp_path / "file" / "slim.safetensors")


def test_extra_state_that_is_not_saved_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Stateful(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"calls": 3}

    save(nn.Sequential(Stateful(2, 2)), tmp_path / "slim.safetensors")
    assert "extra state of module '0'" in caplog.text


def test_a_norm_keeps_its_statistics(tmp_path: Path) -> None:
    slim = slim_conv_net()
    save(slim, tmp_path / "slim.safetensors")
    fresh = load(ConvNet(), tmp_path / "slim.safetensors")
    for name, _, _ in norm_slots("bn", [0]):
        assert torch.equal(fresh.state_dict()[name], slim.state_dict()[name])
    assert fresh.bn.num_features == 5


def test_what_is_no_model_and_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slim.safetensors"
    with pytest.raises(InvalidArgumentError, match=r"must be a torch.nn.Module, not a dict"):
        save({"weight": torch.ones(1)}, path)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="given as a path, not a ConvNet"):
        save(slim_conv_net(), slim_conv_net())  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"order is \(model, file or state dict\)"):
        load(ConvNet(), slim_conv_net())  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="not the class ConvNet"):
        load(ConvNet, path)  # type: ignore[type-var]
    with pytest.raises(InvalidArgumentError, match="given as a path, not NoneType None"):
        load(ConvNet(), None)  # type: ignore[arg-type]


def test_scripted_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="before scripting"):
        save(torch.jit.trace(slim_conv_net().eval(), image()), tmp_path / "slim.safetensors")


def test_compiled_models_are_saved_and_loaded_without_the_compiler(tmp_path: Path) -> None:
    path = tmp_path / "slim.safetensors"
    slim = slim_conv_net()
    save(torch.compile(slim), path)
    loaded = ConvNet()
    load(torch.compile(loaded), path)
    assert {n: t.shape for n, t in loaded.state_dict().items()} == {n: t.shape for n, t in slim.state_dict().items()}


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ResultsFileError, match="not a file"):
        save(slim_conv_net(), pipe)
    assert pipe.is_fifo()


def test_the_trace_of_another_model_is_refused() -> None:
    model, traced = conv_net()
    slim = slim_model(model, traced, select(traced, **CONV_NET_KEPT))
    _, other = grouped_net()
    with pytest.raises(InvalidArgumentError, match="trace of another model"):
        load(ConvNet(), slim.state_dict(), structure=other)
