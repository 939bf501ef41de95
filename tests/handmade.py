"""Small structures written by hand, for tests of the layers that need no tracing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from channelwise.structure import Group, MacTerm, Role, Size, Slots, Structure, TensorInfo


def slots(tensor: str, axis: int, index: object, role: Role) -> Slots:
    """Slots from nested lists; a flat list means one slot a channel."""
    array = np.asarray(index)
    return Slots(tensor, axis, array if array.ndim == 2 else array[:, None], role)


def chain(widths: Sequence[int], parts: int = 1, multiplicity: int = 1) -> Structure:
    """Convolutions 3x3 with batch norm on 10x10 pixels, three channels in, and a frozen linear head of ten outputs.

    Groups are called ``net.<i>.conv`` and have ``widths[i]`` channels of ``multiplicity`` slots, in ``parts`` parts.
    """
    tensors, sizes, terms, slots_of = {}, {}, [], {}
    previous, source, width_before = Size(3), None, 3
    for i, width in enumerate(widths):
        name = f"net.{i}.conv"
        index = np.arange(width * multiplicity).reshape(width, multiplicity)
        size = Size(0, ((name, multiplicity),))
        weight, scale, mean = f"{name}.weight", f"net.{i}.bn.weight", f"net.{i}.bn.running_mean"
        tensors[weight] = TensorInfo(weight, (width * multiplicity, width_before, 3, 3), True, name)
        tensors[scale] = TensorInfo(scale, (width * multiplicity,), True, f"net.{i}.bn")
        tensors[mean] = TensorInfo(mean, (width * multiplicity,), False, f"net.{i}.bn")
        sizes |= {weight: (size, previous, Size(3), Size(3)), scale: (size,), mean: (size,)}
        terms.append(MacTerm(name, "convolution", 9 * 100, (size, previous)))
        slots_of[name] = [
            slots(weight, 0, index, "output"),
            slots(scale, 0, index, "scale"),
            slots(mean, 0, index, "other"),
        ]
        if source is not None:
            slots_of[source].append(slots(weight, 1, np.arange(width_before).reshape(-1, multiplicity), "input"))
        previous, source, width_before = size, name, width * multiplicity
    tensors["head.weight"] = TensorInfo("head.weight", (10, width_before), True, "head")
    sizes["head.weight"] = (Size(10), previous)
    terms.append(MacTerm("head", "linear", 1, (Size(10), previous)))
    if source is not None:
        slots_of[source].append(slots("head.weight", 1, np.arange(width_before).reshape(-1, multiplicity), "input"))
    labels = [None if parts == 1 else np.arange(w) * parts // w for w in widths]
    groups = [
        Group(name, width, tuple(entries), part)
        for (name, entries), width, part in zip(slots_of.items(), widths, labels, strict=True)
    ]
    return Structure(tensors, sizes, tuple(groups), (), tuple(terms))


def random_tensors(structure: Structure, seed: int = 0) -> dict[str, torch.Tensor]:
    """A random tensor for every name of the structure."""
    generator = torch.Generator().manual_seed(seed)
    return {t.name: torch.randn(t.shape, generator=generator) for t in structure.tensors.values()}


def single(group: Group, tensors: Sequence[TensorInfo]) -> Structure:
    """A structure of one group that costs nothing."""
    return Structure({t.name: t for t in tensors}, {}, (group,), (), ())
