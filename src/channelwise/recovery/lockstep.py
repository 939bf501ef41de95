"""Several forward passes that advance together: each pauses at the same layers until all have arrived."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch


class PausingPass:
    """One forward pass in a thread of its own. Only one of all passes runs at any time, the others wait.

    The function runs with the caller's autocast and device, without gradients; it calls ``pause(event)``. Threads,
    because torch keeps autocast, grad mode, modes and the current device by thread: what one pass has set where it
    pauses must not reach the others.
    """

    def __init__(self, function: Callable[[PausingPass], Any]) -> None:
        self.event: Any = None
        self._error: BaseException | None = None
        self._stopped = False
        self._go, self._arrived = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(function, _state_of_this_thread()), daemon=True)
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
        if self._stopped:
            raise _Stopped

    def stop(self) -> None:
        """End the pass where it is."""
        self._stopped = True
        self._go.release()
        self._thread.join()

    def _run(self, function: Callable[[PausingPass], Any], state: Callable[[], AbstractContextManager[Any]]) -> None:
        self._go.acquire()
        try:
            if not self._stopped:
                with state():
                    function(self)
        except _Stopped:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._arrived.release()


class _Stopped(BaseException):
    """Raised in a pass that is not to go on."""


def _state_of_this_thread() -> Callable[[], AbstractContextManager[Any]]:
    """Sets in another thread what torch keeps by thread, as it is in this one."""
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    autocast = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in kinds]
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    threads = torch.get_num_threads()

    def state() -> ExitStack:
        torch.set_num_threads(threads)
        if device is not None:
            torch.cuda.set_device(device)
        stack = ExitStack()
        stack.enter_context(torch.no_grad())
        for kind, dtype, enabled in autocast:
            stack.enter_context(torch.autocast(kind, dtype, enabled))
        return stack

    return state
