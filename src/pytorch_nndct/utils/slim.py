"""A slim state dict loaded into a fresh original model, in place."""

from channelwise.methods.other_names import other_names
from channelwise.surgery import load

load_state_dict = other_names(state_dict="source")(load)

__all__ = ["load_state_dict"]
