"""The registry of ranking criteria, and the one place where their scores are checked."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from channelwise.errors import ChannelwiseError, InvalidArgumentError, with_hint
from channelwise.structure import Group, Structure

Criterion = Callable[[Group, Mapping[str, torch.Tensor]], Any]
"""Takes a group and the model's tensors by name; returns one score a channel, larger = more important."""

_C = TypeVar("_C", bound=Criterion)
_criteria: dict[str, Criterion] = {}


def register(name: str) -> Callable[[_C], _C]:
    """Make a criterion available as ``ranking=name``; a name that another criterion has is refused."""

    def add(criterion: _C) -> _C:
        known = _criteria.get(name)
        if known is not None and _origin(known) != _origin(criterion):
            raise InvalidArgumentError(
                f"A ranking criterion called {name!r} is registered already; choose another name."
            )
        _criteria[name] = criterion
        return criterion

    return add


def names() -> tuple[str, ...]:
    """The registered criteria."""
    return tuple(sorted(_criteria))


def get(ranking: str | Criterion) -> Criterion:
    """The criterion registered under a name, or the callable itself."""
    if isinstance(ranking, str):
        if ranking in _criteria:
            return _criteria[ranking]
        near = difflib.get_close_matches(ranking.lower(), _criteria, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        if ranking.lower() in ("taylor", "fisher"):
            name = ranking.capitalize()
            hint = f" Gradients need a loss and images: ranking=channelwise.ranking.{name}(loss, loader)."
        raise InvalidArgumentError(f"There is no ranking {ranking!r}; there are {', '.join(names())}.{hint}")
    if isinstance(ranking, type):
        raise InvalidArgumentError(
            f"ranking is the class {ranking.__name__}; give an instance, {ranking.__name__}(...)."
        )
    if callable(ranking) or callable(getattr(ranking, "bind", None)):
        return ranking
    raise InvalidArgumentError(
        f"ranking must be a name ({', '.join(names())}) or a callable (group, tensors) -> scores, not {ranking!r}."
    )


def bind(ranking: str | Criterion, model: nn.Module | None, structure: Structure) -> Criterion:
    """The criterion for the weights that ``model`` has now.

    A criterion that needs more than a group's tensors (gradients, activations) has a method ``bind(model, structure)``
    that looks at the whole model and returns a criterion with the results; any other is returned as it is. ``model`` is
    None where only tensors are at hand. Bind once for many selections.
    """
    criterion = get(ranking)
    method = getattr(criterion, "bind", None)
    return method(model, structure) if callable(method) else criterion


def comparable(ranking: str | Criterion) -> bool:
    """Whether scores of different groups have one scale, as the criterion's attribute ``comparable`` says."""
    return bool(getattr(get(ranking), "comparable", False))


def scores(ranking: str | Criterion, group: Group, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Scores of the channels of ``group``, float64 of shape (group.size,), all finite.

    Raises InvalidArgumentError, naming the criterion and the group, for scores of another shape or no numbers.
    """
    criterion = get(ranking)
    name = ranking if isinstance(ranking, str) else _name(criterion)
    if not callable(criterion):
        raise InvalidArgumentError(
            f"The ranking {name!r} needs the model: use channelwise.ranking.bind(ranking, model, structure)."
        )
    try:
        returned = criterion(group, tensors)
    except ChannelwiseError:
        raise
    except Exception as error:
        raise InvalidArgumentError(
            f"The ranking {name!r} raised {type(error).__name__} for the group {group.name!r}: "
            f"{with_hint(error, 'It is called as ranking(group, tensors).')}"
        ) from error
    kind = type(returned).__name__
    if isinstance(returned, torch.Tensor):
        returned = returned.detach().cpu()
        returned = returned.to(torch.float64).numpy() if not returned.is_complex() else returned.numpy()
    try:
        values = np.asarray(returned)
        if values.dtype.kind not in "fiub":
            raise TypeError(f"elements of type {values.dtype}")
        values = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"The ranking {name!r} must return one number a channel; for the group {group.name!r} it returned "
            f"{kind} ({error})."
        ) from error
    if values.shape != (group.size,):
        raise InvalidArgumentError(
            f"The ranking {name!r} returned scores of shape {values.shape} for the group {group.name!r}, "
            f"which has {group.size} channels: one score a channel, shape ({group.size},), is needed."
        )
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InvalidArgumentError(
            f"The ranking {name!r} gave channel {bad} of the group {group.name!r} the score {values[bad]}; scores must "
            "be finite. Check the weights of the group's layers for NaN and infinity."
        )
    return values


def _name(criterion: Criterion) -> str:
    registered = (name for name, known in _criteria.items() if known is criterion)
    return next(registered, getattr(criterion, "__name__", type(criterion).__name__))


def _origin(criterion: Criterion) -> tuple[str, str]:
    """Where a criterion was defined, so that running its definition again (a notebook cell) is no conflict."""
    owner = criterion if hasattr(criterion, "__qualname__") else type(criterion)
    return owner.__module__, owner.__qualname__
