"""The slim model that a state dict is of, made of a fresh original one, in place."""

from pytorch_nndct.utils.slim import load_state_dict as slim_model_from_state_dict

__all__ = ["slim_model_from_state_dict"]
