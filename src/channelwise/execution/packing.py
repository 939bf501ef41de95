"""The job as bytes for another process; a DataLoader goes without the iterator that it may have open."""

from __future__ import annotations

import copyreg
import gc
import io
import pickle
from typing import Any

from torch.utils.data import DataLoader

from channelwise.execution import Job

_of_the_parent: list[object] = []


class Packer(pickle.Pickler):
    """Pickles like `pickle`, and DataLoaders with ``persistent_workers`` that have been iterated too."""

    def reducer_override(self, obj: Any) -> Any:
        return without_iterator(obj)


def pack(job: Job) -> bytes:
    """``job`` pickled; raises whatever pickling it raises."""
    file = io.BytesIO()
    Packer(file).dump(job)
    return file.getvalue()


def without_iterator(obj: object) -> Any:
    """A ``reducer_override``: how to pickle a DataLoader whose open iterator cannot be pickled."""
    if isinstance(obj, DataLoader) and getattr(obj, "_iterator", None) is not None:
        return copyreg.__newobj__, (type(obj),), {**vars(obj), "_iterator": None}  # type: ignore[attr-defined]
    return NotImplemented


def forget_open_iterators() -> None:
    """In a forked process: have every DataLoader start loading processes of its own.

    Those of the parent answer all that ask them through one queue, so that batches would go to the wrong process.
    """
    for obj in gc.get_objects():
        # Not isinstance, which runs the code of objects that pretend to be of another class.
        if issubclass(type(obj), DataLoader) and getattr(obj, "_iterator", None) is not None:
            # Kept: dropping the last reference would stop the parent's loading processes.
            _of_the_parent.append(obj._iterator)
            obj._iterator = None


def why_unpicklable(error: BaseException) -> str:
    """The reason for a message, and what to do about the arguments that no process but this one can use."""
    text = f"{type(error).__name__}: {error}"
    if "'generator'" in str(error):
        return f"{text}; give a list or a DataLoader, a generator can be read only once"
    if "'_io." in str(error):
        return f"{text}; open files inside eval_fn"
    return text


def bound_to_this_process(error: BaseException) -> bool:
    """Whether pickling failed on what several processes must not share, an open file or a generator."""
    return isinstance(error, TypeError) and ("'generator'" in str(error) or "'_io." in str(error))
