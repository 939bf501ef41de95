"""Selection -> model: slim and sparse copies of the user's model, their state dicts, and slim models on disk."""

from channelwise.surgery import fixers as fixers
from channelwise.surgery.attributes import Kept, fixer
from channelwise.surgery.checkpoint import load, save
from channelwise.surgery.clone import clone_module
from channelwise.surgery.slicing import slim_state_dict
from channelwise.surgery.slim import attach_sparse_state_dict, slim_model, sparse_state_dict
from channelwise.surgery.sparse import masked_model, sparse_model

__all__ = [
    "Kept",
    "attach_sparse_state_dict",
    "clone_module",
    "fixer",
    "load",
    "masked_model",
    "save",
    "slim_model",
    "slim_state_dict",
    "sparse_model",
    "sparse_state_dict",
]
