"""Signals that ask a command to end: each unwinds the stack, so that every ``finally`` runs and nothing is left."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lepto.runtime.errors import is_full_disk

PATIENCE_S = 5.0
"""How long after a signal the next one is taken for impatience, and not for a wish to break off the cleaning up."""

_RETRY_S = 0.05


class Terminated(KeyboardInterrupt):
    """A signal asked the process to end; unwinds like Ctrl-C, so that everything is cleaned up.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 128 + number


@contextmanager
def unwinding() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP raise, and do not let a second one disturb what the first one set off.

    Python drops an exception that is raised within a finalizer or a weak reference's callback, and imports run for
    seconds here: a signal that was lost in this way is sent again. Signals that are ignored stay ignored (``nohup``).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    quiet_until = 0.0

    def unwind(number: int, frame: FrameType | None) -> None:
        nonlocal quiet_until
        now = time.monotonic()
        if now < quiet_until:
            return
        quiet_until = now + PATIENCE_S
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    def unraisable(lost: Any) -> None:
        nonlocal quiet_until
        if isinstance(lost.exc_value, KeyboardInterrupt):
            quiet_until = 0.0
            number = getattr(lost.exc_value, "number", signal.SIGINT)
            # Not at once: the exception would be raised, and lost, right here.
            again = threading.Timer(_RETRY_S, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
        elif not is_full_disk(lost.exc_value):  # a half-written zip file complains again when it is collected
            hook(lost)

    before: dict[int, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        handler = signal.getsignal(number)
        # Whoever embeds Lepto and handles Ctrl-C goes on doing so.
        if handler != signal.SIG_IGN and (number != signal.SIGINT or handler is signal.default_int_handler):
            before[number] = handler
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    for number in before:
        signal.signal(number, unwind)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
