"""What people read at the end of a run."""

from channelwise.report.summary import Summary, summary_text

__all__ = ["Summary", "summary_text"]
