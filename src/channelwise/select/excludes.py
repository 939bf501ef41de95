"""Which channel groups a user's excludes mean: names, glob patterns, modules and module types."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.structure import Group, Structure, owner


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
    names_of = {group.name: _names(group, structure.aliases) for group in structure.groups}
    known = set().union(*names_of.values()) | _all_names(structure)
    modules = {id(m): n for n, m in model.named_modules(remove_duplicate=True)} if model is not None else {}
    known |= {n for n in modules.values() if n}
    matched: set[str] = set()
    for item in _items(excludes):
        if isinstance(item, str):
            if item in known:
                hits = {item}
            else:
                hits = {name for name in known if fnmatchcase(name, item)}
                if not hits:
                    raise InvalidArgumentError(_nothing(item, known))
        else:
            hits = _module_names(item, model, modules)
            if "" in hits:
                return set(names_of)
        matched |= {group for group, names in names_of.items() if not names.isdisjoint(hits)}
    return matched


def _items(excludes: Any) -> Iterable[Any]:
    if excludes is None:
        return ()
    # Modules such as Sequential are iterable, but one of them is one item.
    if isinstance(excludes, (str, type, nn.Module)):
        return (excludes,)
    if isinstance(excludes, Mapping) or not isinstance(excludes, Iterable):
        raise InvalidArgumentError(f"excludes must be names, patterns, modules or module types, not {excludes!r}.")
    return tuple(excludes)


def _module_names(item: Any, model: nn.Module | None, modules: Mapping[int, str]) -> set[str]:
    is_type = isinstance(item, type) and issubclass(item, nn.Module)
    if not is_type and not isinstance(item, nn.Module):
        raise InvalidArgumentError(f"excludes must hold names, patterns, modules or module types, not {item!r}.")
    what = f"the type {item.__name__}" if isinstance(item, type) else f"a {type(item).__name__}"
    if model is None:
        raise InvalidArgumentError(
            f"excludes holds {what}, which needs the model; give names or patterns here instead."
        )
    if not is_type:
        if id(item) not in modules:
            raise InvalidArgumentError(
                f"excludes holds {what} that is not a module of the traced model (a copy, perhaps); give its name."
            )
        return {modules[id(item)]}
    hits = {name for name, module in model.named_modules() if isinstance(module, item)}
    if not hits:
        present = sorted({type(m).__name__ for m in model.modules() if m is not model})
        near = difflib.get_close_matches(item.__name__, present, n=3) or present[:8]
        raise InvalidArgumentError(
            f"excludes holds {what}, and the model has no such module; it has {', '.join(near)}."
        )
    return hits


def _names(group: Group, aliases: Mapping[str, str]) -> set[str]:
    """Every name that means this group: its own, its tensors', their modules' and those around them."""
    tensors = {s.tensor for s in group.slots if s.role != "input"}
    tensors |= {alias for alias, name in aliases.items() if name in tensors}
    return {group.name}.union(*(_path(tensor) for tensor in tensors))


def _all_names(structure: Structure) -> set[str]:
    return set().union(*(_path(tensor) for tensor in [*structure.tensors, *structure.aliases]))


def _path(tensor: str) -> set[str]:
    """A tensor's name and the names of all modules around it."""
    pieces = owner(tensor).split(".")
    return {tensor, *(".".join(pieces[: i + 1]) for i in range(len(pieces)))}


def _nothing(pattern: str, known: set[str]) -> str:
    near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
    hint = f" Near names: {', '.join(near)}." if near else f" Names are, for example: {', '.join(sorted(known)[:5])}."
    return f"excludes={pattern!r} matches no group, layer or module of the model.{hint}"
