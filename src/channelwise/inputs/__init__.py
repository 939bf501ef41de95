"""What users pass in: example inputs, models, batches, nested values."""
