"""What a supernet can choose: the width of every channel group and the kernel size of large convolutions."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from channelwise.cost import Products, cost_model
from channelwise.errors import InvalidArgumentError
from channelwise.io.files import Record
from channelwise.select.widths import channel_step, part_count
from channelwise.structure import Group, Structure

Setting = list[dict[str, Any]]
"""One entry per choice, plain JSON: what it is of, its candidates and the active one."""


@dataclass(frozen=True)
class Choice:
    """One decision. ``candidates`` ascend; the last one is what the original network has.

    ``kind`` is "width" (channels of the group ``of``, produced by ``modules``) or "kernel" (side of the square kernel
    of the convolution ``of``). ``fixed`` says why there is only one candidate.
    """

    kind: str
    of: str
    modules: tuple[str, ...]
    candidates: tuple[int, ...]
    fixed: str = ""

    @property
    def name(self) -> str:
        """Unique among the choices of a network."""
        return self.of if self.kind == "width" else f"{self.of} kernel"

    def entry(self, value: int) -> dict[str, Any]:
        """The entry of a setting in which ``value`` is active."""
        if self.kind == "width":
            return {
                "group": self.of,
                "modules": list(self.modules),
                "candidate_out_channel_list": list(self.candidates),
                "active_out_channel": value,
            }
        return {
            "modules": list(self.modules),
            "candidate_kernel_size_list": list(self.candidates),
            "active_kernel_size": value,
        }


class SearchSpace:
    """All choices of a supernet, and the costs of what is chosen.

    *Values* are an int array (choices,) in the order of ``choices``: channels of a group, or the side of a kernel.
    Costs are MACs of one sample and numbers of parameters. Printed, it is a table with the reachable range.
    """

    def __init__(self, structure: Structure, choices: Sequence[Choice]) -> None:
        self.structure = structure
        self.choices = tuple(choices)
        self.names = tuple(choice.name for choice in choices)
        self.position = {name: i for i, name in enumerate(self.names)}
        self.maximum = np.array([choice.candidates[-1] for choice in choices], int)
        self.minimum = np.array([choice.candidates[0] for choice in choices], int)
        self.full = np.array([self._original(choice) for choice in choices], int)
        self.free = np.flatnonzero(self.minimum < self.maximum)
        widths = [choice for choice in choices if choice.kind == "width"]
        if [choice.of for choice in widths] != [group.name for group in structure.groups]:
            raise InvalidArgumentError("The choices must begin with one width for every channel group, in their order.")
        self._widths = len(widths)
        self._cost = cost_model(structure)
        self._kernels = [(i, *self._costs(choice)) for i, choice in enumerate(choices) if choice.kind == "kernel"]

    def macs(self, values: np.ndarray) -> Any:
        """MACs of one sample for values (choices,) or (batch, choices)."""
        return self._with_kernels(values, self._cost.macs(values[..., : self._widths]), macs=True)

    def params(self, values: np.ndarray) -> Any:
        """Parameters for values (choices,) or (batch, choices)."""
        return self._with_kernels(values, self._cost.params(values[..., : self._widths]), macs=False)

    def counts(self, values: np.ndarray) -> dict[str, int]:
        """Channels by group name."""
        return {name: int(n) for name, n in zip(self.names[: self._widths], values[: self._widths], strict=True)}

    def kernels(self, values: np.ndarray) -> dict[str, int]:
        """Side of the kernel by name of the convolution, for those that can choose."""
        return {self.choices[i].of: int(values[i]) for i in range(self._widths, len(self.choices))}

    def setting(self, values: np.ndarray) -> Setting:
        """The values as plain JSON."""
        return [choice.entry(value) for choice, value in zip(self.choices, values.tolist(), strict=True)]

    def values(self, setting: Any) -> np.ndarray:
        """The values of a setting.

        Raises:
            InvalidArgumentError: it is none, of another network, or has a value that is no candidate.
        """
        if not isinstance(setting, Sequence) or isinstance(setting, (str, bytes)):
            raise InvalidArgumentError(
                f"A subnet setting is the list that sample_subnet returns, or the 'subnet_setting' of a search result; "
                f"not {type(setting).__name__}."
            )
        if len(setting) != len(self.choices):
            raise InvalidArgumentError(
                f"The setting has {len(setting)} entries, this supernet has {len(self.choices)} choices: it is of "
                "another network, or of one built with other arguments."
            )
        return np.array([_value(c, e) for c, e in zip(self.choices, setting, strict=True)], int)

    def random(self, rng: random.Random) -> np.ndarray:
        """Every choice uniformly at random."""
        return np.array([rng.choice(choice.candidates) for choice in self.choices], int)

    def nearest(self, wanted: np.ndarray) -> np.ndarray:
        """The candidates nearest to ``wanted`` (choices,), of two equally near the larger."""
        return np.array(
            [min(reversed(c.candidates), key=lambda v: abs(v - w)) for c, w in zip(self.choices, wanted, strict=True)],
            int,
        )

    def contains(self, values: np.ndarray) -> bool:
        """Whether every value is a candidate."""
        return all(v in c.candidates for c, v in zip(self.choices, values.tolist(), strict=True))

    def subset(self, candidates: Mapping[str, Collection[int]]) -> SearchSpace:
        """The space with fewer candidates, by name of the choice.

        Raises:
            InvalidArgumentError: a name or a candidate that this space does not have, or none left.
        """
        choices = list(self.choices)
        for name, wanted in candidates.items():
            if name not in self.position:
                raise InvalidArgumentError(f"{name!r} is no choice of this supernet; see print(search_space).")
            choice = choices[self.position[name]]
            given = list(wanted) if isinstance(wanted, Collection) and not isinstance(wanted, str) else []
            left = tuple(value for value in choice.candidates if value in given)
            if not left or any(value not in left for value in given):
                raise InvalidArgumentError(f"{name!r} can be {list(choice.candidates)}; {wanted!r} is no part of that.")
            choices[self.position[name]] = replace(choice, candidates=left)
        return SearchSpace(self.structure, choices)

    def digest(self) -> str:
        """A fingerprint of the network's structure and of all candidates."""
        plain = [self.structure.digest(), [[c.name, list(c.candidates)] for c in self.choices]]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()

    def __str__(self) -> str:
        from channelwise.methods.ofa.table import space_table

        return space_table(self)

    def __repr__(self) -> str:
        low, high = self.macs(self.minimum), self.macs(self.maximum)
        return f"<SearchSpace: {len(self.free)} choices, {low / 1e6:.4g} to {high / 1e6:.4g} M MACs>"

    def _original(self, choice: Choice) -> int:
        if choice.kind == "width":
            return self.structure.group(choice.of).size
        return int(self.structure.tensors[f"{choice.of}.weight"].shape[-1])

    def _with_kernels(self, values: np.ndarray, total: Any, *, macs: bool) -> Any:
        for i, macs_of, params_of in self._kernels:
            lost = 1.0 - (values[..., i] / self.full[i]) ** 2
            if np.any(lost):
                total = total - lost * (macs_of if macs else params_of)(values[..., : self._widths])
        return total

    def _costs(self, choice: Choice) -> tuple[Products, Products]:
        """MACs and parameters of a convolution: they shrink with the area of its kernel."""
        position = {name: i for i, name in enumerate(self.names[: self._widths])}
        terms = [(term.scale, term.factors) for term in self.structure.macs if term.module == choice.of]
        weight = self.structure.tensor_sizes[f"{choice.of}.weight"]
        return Products(terms, position), Products([(1.0, weight)], position)


class SpaceFile(Record):
    """A search space as JSON: the setting of the full network, for people to read and for `reset_search_space`."""

    format: Literal["channelwise-space"] = "channelwise-space"
    version: Literal[1] = 1
    model: str
    choices: Setting


def width_choice(group: Group, ratios: Sequence[float], divisor: int, fixed: str = "") -> Choice:
    """The widths of a group: every ratio of its size, rounded to the divisor; the full size for ratio 1.

    The divisor is halved until the smallest ratio of the group reaches it, so that narrow layers have a choice, too.
    """
    modules = group.layers
    if fixed:
        return Choice("width", group.name, modules, (group.size,), fixed)
    step = channel_step(group, divisor)
    while divisor > 1 and step > max(1, math.floor(min(ratios) * group.size)):
        divisor //= 2
        step = channel_step(group, divisor)
    fewest = math.ceil(group.least * part_count(group) / step)
    found = set()
    for ratio in ratios:
        nearest = step * max(fewest, math.floor(ratio * group.size / step + 0.5))
        found.add(group.size if ratio == 1 else min(nearest, group.size))
    why = "" if len(found) > 1 else f"its {group.size} channels leave no choice"
    return Choice("width", group.name, modules, tuple(sorted(found)), why)


def _value(choice: Choice, entry: Any) -> int:
    key = "active_out_channel" if choice.kind == "width" else "active_kernel_size"
    named = entry.get("group", choice.of if choice.kind == "kernel" else None) if isinstance(entry, Mapping) else None
    if named != choice.of or list(entry.get("modules", ())) != list(choice.modules) or key not in entry:
        raise InvalidArgumentError(
            f"The setting has no entry for {choice.name!r} where it belongs: it is of another network."
        )
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or int(value) not in choice.candidates:
        raise InvalidArgumentError(
            f"{key}={value!r} of {choice.name!r} is none of its candidates {list(choice.candidates)}."
        )
    return int(value)
