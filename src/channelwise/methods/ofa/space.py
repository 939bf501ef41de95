"""The search space of a supernet: all of its choices, and what every combination of them costs."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from channelwise.cost import Products, cost_model
from channelwise.errors import InvalidArgumentError
from channelwise.io.record import Record
from channelwise.methods.ofa.choices import Choice, Setting
from channelwise.methods.ofa.table import choices_table
from channelwise.structure import Structure, unknown_group


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

    def with_full_kernels(self, values: np.ndarray) -> np.ndarray:
        """The values with the original kernels."""
        return np.concatenate([values[: self._widths], self.full[self._widths :]])

    def setting(self, values: np.ndarray) -> Setting:
        """The values as plain JSON."""
        return [choice.entry(value) for choice, value in zip(self.choices, values.tolist(), strict=True)]

    def values(self, setting: Any) -> np.ndarray:
        """The values of a setting.

        Raises:
            InvalidArgumentError: not a setting, one of another network, or one with a value that is not a candidate.
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
        return np.array([c.value(e) for c, e in zip(self.choices, setting, strict=True)], int)

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

    def subset(self, candidates: Mapping[str, Collection[int]] | Setting) -> SearchSpace:
        """The space with fewer candidates, given by name of the choice or as a setting with shorter lists.

        Raises:
            InvalidArgumentError: a name or a candidate that this space does not have, or no candidate is left.
        """
        if not isinstance(candidates, Mapping):
            self.values(candidates)
            candidates = {c.name: c.listed(entry) for c, entry in zip(self.choices, candidates, strict=True)}
        choices = list(self.choices)
        for name, wanted in candidates.items():
            if name not in self.position:
                raise InvalidArgumentError(
                    f"{unknown_group(self.structure, name, 'candidates')} See print(search_space)."
                )
            choice = choices[self.position[name]]
            given = list(wanted) if isinstance(wanted, Collection) and not isinstance(wanted, str) else []
            left = tuple(value for value in choice.candidates if value in given)
            if not left or any(value not in left for value in given):
                raise InvalidArgumentError(
                    f"{name!r} can be {list(choice.candidates)}; {wanted!r} must be some of these."
                )
            choices[self.position[name]] = replace(choice, candidates=left)
        return SearchSpace(self.structure, choices)

    def digest(self) -> str:
        """A fingerprint of the network's structure and of all candidates."""
        plain = [self.structure.digest(), [[c.name, list(c.candidates)] for c in self.choices]]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()

    def __str__(self) -> str:
        low, high = float(self.macs(self.minimum)), float(self.macs(self.maximum))
        heading = (
            f"{len(self.free)} of {len(self.choices)} choices are free; subnets have {low / 1e6:,.2f} to "
            f"{high / 1e6:,.2f} M MACs ({low / high:.1%} to 100 %) and {self.params(self.minimum) / 1e6:,.3f} to "
            f"{self.params(self.maximum) / 1e6:,.3f} M parameters"
        )
        return choices_table(heading, self.choices)

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
