"""The job as bytes for another process: lambdas and closures travel, open iterators of DataLoaders stay."""

from __future__ import annotations

import copyreg
import io
import pickle
from contextlib import suppress
from typing import Any

import cloudpickle
from torch.utils.data import DataLoader

from channelwise.errors import InvalidArgumentError
from channelwise.execution import Job


class _ByReference(pickle.Pickler):
    """What belongs to the program is named, for processes that import the program themselves."""

    def reducer_override(self, obj: Any) -> Any:
        return _without_iterator(obj)


class _ByValue(cloudpickle.Pickler):
    """What no other process can import is copied."""

    def reducer_override(self, obj: Any) -> Any:
        reduced = _without_iterator(obj)
        return super().reducer_override(obj) if reduced is NotImplemented else reduced


def pack(job: Job, *, importable: bool) -> bytes:
    """``job`` as `pickle.loads` takes it.

    Arguments:
        importable: whether the processes import this program. Then what cannot be copied, such as a file open in a
            global variable of it, may be made anew there.

    Raises:
        InvalidArgumentError: it cannot be sent, with the reason and what to do.
    """
    try:
        return _dumped(_ByValue, job)
    except Exception as error:  # pickling runs the user's classes: anything can be raised
        if importable:
            with suppress(Exception):  # what is said is why it could not be copied
                return _dumped(_ByReference, job)
        raise InvalidArgumentError(
            f"eval_fn, its arguments or the model cannot be sent to other processes ({_why(error)}). Make inside "
            "eval_fn what belongs to one process, such as open files, locks and connections; or evaluate in this "
            "process (a single entry in gpus, no workers)."
        ) from error


def _dumped(pickler: type[pickle.Pickler], job: Job) -> bytes:
    file = io.BytesIO()
    pickler(file).dump(job)
    return file.getvalue()


def _without_iterator(obj: object) -> Any:
    """How to pickle a DataLoader with ``persistent_workers`` that has been iterated, and has an open iterator."""
    if isinstance(obj, DataLoader) and getattr(obj, "_iterator", None) is not None:
        return copyreg.__newobj__, (type(obj),), {**vars(obj), "_iterator": None}  # type: ignore[attr-defined]
    return NotImplemented


def _why(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    if "'generator'" in str(error):
        return f"{text}; give a list or a DataLoader, a generator can be read only once"
    return text
