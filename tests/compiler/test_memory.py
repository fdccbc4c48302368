"""What a search holds of memory that it does not need."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from lepto.compiler.memory import peak_memory

PIECES = """
from pathlib import Path
from lepto.compiler.memory import give_back

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

pieces = [bytearray(2**16) for _ in range(3000)]
del pieces[:-1]  # the last lies behind them
before = held()
give_back()
print(before - held())
"""

KEPT = """
import os, lepto.compiler
print(os.environ["LRU_CACHE_CAPACITY"], os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"])
"""


def run(code: str, **environment: str) -> str:
    caches = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    rest = {name: value for name, value in os.environ.items() if name not in caches}
    return subprocess.check_output([sys.executable, "-c", code], env=rest | environment, text=True)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator keeps its memory otherwise")
def test_freed_pieces_are_given_back() -> None:
    assert int(run(PIECES)) > 100 * 2**20


def test_torch_keeps_less_of_each_shape_unless_told_otherwise() -> None:
    assert run(KEPT).split() == ["256", "256"]
    assert run(KEPT, LRU_CACHE_CAPACITY="7").split() == ["7", "256"]


def test_the_peak_is_in_bytes() -> None:
    assert 2**24 < peak_memory() < 2**40
