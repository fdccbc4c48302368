"""What candidates cost on this machine, in the form in which they will run: fused and int8, timed side by side.

Speed and size depend on a model's shape and not on what it has learned, so that candidates are timed before any is
taught.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lepto.compiler.context import Context, Feed, Left
from lepto.compiler.export.again import Exporter
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.fuse import Fuse
from lepto.compiler.passes.quantize_dynamic import QuantizeDynamic
from lepto.compiler.source import Source
from lepto.compiler.verify import pad, runner
from lepto.runtime.measure import interleave

BATCH = 32
"""Samples at once where throughput is measured, sorted by length."""

_BLOCKS, _PER_BLOCK = 12, 16

FORM = 3
"""Raised whenever the same candidate is fused to other nodes: what was measured before no longer holds."""


@dataclass(frozen=True)
class Cost:
    """One candidate's, in milliseconds for one sample, samples a second in batches of 32, and bytes of the file."""

    p50_ms: float
    p90_ms: float
    throughput: float
    bytes: int

    def beside(self, measured: Cost, known: Cost) -> Cost:
        """This cost as it would have been in another run, from something that was measured in both.

        Args:
            measured: Of the other thing, in this run.
            known: Of the other thing, in that run.
        """
        return Cost(
            self.p50_ms * known.p50_ms / measured.p50_ms,
            self.p90_ms * known.p90_ms / measured.p90_ms,
            self.throughput * known.throughput / measured.throughput,
            self.bytes,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def quick_int8(source: Source, *, export: Exporter, reduce_range: bool) -> OnnxModel:
    """A source as it will roughly run: exported, fused, int8 with ranges taken while running, where each applies."""
    context = Context(threads=export.threads, layers=source.layers, constant_inputs={"token_type_ids": 0})
    model = export(source).model
    for step in (Fuse(), QuantizeDynamic(reduce_range=reduce_range)):
        try:
            model = step(model, context)
        except Left:
            continue
    return model


def measure_costs(
    models: Mapping[str, OnnxModel], singles: Sequence[Feed], batches: Sequence[Feed], *, threads: int, seed: int
) -> dict[str, Cost]:
    """Time models side by side on the same inputs.

    Args:
        models: By name.
        singles: Single samples.
        batches: Batches of up to 32 samples.
        threads: Intra-op threads.
        seed: Of the order of runs.
    """
    runs = {name: runner(model, threads) for name, model in models.items()}
    one = interleave(runs, singles, blocks=_BLOCKS, per_block=_PER_BLOCK, warmup=3, seed=seed)
    many = interleave(runs, batches, blocks=4, per_block=len(batches), warmup=1, seed=seed)
    count = sum(len(next(iter(batch.values()))) for batch in batches)
    return {
        name: Cost(
            float(np.median(one[name])) * 1e3,
            float(np.quantile(one[name], 0.9)) * 1e3,
            # The median over blocks: one disturbed block does not count.
            count / float(np.median(many[name].sum(axis=1))),
            models[name].bytes,
        )
        for name in models
    }


def timing_feeds(
    feeds: Sequence[Feed], source: Source, *, singles: int = 64, batches: int = 4
) -> tuple[list[Feed], list[Feed]]:
    """Single samples, and batches of samples of like length, spread over all lengths."""
    sizes = [max(array.size for array in feed.values()) for feed in feeds]
    order = np.argsort(sizes, kind="stable").tolist()
    chosen = [feeds[order[i]] for i in np.linspace(0, len(feeds) - 1, min(singles, len(feeds))).astype(int)]
    starts = np.linspace(0, max(0, len(feeds) - BATCH), min(batches, max(1, len(feeds) // BATCH))).astype(int)
    return chosen, [together([feeds[i] for i in order[start : start + BATCH]], source) for start in starts]


def together(feeds: Sequence[Feed], source: Source) -> Feed:
    """Single samples as one batch; texts are padded to the longest."""
    if source.text is not None:
        return pad([feed["input_ids"][0].tolist() for feed in feeds], source.text)
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
