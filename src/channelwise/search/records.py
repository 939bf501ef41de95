"""How searches are written in Optuna's words: attributes of studies and trials, and reading them back with checks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, ValidationError

from channelwise.io.process import Process
from channelwise.io.record import Record, checksum, first_problem
from channelwise.search.failures import UnusableFileError
from channelwise.search.results import Direction, Key, State, Trial
from channelwise.select.widths import is_number

VERSION = 1
ATTRIBUTE = "channelwise"

_STATES: dict[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
}


class Header(Record):
    """The attribute of a study: which search it is. ``strategy`` and ``seed`` are those it was begun with."""

    format: Literal["channelwise-search"] = "channelwise-search"
    version: int = VERSION
    model: str
    digest: str
    targets: dict[str, float]
    direction: Direction
    options: dict[str, Any]
    strategy: str
    seed: int

    def key(self) -> Key:
        return Key(self.model, self.digest, self.targets, self.direction, self.options)


class _Candidate(Record):
    """What is known of a trial from its beginning. ``shares``: of the targeted costs, kept."""

    counts: dict[str, int]
    shares: dict[str, float] = Field(default_factory=dict)
    notes: dict[str, Any] = Field(default_factory=dict)


class _Told(Record):
    """What is added when a trial has ended. ``check``: of all that is stored of it, as SQLite checks no values."""

    seconds: float | None = None
    check: str


class _Attributes(Record):
    """The attributes of a trial. What belongs together is one attribute: writing one takes a millisecond or two.

    ``seconds`` is where earlier versions had it.
    """

    candidate: _Candidate
    owner: Process | None = None
    told: _Told | None = None
    seconds: float | None = None
    error: str | None = None


def study_name(key: Key) -> str:
    """The name of the study of a search: readable, and different for different searches."""
    plain = [key.model, key.digest, sorted(key.targets.items()), key.direction, key.options]
    targets = " ".join(f"{name}={share:g}" for name, share in key.targets.items())
    return f"{key.model} {targets} {hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:10]}"


def read_header(study: str, attributes: Mapping[str, Any], where: str) -> Header | None:
    """The header of the study of that name; None if it is no search of this library.

    Raises:
        ResultsFileError: of a newer format version, or not readable.
    """
    plain = attributes.get(ATTRIBUTE)
    if plain is None:
        return None
    version = plain.get("version") if isinstance(plain, Mapping) else None
    if isinstance(version, int) and version > VERSION:
        raise UnusableFileError(
            f"{where} has format version {version}, this version of channelwise reads {VERSION}. Update channelwise, "
            "or use another folder."
        )
    try:
        header = Header.model_validate(plain)
    except ValidationError as error:
        raise _damaged(where, f"study {study!r}: {first_problem(error)}") from error
    if study != study_name(header.key()):
        raise _damaged(where, f"study {study!r} is not the one that it says it is")
    return header


def new_trial(trial: Trial, owner: Process | None) -> FrozenTrial:
    """A running trial."""
    candidate = _Candidate(counts=dict(trial.counts), shares=dict(trial.shares), notes=dict(trial.notes))
    attributes = _Attributes(candidate=candidate, owner=owner)
    return optuna.trial.create_trial(
        state=TrialState.RUNNING,
        user_attrs=attributes.model_dump(mode="json", exclude_none=True),
    )


def told(trial: Trial) -> dict[str, dict[str, Any] | str]:
    """The attributes to add to a trial that has ended, by name."""
    added: dict[str, dict[str, Any] | str] = {"told": _Told(seconds=trial.seconds, check=_check(trial)).model_dump()}
    return added if trial.error is None else {**added, "error": trial.error}


def _check(trial: Trial) -> str:
    plain = [
        trial.number, trial.state, dict(trial.counts), trial.score, dict(trial.shares), dict(trial.notes),
        trial.seconds, trial.error,
    ]  # fmt: skip
    return checksum(plain)


def read_trial(trial: FrozenTrial, sizes: Mapping[str, int] | None, where: str) -> Trial | None:
    """A trial as plain data; None for one that stands for nothing (a duplicate, or taken over by another).

    Raises:
        ResultsFileError: its attributes are not those of a candidate of a network with groups of ``sizes``.
    """
    state = _STATES.get(trial.state)
    if state is None:
        return None
    try:
        known = {name: trial.user_attrs[name] for name in _Attributes.model_fields if name in trial.user_attrs}
        attributes = _Attributes.model_validate(known)
    except ValidationError as error:
        raise _damaged(where, f"candidate {trial.number}: {first_problem(error)}") from error
    counts = attributes.candidate.counts
    if sizes is not None and (
        counts.keys() != sizes.keys() or any(not 1 <= n <= sizes[name] for name, n in counts.items())
    ):
        raise _damaged(where, f"candidate {trial.number} does not fit the groups of the network")
    value = trial.value
    if state == "complete" and (value is None or not is_number(value) or not np.isfinite(value)):
        raise _damaged(where, f"candidate {trial.number} has no finite score")
    found = Trial(
        number=trial.number,
        state=state,
        counts=counts,
        score=trial.value if state == "complete" else None,
        seconds=attributes.seconds if attributes.told is None else attributes.told.seconds,
        error=attributes.error,
        shares=attributes.candidate.shares,
        notes=attributes.candidate.notes,
        owner=attributes.owner,
    )
    if state != "running" and attributes.told is not None and attributes.told.check != _check(found):
        raise _damaged(where, f"what is stored of candidate {trial.number} is not what was written")
    return found


def _damaged(where: str, why: str) -> UnusableFileError:
    return UnusableFileError(f"{where} is damaged: {why}. Restore it, or begin anew with forced=True.")
