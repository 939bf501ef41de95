"""Which devices evaluations use."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from channelwise.errors import InvalidArgumentError
from channelwise.execution.devices import _say_once, check_workers, choose_devices

CPU = torch.device("cpu")


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    _say_once.cache_clear()


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize("gpus", [None, ["0"], [0], "0", 0])
def test_without_cuda_the_models_device_is_used_with_a_note(gpus: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_devices(gpus, CPU) == [CPU]
    assert "no cuda device" in caplog.text.lower()


@pytest.mark.usefixtures("without_cuda")
def test_without_cuda_several_gpus_become_one_process_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_devices(["0", "1"], CPU) == [CPU]
    assert "one by one" in caplog.text


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("gpus", [[0, 1], ["0", "1"], "0,1", ("cuda:0", 1)])
def test_indices_are_ints_or_strings(gpus: Any) -> None:
    assert choose_devices(gpus, CPU) == [torch.device("cuda:0"), torch.device("cuda:1")]


@pytest.mark.usefixtures("two_gpus")
def test_default_is_the_current_cuda_device_and_then_the_models() -> None:
    assert choose_devices(None, CPU) == [torch.device("cuda:0"), CPU]


@pytest.mark.usefixtures("two_gpus")
def test_model_on_a_gpu_stays_there_by_default() -> None:
    assert choose_devices(None, torch.device("cuda:1")) == [torch.device("cuda:1")]


@pytest.mark.usefixtures("two_gpus")
def test_device_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(InvalidArgumentError, match=r"no device 2; this machine has 2: \[0, 1\]"):
        choose_devices([2], CPU)


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize("gpus", [["a"], [-1], [0.5], [True], [], object()])
def test_what_is_no_index_is_refused(gpus: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="gpus"):
        choose_devices(gpus, CPU)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"])
def test_what_is_no_number_of_workers_is_refused(workers: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="workers="):
        check_workers(workers)
