"""The searches that a storage holds, to be read without going on with them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from channelwise.errors import ResultsFileError
from channelwise.search.failures import UnusableFileError
from channelwise.search.records import read_header, read_trial
from channelwise.search.results import Key, SearchResults
from channelwise.search.storage import Storage, opened
from channelwise.select.budget import Words, kept_shares
from channelwise.structure import Structure, other_groups


def check_network(storage: Storage, key: Key, sizes: Mapping[str, int]) -> None:
    """Raise UnusableFileError if a file holds searches of another network, or of a newer version.

    ``sizes``: of what is searched in this network, by name.
    """
    with storage.errors():
        studies = storage.optuna.get_all_studies()
    for study in studies:
        header = read_header(study.study_name, study.user_attrs, storage.where)
        if header is not None and header.digest != key.digest:
            differs = other_groups(
                _sizes(storage, study.study_name), sizes, "it has other layers, or other numbers of channels to choose"
            )
            raise UnusableFileError(
                f"{storage.where} is the search of another network (of class {header.model} too): {differs}. "
                "Keep both by giving this runner another folder (folder='...') or the model's class another "
                "name, or replace the file with search(..., forced=True)."
            )


def _sizes(storage: Storage, study: str) -> dict[str, int | None]:
    """The names in the first candidate of a search, with what their kept shares say of their sizes."""
    with storage.errors():
        trials = storage.optuna.get_all_trials(storage.optuna.get_study_id_from_name(study), deepcopy=False)
    found = (read_trial(trial, None, storage.where) for trial in trials[:1])
    counts = {name: count for trial in found if trial is not None for name, count in trial.counts.items()}
    shares = {name: trials[0].params.get(name, 0.0) for name in counts}
    return {name: round(n / shares[name]) if 1e-6 < shares[name] <= 1 else None for name, n in counts.items()}


def read_searches(place: Any, structure: Structure) -> list[SearchResults]:
    """All searches of a network in a storage, the one that was worked on last at the end.

    Raises:
        ResultsFileError: no such file, damaged, of a newer version, out of reach, or of other networks only.
    """
    found: list[tuple[datetime.datetime, SearchResults]] = []
    foreign: set[str] = set()
    digest, sizes = structure.digest(), structure.full()
    with opened(place, lock=False) as storage:
        with storage.errors():
            studies = storage.optuna.get_all_studies()
        for study in studies:
            header = read_header(study.study_name, study.user_attrs, storage.where)
            if header is None:
                continue
            if header.digest != digest:
                foreign.add(header.model)
                continue
            with storage.errors():
                study_id = storage.optuna.get_study_id_from_name(study.study_name)
                stored = storage.optuna.get_all_trials(study_id, deepcopy=False)
            trials = [trial for t in stored if (trial := read_trial(t, sizes, storage.where)) is not None]
            times = [time for t in stored for time in (t.datetime_start, t.datetime_complete) if time is not None]
            results = SearchResults(header.key(), {trial.number: trial for trial in trials}, storage.where)
            found.append((max(times, default=datetime.datetime.min), results))
        if not found:
            raise ResultsFileError(
                f"{storage.where} holds no search of this network"
                + (f", only of another one (of class {', '.join(sorted(foreign))})" if foreign else "")
                + ". Call search() first."
            )
    return [results for _, results in sorted(found, key=lambda pair: pair[0])]


def latest(
    searches: list[SearchResults], targets: Mapping[str, float] | None = None, words: Words = kept_shares
) -> SearchResults:
    """The search that was worked on last; with ``targets`` (shares kept), among those for these targets.

    Arguments:
        words: what messages call targets.

    Raises:
        ResultsFileError: there is none; the message names the targets there are.
    """
    for results in reversed(searches):
        if targets is None or _same(results.key.targets, targets):
            return results
    there = sorted({words(results.key.targets) for results in searches})
    raise ResultsFileError(
        f"{searches[0].where if searches else 'The storage'} holds no search for {words(targets or {})}, only for "
        f"{'; '.join(there) or 'nothing'}. Call search() with this target first."
    )


def _same(one: Mapping[str, float], two: Mapping[str, float]) -> bool:
    return one.keys() == two.keys() and all(abs(one[name] - two[name]) < 1e-6 for name in one)
