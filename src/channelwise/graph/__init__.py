"""Which channels exist: labels flow through one run of the model and end up as channel groups."""
