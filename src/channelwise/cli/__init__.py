"""The command line: ``channelwise inspect``."""
