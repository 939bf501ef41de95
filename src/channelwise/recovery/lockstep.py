"""Several forward passes that advance together: each pauses at the same layers until all have arrived."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopped(BaseException):
    """Raised in a pass that is not to go on."""


class Pass:
    """One forward pass in a thread of its own. Only one of all passes runs at any time, the others wait.

    The function runs with the caller's autocast, grad mode and current device; it calls ``pause(event)``.
    """

    def __init__(self, function: Callable[[Pass], Any]) -> None:
        self.event: Any = None
        self.done = False
        self._error: BaseException | None = None
        self._stop = False
        self._go, self._arrived = threading.Semaphore(0), threading.Semaphore(0)
        self._context = _thread_state()
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def advance(self) -> None:
        """Let the pass run to its next pause, whose event is then in ``event``, or to its end."""
        self.event = None
        self._go.release()
        self._arrived.acquire()
        if self._error is not None:
            raise self._error

    def pause(self, event: Any) -> None:
        """Called within the pass: wait until `advance` is called again."""
        self.event = event
        self._arrived.release()
        self._go.acquire()
        if self._stop:
            raise Stopped

    def stop(self) -> None:
        """End the pass where it is."""
        if not self.done:
            self._stop = True
            self._go.release()
        self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._stop:
                with self._context():
                    self._function(self)
        except Stopped:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.done = True
            self._arrived.release()


def _thread_state() -> Callable[[], Any]:
    """What torch keeps by thread, of this thread."""
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    autocast = {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds}
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    threads = torch.get_num_threads()

    @contextmanager
    def state() -> Iterator[None]:
        torch.set_num_threads(threads)
        if device is not None:
            torch.cuda.set_device(device)
        with torch.no_grad():
            contexts = [torch.autocast(kind, dtype=dtype, enabled=on) for kind, (on, dtype) in autocast.items()]
            for context in contexts:
                context.__enter__()
            try:
                yield
            finally:
                for context in reversed(contexts):
                    context.__exit__(None, None, None)

    return state
