"""Memory of this process: how much it has held at most, and giving back what was freed."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back() -> None:
    """Give memory that is free back to the system: glibc keeps what lies between blocks that are still in use.

    A student's batches have many lengths, and left 0.75 GB in such pieces. Elsewhere nothing is done.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


@contextlib.contextmanager
def set_aside() -> Iterator[None]:
    """Spare Python's collector what lives already: frameworks and the source are half a million objects to walk."""
    gc.collect()
    frozen = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen:  # else the caller had set objects aside, which cannot be told from ours
            gc.unfreeze()
