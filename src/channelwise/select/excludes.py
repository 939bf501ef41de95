"""Which channel groups a user's excludes mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.select.naming import Names
from channelwise.structure import Structure


def match_excludes(structure: Structure, excludes: Any, model: nn.Module | None = None) -> set[str]:
    """Names of the groups that must stay full.

    Arguments:
        excludes: None, one item or an iterable of items. An item is a group's name, a layer's name, the name of a
            module that contains layers, a parameter's name, a glob pattern over those ("layer1.*"), a module of
            ``model``, or a module type (``nn.Linear``).
        model: the traced model; needed for modules and types only.

    A layer keeps its width if it is excluded: groups that it produces or holds scales and offsets of. What it merely
    reads may still be pruned. A layer without prunable channels may be named, too, and changes nothing.
    Raises InvalidArgumentError for an item that matches nothing.
    """
    items = _items(excludes)
    if not items:
        return set()
    names = Names(structure, model)
    return set().union(*(names.groups(item, "excludes") for item in items))


def _items(excludes: Any) -> tuple[Any, ...]:
    if excludes is None:
        return ()
    # Modules such as Sequential are iterable, but one of them is one item.
    if isinstance(excludes, (str, type, nn.Module)):
        return (excludes,)
    if isinstance(excludes, Mapping) or not isinstance(excludes, Iterable):
        raise InvalidArgumentError(f"excludes must be names, patterns, modules or module types, not {excludes!r}.")
    return tuple(excludes)
