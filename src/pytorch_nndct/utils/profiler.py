"""What a model costs."""

from channelwise.report.complexity import model_complexity

__all__ = ["model_complexity"]
