"""What ``lepto bench`` measures where asked to: instructions, and times on a GPU; added to each package's document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from rich.markup import escape

from lepto.benchmarks import gpu, scenarios
from lepto.benchmarks.comparison import bar
from lepto.benchmarks.instructions import PROCESSOR, RUNS, count_package
from lepto.benchmarks.workers import Feed, spread
from lepto.compiler.statistics import ratio_interval
from lepto.runtime.console import Output
from lepto.runtime.package import Package

if TYPE_CHECKING:
    from lepto.benchmarks.bench import How

GPU_RUNS: Final = 50


def counted(
    documents: Sequence[dict[str, Any]], packages: Sequence[Package], feeds: Sequence[Sequence[Feed]], output: Output
) -> None:
    """Count the instructions of an inference of each package, on the same inputs."""
    chosen = spread(feeds[0], RUNS)
    rows = []
    for one, package, own in zip(documents, packages, feeds, strict=True):
        with bar(output, f"instructions of {one['shown']}, under valgrind", 2) as progress:
            found = count_package(package, [own[i] for i in chosen], progress=progress)
        one["instructions"] = {**asdict(found), "processor": PROCESSOR}
        share = found.per_inference / documents[0]["instructions"]["per_inference"]
        rows.append([one["shown"], f"{found.per_inference:,.0f}", f"{share:.3f}"])
    columns = ["package", "instructions of an inference", f"times those of {documents[0]['shown']}"]
    output.table(f"counted by callgrind: {PROCESSOR}", columns, rows)


def on_gpu(
    documents: Sequence[dict[str, Any]],
    packages: Sequence[Package],
    feeds: Sequence[Sequence[Feed]],
    how: How,
    output: Output,
) -> dict[str, Any]:
    """Time each package on the GPU, side by side; returns what is stored of the GPU."""
    with bar(output, "measuring on the GPU", how.blocks) as progress:
        seconds, readings = gpu.measure(
            packages, feeds, blocks=how.blocks, runs=GPU_RUNS, seed=how.seed, graph=how.graph, progress=progress
        )
    rows = []
    for i, (one, own) in enumerate(zip(documents, seconds, strict=True)):
        ratio = ratio_interval(seconds[0], own) if i else None
        one["gpu"] = {**asdict(scenarios.Latency.of(own)), "speedup": None if ratio is None else asdict(ratio)}
        times = (f"{one['gpu'][key]:.4f}" for key in ("p50_ms", "p90_ms", "p99_ms"))
        faster = "1" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        rows.append([one["shown"], *times, faster])
    told = gpu.document(readings, how.graph)
    columns = ["package", "p50 ms", "p90 ms", "p99 ms", f"times as fast as {documents[0]['shown']} (95 %)"]
    output.table(f"{told['name']}, {told['timed_by']}", columns, rows)
    output.print(f"clocks {told['sm_mhz']} MHz, {told['temperature_c']} °C, driver {escape(told['driver'])}")
    for note in told["notes"]:
        output.print(f"[yellow]{escape(note)}[/]")
    return told
