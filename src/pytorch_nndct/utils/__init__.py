"""Small helpers that programs import: `profiler`, `slim`, `module_util`."""

from pytorch_nndct.utils import module_util, profiler, slim

__all__ = ["module_util", "profiler", "slim"]
