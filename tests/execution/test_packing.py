"""Jobs as bytes."""

from __future__ import annotations

import pickle
import sys
import threading
import types

import pytest
import torch
from torch.utils.data import DataLoader

from channelwise.errors import InvalidArgumentError
from channelwise.execution.packing import pack
from tests.execution.jobs import LoaderSum, Square


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_with_an_open_iterator_is_packed_without_it(num_workers: int) -> None:
    loader = DataLoader(torch.arange(6), batch_size=2, num_workers=num_workers, persistent_workers=num_workers > 0)
    loader._iterator = iter(loader)
    unpacked = pickle.loads(pack(LoaderSum(loader), importable=False))
    assert unpacked.loader._iterator is None
    assert unpacked.loader.num_workers == num_workers
    assert loader._iterator is not None


def test_packed_job_does_what_the_original_does() -> None:
    assert pickle.loads(pack(LoaderSum([torch.ones(3)]), importable=False))(None) == 3


def test_lambda_closure_and_local_class_are_packed() -> None:
    offset = 7

    class Offset(Square):
        def __call__(self, payload: float) -> float:
            return (lambda x: x + offset)(payload)

    assert pickle.loads(pack(Offset(), importable=False))(1) == 8


def test_what_belongs_to_one_process_is_refused_with_what_to_do() -> None:
    for job, words in (
        (LoaderSum(threading.Lock()), "Make inside eval_fn .* locks"),
        (LoaderSum(number for number in range(3)), "a generator can be read only once"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            pack(job, importable=True)


def test_a_global_of_the_program_that_cannot_be_copied_is_made_anew_by_processes_that_import_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A script with `lock = threading.Lock()` at its top level, which its eval_fn uses.
    script = types.ModuleType("__main__")
    exec("import threading\nlock = threading.Lock()\ndef evaluate():\n    return lock.locked() + 5.0", vars(script))
    monkeypatch.setitem(sys.modules, "__main__", script)
    job = LoaderSum(script.evaluate)
    assert pickle.loads(pack(job, importable=True)).loader() == 5.0
    with pytest.raises(InvalidArgumentError, match="cannot be sent"):
        pack(job, importable=False)
