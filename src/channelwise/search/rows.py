"""Candidates written straight into the tables of Optuna, which reads them as its own.

Through its object mapper Optuna takes some thirty statements and 12 ms of the processor for a candidate, and its
parameters one after the other; these take 1.5 ms. Only for tables that are as they are known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import optuna
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, DateTime, column, table

SHARE = FloatDistribution(0.0, 1.0)
"""The range of all parameters."""
_KNOWN = "v3.2.0.a"
"""The version of the tables that Optuna 4 and 5 have."""
_UTC = int(optuna.__version__.split(".")[0]) >= 5
"""Whether times are written in UTC; before, they were local ones."""

_TRIALS = table(
    "trials", column("trial_id"), column("number"), column("study_id"), column("state"),
    column("datetime_start", DateTime), column("datetime_complete", DateTime),
)  # fmt: skip
_PARAMETERS = table("trial_params", *map(column, ("trial_id", "param_name", "param_value", "distribution_json")))
_ATTRIBUTES = table("trial_user_attributes", *map(column, ("trial_id", "key", "value_json")))
_VALUES = table("trial_values", *map(column, ("trial_id", "objective", "value", "value_type")))


def known(database: RDBStorage) -> bool:
    """Whether the tables of a database are those that are written here."""
    return database.get_current_version() == _KNOWN


def begin(database: RDBStorage, study: int, number: int, trial: FrozenTrial, shares: Mapping[str, float]) -> int:
    """Add a running trial of that number with parameters ``shares``; returns its id. Nobody else may add any."""
    row = {"study_id": study, "number": number, "state": trial.state.name, "datetime_start": _now()}
    with database.engine.begin() as connection:
        trial_id = int(connection.execute(_TRIALS.insert(), row).lastrowid)
        _add_attributes(connection, trial_id, trial.user_attrs)
        _add_parameters(connection, trial_id, shares)
    return trial_id


def end(
    database: RDBStorage, trial_id: int, state: TrialState, score: float | None, attributes: Mapping[str, Any]
) -> None:
    """Give a running trial its end. Raises UpdateFinishedTrialError if it has one."""
    running = (_TRIALS.c.trial_id == trial_id) & (_TRIALS.c.state == TrialState.RUNNING.name)
    with database.engine.begin() as connection:
        ended = {"state": state.name, "datetime_complete": _now()}
        if connection.execute(_TRIALS.update().where(running), ended).rowcount != 1:
            raise UpdateFinishedTrialError(f"Trial {trial_id} is not running.")
        if score is not None:
            value = {"trial_id": trial_id, "objective": 0, "value": score, "value_type": "FINITE"}
            connection.execute(_VALUES.insert(), value)
        _add_attributes(connection, trial_id, attributes)


def add_parameters(database: RDBStorage, trial_id: int, shares: Mapping[str, float], *, anew: bool = False) -> None:
    """Give a trial its parameters; ``anew``: they may be there already."""
    with database.engine.begin() as connection:
        if anew:
            connection.execute(_PARAMETERS.delete().where(_PARAMETERS.c.trial_id == trial_id))
        _add_parameters(connection, trial_id, shares)


def _add_parameters(connection: Connection, trial_id: int, shares: Mapping[str, float]) -> None:
    plain = distribution_to_json(SHARE)
    rows = [
        {"trial_id": trial_id, "param_name": name, "param_value": share, "distribution_json": plain}
        for name, share in shares.items()
    ]
    if rows:
        connection.execute(_PARAMETERS.insert(), rows)


def _add_attributes(connection: Connection, trial_id: int, attributes: Mapping[str, Any]) -> None:
    rows = [{"trial_id": trial_id, "key": name, "value_json": json.dumps(v)} for name, v in attributes.items()]
    connection.execute(_ATTRIBUTES.insert(), rows)


def _now() -> datetime:
    """The time as Optuna writes it."""
    now = datetime.now(timezone.utc) if _UTC else datetime.now()
    return now.replace(tzinfo=None)
