"""Functions on a copied model (hooks, patched methods) that close over the original: they are made to use the copy."""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterable, Iterator, Mapping
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from channelwise.errors import UnsupportedModelError

_STORES = frozenset({"_parameters", "_buffers", "_modules"})
_FUNCTIONS = (FunctionType, MethodType, functools.partial)
_HOLDERS = (*_FUNCTIONS, dict, list)
_LEADING = (nn.Module, torch.Tensor, MethodType, list, tuple, dict)


def rebind_functions(clone: nn.Module, memo: Mapping[int, Any]) -> None:
    """``copy.deepcopy`` leaves functions as they are, so that those on ``clone`` would read and write the original.

    Arguments:
        memo: what the copy was made with: id of everything that was copied -> its copy.

    Raises:
        UnsupportedModelError: a function uses the original through a global variable, which cannot be changed.
    """
    rebinder = _Rebinder(memo)
    for name, module in clone.named_modules():
        for key, value in list(module.__dict__.items()):
            if isinstance(value, _HOLDERS) and value and key not in _STORES:
                module.__dict__[key] = rebinder.held(value, f"{name}.{key}".removeprefix("."))


class _Rebinder:
    def __init__(self, memo: Mapping[int, Any]) -> None:
        self.memo = memo
        self.twins: dict[int, FunctionType] = {}
        self.where = ""

    def held(self, value: Any, where: str) -> Any:
        """An attribute of a module: a function, or a dictionary or list that holds functions, changed in place."""
        if isinstance(value, _FUNCTIONS):
            self.where = where
            return self.new(value)
        if isinstance(value, (dict, list)):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(item, _FUNCTIONS):
                    self.where = where
                    value[key] = self.new(item)
        return value

    def new(self, value: Any) -> Any:
        """What takes the place of ``value`` in the copy; itself if it does not lead to the original."""
        if id(value) in self.memo:
            return self.memo[id(value)]
        if isinstance(value, FunctionType):
            return self.function(value)
        if isinstance(value, MethodType):
            function, owner = self.new(value.__func__), self.new(value.__self__)
            return value if function is value.__func__ and owner is value.__self__ else MethodType(function, owner)
        if isinstance(value, functools.partial):
            old = [value.func, *value.args, *value.keywords.values()]
            new = [self.new(v) for v in old]
            if _same(old, new):
                return value
            function, *args = new[: 1 + len(value.args)]
            return functools.partial(function, *args, **dict(zip(value.keywords, new[1 + len(args) :], strict=True)))
        if type(value) in (list, tuple):
            items = [self.member(v) for v in value]
            if _same(value, items):
                return value
            return items if isinstance(value, list) else tuple(items)
        if type(value) is dict:
            items = [self.member(v) for v in value.values()]
            return value if _same(value.values(), items) else dict(zip(value, items, strict=True))
        return value

    def member(self, value: Any) -> Any:
        """The same for what a container holds: modules and tensors only."""
        return self.memo.get(id(value), value) if isinstance(value, (nn.Module, torch.Tensor)) else value

    def function(self, function: FunctionType) -> FunctionType:
        """The function itself, or a twin with other cells and defaults."""
        if id(function) in self.twins:
            return self.twins[id(function)]
        self.twins[id(function)] = function
        self.refuse_globals(function)
        cells = function.__closure__ or ()
        contents = [_content(cell) for cell in cells]
        inside = [self.new(value) for value in contents]
        defaults = tuple(self.new(v) for v in function.__defaults__ or ())
        keywords = {k: self.new(v) for k, v in (function.__kwdefaults__ or {}).items()}
        old = [*contents, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        if _same(old, [*inside, *defaults, *keywords.values()]):
            return function
        itself = [content is function for content in contents]
        closure = tuple(
            CellType(new) if new is not content or recursive else cell
            for cell, content, new, recursive in zip(cells, contents, inside, itself, strict=True)
        )
        twin = FunctionType(
            function.__code__, function.__globals__, function.__name__, defaults or None, closure or None
        )
        for cell, recursive in zip(closure, itself, strict=True):
            if recursive:
                cell.cell_contents = twin
        twin.__kwdefaults__ = keywords or None
        twin.__qualname__, twin.__doc__, twin.__module__ = function.__qualname__, function.__doc__, function.__module__
        twin.__dict__.update(function.__dict__)
        self.twins[id(function)] = twin
        return twin

    def refuse_globals(self, function: FunctionType) -> None:
        """Global variables are everybody's: a function that uses the original through one cannot be copied."""
        for name in _globals(function.__code__):
            value = function.__globals__.get(name)
            if isinstance(value, _LEADING) and self.new(value) is not value:
                raise UnsupportedModelError(
                    f"{self.where} is or holds the function {function.__qualname__}, which uses the model through the "
                    f"global variable {name!r}: a copy of the model would go on using the original. Take it from the "
                    "function's arguments, or make it a method of the module"
                )


def _same(old: Iterable[Any], new: Iterable[Any]) -> bool:
    return all(a is b for a, b in zip(old, new, strict=True))


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell: the variable has no value yet
        return None


def _globals(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals(constant)
