"""From a trace to channel groups: components, parts, minimum numbers, exactness."""
