"""What can be pruned of a network, what cannot, why, and what to do about it, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from channelwise import cost
from channelwise.structure import Cause, Group, Reason, Structure, owner

ADVICE = {
    Cause.OUTPUT: "what the network returns keeps its size; cut a head off before tracing if you replace it.",
    Cause.UNUSED: "give example inputs that reach these layers, or delete them if nothing does.",
    Cause.EXCLUDED: "take them out of excludes.",
    Cause.SINGLE: "there are too few to remove any; if many outputs go together as one, code takes their numbers to be "
    "equal.",
    Cause.NO_RULE: "write the operation with others that are known, or report it.",
    Cause.RECURRENT: "layers like nn.LSTM keep their widths and those of what they read; a cell that you write with "
    "nn.Linear is pruned.",
    Cause.CODE: "let the code ask tensors for sizes (x.shape[1], chunk), or give the class that keeps the number a "
    "channelwise.fixer.",
    Cause.FIXED: "a constant in the code meets these channels; make it follow the tensor's size if it can.",
}
"""One line for every cause: what a user can do."""


@dataclass
class FrozenOutputs:
    """Output channels that must stay for one reason; ``layers``: how many in each layer."""

    reason: str
    cause: Cause
    layers: dict[str, int] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """How many channels, of all layers."""
        return sum(self.layers.values())


def frozen_outputs(structure: Structure) -> list[FrozenOutputs]:
    """By reason; last the channels that the network returns, as nothing can be done about them."""
    found: dict[str, FrozenOutputs] = {}
    for frozen in structure.frozen:
        reason = shown_reason(frozen.reasons)
        # No operation showed what the axes of an unused weight are.
        unused = reason.cause is Cause.UNUSED and frozen.axis == 0 and len(structure.tensors[frozen.tensor].shape) > 1
        if frozen.role != "output" and not unused:
            continue
        row = found.setdefault(str(reason), FrozenOutputs(str(reason), reason.cause))
        name = owner(frozen.tensor)
        row.layers[name] = row.layers.get(name, 0) + len(frozen.index)
    return sorted(found.values(), key=lambda row: row.cause is Cause.OUTPUT)


def shown_reason(reasons: tuple[Reason, ...]) -> Reason:
    """The reason to show of several: being an output says more than a constant that is met on the way there."""
    final = next((reason for reason in reasons if reason.cause is Cause.OUTPUT), None)
    return final or (reasons[0] if reasons else Reason("unknown", "", "no reason recorded"))


def group_layers(group: Group, role: str) -> list[str]:
    """The layers that produce ("output") or read ("input") a group's channels."""
    return list(dict.fromkeys(owner(slots.tensor) for slots in group.slots if slots.role == role))


def group_remarks(group: Group) -> list[str]:
    """What is special about a group."""
    remarks = []
    widest = max((s for s in group.slots if s.role == "output"), key=lambda s: s.index.shape[1], default=None)
    if widest is not None and widest.index.shape[1] > 1:
        remarks.append(f"each is {widest.index.shape[1]} outputs of {owner(widest.tensor)}")
    if group.parts is not None:
        remarks.append(f"{int(group.parts.max()) + 1} parts keep equally many")
    if group.least > 1:
        each = "" if group.parts is None else " of each part"
        remarks.append(f"{group.least}{each} must stay: {group.least_because}")
    if group.slim_only:
        remarks.append(f"slim only: {group.inexact_because}")
    return remarks


def inspection(structure: Structure) -> dict[str, Any]:
    """Everything that `graph_table` shows and more, as JSON: MACs of one sample, numbers of channels and parameters."""
    full = structure.full()
    rows = frozen_outputs(structure)
    outputs = (slots for group in structure.groups for slots in group.slots if slots.role == "output")
    prunable = sum(slots.index.size for slots in outputs)
    staying = sum(row.channels for row in rows)
    return {
        "macs": cost.macs(structure, full),
        "params": cost.params(structure, full),
        "prunable_outputs": prunable,
        "frozen_outputs": staying,
        "groups": [
            {
                "name": group.name,
                "channels": group.size,
                "produced_by": group_layers(group, "output"),
                "read_by": group_layers(group, "input"),
                "slim_only": group.slim_only,
                "remarks": group_remarks(group),
            }
            for group in structure.groups
        ],
        "frozen": [
            {
                "channels": row.channels,
                "layers": row.layers,
                "because": row.reason,
                "cause": row.cause.value,
                "what_to_do": ADVICE[row.cause],
            }
            for row in rows
        ],
        "notes": list(structure.notes),
    }
