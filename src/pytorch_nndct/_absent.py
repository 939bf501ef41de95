"""What the Vitis AI Optimizer has and this project has not, and what to use instead."""

from __future__ import annotations

from channelwise.errors import ChannelwiseError

_QUANTISE = "quantise the pruned model with torch.ao.quantization, torchao or the tools of your device"
INSTEAD = {
    "SparsePruner": "IterativePruningRunner removes whole channels; for single weights use torch.nn.utils.prune",
    "torch_quantizer": _QUANTISE,
    "QatProcessor": _QUANTISE,
    "Inspector": "channelwise inspect, or print(channelwise.trace(model, inputs)), shows what can be pruned",
    "apis": _QUANTISE,
    "expanding": "prune(channel_divisible=16), for example, gives the widths that a device likes",
    "nndct_shared": "what programs use of it is in pytorch_nndct and channelwise",
}


class NotCarriedOverError(ChannelwiseError, ImportError):
    """A name of the original tool that this project does not have."""


def absent(name: str) -> NotCarriedOverError:
    """The error for a name, in one sentence."""
    return NotCarriedOverError(f"{name} of the Vitis AI Optimizer is not carried over: {INSTEAD[name]}.", name=name)
