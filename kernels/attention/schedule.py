"""Which launch of the warp-specialized kernel, and in what order its tiles go: by what the busiest processor gets.

A grid as large as the GPU takes tiles in rounds. Under a causal mask they differ in work, and a processor that gets the
long ones of each round is what all wait for; keys and values that do not stay in the L2 cache are waited for as well.
Both were fitted to an H200 (``tried`` in benchmarks/baselines/kernels.json).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from lepto.kernels.attention.tables import Specialized

L2_BYTES = 32 << 20
"""Of keys and values, that stay in the cache (50 MB on an H100, 60 MB on an H200, in two halves)."""
OVER_L2 = 0.055
"""What the first doubling beyond them costs at 1,024 keys of head_dim 64."""
FEWEST = 4
"""Heads at a time, where there are as many; fewer were not timed."""
SURE = 1.03
"""Estimates nearer to each other than this tell nothing."""
MOST_TILES = 8192
"""Of a longer order so many at its start stand for all."""


@lru_cache(maxsize=4096)
def schedule(
    launches: Sequence[Specialized], rows: int, keys: int, heads: int, head_dim: int, processors: int, *, causal: bool
) -> tuple[Specialized, int]:
    """The launch, and the heads whose tiles stand together in the order.

    Args:
        launches: To take one of.
        rows: Query rows of a head.
        keys: Of a head.
        heads: Of the whole batch.
        head_dim: D.
        processors: Of the GPU.
        causal: The mask.
    """
    best: tuple[float, Specialized, int] | None = None
    for launch in launches:
        without_rows = launch.groups > 1 and rows <= 64 * (launch.groups - 1)  # the last group's
        if rows > launch.rows or launch.causal not in (None, causal) or without_rows:
            continue
        places = processors * launch.programs
        if causal:
            steps, lanes = _causal(launch, rows, keys, heads, head_dim, places)
        else:  # a head's tiles have the same keys
            lanes = 1
            tiles = math.ceil(rows / launch.block_m) * heads
            steps = math.ceil(tiles / places) * (math.ceil(keys / launch.block_n) + launch.extra)
        if best is None or steps * launch.step_us < best[0]:
            best = steps * launch.step_us, launch, lanes
    assert best is not None, "a table needs a launch for any number of rows, with a mask and without"
    return best[1:]


def _causal(launch: Specialized, rows: int, keys: int, heads: int, head_dim: int, places: int) -> tuple[float, int]:
    """The steps of the busiest place, and the fewest heads at a time that are as good as the best."""
    found = []
    lanes = FEWEST
    while True:
        lanes = min(lanes, heads)
        over = OVER_L2 * max(0.0, math.log2(4 * keys * head_dim * lanes / L2_BYTES)) * (head_dim / 64) * (1024 / keys)
        found.append((_busiest(launch, rows, keys, heads, lanes, places) * (1 + over), lanes))
        if lanes == heads:
            break
        lanes *= 2
    least = min(steps for steps, _ in found)
    return next(one for one in found if one[0] <= SURE * least)


def _busiest(launch: Specialized, rows: int, keys: int, heads: int, lanes: int, places: int) -> float:
    """Steps of the place that gets most, in the order of `hopper._tile` and `hopper._place`."""
    blocks = math.ceil(rows / launch.block_m)
    tiles = blocks * heads
    tile = torch.arange(min(tiles, MOST_TILES), device="cpu")
    first = tile // (blocks * lanes) * lanes
    here = (heads - first).clamp(max=lanes)
    block = blocks - 1 - tile % (blocks * lanes) // here
    seen = ((block + 1) * launch.block_m + keys - rows).clamp(1, keys)
    steps = torch.ceil(seen / launch.block_n) + launch.extra
    rounds = torch.nn.functional.pad(steps, (0, -len(steps) % (2 * places))).view(-1, 2, places)
    return float((rounds[:, 0] + rounds[:, 1].flip(1)).sum(0).max()) * tiles / len(tile)
