"""Whole numbers that remember where they came from: an attribute of the user's modules, or a size that was read.

A traced model is a private copy, so its numbers can be replaced by `Traced` ones. They are ordinary ``int`` to the
user's code. Multiplied and divided they remember their factor; what is made of them in another way is a plain number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

Place = tuple[str, str]
"""A module, and the path to a number in it: ``width``, ``sizes[1]``, ``config.num_heads``, ``options['width']``."""


@dataclass(eq=False)
class Origin:
    """Where a number came from.

    ``places``: all modules that reach it, of an attribute. ``read``: the labels (n,) that it counted, of a size, in the
    code of ``module``. ``uses``: where it is noted what numbers are used for.
    """

    uses: list[Use]
    places: list[Place] = field(default_factory=list)
    read: np.ndarray | None = None
    module: str = ""

    @property
    def name(self) -> str:
        """The name of the attribute."""
        return re.findall(r"\w+", self.places[0][1])[-1] if self.places else ""


Terms = tuple[tuple[Origin, Fraction], ...]
"""Origins with the factors that they have in a sum."""


class Traced(int):
    """A number that remembers which sum of its origins it is: ``sum(factor * origin) + constant``.

    ``exact``: it is no quotient that was rounded.
    """

    terms: Terms
    constant: Fraction
    exact: bool

    def __new__(cls, value: int, terms: Terms, constant: Fraction = Fraction(0), exact: bool = True) -> Traced:
        self = super().__new__(cls, value)
        self.terms, self.constant, self.exact = terms, constant, exact
        return self

    @property
    def origin(self) -> Origin | None:
        """The one origin that it is, unchanged."""
        (origin, factor), *more = self.terms
        return origin if factor == 1 and not more and not self.constant and self.exact else None

    def _scaled(self, value: int, factor: Fraction, exact: bool = True) -> Traced:
        terms = tuple((origin, f * factor) for origin, f in self.terms)
        return Traced(value, terms, self.constant * factor, self.exact and exact)

    def _sum(self, value: int, other: int, sign: int) -> int:
        terms: dict[Origin, Fraction] = dict(self.terms)
        for origin, factor in other.terms if isinstance(other, Traced) else ():
            terms[origin] = terms.get(origin, Fraction(0)) + sign * factor
        constant = self.constant + sign * (other.constant if isinstance(other, Traced) else int(other))
        left = tuple((origin, factor) for origin, factor in terms.items() if factor)
        exact = self.exact and getattr(other, "exact", True)
        return Traced(value, left, constant, exact) if left else value

    def __add__(self, other: Any) -> Any:
        result = int.__add__(self, other)
        return self._sum(result, other, 1) if isinstance(other, int) else result

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        result = int.__sub__(self, other)
        return self._sum(result, other, -1) if isinstance(other, int) else result

    def __rsub__(self, other: Any) -> Any:
        result = int.__rsub__(self, other)
        return self._scaled(-int(self), Fraction(-1))._sum(result, other, 1) if isinstance(other, int) else result

    def __mul__(self, other: Any) -> Any:
        result = int.__mul__(self, other)
        return self._scaled(result, Fraction(int(other))) if isinstance(other, int) and other else result

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        result = int.__floordiv__(self, other)
        if not isinstance(other, int):
            return result
        return self._scaled(result, Fraction(1, int(other)), exact=int(self) % int(other) == 0)

    def __eq__(self, other: object) -> bool:
        same = int.__eq__(self, other)
        if same is True and isinstance(other, Traced):
            for one, two in ((self, other), (other, self)):
                read = two.origin
                if read is not None and read.read is not None and one.origin is not read:
                    read.uses.append(Use(one, read.read, read.module))
        return same

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__

    def __reduce__(self) -> Any:
        return int, (int(self),)


@dataclass(frozen=True, eq=False)
class Use:
    """A run of as many labels (n,) as a number says, in the module whose code used it."""

    number: Traced
    labels: np.ndarray
    module: str


def traced_in(values: Iterable[Any]) -> Iterator[Traced]:
    """The traced numbers among arguments, in their lists, tuples and slices too."""
    for value in values:
        if type(value) is Traced:
            yield value
        elif isinstance(value, (list, tuple)):
            yield from traced_in(value)
        elif type(value) is slice:
            yield from traced_in((value.start, value.stop, value.step))


def trace_numbers(model: nn.Module, uses: list[Use], original: nn.Module) -> None:
    """Replace the whole numbers that the modules of a private copy keep by traced ones, whose uses are noted.

    What the copy shares with the ``original`` (enumerations, loggers, whatever is its own copy) is left alone.

    Numbers in lists, tuples, dicts and plain objects (namespaces, dataclasses, configs) count. An object that several
    modules share has one number for all of them. What torch's own layers keep of their sizes is surgery's to correct.
    """
    walk = _Walk(uses, _things_of(original))
    for path, module in model.named_modules():
        skip = _OF_MODULES | _of_layers(type(module))  # type: ignore[arg-type]
        own = module.__dict__
        for name in [n for n in own if n not in skip]:
            own[name] = walk.traced(own[name], path, name)


@dataclass(eq=False)
class _Walk:
    """Walks over what modules keep.

    ``foreign``: things by their id that are not the copy's own. ``seen``: mutable things by their id, with the path
    they were first met by and the origins found in them.
    """

    uses: list[Use]
    foreign: Mapping[int, Any]
    origins: list[Origin] = field(default_factory=list)
    seen: dict[int, tuple[Any, str, list[Origin]]] = field(default_factory=dict)

    def traced(self, value: Any, module: str, path: str) -> Any:
        """The same value with traced numbers in it; mutable things are changed in place."""
        kind = type(value)
        if kind is int:
            if value < 2:
                return value
            self.origins.append(Origin(self.uses, [(module, path)]))
            return Traced(value, ((self.origins[-1], Fraction(1)),))
        if kind is tuple:
            return tuple(self.traced(item, module, f"{path}[{k}]") for k, item in enumerate(value))
        items, pattern = _items_of(value)
        if not items or id(value) in self.foreign:
            return value
        if id(value) in self.seen:
            _, first, inside = self.seen[id(value)]
            for origin in inside:
                origin.places.append((module, path + origin.places[0][1][len(first) :]))
            return value
        start = len(self.origins)
        self.seen[id(value)] = value, path, []
        for key, item in items.items():
            new = self.traced(item, module, pattern.format(path, key))
            if new is not item:
                (vars(value) if pattern == "{}.{}" else value)[key] = new
        self.seen[id(value)] = value, path, self.origins[start:]
        return value


_MOST = 1000
"""A list or dict of more numbers is data."""


def _items_of(value: Any) -> tuple[dict[Any, Any], str]:
    """What a list, a dict with names or a plain object holds, and how to write a path to it; else nothing."""
    if type(value) is list and len(value) < _MOST:
        return dict(enumerate(value)), "{}[{}]"
    if type(value) is dict and len(value) < _MOST:
        return {k: v for k, v in value.items() if type(k) is str and "'" not in k}, "{}[{!r}]"
    return (dict(vars(value)), "{}.{}") if _is_plain_object(value) else ({}, "")


def _things_of(model: nn.Module) -> dict[int, Any]:
    """All lists, dicts and plain objects that the modules of a model reach, by their id."""
    found: dict[int, Any] = {}
    todo = [value for module in model.modules() for name, value in vars(module).items() if name not in _OF_MODULES]
    while todo:
        value = todo.pop()
        items = dict(enumerate(value)) if type(value) is tuple else _items_of(value)[0]
        if items and id(value) not in found:
            found[id(value)] = value
            todo += items.values()
    return found


_OF_MODULES = frozenset(nn.Module().__dict__)
"""Attributes that every module has."""


def _is_plain_object(value: Any) -> bool:
    """Whether this keeps attributes and is neither a module, a tensor, a function nor a class."""
    if isinstance(value, (nn.Module, torch.Tensor, type, Mapping)) or callable(value):
        return False
    own = getattr(value, "__dict__", None)
    return type(own) is dict and type(value).__module__.split(".")[0] not in ("builtins", "torch", "numpy")


@cache
def _of_layers(cls: type[nn.Module]) -> frozenset[str]:
    """Attributes that a class has from a layer of torch."""
    layers = [base for base in cls.__mro__ if base.__module__.startswith("torch.nn.") and base is not nn.Module]
    return frozenset().union(*(base.__dict__.get("__constants__", ()) for base in layers))
