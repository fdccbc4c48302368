"""Where the command ``lepto`` begins: Ctrl-C while it is still being imported ends it as at any other time."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Import the command line and run it."""
    try:
        from lepto.runtime.cli import main as lepto
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(128 + signal.SIGINT) from None
    lepto()
