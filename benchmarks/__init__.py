"""Programs that measure: `python benchmarks/NAME.py`, and the sweep of models, `python -m benchmarks.coverage`."""
