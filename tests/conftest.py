"""For all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Let children be interrupted: a shell's background jobs inherit an ignored SIGINT, and pass it on."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
