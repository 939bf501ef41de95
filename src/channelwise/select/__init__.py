"""From a budget or a spec to a selection."""
