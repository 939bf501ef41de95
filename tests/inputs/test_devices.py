"""PyTorch's complaints about devices are known, and told to users with the way out."""

from __future__ import annotations

import pytest
import torch

from channelwise.inputs.devices import device_hint, is_device_mismatch, is_missing_device


@pytest.mark.parametrize(
    "text",
    [
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
        "Input type (torch.cuda.FloatTensor) and weight type (torch.FloatTensor) should be the same",
        "Input type (torch.FloatTensor) and weight type (torch.cuda.FloatTensor) should be the same or input should be "
        "a MKLDNN tensor and weight is a dense tensor",
    ],
)
def test_pytorchs_device_complaints_are_known(text: str) -> None:
    assert is_device_mismatch(RuntimeError(text))


@pytest.mark.parametrize(
    "text",
    [
        "Torch not compiled with CUDA enabled",
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
        "No CUDA GPUs are available",
        "CUDA error: invalid device ordinal",
        "PyTorch is not linked with support for mps devices",
        "Attempting to deserialize object on a CUDA device but torch.cuda.is_available() is False.",
    ],
)
def test_a_device_that_is_not_there_is_known(text: str) -> None:
    assert is_missing_device(RuntimeError(text))
    assert "next(model.parameters()).device" in device_hint(AssertionError(text), "eval_fn")


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without CUDA")
def test_what_pytorch_says_here_is_known() -> None:
    with pytest.raises((AssertionError, RuntimeError)) as caught:
        torch.zeros(1).cuda()
    assert is_missing_device(caught.value)


def test_other_errors_say_nothing_about_devices() -> None:
    assert device_hint(KeyError("image"), "eval_fn") == ""
