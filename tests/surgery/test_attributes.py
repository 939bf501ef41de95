"""Attributes of slim modules tell the truth about their tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from channelwise.structure import ModuleSizes, Size, Structure
from channelwise.surgery import fixer
from channelwise.surgery.attributes import _registry
from channelwise.surgery.slim import slim_model
from tests.surgery.small_networks import GROUPED_KEPT, depthwise_net, group, grouped_net, norm_slots, select, structure

KEEP = [0, 3, 4]
PRODUCER = [("0.weight", 0, np.arange(8)), ("0.bias", 0, np.arange(8))]
EIGHT = Size(0, (("g", 1),))


def after_convolution(layer: nn.Module, *entries: Any, calls: bool = False, shape: Any = None) -> nn.Module:
    """The slim version of ``layer`` behind a convolution of eight channels of which three stay."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), layer)
    sizes = shape or (Size(2), EIGHT, Size(4), Size(4))
    found = structure(model, group("g", *PRODUCER, *entries), calls={"1": ModuleSizes(sizes, sizes)} if calls else None)
    slim = slim_model(model, found, select(found, g=KEEP))
    slim(torch.randn(2, 3, 4, 4))
    return slim[1]


def norm_entries(statistics: bool) -> list[Any]:
    return list(norm_slots("1", np.arange(8), statistics))


@pytest.mark.parametrize(
    ("layer", "entries", "expected"),
    [
        (nn.BatchNorm2d(8), norm_entries(True), {"num_features": 3}),
        (nn.SyncBatchNorm(8).eval(), norm_entries(True), {"num_features": 3}),
        (nn.BatchNorm2d(8, affine=False), norm_entries(True)[2:], {"num_features": 3}),
        (nn.InstanceNorm2d(8, affine=True), norm_entries(False), {"num_features": 3}),
        (nn.GroupNorm(8, 8), norm_entries(False), {"num_channels": 3, "num_groups": 3}),
        (nn.GroupNorm(1, 8), norm_entries(False), {"num_channels": 3, "num_groups": 1}),
        (nn.PReLU(8), norm_entries(False)[:1], {"num_parameters": 3}),
        (nn.PReLU(), [], {"num_parameters": 1}),
        (nn.Conv2d(8, 5, 3), [("1.weight", 1, np.arange(8))], {"in_channels": 3, "out_channels": 5, "groups": 1}),
        (nn.ConvTranspose2d(8, 5, 3), [("1.weight", 0, np.arange(8))], {"in_channels": 3, "out_channels": 5}),
    ],
)
def test_tensors_tell_the_size(layer: nn.Module, entries: list[Any], expected: dict[str, int]) -> None:
    slim = after_convolution(layer, *entries)
    assert {name: getattr(slim, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.BatchNorm2d(8, affine=False, track_running_stats=False), {"num_features": 3}),
        (nn.InstanceNorm2d(8), {"num_features": 3}),
        (nn.GroupNorm(8, 8, affine=False), {"num_channels": 3, "num_groups": 3}),
        (nn.GroupNorm(1, 8, affine=False), {"num_channels": 3, "num_groups": 1}),
    ],
)
def test_without_tensors_the_traced_input_tells_the_size(layer: nn.Module, expected: dict[str, int]) -> None:
    slim = after_convolution(layer, calls=True)
    assert {name: getattr(slim, name) for name in expected} == expected


def test_unbatched_instance_norm_finds_its_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8))
    sizes = (EIGHT, Size(4), Size(4))
    found = structure(model, group("g", *PRODUCER), calls={"1": ModuleSizes(sizes, sizes)})
    assert slim_model(model, found, select(found, g=KEEP))[1].num_features == 3


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_layer_norm(kind: type[nn.Module], affine: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 8), kind(8, elementwise_affine=affine))
    names = [name for name, _ in model[1].named_parameters()]
    entries = [(f"1.{name}", 0, np.arange(8)) for name in names]
    sizes = (Size(2), EIGHT)
    found = structure(model, group("g", *PRODUCER, *entries), calls={"1": ModuleSizes(sizes, sizes)})
    slim = slim_model(model, found, select(found, g=KEEP))
    assert slim[1].normalized_shape == (3,)
    assert slim(torch.randn(2, 3)).shape == (2, 3)


def test_unflatten_follows_and_keeps_its_wildcard() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (4, 2)), nn.Unflatten(1, (-1, 2)))
    half = Size(0, (("g", 0.5),))
    found = structure(
        model,
        group("g", *PRODUCER),
        calls={
            "1": ModuleSizes((Size(2), EIGHT), (Size(2), half, Size(2))),
            "2": ModuleSizes((Size(2), half, Size(2)), (Size(2), Size(0, (("g", 0.25),)), Size(2), Size(2))),
        },
    )
    slim = slim_model(model, found, select(found, g=[0, 1, 2, 3]))
    assert slim[1].unflattened_size == (2, 2)
    assert slim[2].unflattened_size == (-1, 2)


@pytest.mark.parametrize("traced", [True, False])
def test_depthwise_groups_follow_the_input(traced: bool) -> None:
    model, found = depthwise_net()
    stem = Size(0, (("stem", 1),))
    image_of = (Size(2), stem, Size(4), Size(4))
    calls = {"1": ModuleSizes(image_of, image_of)} if traced else {}
    found = Structure(found.tensors, found.tensor_sizes, found.groups, (), (), calls)
    slim = slim_model(model, found, select(found, stem=[1, 2, 6]))[1]
    assert (slim.in_channels, slim.out_channels, slim.groups) == (3, 6, 3)


def test_depthwise_whose_multiplier_shrinks_needs_the_trace() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 1, groups=4))
    found = structure(
        model,
        group("g", ("0.weight", 0, np.arange(8)), ("0.bias", 0, np.arange(8)), parts=[0, 0, 1, 1, 2, 2, 3, 3]),
        blocks={"0.weight": 4},
        calls={"0": ModuleSizes((Size(1), Size(4), Size(1), Size(1)), (Size(1), EIGHT, Size(1), Size(1)))},
    )
    slim = slim_model(model, found, select(found, g=[0, 3, 4, 7]))
    assert (slim[0].in_channels, slim[0].out_channels, slim[0].groups) == (4, 4, 4)
    assert slim(torch.randn(1, 4, 1, 1)).shape == (1, 4, 1, 1)


def test_a_transposed_depthwise_follows_its_input() -> None:
    layer = nn.ConvTranspose2d(8, 16, 2, groups=8)
    pairs = np.arange(16).reshape(8, 2)
    slim = after_convolution(layer, ("1.weight", 0, np.arange(8)), ("1.bias", 0, pairs))
    assert (slim.in_channels, slim.out_channels, slim.groups) == (3, 6, 3)


@pytest.mark.parametrize("transposed", [False, True])
def test_other_groups_stay(transposed: bool) -> None:
    model, found = grouped_net(transposed)
    slim = slim_model(model, found, select(found, **GROUPED_KEPT))[1]
    assert (slim.in_channels, slim.out_channels, slim.groups) == (4, 4, 2)


def test_a_convolution_that_widens_its_input_itself_is_not_misled_by_the_trace() -> None:
    class WithCoordinates(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.cat([x, x], 1))

    layer = WithCoordinates(16, 4, 1, groups=2)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), layer)
    found = structure(
        model,
        group("g", *PRODUCER, ("1.weight", 1, np.stack([np.arange(8), np.arange(8, 16)], 1))),
        blocks={"1.weight": 2},
        calls={"1": ModuleSizes((Size(2), EIGHT, Size(4), Size(4)), None)},
    )
    slim = slim_model(model, found, select(found, g=KEEP))
    assert (slim[1].in_channels, slim[1].groups) == (6, 2)
    assert slim(torch.randn(2, 3, 4, 4)).shape == (2, 4, 4, 4)


def stored_as(layer: nn.Module) -> tuple[nn.Module, list[str]]:
    """A linear layer behind another one, and the names of its tensors with input features along axis 1."""
    model = nn.Sequential(nn.Linear(3, 8), layer)
    return model, [n for n, p in model[1].named_parameters() if p.dim() == 2 and p.shape[1] == 8]


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda: nn.utils.weight_norm(nn.Linear(8, 5)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 5)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 5)),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_computed_weights_are_found_where_they_are_stored(wrapped: Any) -> None:
    model, names = stored_as(wrapped())
    entries = [(f"1.{name}", 1, np.arange(8)) for name in names]
    entries += [(n, 0, np.arange(8)) for n, b in model.named_buffers() if b.shape == (8,)]
    found = structure(model, group("g", *PRODUCER, *entries))
    slim = slim_model(model, found, select(found, g=KEEP))
    assert (slim[1].in_features, slim[1].out_features) == (3, 5)
    assert slim[1].weight.shape == (5, 3)
    assert slim(torch.randn(2, 3)).shape == (2, 5)
    assert all(m.training for m in slim.modules())


def test_pruned_weights_of_torch_are_refreshed() -> None:
    model, _ = stored_as(nn.utils.prune.l1_unstructured(nn.Linear(8, 5), "weight", 0.3))
    entries = [("1.weight_orig", 1, np.arange(8)), ("1.weight_mask", 1, np.arange(8))]
    found = structure(model, group("g", *PRODUCER, *entries))
    slim = slim_model(model, found, select(found, g=KEEP))
    assert torch.equal(slim[1].weight, model[1].weight[:, KEEP])
    assert slim[1].in_features == 3


def test_users_can_register_their_own_class() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 8
            self.scale = nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(-1, self.width, 4, 4) * self.scale

    @fixer(Scale, attributes=("width",))
    def fix_scale(module: Scale, sizes: Any) -> None:
        module.width = sizes.after["scale"][0]

    try:
        assert after_convolution(Scale(), ("1.scale", 0, np.arange(8))).width == 3
    finally:
        del _registry[Scale]


def test_modules_that_keep_their_size_are_not_touched() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1), nn.Conv2d(5, 4, 1))
    model[2].out_channels = 99
    found = structure(model, group("g", *PRODUCER, ("1.weight", 1, np.arange(8))))
    assert slim_model(model, found, select(found, g=KEEP))[2].out_channels == 99


def test_a_weight_computed_from_a_buffer_of_its_parametrization_has_the_right_size() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 2))
    base = "1.parametrizations.weight.0.base"
    entries = [(base, 0, np.arange(8)), ("1.bias", 0, np.arange(8)), ("2.weight", 1, np.arange(8))]
    found = structure(model, group("g", *entries))
    slim = slim_model(model, found, select(found, g=KEEP))
    assert (slim[1].in_features, slim[1].out_features) == (8, 3)
    assert slim[1].weight.shape == (3, 8)
