"""MLPerf's scenarios, through MLCommons' own load generator.

================  ====================================================  ==========================================
scenario          load                                                  result
================  ====================================================  ==========================================
single-stream     one sample after the other                            90th percentile of the latency
multi-stream      8 samples at once, one query after the other          99th percentile of the latency
offline           all samples at once                                   samples a second
server            Poisson arrivals at a rate                            highest rate with the 99th percentile of the
                                                                        latency within a bound
================  ====================================================  ==========================================

Source: MLPerf Inference Rules, "Scenarios"; https://github.com/mlcommons/inference.
"""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lepto.benchmarks.targets import Target
from lepto.runtime.errors import LeptoError

SCENARIOS: Final = ("single-stream", "multi-stream", "offline", "server")
STREAMS: Final = 8
BATCH: Final = 32
# Queries by which early stopping can tell the percentile at 99 % confidence (MLPerf Inference Rules, appendix).
LEAST: Final = {"single-stream": 64, "multi-stream": 662, "offline": 1, "server": 662}
TRIALS: Final = 8
TOLD_S: Final = 0.2
Advance = Callable[[float], None]


@dataclass(frozen=True)
class Result:
    """What one scenario gave.

    Attributes:
        scenario: Which.
        metric: Name of MLPerf's metric.
        value: Its value: milliseconds, samples a second, or queries a second.
        valid: Whether the load generator calls the run valid.
        p50_ms: Median latency of a query.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        throughput: Samples a second.
        cpu_ms: CPU time of this process for each sample, milliseconds.
        queries: How many.
        log: The load generator's summary, key by key.
        trials: For the server scenario the rates tried, with the 99th percentile each gave.
    """

    scenario: str
    metric: str
    value: float
    valid: bool
    p50_ms: float
    p90_ms: float
    p99_ms: float
    throughput: float
    cpu_ms: float
    queries: int
    log: dict[str, str] = field(default_factory=dict)
    trials: tuple[tuple[float, float], ...] = ()


def run_scenario(
    target: Target,
    scenario: str,
    *,
    seconds: float = 10.0,
    bound_ms: float = 10.0,
    workers: int = 4,
    seed: int = 0,
    advance: Advance | None = None,
) -> Result:
    """Run one scenario.

    Args:
        target: What is asked.
        scenario: One of ``SCENARIOS``.
        seconds: How long, at least; for ``server`` each trial.
        bound_ms: For ``server``: what the 99th percentile must keep.
        workers: For ``server``: requests worked on at once.
        seed: Of the order of samples and of the arrivals.
        advance: Told the share that is done, in [0, 1].

    Raises:
        LeptoError: The load generator is not installed, the target stopped answering, or keeps no rate.
    """
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario must be one of {', '.join(SCENARIOS)}, got {scenario!r}")
    start = time.perf_counter()
    count = 0
    while count < 5 or time.perf_counter() - start < 0.3:
        target.run(count % target.count)
        count += 1
    latency_s = (time.perf_counter() - start) / count
    run = _Run(target, seconds, seed, workers)
    if scenario != "server":
        found = run.start(scenario, latency_s, advance=advance)
        return _result(scenario, found)
    return _highest_rate(run, latency_s, bound_ms, workers, advance)


def _highest_rate(run: _Run, latency_s: float, bound_ms: float, workers: int, advance: Advance | None) -> Result:
    """Halve the interval between a rate that is kept and one that is not, on a logarithmic scale."""
    low, high = 0.0, 1.2 * workers / latency_s
    best: tuple[float, _Found] | None = None
    trials: list[tuple[float, float]] = []
    # Below this the fewest queries that show a 99th percentile would take too long.
    floor = LEAST["server"] / max(3.0, 5 * run.seconds)
    for trial in range(TRIALS):
        rate = 0.5 / latency_s if not trial else (low * high) ** 0.5 if low else high / 4
        if rate < floor and trial:
            break
        found = run.start("server", latency_s, rate=rate, bound_ms=bound_ms)
        p99 = found.percentile("99.00")
        trials.append((round(rate, 2), round(p99, 4)))
        if p99 <= bound_ms:
            low, best = rate, (rate, found)
        else:
            high = rate
        if advance is not None:
            advance((trial + 1) / TRIALS)
        if low and high / low < 1.03:
            break
    if best is None:
        raise LeptoError(
            f"{run.target.name} keeps a 99th percentile of {bound_ms:g} ms at no rate: the lowest tried was "
            f"{min(rate for rate, _ in trials):.3g} queries a second; allow more with --bound-ms",
            exit_code=1,
        )
    from dataclasses import replace

    return replace(_result("server", best[1]), value=best[0], trials=tuple(trials))


@dataclass(frozen=True)
class _Found:
    log: dict[str, str]
    cpu_s: float
    wall_s: float
    samples: int

    def percentile(self, which: str) -> float:
        """Milliseconds; of queries, where a query has several samples."""
        for key in (f"{which} percentile latency (ns)", f"{which} percentile per-query latency (ns)"):
            if key in self.log:
                return self.number(key) / 1e6
        return float("nan")

    def number(self, key: str) -> float:
        try:
            return float(self.log[key])
        except (KeyError, ValueError):
            return float("nan")


def _result(scenario: str, found: _Found) -> Result:
    p50, p90, p99 = (found.percentile(which) for which in ("50.00", "90.00", "99.00"))
    offline = found.number("Samples per second")
    metric, value = {
        "single-stream": ("p90_ms", p90),
        "multi-stream": ("p99_ms", p99),
        "offline": ("samples_per_second", offline),
        "server": ("queries_per_second", found.number("Completed samples per second")),
    }[scenario]
    throughput = offline if scenario == "offline" else found.samples / found.wall_s
    cpu_ms = 1e3 * found.cpu_s / max(1, found.samples)
    valid = found.log.get("Result is") == "VALID"
    return Result(scenario, metric, value, valid, p50, p90, p99, throughput, cpu_ms, found.samples, found.log)


class _Run:
    def __init__(self, target: Target, seconds: float, seed: int, workers: int) -> None:
        try:
            import mlperf_loadgen  # type: ignore[import-untyped,unused-ignore]  # optional, untyped
        except ImportError as error:
            raise LeptoError(
                f"--scenario needs MLCommons' load generator, which cannot be used here ({error}): "
                "pip install 'lepto[bench]'"
            ) from error
        self.lg: Any = mlperf_loadgen
        self.target, self.seconds, self.seed, self.workers = target, seconds, seed, workers
        self.error: BaseException | None = None
        self.done = 0

    def start(
        self,
        scenario: str,
        latency_s: float,
        *,
        rate: float = 1.0,
        bound_ms: float = 0.0,
        advance: Advance | None = None,
    ) -> _Found:
        lg = self.lg
        settings = lg.TestSettings()
        kinds = lg.TestScenario
        settings.scenario = {
            "single-stream": kinds.SingleStream,
            "multi-stream": kinds.MultiStream,
            "offline": kinds.Offline,
            "server": kinds.Server,
        }[scenario]
        settings.mode = lg.TestMode.PerformanceOnly
        settings.min_duration_ms = int(1000 * self.seconds)
        settings.min_query_count = LEAST[scenario]
        settings.single_stream_expected_latency_ns = int(latency_s * 1e9)
        settings.multi_stream_expected_latency_ns = int(latency_s * STREAMS * 1e9)
        settings.multi_stream_samples_per_query = STREAMS
        settings.offline_expected_qps = 1.0 / latency_s
        settings.server_target_qps = rate
        settings.server_target_latency_ns = int(max(bound_ms, 1e-3) * 1e6)
        settings.server_target_latency_percentile = 0.99
        for name in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
            setattr(settings, name, self.seed + 1)
        self.error, self.done = None, 0
        work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threads = []
        if scenario == "server":
            threads = [threading.Thread(target=self._work, args=(work,), daemon=True) for _ in range(self.workers)]
            for thread in threads:
                thread.start()
        begin = told = time.perf_counter()
        # The load generator's own start and end are no part of what it measured.
        first = last = 0.0

        def issue(samples: Sequence[Any]) -> None:
            nonlocal told, first, last
            first = first or time.perf_counter()
            if scenario == "server":
                for sample in samples:
                    work.put((sample.id, sample.index))
                return
            self._answer(scenario, [(sample.id, sample.index) for sample in samples], advance)
            last = time.perf_counter()
            # Now and then only: to draw takes as long as a light model runs.
            if advance is not None and scenario != "offline" and last - told > TOLD_S:
                advance(min(1.0, (last - begin) / self.seconds))
                told = last

        cpu = time.process_time()
        try:
            log = self._test(settings, issue)
        finally:
            for _ in threads:
                work.put(None)
            for thread in threads:
                thread.join()
        if self.error is not None:
            if isinstance(self.error, LeptoError):
                raise self.error
            raise LeptoError(f"{self.target.name} answers an error: {self.error}") from self.error
        last = last or time.perf_counter()
        return _Found(log, time.process_time() - cpu, last - (first or begin), self.done)

    def _work(self, work: queue.SimpleQueue[Any]) -> None:
        while (item := work.get()) is not None:
            self._answer("server", [item], None)

    def _answer(self, scenario: str, items: list[tuple[int, int]], advance: Advance | None) -> None:
        size = {"single-stream": 1, "multi-stream": STREAMS, "offline": BATCH, "server": 1}[scenario]
        for start in range(0, len(items), size):
            part = items[start : start + size]
            if self.error is None:
                try:
                    if len(part) == 1:
                        self.target.run(part[0][1])
                    else:
                        self.target.run_many([place for _, place in part])
                except BaseException as error:  # it must not unwind through the load generator's C++
                    self.error = error
            elif scenario not in ("offline", "server"):
                time.sleep(0.02)  # let the rest of the run pass by
            self.done += len(part)
            self.lg.QuerySamplesComplete([self.lg.QuerySampleResponse(one, 0, 0) for one, _ in part])
            if advance is not None and scenario == "offline":
                advance(min(1.0, (start + size) / len(items)))

    def _test(self, settings: Any, issue: Callable[[Sequence[Any]], None]) -> dict[str, str]:
        lg = self.lg
        with tempfile.TemporaryDirectory(prefix="lepto-loadgen-") as folder:
            logs = lg.LogSettings()
            logs.log_output.outdir = folder
            logs.log_output.copy_summary_to_stdout = False
            logs.enable_trace = False
            sut = lg.ConstructSUT(issue, lambda: None)
            count = self.target.count
            library = lg.ConstructQSL(count, min(count, 1024), lambda _: None, lambda _: None)
            try:
                lg.StartTestWithLogSettings(sut, library, settings, logs)
            finally:
                lg.DestroyQSL(library)
                lg.DestroySUT(sut)
            return read_summary((Path(folder) / "mlperf_log_summary.txt").read_text(encoding="utf-8"))


def read_summary(text: str) -> dict[str, str]:
    """The lines ``key : value`` of the load generator's summary."""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
