"""Disks that are full, read-only or broken: an error that names the file, and nothing finished is lost."""
