"""``make bench-kernels``: attention on a GPU against PyTorch's own, in one run.

Times are medians of CUDA-graph replays, as small shapes are bound by launches; whole encoders, which wait for the GPU
to learn the lengths, are timed by events and launches are in their time. Errors are against float64 on the same inputs.
What cannot run a shape is written down with the reason, not left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from lepto.benchmarks.kernels_cases import Unit, case_of, units
from lepto.benchmarks.kernels_shapes import judge, table
from lepto.benchmarks.kernels_timing import peaks

VERSIONS = ("torch", "triton", "transformers", "flash-attn", "flash-attn-4", "lepto")


def require_gpu() -> None:
    """Say what is missing.

    Raises:
        SystemExit: There is no GPU that the kernels run on.
    """
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else f" and torch {torch.__version__} is built without CUDA"
        raise SystemExit(
            f"error: bench-kernels needs an NVIDIA GPU with compute capability 8.0 or later: none was found{built}; "
            "nothing was measured"
        )
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        raise SystemExit(f"error: bench-kernels needs compute capability 8.0 or later, this GPU has {capability}")


def compile_beforehand(every: Sequence[Unit], processes: int) -> None:
    """Run each contender once in other processes, for the caches of Triton and Inductor."""
    context = get_context("spawn")
    started = [context.Process(target=_run_once, args=(every[i::processes],), daemon=True) for i in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()


def _run_once(every: Sequence[Unit]) -> None:
    for unit in every:
        try:
            case = case_of(unit)
        except torch.OutOfMemoryError:
            continue
        for name, run in case.contenders.items():
            case.before(name)
            try:
                with torch.inference_mode():
                    run()
            except Exception as error:  # whoever measures it writes the reason down
                print(f"{case.header['shape']}, {name}: {type(error).__name__}", file=sys.stderr)
        del case
        torch.cuda.empty_cache()


def measure_unit(unit: Unit, peak: dict[str, float]) -> dict[str, Any]:
    """All contenders on one shape."""
    with torch.inference_mode():
        case = case_of(unit)
        return {**case.header, "rows": [case.row(name, peak) for name in case.contenders]}


def document(results: Sequence[dict[str, Any]], peak: dict[str, float]) -> dict[str, Any]:
    """What is stored."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "peak": peak,
        "versions": {name: _version(name) for name in VERSIONS},
        "python": platform.python_version(),
        "results": list(results),
        "bars": judge(results),
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/baselines/kernels.json"))
    parser.add_argument(
        "--processes", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="that compile beforehand; 0: none do"
    )
    kinds = list(dict.fromkeys(unit.kind for unit in units()))
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="of shapes, in the order to measure")
    options = parser.parse_args()
    require_gpu()
    torch.manual_seed(0)
    every = sorted((unit for unit in units() if unit.kind in options.kinds), key=lambda u: options.kinds.index(u.kind))
    if options.processes:
        print(f"{len(every)} shapes are compiled in {options.processes} processes", file=sys.stderr)
        compile_beforehand(every, options.processes)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    peak = peaks()
    results: list[dict[str, Any]] = []
    for number, unit in enumerate(every, 1):
        results.append(measure_unit(unit, peak))
        print(table(results[-1:]), flush=True)
        print(f"{number} of {len(every)} shapes", file=sys.stderr)
        made = document(results, peak)
        options.output.write_text(json.dumps(made, indent=2) + "\n")  # what is cut off keeps what it has
    for verdict in made["bars"]:
        print(f"{'kept  ' if verdict['kept'] else 'MISSED'} {verdict['what']}: {verdict['ratio']} of {verdict['bar']}")
    print(f"written to {options.output}", file=sys.stderr)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
