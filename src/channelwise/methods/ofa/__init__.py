"""Once-for-all: one supernet whose subnets share their weights, trained once and searched for any budget."""

from channelwise.methods.ofa.choices import Choice, Setting
from channelwise.methods.ofa.layers import (
    Dynamic,
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
    DynamicModule,
    DynamicPReLU,
)
from channelwise.methods.ofa.pruner import OFAPruner
from channelwise.methods.ofa.sandwich_rule import sandwich
from channelwise.methods.ofa.space import SearchSpace

__all__ = [
    "Choice", "Dynamic", "DynamicBatchNorm1d", "DynamicBatchNorm2d", "DynamicBatchNorm3d", "DynamicConv1d",
    "DynamicConv2d", "DynamicConv3d", "DynamicConvTranspose1d", "DynamicConvTranspose2d", "DynamicConvTranspose3d",
    "DynamicGroupNorm", "DynamicLayerNorm", "DynamicLinear", "DynamicModule", "DynamicPReLU", "OFAPruner",
    "SearchSpace", "Setting", "sandwich",
]  # fmt: skip
