"""Signs of life between processes that share a search: on whose candidates is nobody working any more?"""

from __future__ import annotations

import logging
import threading
import time

from channelwise.io.process import Process, this_process
from channelwise.search.failures import STORAGE_ERRORS
from channelwise.search.storage import Storage

log = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
SILENT_SECONDS = 60.0
"""A process that shows no sign of life for so long is taken for dead."""


class Signs:
    """Shows that this process lives, and watches the others. Clocks are not compared: a sign is a value that changes.

    Optuna's heartbeats do the same for the databases that it is told to make them in, and for its own loop; here any
    shared storage will do, also one that the user has made.
    """

    def __init__(self, storage: Storage, study: int) -> None:
        self._storage, self._study = storage, study
        self._seen: dict[str, tuple[object, float]] = {}
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def show(self) -> None:
        """Show signs of life until `end`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="channelwise-signs", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Show no more."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """See who has shown a sign since the last look."""
        with self._storage.errors():
            shown = self._storage.optuna.get_study_user_attrs(self._study)
        now = time.monotonic()
        for name, value in shown.items():
            if name.startswith("alive ") and self._seen.get(name, (None, now))[0] != value:
                self._seen[name] = value, now

    def silent(self, process: Process) -> bool:
        """Whether a process has shown no sign for SILENT_SECONDS of watching, in which the storage answered."""
        return time.monotonic() - max(self._last(process), self._storage.back) > SILENT_SECONDS

    def shown_since(self, process: Process, moment: float) -> bool:
        """Whether a process that was watched at a ``moment`` of `time.monotonic` has shown a sign after it."""
        return self._last(process) > moment

    def _last(self, process: Process) -> float:
        return self._seen.setdefault(_name(process), (None, time.monotonic()))[1]

    def _beat(self) -> None:
        name = _name(this_process())
        while True:
            try:
                self._storage.optuna.set_study_user_attr(self._study, name, time.time())
            except STORAGE_ERRORS as error:
                log.warning("No sign of life could be shown in %s: %s", self._storage.where, error)
            if self._ending.wait(BEAT_SECONDS):
                return


def _name(process: Process) -> str:
    return f"alive {process.host} {process.pid} {process.started}"
