"""The .sens file: how the score reacts to pruning each group; one line per evaluation, so that a killed run goes on."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from channelwise.errors import ResultsFileError
from channelwise.io.atomic import writing
from channelwise.io.journal import NO_JOURNAL, Journal
from channelwise.io.reading import check_readable
from channelwise.io.record import Record, first_problem
from channelwise.select.budget import counts_for_sparsity
from channelwise.structure import Structure, other_groups

log = logging.getLogger(__name__)

VERSION = 1
SPARSITIES = tuple(round(0.1 * step, 1) for step in range(1, 10))


class SensitivityHeader(Record):
    """First line: which network the analysis is of."""

    format: Literal["channelwise-sensitivity"] = "channelwise-sensitivity"
    version: int = VERSION
    model: str
    digest: str


class Plan(Record):
    """Written when a run begins: the groups it leaves alone and the checksum of the weights it evaluates."""

    kind: Literal["plan"] = "plan"
    excluded: list[str]
    weights: str


class Measurement(Record):
    """One score. ``group`` None is the baseline; else that group keeps ``kept`` channels and all others are full."""

    kind: Literal["evaluation"] = "evaluation"
    group: str | None = None
    kept: int | None = None
    sparsity: float = 0.0
    score: float
    seconds: float


@dataclass
class Sensitivity:
    """What has been measured: the score of the full model, and scores by group and kept count."""

    baseline: float | None = None
    scores: dict[str, dict[int, float]] = field(default_factory=dict)
    plan: Plan | None = None

    def add(self, measured: Measurement) -> None:
        if measured.group is None or measured.kept is None:
            self.baseline = measured.score
        else:
            self.scores.setdefault(measured.group, {})[measured.kept] = measured.score

    def missing(self, structure: Structure, excluded: Iterable[str]) -> dict[str, dict[int, float]]:
        """Kept counts still to be evaluated, with their nominal sparsities, of the groups that are not excluded."""
        left_alone = set(excluded)
        missing = {
            group: {kept: s for kept, s in counts.items() if kept not in self.scores.get(group, {})}
            for group, counts in kept_counts(structure).items()
            if group not in left_alone
        }
        return {group: counts for group, counts in missing.items() if counts}


def kept_counts(structure: Structure) -> dict[str, dict[int, float]]:
    """By group: the counts to evaluate and the sparsity each stands for. Small groups have fewer than nine."""
    sizes = structure.full()
    counts: dict[str, dict[int, float]] = {name: {} for name in sizes}
    for sparsity in SPARSITIES:
        for name, kept in counts_for_sparsity(structure, sparsity).items():
            if kept < sizes[name]:
                counts[name].setdefault(kept, sparsity)
    return counts


class SensitivityFile:
    """Reads and extends the .sens file of one network.

    Nothing is written before the first result, and what was there before is kept as .bak until a forced analysis has
    been finished.
    """

    def __init__(self, path: str | os.PathLike[str], model: str, structure: Structure) -> None:
        self.path = Path(path)
        self._journal = Journal(path)
        self._header = SensitivityHeader(model=model, digest=structure.digest())
        self._structure = structure
        self._pending: list[Record] = []

    @property
    def backup(self) -> Path:
        return self.path.with_name(self.path.name + ".bak")

    def load(self) -> Sensitivity | None:
        """What the file holds; None if there is none.

        Raises:
            ResultsFileError: the file is of another network or a newer version, or a line was edited or damaged.
        """
        if not self._journal.exists():
            return None
        lines = self._journal.read()
        if not lines:
            raise self._journal.damaged(1, NO_JOURNAL)
        self._check_header(*lines[0], measured=[line.get("group") for _, line in lines[1:]])
        sensitivity = Sensitivity()
        sizes = self._structure.full()
        for number, line in lines[1:]:
            kind: type[Plan] | type[Measurement] = Plan if line.get("kind") == "plan" else Measurement
            try:
                record = kind.model_validate(line)
            except ValidationError as error:
                raise self._journal.damaged(number, first_problem(error)) from error
            if isinstance(record, Plan):
                sensitivity.plan = record
                continue
            if record.group is not None and not 0 < (record.kept or 0) <= sizes.get(record.group, 0):
                raise self._journal.damaged(number, f"there is no group {record.group!r} that can keep {record.kept}")
            sensitivity.add(record)
        return sensitivity

    def begin(self, plan: Plan, *, anew: bool) -> None:
        """Record the plan together with the next result; ``anew`` replaces the file at that moment."""
        if self._journal.exists():
            check_readable(self.path)  # a folder cannot be replaced
        self._pending = [self._header, plan] if anew else [plan]

    def append(self, measured: Measurement) -> None:
        """Put one result on the disk."""
        if self._pending and isinstance(self._pending[0], SensitivityHeader):
            self._back_up()
            self._journal.create(*map(_plain, [*self._pending, measured]))
        else:
            for record in [*self._pending, measured]:
                self._journal.append(_plain(record))
        self._pending = []

    def finish(self) -> None:
        """Record a plan that needed no evaluation, and drop the copy of an older analysis of this network."""
        for record in self._pending:
            self._journal.append(_plain(record))
        self._pending = []
        if self.backup.exists() and self._of_this_network(self.backup):
            with writing(self.backup):
                self.backup.unlink()

    def _back_up(self) -> None:
        if self.path.exists() and not self.backup.exists():
            with writing(self.backup):
                shutil.copy2(self.path, self.backup)

    def _of_this_network(self, path: Path) -> bool:
        try:
            lines = Journal(path).read()
        except ResultsFileError:
            return False
        return bool(lines) and lines[0][1].get("digest") == self._header.digest

    def _check_header(self, number: int, line: Mapping[str, Any], measured: Iterable[Any]) -> None:
        version = line.get("version")
        if isinstance(version, int) and version > VERSION:
            raise ResultsFileError(
                f"{self.path} has format version {version}, this version of channelwise reads {VERSION}. Update "
                "channelwise, or use another folder."
            )
        try:
            header = SensitivityHeader.model_validate(line)
        except ValidationError as error:
            raise self._journal.damaged(number, first_problem(error)) from error
        if header.digest != self._header.digest:
            sizes = self._structure.full()
            unknown = {name: None for name in measured if isinstance(name, str) and name not in sizes}
            differs = other_groups(unknown, sizes, "it has other layers or sizes")
            raise ResultsFileError(
                f"{self.path} is the analysis of another network (of class {header.model} too): {differs}. "
                "Keep both by giving this runner another folder (folder='...') or the model's class another "
                "name, or replace the file with ana(..., forced=True)."
            )


def _plain(record: Record) -> dict[str, Any]:
    return record.model_dump(exclude_none=True)
