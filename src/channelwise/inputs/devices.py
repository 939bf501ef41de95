"""What PyTorch's errors about devices mean to users, and the way out."""

from __future__ import annotations

import re

_MISSING = re.compile(
    r"not compiled with \w+ enabled|not linked with support for \w+ devices|no NVIDIA driver|No \w+ GPUs are available"
    r"|invalid device ordinal|deserialize object on a \w+ device",
    re.IGNORECASE,
)


def is_missing_device(error: BaseException) -> bool:
    """Whether PyTorch complains that there is no such device, as ``.cuda()`` does on a machine without CUDA."""
    return bool(_MISSING.search(str(error)))


def is_device_mismatch(error: BaseException) -> bool:
    """Whether PyTorch complains that tensors are on different devices."""
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "same device" in text
        or "Input type (torch.cuda" in text
        or ("weight type (torch.cuda" in text and "Input type (torch." in text)
    )


def device_hint(error: BaseException, function: str) -> str:
    """For an error that ``function(model, ...)`` of the user raised: what to do about devices, "" if that is not it."""
    if is_missing_device(error):
        what = "asks for a device that is not there"
    elif is_device_mismatch(error):
        what = "mixes devices"
    else:
        return ""
    return (
        f"{function} {what}. Let it follow the model it is given, not .cuda(): "
        "device = next(model.parameters()).device; images = images.to(device)."
    )
