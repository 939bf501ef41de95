"""What a selection costs: multiply-accumulates and parameters, exactly and without running the model."""

from channelwise.cost.model import CostModel, cost_model, macs, params

__all__ = ["CostModel", "cost_model", "macs", "params"]
