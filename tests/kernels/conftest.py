"""Helpers of these tests are imported by name. On a GPU: ``TRITON_INTERPRET=0`` runs the same tests there."""

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

sys.path.insert(0, str(Path(__file__).parent))

ON_GPU = os.environ.get("TRITON_INTERPRET") == "0" and torch.cuda.is_available()


class OnGpu(TorchFunctionMode):
    """What a test makes lies on the GPU, with the numbers of the CPU's generators."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if function in _device_constructors() and (kwargs or {}).get("device") is None:
            return made.cuda()
        return made


@pytest.fixture(autouse=True)
def on_the_gpu_that_is_asked_for() -> Iterator[None]:
    with OnGpu() if ON_GPU else nullcontext():
        yield
