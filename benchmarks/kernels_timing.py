"""How long a call takes on a GPU, what the GPU reaches, and how far a result is from float64."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from lepto.kernels.attention.reference import reference

Contender = Callable[[], torch.Tensor]
Check = Callable[[torch.Tensor], float]
_GRAPH_MS = 2.0  # of one graph: far more than what starts it, and short enough for hundreds of shapes


def graph_median_ms(run: Contender, *, calls: int | None = None, replays: int = 9) -> float:
    """Median milliseconds of one call, from replays of a CUDA graph of several: nobody waits for Python.

    Args:
        run: Allocates what it likes; waits for nothing.
        calls: In the graph; by default about 2 ms of them.
        replays: That are timed, by events.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch gives it no types
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
        if calls is None:
            calls = max(1, min(50, int(_GRAPH_MS / max(_elapsed_ms(run), 1e-3))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(calls):
                run()
        graph.replay()
        return statistics.median(_elapsed_ms(graph.replay) for _ in range(replays)) / calls


def _elapsed_ms(call: Callable[[], Any]) -> float:
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def measure(run: Contender, check: Check | None, *, graph: bool = True, calls: int | None = None) -> dict[str, Any]:
    """Median milliseconds and the largest error, or why it cannot run.

    Args:
        run: What is timed.
        check: The error of its result.
        graph: By replays of a CUDA graph; else by events, launches and all.
        calls: In the graph, see `graph_median_ms`.
    """
    from triton.testing import do_bench

    try:
        out = run()
        error = None if check is None else check(out)
        median = graph_median_ms(run, calls=calls) if graph else float(do_bench(run, return_mode="median"))
        return {"median_ms": median, "max_error": error}
    except Exception as error:  # each backend refuses in its own way
        return {"refused": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}


def peaks() -> dict[str, float]:
    """What this GPU reaches: TFLOP/s of a large float16 product, GB/s of a large copy (read and written)."""
    from triton.testing import do_bench

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
    product = float(do_bench(lambda: a @ b, return_mode="median"))
    source = torch.empty(1 << 28, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    # The driver's copy and a kernel's: whichever is faster.
    ways: list[Callable[[], Any]] = [lambda: target.copy_(source), lambda: torch.add(source, 1.0, out=target)]
    copy = min(float(do_bench(way, return_mode="median")) for way in ways)
    return {"tflops": 2 * 8192**3 / product / 1e9, "gb_per_s": 2 * 4 * source.numel() / copy / 1e6}


def largest_error(
    out: torch.Tensor, qkv: list[torch.Tensor], *, causal: bool, samples: int = 2, cache: dict[int, Any] | None = None
) -> float:
    """The largest distance to float64 in the first and the last heads of a padded batch; all heads would not fit.

    Args:
        out: ``[B, H, S, D]``.
        qkv: The inputs, as many heads each.
        causal: The mask.
        samples: Heads that are looked at.
        cache: What was computed for the same inputs.
    """
    heads = out.shape[0] * out.shape[1]
    worst = 0.0
    kept = {} if cache is None else cache
    for index in sorted({i * (heads - 1) // max(samples - 1, 1) for i in range(samples)}):
        b, h = divmod(index, out.shape[1])
        if index not in kept:
            one = [x[b : b + 1, h : h + 1] for x in qkv]
            window = (-1, 0 if causal else -1)
            kept[index], _ = reference(*one, scale=out.shape[3] ** -0.5, window=window, dtype=torch.float64)
        worst = max(worst, float((out[b, h].double() - kept[index][0, 0]).abs().max()))
    return worst
