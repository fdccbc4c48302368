"""For all tests."""

from __future__ import annotations

import os
import signal

# Kernels run on CPU tensors. Triton reads this when it is imported, which torch may do in any test.
os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure() -> None:
    """Let children be interrupted: a shell's background jobs inherit an ignored SIGINT, and pass it on."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
