"""Models and inputs from what is typed in a shell."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from channelwise.errors import InvalidArgumentError

LIBRARIES = ("torchvision", "timm")
DTYPES = {
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "long": torch.int64,
    "int": torch.int32,
    "bool": torch.bool,
}


def build_model(spec: str, arguments: dict[str, Any] | None = None) -> nn.Module:
    """A model in eval mode, with random weights unless the user's own code loads some.

    Arguments:
        spec: ``torchvision:NAME``, ``timm:NAME``, or ``package.module:NAME`` of a class or function that makes the
            model, or of the model itself; modules are also looked for in the working folder.
        arguments: keyword arguments of what makes the model.

    Raises:
        InvalidArgumentError: there is no such module or name, or it makes no model.
    """
    home, colon, name = spec.partition(":")
    if not colon or not home or not name:
        raise InvalidArgumentError(
            f"{spec!r} names no model: write torchvision:NAME, timm:NAME or package.module:NAME."
        )
    made = _maker(home, name)
    model = made if isinstance(made, nn.Module) else made(**(arguments or {}))
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"{spec} made a {type(model).__name__}, not a torch.nn.Module.")
    return model.eval()


def parse_input(text: str) -> torch.Tensor | list[torch.Tensor]:
    """A tensor from its shape, with the batch, and a dtype if it is not float: ``1,3,224,224`` or ``1,77:long``.

    In brackets, ``[3,320,320]``, a list of one such tensor, as detectors take their images.

    Raises:
        InvalidArgumentError: it is no shape.
    """
    if text.startswith("[") and text.endswith("]"):
        return [_tensor(text[1:-1])]
    return _tensor(text)


def _tensor(text: str) -> torch.Tensor:
    shape, _, dtype = text.partition(":")
    try:
        sizes = [int(size) for size in shape.replace("x", ",").split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or (dtype or "float") not in DTYPES:
        raise InvalidArgumentError(
            f"--input {text}: give the shape of a batch, such as 1,3,224,224, and after a colon the dtype if it is not "
            f"float: {', '.join(DTYPES)}."
        )
    kind = DTYPES[dtype or "float"]
    return torch.randn(sizes).to(kind) if kind.is_floating_point else torch.ones(sizes, dtype=kind)


def _maker(home: str, name: str) -> Callable[..., Any] | nn.Module:
    try:
        if home == "torchvision":
            return _torchvision(name)
        if home == "timm":
            return _timm(name)
    except ImportError as error:
        raise InvalidArgumentError(
            f"{home}:{name} needs {home}, which cannot be imported ({error}): pip install channelwise[vision]."
        ) from error
    # As `python -m` does: a user's own model is usually in the folder where the command is typed.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(home)
    except ModuleNotFoundError as error:
        if error.name is None or not home.startswith(error.name):
            raise
        raise InvalidArgumentError(f"There is no module {home} in {os.getcwd()} or among those installed.") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise InvalidArgumentError(f"{home} has no {name}{_did_you_mean(name, dir(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise InvalidArgumentError(f"{home}:{name} is a {type(found).__name__}, neither a model nor what makes one.")
    return found


def _torchvision(name: str) -> Callable[..., nn.Module]:
    from torchvision import models

    if name not in models.list_models():
        raise InvalidArgumentError(f"torchvision has no model {name}{_did_you_mean(name, models.list_models())}")

    def make(**arguments: Any) -> nn.Module:
        if name.partition("_")[0] in ("googlenet", "inception"):
            arguments = {"init_weights": False, **arguments}
        # Parts may come with weights of their own, such as the backbone of a detector.
        built = models.get_model_builder(name)
        backbone = {"weights_backbone": None} if "weights_backbone" in built.__annotations__ else {}
        return models.get_model(name, **{"weights": None, **backbone, **arguments})

    return make


def _timm(name: str) -> Callable[..., nn.Module]:
    import timm

    if not timm.is_model(name):
        raise InvalidArgumentError(f"timm has no model {name}{_did_you_mean(name, timm.list_models())}")

    def make(**arguments: Any) -> nn.Module:
        model: nn.Module = timm.create_model(name, **{"pretrained": False, **arguments})
        return model

    return make


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {', '.join(close)}?" if close else "."
