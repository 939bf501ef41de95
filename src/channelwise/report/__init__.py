"""What people read at the end of a run."""

from channelwise.report.summary import Summary

__all__ = ["Summary"]
