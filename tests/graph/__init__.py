"""Tests of tracing: which channels exist, and that removing them is right."""
