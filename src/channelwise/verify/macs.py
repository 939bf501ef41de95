"""Are the MACs of a selection, which are arithmetic, those that ran in a slim model?"""

from __future__ import annotations

from collections.abc import Sequence

from channelwise import cost
from channelwise.structure import Structure
from channelwise.verify.selections import Kept


def slim_macs_differ(structure: Structure, counted: Sequence[tuple[Kept, float]], batch: int) -> list[str]:
    """A note for every slim model of which other MACs ran (``counted``, of all samples) than ``structure`` says."""
    notes = []
    for kept, ran in counted:
        said = cost.macs(structure, {name: len(channels) for name, channels in kept.items()})
        if abs(said - ran / batch) > 1e-9 * ran:
            notes.append(
                f"MACs of a slim model: {ran / batch:,.0f} ran for one sample where {said:,.0f} are expected, so that "
                "MACs of selections are not to be relied on"
            )
    return notes
