"""Plain data that a trace ends in: tensors, channel groups, frozen slots, sizes and MAC terms."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from channelwise.errors import InvalidArgumentError
from channelwise.once import once_each

Role = Literal["output", "input", "scale", "shift", "other"]


@dataclass(frozen=True)
class TensorInfo:
    """A parameter or buffer of the model.

    Every index of every axis is a slot. With ``blocks == 1`` axis ``a`` has ``shape[a]`` slots.
    With ``blocks == g > 1`` (the weight of a grouped convolution) axis 0 has ``shape[0]`` slots and axis 1 has
    ``g * shape[1]``: slot ``b * shape[1] + r`` is column ``r`` of the rows of block ``b``, these rows being
    ``b * shape[0] // g`` to ``(b + 1) * shape[0] // g``. Each block may keep other columns, all keep equally many.
    """

    name: str
    shape: tuple[int, ...]
    is_parameter: bool
    module: str
    blocks: int = 1

    def slots(self, axis: int) -> int:
        """Number of slots along ``axis``."""
        return self.shape[axis] * (self.blocks if axis == 1 else 1)


@dataclass(frozen=True)
class Slots:
    """The slots of one channel group along one axis of one tensor.

    ``index`` has shape (group size, multiplicity): row ``c`` holds the slots that go with channel ``c``.
    ``role``: "output" rows produce the channels (a convolution's output axis), "input" slots read them,
    "scale"/"shift" are per-channel factors/offsets of a norm or a bias, "other" anything else.
    """

    tensor: str
    axis: int
    index: np.ndarray
    role: Role


@dataclass(frozen=True)
class Group:
    """Channels produced together by the same layers: the unit that gets a sparsity and a row in reports.

    ``parts`` (size,) or None: the part every channel belongs to; every part must keep equally many channels.
    ``least``: so many channels of every part must stay, ``least_because`` of what the code does with one alone.
    ``exact``: zeroing the channels gives the same output as removing them; ``inexact_because`` says why not. It also
    does once the statistics of the modules ``norms`` count the kept channels only, if these are named; see `Norm`.
    """

    name: str
    size: int
    slots: tuple[Slots, ...]
    parts: np.ndarray | None = None
    exact: bool = True
    inexact_because: str = ""
    norms: tuple[str, ...] = ()
    least: int = 1
    least_because: str = ""

    @property
    def slim_only(self) -> bool:
        """Whether no sparse or masked model can stand for the removal of these channels."""
        return not self.exact and not self.norms

    @property
    def members(self) -> list[np.ndarray]:
        """The channels of every part, sorted; without parts all of them are one."""
        if self.parts is None:
            return [np.arange(self.size)]
        return [np.flatnonzero(self.parts == part) for part in np.unique(self.parts)]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the modules (or bare parameters) that produce the channels."""
        return tuple(dict.fromkeys(owner(s.tensor) for s in self.slots if s.role == "output"))


def part_size(group: Group) -> int:
    """How many channels each part of a group has, the group itself if it has no parts."""
    return len(group.members[0])


def owner(tensor: str) -> str:
    """The module that a parameter or buffer belongs to, by its qualified name; itself if it hangs on the root."""
    module, found, _ = tensor.partition(".parametrizations.")
    return (module if found else tensor.rpartition(".")[0]) or tensor


class Cause(str, Enum):
    """The kinds of reasons; for each there is one thing that a user can do about it."""

    OUTPUT = "output"
    UNUSED = "unused"
    EXCLUDED = "excluded"
    SINGLE = "single channel"
    NO_RULE = "no rule"
    RECURRENT = "recurrent layer"
    CODE = "code does not adapt"
    FIXED = "fixed size"


@dataclass(frozen=True)
class Reason:
    """Why a channel must stay: the operation, the module that ran it, and one sentence for people."""

    operation: str
    module: str
    text: str
    cause: Cause = Cause.FIXED

    def __str__(self) -> str:
        where = f" in {self.module}" if self.module else ""
        return f"{self.text} ({self.operation}{where})"


@dataclass(frozen=True)
class Frozen:
    """Slots along one axis of one tensor that must stay, with the reasons."""

    tensor: str
    axis: int
    index: np.ndarray
    role: Role
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Size:
    """The length of an axis as a linear form of the kept counts: ``constant + sum(m * kept[group])``."""

    constant: float
    terms: tuple[tuple[str, float], ...] = ()

    def plus(self, other: Size, times: Fraction = Fraction(1)) -> Size:
        """The sum of this and another form that counts so many times."""
        terms = dict(self.terms)
        for group, m in other.terms:
            terms[group] = terms.get(group, 0.0) + m * float(times)
        constant = self.constant + other.constant * float(times)
        return Size(constant, tuple((group, m) for group, m in terms.items() if m))

    def __call__(self, kept: Mapping[str, int]) -> int:
        return round(self.constant + sum(m * kept[g] for g, m in self.terms))


@dataclass(frozen=True)
class MacTerm:
    """MACs of one executed convolution or matrix product for one sample: ``scale * prod(factors)``."""

    module: str
    operation: str
    scale: float
    factors: tuple[Size, ...]


@dataclass(frozen=True)
class Number:
    """A whole number in an attribute of a user's module that has to follow the channels: its value is ``size``."""

    module: str
    attribute: str
    size: Size


@dataclass(frozen=True)
class NormedWeight:
    """A weight that its module divides by a norm of itself: without some slots, that norm would be another.

    Weight norm: ``weight`` is divided by its norms over all axes but ``axis`` (None: by one norm over all), and then
    multiplied by ``scale``. In a sparse model removed slots along ``axis`` keep their values, as 0 / 0 is no number,
    and ``scale`` is zero there. Spectral norm: ``weight`` W, with rows along ``axis``, is divided by uᵀ W v, where u is
    ``scale`` and v is ``right``.
    """

    weight: str
    scale: str
    axis: int | None
    right: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The weight, the scale and, of spectral norm, the right vector."""
        return (self.weight, self.scale) if self.right is None else (self.weight, self.scale, self.right)


@dataclass(frozen=True)
class ModuleSizes:
    """Shapes seen by one module call, as linear forms: of its first tensor argument and of its first output."""

    input: tuple[Size, ...] | None
    output: tuple[Size, ...] | None


@dataclass(frozen=True)
class Norm:
    """A module that takes statistics over channels, which have to count the kept ones only where others are zero.

    ``input_axis`` of its first argument and ``output_axis`` of its result run over ``length`` channels in the same
    order; -1 is the last axis. ``channels``: for every group met there, the indices along the axis (k,) and the
    channels of the group (k,) that they belong to. Indices in none of them always stay.
    """

    module: str
    input_axis: int
    output_axis: int
    length: int
    channels: Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Structure:
    """Everything a trace found out. Holds no tensors and no modules.

    ``tensor_sizes[name]`` gives the slim length of every axis (of a blocked axis 1: per block).
    ``numbers`` were found by verification: without them the code of these modules does not adapt.
    ``norms`` are the modules that sparse and masked models run on the kept channels only. ``normed`` are the weights
    that stay what they are only if their norms do.
    ``aliases`` maps further names of a shared tensor to the name used here.
    """

    tensors: Mapping[str, TensorInfo]
    tensor_sizes: Mapping[str, tuple[Size, ...]]
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    macs: tuple[MacTerm, ...]
    module_sizes: Mapping[str, ModuleSizes] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    numbers: tuple[Number, ...] = ()
    norms: tuple[Norm, ...] = ()
    normed: tuple[NormedWeight, ...] = ()

    def group(self, name: str) -> Group:
        """The group called ``name``. Raises InvalidArgumentError if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise InvalidArgumentError(unknown_group(self, name, "group()"))

    def full(self) -> dict[str, int]:
        """Kept counts with nothing removed."""
        return {g.name: g.size for g in self.groups}

    def digest(self) -> str:
        """A fingerprint of the traced architecture: tensor names and shapes, groups and their slots. Not of weights."""
        plain = {
            "tensors": [[t.name, list(t.shape), t.blocks] for t in self.tensors.values()],
            "groups": [
                [
                    g.name,
                    g.size,
                    [[s.tensor, s.axis, hashlib.sha256(s.index.astype("<i8").tobytes()).hexdigest()] for s in g.slots],
                ]
                for g in self.groups
            ],
        }
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Network:
    """Which network something is of: the digest of its structure, and the shapes of its tensors, to tell differences.

    Neither depends on the sizes of the example inputs, the weights, their types or their devices.
    """

    digest: str
    tensors: Mapping[str, tuple[int, ...]]

    def difference(self, other: Network) -> str:
        """The first difference in words, of this network ("there") and the other ("here"); "" if they are one."""
        if self.digest == other.digest:
            return ""
        for name in [*self.tensors, *other.tensors]:
            there, here = self.tensors.get(name), other.tensors.get(name)
            if there is None or here is None:
                return f"{name} is {'here' if there is None else 'there'} only"
            if there != here:
                return f"{name} has the shape {there} there and {here} here"
        return "all tensors have the same shapes, but other channels go together"


@once_each
def network_of(structure: Structure) -> Network:
    """The network that was traced."""
    return Network(structure.digest(), {name: info.shape for name, info in structure.tensors.items()})


def other_groups(there: Mapping[str, int | None], here: Mapping[str, int], what: str) -> str:
    """What differs between the groups of a file's network and those ``here``, in words; sizes that are None fit.

    ``what`` else: groups are the same, and it is something that the file does not tell.
    """
    for name, size in there.items():
        if name not in here:
            return f"it has a group {name!r}, which is not here"
        if size is not None and size != here[name]:
            return f"its group {name!r} has {size} channels, not {here[name]}"
    missing = [name for name in here if name not in there]
    return f"it has no group {missing[0]!r}" if missing and there else what


def unknown_group(structure: Structure, group: Any, where: str) -> str:
    """The message for a group name that the structure does not have."""
    names = [g.name for g in structure.groups]
    for known in structure.groups:
        if any(owner(slots.tensor) == group and slots.role != "input" for slots in known.slots):
            return f"{where} names {group!r}, a layer of the group {known.name!r}. Give the group's name."
    near = difflib.get_close_matches(str(group), names, n=3) or names[:5]
    examples = f"Groups are, for example: {', '.join(near)}." if near else "The model has none."
    return f"{where} names {group!r}, which is no channel group of this model. {examples}"
