"""The .spec file: what a pruning removed, to be repeated."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from channelwise.errors import InvalidArgumentError, ResultsFileError
from channelwise.io.atomic import writing
from channelwise.io.reading import exists
from channelwise.io.record import Record, checksum, read_json, write_json
from channelwise.report import Summary
from channelwise.selection import Selection
from channelwise.structure import Structure, other_groups

log = logging.getLogger(__name__)

VERSION = 2


class GroupSpec(Record):
    """One group: the share of its channels that is removed, and which stay. Without ``kept`` they are chosen anew.

    ``check``: a checksum of both, which tells damage; specs written by hand and by version 1 have none.
    """

    sparsity: float
    kept: list[int] | None = None
    check: str | None = None


class Spec(Record, title="spec"):
    """A .spec file. ``removal_ratio`` is the fraction of MACs removed. Groups left out stay full."""

    format: Literal["channelwise-spec"] = "channelwise-spec"
    version: int = VERSION
    model: str
    digest: str
    removal_ratio: float
    macs_before: float
    macs_after: float
    params_before: int
    params_after: int
    groups: dict[str, GroupSpec]


class _Version(BaseModel):
    """Just the version: a newer format may have fields that this one does not know."""

    version: int = VERSION


def write_spec(path: Path, structure: Structure, selection: Selection, summary: Summary) -> None:
    """Write ``selection`` to ``path``; another network's spec of the same name is kept as .bak."""
    sizes = structure.full()
    spec = Spec(
        **summary.figures(),
        digest=structure.digest(),
        removal_ratio=summary.removal_ratio,
        groups={
            name: _group(name, 1 - len(kept) / sizes[name], kept.tolist()) for name, kept in selection.kept.items()
        },
    )
    _move_foreign(path, spec.digest)
    write_json(path, spec)


def _group(name: str, sparsity: float, kept: list[int]) -> GroupSpec:
    return GroupSpec(sparsity=sparsity, kept=kept, check=checksum([name, sparsity, kept]))


def read_spec(path: str | os.PathLike[str], structure: Structure) -> Spec:
    """The spec in ``path``, checked against the network.

    Raises:
        ResultsFileError: no such file, damaged, of another network, or a group is not what the network has.
    """
    version = _version(path)
    if version > VERSION:
        raise ResultsFileError(
            f"{path} has format version {version}, this version of channelwise reads {VERSION}. Update channelwise."
        )
    spec = read_json(path, Spec)
    if spec.digest != structure.digest():
        differs = other_groups(
            _sizes(spec), structure.full(), "layers have other shapes, or other channels go together"
        )
        raise ResultsFileError(
            f"{path} is of another network (of class {spec.model}): {differs}. Give a spec of "
            "this one; prune(removal_ratio=...) writes it."
        )
    sizes = structure.full()
    for name, group in spec.groups.items():
        if name not in sizes:
            raise ResultsFileError(f"{path}: the network has no group {name!r}.")
        if not 0 <= group.sparsity < 1:
            raise ResultsFileError(f"{path}: the sparsity {group.sparsity} of group {name!r} is not in [0, 1).")
        if group.check is not None and group.check != checksum([name, group.sparsity, group.kept]):
            raise ResultsFileError(
                f"{path}: group {name!r} was edited or damaged. Restore the file; if it was edited on purpose, remove "
                "the group's 'check'."
            )
        if group.kept is not None and abs(1 - len(group.kept) / sizes[name] - group.sparsity) > 1e-6:
            raise ResultsFileError(
                f"{path}: group {name!r} has the sparsity {group.sparsity} but keeps {len(group.kept)} of "
                f"{sizes[name]} channels. Remove its 'kept' to have channels chosen for that sparsity."
            )
    fixed = {name: group.kept for name, group in spec.groups.items() if group.kept is not None}
    try:
        everything = Selection.full(structure).to_json()["kept"]
        Selection.from_json({"kept": {**everything, **fixed}}, structure)
    except InvalidArgumentError as error:
        raise ResultsFileError(f"{path}: {error}") from error
    return spec


def _sizes(spec: Spec) -> dict[str, int | None]:
    """How many channels the groups of the spec's network have, where that can be told."""
    return {
        name: round(len(group.kept) / (1 - group.sparsity)) if group.kept is not None and group.sparsity < 1 else None
        for name, group in spec.groups.items()
    }


def _version(path: str | os.PathLike[str]) -> int:
    try:
        return read_json(path, _Version).version
    except ResultsFileError:
        return VERSION  # what is wrong is told when all of the file is read


def _move_foreign(path: Path, digest: str) -> None:
    """Set aside a file of another network that has the same name: two models may share a class name."""
    if not exists(path):
        return
    try:
        if read_json(path, Spec).digest == digest:
            return
    except ResultsFileError as error:
        log.debug("Replacing what is not a spec of this version: %s", error)
    aside = path.with_name(path.name + ".bak")
    with writing(aside):
        os.replace(path, aside)
    log.warning("%s was of another network or damaged; it is now %s.", path, aside.name)
