"""Operators on tensors in which channels are missing give what they give on the channels that are left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from channelwise.testing.missing import Missing

KEPT = [0, 2, 5, 6]
WEIGHT = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(1))

Operation = Callable[[Tensor, list[int]], Tensor]
"""``operation(x, channels)`` on a tensor (N, C, H, W) with these channels of eight."""

SAME: dict[str, Operation] = {
    "activation": lambda x, _: F.hardswish(F.gelu(x)).clamp(max=0.5),
    "threshold": lambda x, _: torch.where(x > 0, x, torch.ones_like(x)),
    "sign": lambda x, _: x * x.sign() + torch.nan_to_num(x),
    "in place": lambda x, _: x.clone().mul_(2).add_(x).relu_(),
    "empty memory": lambda x, _: x + torch.empty_like(x).fill_(2),
    "mask by hand": lambda x, _: x.masked_fill((x > 0)[:, :, :, :1], -1.0),
    "mean": lambda x, _: x - x.mean(1, keepdim=True),
    "mean of all": lambda x, _: x * x.mean(),
    "variance": lambda x, _: x / x.var(1, keepdim=True) + x.std((1, 2), keepdim=True),
    "extremes": lambda x, _: x * x.amax(1, keepdim=True) + x.max(1, keepdim=True)[0] + x.median(1, keepdim=True)[0],
    "logsumexp": lambda x, _: x - x.logsumexp(1, keepdim=True) + x.prod(1, keepdim=True),
    "norm": lambda x, _: F.normalize(x, dim=1) + x.norm(dim=(1, 2), keepdim=True),
    "softmax": lambda x, _: x.softmax(1) + x.log_softmax(1),
    "softmax over space": lambda x, _: x.flatten(2).softmax(2).view_as(x),
    "layer norm": lambda x, c: F.layer_norm(x.transpose(1, 3), (len(c),), WEIGHT[0, c, 0, 0], None).transpose(1, 3),
    "rms norm": lambda x, c: F.rms_norm(x.transpose(1, 3), (len(c),), WEIGHT[0, c, 0, 0]).transpose(1, 3),
    "group norm": lambda x, c: F.group_norm(x, 2, WEIGHT[0, c, 0, 0], WEIGHT[2, c, 0, 0]),
    "mean of halves": lambda x, _: (lambda h: h - h.mean(2, keepdim=True))(x.unflatten(1, (2, -1))).flatten(1, 2),
    "batch norm": lambda x, _: F.batch_norm(x, None, None, training=True),
    "batch norm of all": lambda x, _: F.batch_norm(x.reshape(1, 1, -1), None, None, training=True).view_as(x),
    "instance norm": lambda x, _: F.instance_norm(x),
    "padding": lambda x, _: F.max_pool2d(F.pad(x, (1, 0, 2, 1), value=2.0), 2),
    "convolution": lambda x, c: F.conv2d(x, WEIGHT[c][:, c], WEIGHT[0, c, 0, 0], padding=1),
    "dilated": lambda x, c: F.conv2d(x, WEIGHT[c][:, c], padding=6, dilation=6),
    "depthwise": lambda x, c: F.conv2d(x, WEIGHT[c][:, :1], groups=len(c)),
    "transposed": lambda x, c: F.conv_transpose2d(x, WEIGHT[c][:, c], stride=2),
    "convolution over channels": lambda x, _: F.conv1d(x.mean((2, 3))[:, None], WEIGHT[:1, :1, 0], padding=1)[:, 0],
    "linear": lambda x, c: F.linear(x.transpose(1, 3), WEIGHT[c][:, c, 0, 0], WEIGHT[0, c, 0, 0]).transpose(1, 3),
    "scores": lambda x, _: x.flatten(2) @ (x.flatten(2).transpose(1, 2) @ x.flatten(2)),
    "attention": lambda x, _: F.scaled_dot_product_attention(x, x, x),
    "rearranged": lambda x, _: F.pixel_unshuffle(F.interpolate(x.roll(1, 3).flip(2), scale_factor=2), 2)[:, ::4],
    "unpooled": lambda x, _: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
}


@pytest.mark.parametrize("name", SAME)
def test_what_is_missing_is_left_out(name: str) -> None:
    x = torch.randn(2, 8, 4, 4)
    channels = list(range(8))
    holes = x.clone()
    holes[:, [c for c in channels if c not in KEPT]] = torch.nan
    weight = WEIGHT.clone()
    for axis in (0, 1):
        weight.index_fill_(axis, torch.tensor([c for c in channels if c not in KEPT]), torch.nan)
    expected = SAME[name](x[:, KEPT], KEPT)
    with Missing() as missing, pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "WEIGHT", weight)
        found = SAME[name](holes, channels)
    assert not missing.unclear
    torch.testing.assert_close(found[:, KEPT], expected)
    gone = found[:, [c for c in channels if c not in KEPT]]
    assert gone.isnan().all()


def test_operators_that_may_see_what_is_missing_are_named() -> None:
    x = torch.randn(2, 8)
    x[:, 3] = torch.nan
    with Missing() as missing:
        (x > 0).all(1)
        x.sort(1)
    assert missing.unclear == {"all", "sort"}
