"""Without a GPU nothing is measured, and that is said."""

import subprocess
import sys

import pytest
import torch

from lepto.benchmarks.kernels import Shape


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_what_is_missing(tmp_path):
    output = tmp_path / "kernels.json"
    command = [sys.executable, "-m", "lepto.benchmarks.kernels", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "bench-kernels needs an NVIDIA GPU with compute capability 8.0 or later: none was found" in done.stderr
    assert "Traceback" not in done.stderr
    assert not output.exists()


def test_work_is_counted_as_the_papers_do():
    assert Shape("long", 2, 3, 10, 8).flop == 4 * 2 * 3 * 100 * 8
    assert Shape("long", 2, 3, 10, 8, causal=True).flop == 2 * 2 * 3 * 100 * 8
