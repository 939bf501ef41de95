"""What users call channel groups: by names, glob patterns, modules and module types."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from channelwise.errors import InvalidArgumentError
from channelwise.structure import Group, Structure, owner

logger = logging.getLogger(__name__)


class Names:
    """All names in a traced model, and the groups that each of them means.

    A name is that of a group, a layer, a module that contains layers, or a parameter. It means the groups that the
    layers in it produce or hold scales and offsets of, not those that they merely read.

    Arguments:
        model: the traced model; needed for modules and types only.
    """

    def __init__(self, structure: Structure, model: nn.Module | None = None) -> None:
        self._structure, self._model = structure, model
        self._of = {group.name: _names(group, structure.aliases) for group in structure.groups}
        self._modules = {id(m): n for n, m in model.named_modules()} if model is not None else {}
        self._known = set().union(*self._of.values())
        self._known |= set().union(*(_path(tensor) for tensor in [*structure.tensors, *structure.aliases]))
        self._known |= {name for name in self._modules.values() if name}

    def groups(self, item: Any, argument: str) -> set[str]:
        """The groups that ``item`` means: a name, a glob pattern over names, a module of the model, or a module type.

        A layer without prunable channels may be named and means no group. ``argument`` is what messages call the place.
        Raises InvalidArgumentError for an item that the model does not have.
        """
        hits = self._named(item, argument)
        if "" in hits:
            return set(self._of)
        return {group for group, names in self._of.items() if not names.isdisjoint(hits)}

    def why_none(self, item: Any, argument: str) -> str:
        """The message for an item that means no group where one is needed."""
        hits = self._named(item, argument)
        text = f"{argument} names {_shown(item)}, of which no channel can be removed"
        for frozen in self._structure.frozen:
            if frozen.role == "output" and frozen.reasons and not _path(frozen.tensor).isdisjoint(hits):
                return f"{text}: {frozen.reasons[0]}."
        return f"{text}: it has none of its own."

    def _named(self, item: Any, argument: str) -> set[str]:
        if not isinstance(item, str):
            return self._module_names(item, argument)
        if item in self._known:
            return {item}
        hits = {name for name in self._known if fnmatchcase(name, item)}
        if not hits:
            near = difflib.get_close_matches(item, self._known, n=3, cutoff=0.5)
            hint = f"Near names: {', '.join(near)}" if near else f"Some names are {', '.join(sorted(self._known)[:5])}"
            raise InvalidArgumentError(f"{argument}: {item!r} matches no group, layer or module of the model. {hint}.")
        return hits

    def _module_names(self, item: Any, argument: str) -> set[str]:
        is_type = isinstance(item, type) and issubclass(item, nn.Module)
        if not is_type and not isinstance(item, nn.Module):
            raise InvalidArgumentError(f"{argument} must hold names, patterns, modules or module types, not {item!r}.")
        if self._model is None:
            raise InvalidArgumentError(
                f"{argument} holds {_shown(item)}, which needs the model; give names or patterns here instead."
            )
        if not is_type:
            if id(item) not in self._modules:
                raise InvalidArgumentError(
                    f"{argument} holds {_shown(item)} that is not a module of the traced model (a copy, perhaps); give "
                    "its name."
                )
            return {self._modules[id(item)]}
        hits = {name for name, module in self._model.named_modules() if isinstance(module, item)}
        if not hits:
            present = sorted({type(m).__name__ for m in self._model.modules() if m is not self._model})
            near = difflib.get_close_matches(item.__name__, present, n=3) or present[:8]
            raise InvalidArgumentError(
                f"{argument} holds {_shown(item)}, and the model has no such module; it has {', '.join(near)}."
            )
        return hits


def by_group(structure: Structure, values: Any, argument: str, model: nn.Module | None = None) -> Any:
    """``values`` with the names of groups as keys, from a mapping with keys as `Names.groups` takes them.

    What is no mapping stays as it is. A group's own name goes before other keys that mean the group.
    Raises InvalidArgumentError for a key that means no group, and for two keys that give one group different values.
    """
    own = {group.name for group in structure.groups}
    if not isinstance(values, Mapping) or values.keys() <= own:
        return values
    names = Names(structure, model)
    found = {key: value for key, value in values.items() if key in own}
    giver: dict[str, Any] = {}
    for key in [key for key in values if key not in own]:
        groups = names.groups(key, argument)
        if not groups and values[key] != 0:
            raise InvalidArgumentError(names.why_none(key, argument))
        if len(groups) == 1:
            (group,) = groups
            logger.info("%s: %s is in the group %r and stands for it.", argument, _shown(key), group)
        for group in groups - values.keys():
            other = giver.setdefault(group, key)
            if found.setdefault(group, values[key]) != values[key]:
                raise InvalidArgumentError(
                    f"{argument} gives the group {group!r} two values: {found[group]!r} by {_shown(other)} and "
                    f"{values[key]!r} by {_shown(key)}. Its layers lose the same channels "
                    f"({', '.join(structure.group(group).layers[:4])}). Give one value, or use {group!r} as a key, "
                    "which goes before the others."
                )
    return found


def _shown(item: Any) -> str:
    if isinstance(item, str):
        return repr(item)
    return f"the type {item.__name__}" if isinstance(item, type) else f"a {type(item).__name__}"


def _names(group: Group, aliases: Mapping[str, str]) -> set[str]:
    """Every name that means this group: its own, its tensors', their modules' and those around them."""
    tensors = {s.tensor for s in group.slots if s.role != "input"}
    tensors |= {alias for alias, name in aliases.items() if name in tensors}
    return {group.name}.union(*(_path(tensor) for tensor in tensors))


def _path(tensor: str) -> set[str]:
    """A tensor's name and the names of all modules around it."""
    pieces = owner(tensor).split(".")
    return {tensor, *(".".join(pieces[: i + 1]) for i in range(len(pieces)))}
