"""From a budget or sparsities to a selection: how many channels every group keeps, and which."""
