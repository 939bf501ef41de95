"""Jobs as bytes."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from channelwise.execution.packing import pack
from tests.execution.jobs import LoaderSum


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_with_an_open_iterator_is_packed_without_it(num_workers: int) -> None:
    loader = DataLoader(torch.arange(6), batch_size=2, num_workers=num_workers, persistent_workers=num_workers > 0)
    loader._iterator = iter(loader)
    unpacked = pickle.loads(pack(LoaderSum(loader)))
    assert unpacked.loader._iterator is None
    assert unpacked.loader.num_workers == num_workers
    assert loader._iterator is not None


def test_packed_job_does_what_the_original_does() -> None:
    assert pickle.loads(pack(LoaderSum([torch.ones(3)])))(None) == 3
