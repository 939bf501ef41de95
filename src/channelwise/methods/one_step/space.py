"""The space that a search moves in: the counts that meet its target, with some groups excluded."""

from __future__ import annotations

from collections.abc import Collection

from channelwise.errors import SAYS_WHY, NothingToPruneError
from channelwise.evaluate.candidate import Chooser
from channelwise.methods.options import Target
from channelwise.search import TargetSpace
from channelwise.select.widths import allowed_widths


def candidate_space(chooser: Chooser, excluded: Collection[str], channel_divisible: int, target: Target) -> TargetSpace:
    """The counts that meet ``target`` and are multiples of ``channel_divisible`` outside of ``excluded`` groups.

    Raises:
        NothingToPruneError: no group has a choice.
        UnreachableTargetError: with the reachable range.
    """
    structure = chooser.structure
    if not structure.groups:
        raise NothingToPruneError(f"No channel group is left to prune: all channels are frozen, {SAYS_WHY}.")
    widths = allowed_widths(structure, channel_divisible=channel_divisible, full=excluded, dead=chooser.dead)
    return TargetSpace(structure, widths, target.shares, words=target.words)
