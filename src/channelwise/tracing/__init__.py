"""Labels flow through one run of the model, and are recorded."""
