"""What a selection costs: multiply-accumulates and parameters, exactly and without running the model."""

from channelwise.cost.model import CostModel, Products, cost_model, macs, params

__all__ = ["CostModel", "Products", "cost_model", "macs", "params"]
