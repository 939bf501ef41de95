"""A database that does not answer, while it restarts for example, is asked again for a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError

from channelwise.search.failures import STORAGE_ERRORS, first_line, root

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0


class Patient:
    """An Optuna storage in a database, all of whose methods are called again while the database does not answer.

    A call whose answer was lost may have been carried out. Reading and setting can be repeated; a trial that was made
    is found again, and one that has ended as it was told to is no error.

    ``back``: when it answered again last, by `time.monotonic`; 0 if it always has.
    """

    def __init__(self, storage: BaseStorage, where: str) -> None:
        self._storage, self._where = storage, where
        self._made: set[int] = set()
        self._waiting = False
        self.back = 0.0

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._storage, name)
        return partial(self.keep_asking, attribute) if callable(attribute) else attribute

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """As the storage's; no second trial if only the answer was lost."""
        make = partial(self._storage.create_new_trial, study_id, template_trial)

        def again() -> int:
            for trial in self._storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,)):
                alike = template_trial is not None and trial.user_attrs == template_trial.user_attrs
                if alike and trial._trial_id not in self._made:
                    return trial._trial_id
            return make()

        number = self.keep_asking(make, again=again)
        self._made.add(number)
        return int(number)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As the storage's; no error if only the answer was lost."""
        tell = partial(self._storage.set_trial_state_values, trial_id, state, values)

        def again() -> bool:
            try:
                return tell()
            except UpdateFinishedTrialError:
                trial = self._storage.get_trial(trial_id)
                if trial.state != state or (values is not None and list(values) != trial.values):
                    raise
                return True

        return bool(self.keep_asking(tell, again=again))

    def keep_asking(
        self, call: Callable[..., Any], *args: Any, again: Callable[[], Any] | None = None, **kw: Any
    ) -> Any:
        """What ``call`` returns; where the database does not answer, ``again`` or the same call for a minute.

        Raises:
            Exception: what the last call raised, when the minute is over or the database answers with an error.
        """
        call = partial(call, *args, **kw)
        give_up, pause = time.monotonic() + PATIENCE_SECONDS, FIRST_PAUSE
        while True:
            try:
                found = call()
                break
            except STORAGE_ERRORS as error:
                if not unreachable(error) or time.monotonic() + pause > give_up:
                    raise
                if not self._waiting:
                    self._waiting = True
                    log.warning(
                        "%s does not answer (%s); it is asked again for %.0f seconds.",
                        self._where, first_line(root(error)), PATIENCE_SECONDS,
                    )  # fmt: skip
            call = again or call
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        if self._waiting:
            self._waiting, self.back = False, time.monotonic()
            log.warning("%s answers again.", self._where)
        return found


def unreachable(error: BaseException | None) -> bool:
    """Whether a connection to a database could not be made or broke off."""
    while error is not None:
        # The last is what Optuna makes of the first where it goes on in the same session.
        if isinstance(error, (OperationalError, InterfaceError, PendingRollbackError)):
            return True
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        error = error.__cause__
    return False
