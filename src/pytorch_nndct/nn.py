"""The dynamic layers of once-for-all supernets."""

from channelwise.methods.ofa import (
    DynamicBatchNorm1d,
    DynamicBatchNorm2d,
    DynamicBatchNorm3d,
    DynamicConv1d,
    DynamicConv2d,
    DynamicConv3d,
    DynamicConvTranspose1d,
    DynamicConvTranspose2d,
    DynamicConvTranspose3d,
    DynamicGroupNorm,
    DynamicLayerNorm,
    DynamicLinear,
    DynamicPReLU,
)

__all__ = [
    "DynamicBatchNorm1d", "DynamicBatchNorm2d", "DynamicBatchNorm3d", "DynamicConv1d", "DynamicConv2d", "DynamicConv3d",
    "DynamicConvTranspose1d", "DynamicConvTranspose2d", "DynamicConvTranspose3d", "DynamicGroupNorm",
    "DynamicLayerNorm", "DynamicLinear", "DynamicPReLU",
]  # fmt: skip
