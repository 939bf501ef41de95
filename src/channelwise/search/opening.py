"""Begins a search or goes on with one: finds its study in the storage, or makes it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from channelwise.errors import InvalidArgumentError
from channelwise.search import strategies
from channelwise.search.records import ATTRIBUTE, Header, read_header, study_name
from channelwise.search.results import Direction, Key
from channelwise.search.sampler import quiet_optuna
from channelwise.search.space import Space
from channelwise.search.sqlite import back_up
from channelwise.search.storage import Storage, opened
from channelwise.search.stored import check_network
from channelwise.search.study import Describe, Prior, SearchStudy
from channelwise.select.widths import check_count

log = logging.getLogger(__name__)

Place = str | os.PathLike[str] | BaseStorage | None


@contextmanager
def open_study(
    space: Space,
    model: str,
    *,
    storage: Place = None,
    strategy: Any = "evolution",
    seed: int = 0,
    priors: Sequence[Prior] = (),
    budget: int = 200,
    direction: Direction = "maximize",
    options: Mapping[str, Any] | None = None,
    describe: Describe | None = None,
    forced: bool = False,
) -> Iterator[SearchStudy]:
    """Begin a search, or go on with it if the storage has it.

    Arguments:
        model: the name of the model's class.
        storage: None (memory), the path of a file of this network's searches, a database URL that several machines may
            share, or an Optuna storage.
        strategy: the name of a strategy, an object that is one, or an Optuna sampler.
        priors: candidates that guided strategies evaluate first; see `Space.candidate`.
        budget: how many candidates the search will have, those of earlier runs and failed ones included.
        options: plain JSON that scores depend on. A search with other options is another one.
        describe: called with the counts of a new candidate; what it returns (plain JSON) is stored with it.
        forced: begin this search anew. A file keeps the old one as .bak, a database does not.

    Raises:
        ResultsFileError: the file is of another network, of a newer version, damaged or held by another process, or the
            database cannot be reached.
        InvalidArgumentError: an argument is none of the above.
    """
    check_count("budget", budget)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InvalidArgumentError(f"seed must be an integer of at least 0, not {seed!r}.")
    if direction not in ("maximize", "minimize"):
        raise InvalidArgumentError(f"direction must be 'maximize' or 'minimize', not {direction!r}.")
    chosen = strategies.get(strategy)
    key = Key(model, space.digest(), space.targets, direction, _plain(options or {}))
    header = Header(
        model=model, digest=key.digest, targets=dict(space.targets), direction=direction, options=dict(key.options),
        strategy=chosen.name, seed=int(seed),
    )  # fmt: skip
    own_file = isinstance(storage, os.PathLike) or (isinstance(storage, str) and "://" not in storage)
    check = (lambda opened_storage: check_network(opened_storage, key, space.sizes)) if own_file else None
    with quiet_optuna(), opened(storage, lock=True, forced=forced, check=check) as place:
        study_id = _study(place, key, header, forced)
        study = SearchStudy(
            place, study_id, key, space, chosen, seed=int(seed), priors=priors, budget=budget, describe=describe
        )
        try:
            yield study
        finally:
            study.release()


def _study(place: Storage, key: Key, header: Header, forced: bool) -> int:
    """The id of the study in the storage, made if it is not there."""
    name = study_name(key)
    with place.errors():
        found = {study.study_name: study for study in place.optuna.get_all_studies()}
        if name in found and forced:
            if place.path is not None and place.optuna.get_n_trials(place.optuna.get_study_id_from_name(name)):
                back_up(place.path)
            place.optuna.delete_study(place.optuna.get_study_id_from_name(name))
            del found[name]
        if name in found:
            study_id = place.optuna.get_study_id_from_name(name)
            if read_header(name, found[name].user_attrs, place.where) is not None:
                return study_id
        else:
            _tell_of_others({name: study.user_attrs for name, study in found.items()}, header, place)
            study_id = _created(place, name, key)
        place.optuna.set_study_user_attr(study_id, ATTRIBUTE, header.model_dump(mode="json"))
    return study_id


def _tell_of_others(studies: Mapping[str, Mapping[str, Any]], header: Header, place: Storage) -> None:
    """Say why an earlier search for the same target is not continued; ``studies``: their attributes by name."""
    for study, plain in studies.items():
        other = read_header(study, plain, place.where)
        if other is None or (other.digest, other.targets) != (header.digest, header.targets):
            continue
        names = sorted(other.options.keys() | header.options.keys())
        differ = [name for name in names if other.options.get(name) != header.options.get(name)]
        differ += ["direction"] if other.direction != header.direction else []
        log.info(
            "%s has an earlier search for the same target with other %s. It is kept; this one begins anew.",
            place.where,
            ", ".join(differ),
        )


def _created(place: Storage, name: str, key: Key) -> int:
    direction = StudyDirection.MAXIMIZE if key.direction == "maximize" else StudyDirection.MINIMIZE
    try:
        return place.optuna.create_new_study([direction], name)
    except DuplicatedStudyError:
        # Another process has just made it.
        return place.optuna.get_study_id_from_name(name)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(json.loads(json.dumps(dict(options), sort_keys=True, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"The options of a search must be plain JSON: {error}.") from error
