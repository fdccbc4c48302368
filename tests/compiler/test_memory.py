"""What a search holds of memory that it does not need."""

from __future__ import annotations

import gc
import os
import pickle
import platform
import subprocess
import sys
import weakref
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch

from lepto.compiler.derived import copy_module, derive, held, load, made_anew, save
from lepto.compiler.memory import peak_memory
from lepto.compiler.source import Source, open_source

from .conftest import Toy

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


def taught(source: Source) -> Source:
    """A student that is one off the source in every weight."""
    module = copy_module(source)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    return derive(source, module)


def weights(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("how", ["stored", "cut again"])
def test_a_student_holds_its_module_only_while_it_is_used(toy: Toy, tmp_path: Path, how: str) -> None:
    root = open_source(str(toy.model))
    student = taught(root)
    save(student, tmp_path)
    again = load(root, tmp_path) if how == "stored" else made_anew(lambda: taught(root))
    for name in ("digest", "parameters", "bytes", "layers", "kept_tokens", "besides", "text"):
        assert getattr(again, name) == getattr(student, name)
    module = again.module()
    assert again.module() is module
    before, reference = weights(module), weakref.ref(module)
    del module
    gc.collect()
    assert reference() is None
    for name, array in weights(again.module()).items():
        np.testing.assert_array_equal(array, before[name])
        np.testing.assert_array_equal(array, student.module().state_dict()[name].numpy())
    assert root.module() is root.module()  # the source itself is asked all the time


def test_a_student_that_is_sent_away_needs_no_file(toy: Toy, tmp_path: Path) -> None:
    root = open_source(str(toy.model))
    save(taught(root), tmp_path)
    stored = load(root, tmp_path)
    sent = cloudpickle.dumps(held(stored))
    for file in tmp_path.iterdir():
        file.unlink()
    there = pickle.loads(sent)
    assert there.digest == stored.digest
    table = next(iter(weights(root.module()).values()))
    np.testing.assert_array_equal(next(iter(weights(there.module()).values())), table + 1)
