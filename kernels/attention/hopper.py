"""Attention for Hopper in Gluon, Triton's own language for what its compiler does not schedule by itself.

One warp loads tiles by TMA; groups of four warps multiply, each for 64 query rows of its own. While a group's values
are being added, the scores of its next keys are already multiplied and its softmax runs beside them; the groups take
turns, so that one multiplies while another computes exponentials (FlashAttention-3, arXiv 2407.08608). The grid is as
large as the GPU, and a program goes on to its next tile while the last one is written; what ``AHEAD`` switches on is
for tiles that differ in work, as they do under a causal mask.

For dense batches without masks other than the causal one, in-process only: the descriptors of TMA are made by Triton's
launcher. Triton's interpreter knows no Gluon; the tests run these functions by threads and barriers of their own.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

LOG2_E = gl.constexpr(1.4426950408889634)
LN_2 = gl.constexpr(0.6931471805599453)
# Triton 3.8 gave them these names.
_load_tile = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
_store_tile = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
GROUP_ROWS = gl.constexpr(64)
"""Query rows of a group: what one ``wgmma`` of four warps multiplies."""
# A wait is no reason for ptxas to have computed something before it, and it moves the exponentials behind the wait that
# they should hide. An instruction that is never taken (no sum is -1), but could be seen from outside, keeps them here.
STAY = gl.constexpr("{ .reg .pred p; setp.eq.f32 p, $1, 0fBF800000; @p pmevent 1; mov.b32 $0, $1; }")


@gluon.jit
def _place(tile, blocks, heads, batches, lanes):
    """The block of rows, the head and the batch of a tile.

    ``lanes`` heads at a time, so that their keys and values stay in the L2 cache; among those, the last rows of all
    heads come first: they have the most keys under a causal mask.
    """
    total = heads * batches
    first = tile // (blocks * lanes) * lanes
    here = gl.minimum(lanes, total - first)
    within = tile % (blocks * lanes)
    lane = first + within % here
    return blocks - 1 - within // here, lane % heads, lane // heads


@gluon.jit
def _turns(tiles, AHEAD: gl.constexpr):
    """Rounds in which this program has a tile: all are full but the last."""
    programs = gl.num_programs(0)
    last = tiles // programs
    place = _tile(last, AHEAD) - last * programs
    return last + gl.minimum(gl.maximum(tiles - last * programs - place, 0), 1)


@gluon.jit
def _tile(turn, AHEAD: gl.constexpr):
    """This program's tile of a round. Every other round goes backwards: who had the longest has the shortest next."""
    place = gl.program_id(0)
    if AHEAD:
        place += (turn & 1) * (gl.num_programs(0) - 1 - 2 * place)
    return turn * gl.num_programs(0) + place


@gluon.jit
def _steps(start_m, len_q, len_k, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, CAUSAL: gl.constexpr):
    """Blocks of keys of a tile, at least one."""
    seen = len_k
    if CAUSAL:
        seen = gl.minimum(len_k, start_m + BLOCK_M + len_k - len_q)
    return gl.cdiv(gl.maximum(seen, 1), BLOCK_N)


@gluon.jit
def _load(
    q_tensor,
    k_tensor,
    v_tensor,
    tiles,
    barriers,
    sizes,
    BLOCK_N: gl.constexpr,
    CAUSAL: gl.constexpr,
    GROUPS: gl.constexpr,
    STAGES: gl.constexpr,
    AHEAD: gl.constexpr,
):
    """The warp that loads."""
    Q_STAGES: gl.constexpr = 1 + AHEAD
    q_tiles, k_tiles, v_tiles, _ = tiles
    q_full, q_empty, k_full, k_empty, v_full, v_empty, _ = barriers
    blocks, heads, group, batches, lanes, len_q, len_k = sizes
    BLOCK_M: gl.constexpr = GROUPS * GROUP_ROWS
    block = 0  # of keys, counted over all tiles
    for turn in range(_turns(blocks * heads * batches, AHEAD)):
        block_m, head, batch = _place(_tile(turn, AHEAD), blocks, heads, batches, lanes)
        start_m = block_m * BLOCK_M
        at = (_steps(start_m, len_q, len_k, BLOCK_M, BLOCK_N, CAUSAL) - 1) * BLOCK_N
        # The first keys before the queries, whose tiles are read to the end of the tile before; then each block of keys
        # before the values of the block before it: so they are multiplied.
        _load_block(k_tensor, k_tiles, k_full, k_empty, block, batch, head // group, at, STAGES)
        for g in gl.static_range(GROUPS):
            place = turn % Q_STAGES * GROUPS + g
            mbarrier.wait(q_empty.index(place), ((turn // Q_STAGES) & 1) ^ 1)
            mbarrier.expect(q_full.index(place), q_tensor.block_type.nbytes)
            _load_tile(q_tensor, [batch, head, start_m + GROUP_ROWS * g, 0], q_full.index(place), q_tiles.index(place))
        while at > 0:
            _load_block(k_tensor, k_tiles, k_full, k_empty, block + 1, batch, head // group, at - BLOCK_N, STAGES)
            _load_block(v_tensor, v_tiles, v_full, v_empty, block, batch, head // group, at, STAGES)
            at -= BLOCK_N
            block += 1
        _load_block(v_tensor, v_tiles, v_full, v_empty, block, batch, head // group, at, STAGES)
        block += 1


@gluon.jit
def _load_block(tensor, tiles, full, empty, block, batch, head, at, STAGES: gl.constexpr):
    """A block of keys or of values, once the one that lay in its place has been used."""
    stage = block % STAGES
    mbarrier.wait(empty.index(stage), ((block // STAGES) & 1) ^ 1)
    mbarrier.expect(full.index(stage), tensor.block_type.nbytes)
    _load_tile(tensor, [batch, head, at, 0], full.index(stage), tiles.index(stage))


@gluon.jit
def _mask(scores, last, BLOCK_N: gl.constexpr, LAYOUT: gl.constexpr):
    """Minus infinity for the keys after ``last``, one number or one for each row, counted from the block's first.

    A thread has keys 2 t, 2 t + 1, 2 t + 8, 2 t + 9, 2 t + 16 and so on of its rows, t being its place among four.
    Apart from the first term, which goes to ``last`` and is one number for each row, they are constants: no registers.
    """
    cols = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, LAYOUT))
    return gl.where((cols & ~6)[None, :] <= last - (cols & 6)[None, :], scores, float("-inf"))


@gluon.jit
def _last(at, first_row, len_q, len_k, CAUSAL: gl.constexpr, LAYOUT: gl.constexpr):
    """The last key that counts, from the block's first on; a row past the queries may see too many: nobody reads it."""
    last = len_k - 1 - at
    if CAUSAL:
        rows = first_row + gl.arange(0, GROUP_ROWS, layout=gl.SliceLayout(1, LAYOUT))
        last = (rows + (len_k - len_q - at))[:, None]
    return last


@gluon.jit
def _softmax(scores, top, total, factor, MASKED: gl.constexpr):
    """Weights of these scores, what to multiply those before by, and the new largest score and sum."""
    highest = gl.maximum(top, gl.max(scores, 1))
    base = highest * factor
    if MASKED:
        base = gl.where(highest == float("-inf"), 0.0, base)  # a row that saw no key yet
    weights = gl.exp2(scores * factor - base[:, None])
    fade = gl.exp2(top * factor - base)
    return weights, fade, highest, total * fade + gl.sum(weights, 1)


@gluon.jit
def _await_turn(turns, block, G: gl.constexpr, TURNS: gl.constexpr):
    """Groups begin their products one after another; the first need not wait for its first turn."""
    if TURNS:
        if G == 0:
            mbarrier.wait(turns.index(G), (block & 1) ^ 1)
        else:
            mbarrier.wait(turns.index(G), block & 1)


@gluon.jit
def _pass_by(barriers, block, G: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr, TURNS: gl.constexpr):
    """Do nothing with a block of keys and values; the others need this group's turn and its word that it is done."""
    _, _, k_full, k_empty, v_full, v_empty, turns = barriers
    mbarrier.wait(k_full.index(block % STAGES), (block // STAGES) & 1)
    _await_turn(turns, block, G, TURNS)
    if TURNS:
        mbarrier.arrive(turns.index((G + 1) % GROUPS), count=1)
    mbarrier.arrive(k_empty.index(block % STAGES), count=1)
    mbarrier.wait(v_full.index(block % STAGES), (block // STAGES) & 1)
    mbarrier.arrive(v_empty.index(block % STAGES), count=1)


@gluon.jit
def _scores(q, tiles, barriers, block, STAGES: gl.constexpr, BLOCK_N: gl.constexpr, LAYOUT: gl.constexpr):
    """Begin to multiply the queries with a block of keys that has come."""
    _, k_tiles, _, _ = tiles
    keys = k_tiles.index(block % STAGES).reshape([BLOCK_N, q.shape[1]]).permute((1, 0))
    none = gl.zeros([GROUP_ROWS, BLOCK_N], gl.float32, LAYOUT)
    return warpgroup_mma(q, keys, none, use_acc=False, is_async=True)


@gluon.jit
def _add_values(weights, acc, tiles, barriers, block, STAGES: gl.constexpr, BLOCK_N: gl.constexpr, D: gl.constexpr):
    """Begin to add a block of values, once it has come."""
    _, _, v_tiles, _ = tiles
    _, _, _, _, v_full, _, _ = barriers
    mbarrier.wait(v_full.index(block % STAGES), (block // STAGES) & 1)
    values = v_tiles.index(block % STAGES).reshape([BLOCK_N, D])
    return warpgroup_mma(weights, values, acc, is_async=True)


@gluon.jit
def _step(
    q,
    tiles,
    barriers,
    acc,
    p,
    top,
    total,
    block,
    at,
    first_row,
    len_q,
    len_k,
    factor,
    G: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_N: gl.constexpr,
    CAUSAL: gl.constexpr,
    MASKED: gl.constexpr,
    GROUPS: gl.constexpr,
    STAGES: gl.constexpr,
    TURNS: gl.constexpr,
    S_LAYOUT: gl.constexpr,
    O_LAYOUT: gl.constexpr,
    P_LAYOUT: gl.constexpr,
):
    """The scores and the softmax of a block of keys, while the values of the block before are added."""
    _, _, k_full, k_empty, _, v_empty, turns = barriers
    mbarrier.wait(k_full.index(block % STAGES), (block // STAGES) & 1)
    _await_turn(turns, block, G, TURNS)
    scores = _scores(q, tiles, barriers, block, STAGES, BLOCK_N, S_LAYOUT)
    acc = _add_values(p, acc, tiles, barriers, block - 1, STAGES, BLOCK_N, HEAD_DIM)
    if TURNS:
        mbarrier.arrive(turns.index((G + 1) % GROUPS), count=1)
    if MASKED and GROUPS > 2:  # the weights before must leave their registers: with a mask beside them some would spill
        scores, acc = warpgroup_mma_wait(0, deps=(scores, acc))
    else:
        scores, acc = warpgroup_mma_wait(1, deps=(scores, acc))
    mbarrier.arrive(k_empty.index(block % STAGES), count=1)
    if MASKED:
        last = _last(at, first_row, len_q, len_k, CAUSAL, S_LAYOUT)
        scores = _mask(scores, last, BLOCK_N, S_LAYOUT)
    weights, fade, top, total = _softmax(scores, top, total, factor, MASKED)
    total = gl.inline_asm_elementwise(STAY, "=f,f", [total], dtype=gl.float32, is_pure=False, pack=1)
    acc, weights, total = warpgroup_mma_wait(0, deps=(acc, weights, total))
    mbarrier.arrive(v_empty.index((block - 1) % STAGES), count=1)
    acc = acc * gl.convert_layout(fade, gl.SliceLayout(1, O_LAYOUT))[:, None]
    return acc, gl.convert_layout(weights.to(p.dtype), P_LAYOUT), top, total


@gluon.jit
def _multiply(
    out_tensor,
    lse_ptr,
    tiles,
    barriers,
    sizes,
    factor,
    G: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_N: gl.constexpr,
    CAUSAL: gl.constexpr,
    EVEN: gl.constexpr,
    RAGGED: gl.constexpr,
    GROUPS: gl.constexpr,
    STAGES: gl.constexpr,
    TURNS: gl.constexpr,
    AHEAD: gl.constexpr,
    LSE: gl.constexpr,
):
    """A group of four warps: rows ``[64 G, 64 G + 64)`` of each tile."""
    Q_STAGES: gl.constexpr = 1 + AHEAD
    q_full, q_empty, k_full, k_empty, _, v_empty, turns = barriers
    blocks, heads, _, batches, lanes, len_q, len_k = sizes
    BLOCK_M: gl.constexpr = GROUPS * GROUP_ROWS
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    MASK: gl.constexpr = CAUSAL or RAGGED
    out = tiles[3].index(G)
    dtype: gl.constexpr = out.dtype
    block = 0  # of keys, counted over all tiles
    for turn in range(_turns(blocks * heads * batches, AHEAD)):
        block_m, head, batch = _place(_tile(turn, AHEAD), blocks, heads, batches, lanes)
        start_m = block_m * BLOCK_M
        first_row = start_m + GROUP_ROWS * G
        steps = _steps(start_m, len_q, len_k, BLOCK_M, BLOCK_N, CAUSAL)
        if AHEAD and GROUPS > 1:
            # The last keys of the tile, which these rows do not see, or all but a step where it has no such rows.
            own = _steps(first_row, len_q, len_k, GROUP_ROWS, BLOCK_N, CAUSAL)
            if first_row >= len_q:
                own = 1
            for _ in range(steps - own):
                _pass_by(barriers, block, G, GROUPS, STAGES, TURNS)
                block += 1
            steps = own
        place = turn % Q_STAGES * GROUPS + G
        q = tiles[0].index(place).reshape([GROUP_ROWS, HEAD_DIM])
        top = gl.full([GROUP_ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, S_LAYOUT))
        total = gl.zeros([GROUP_ROWS], gl.float32, gl.SliceLayout(1, S_LAYOUT))
        acc = gl.zeros([GROUP_ROWS, HEAD_DIM], gl.float32, O_LAYOUT)
        # The first keys have no values before them. They are the sequence's last: the only ones that can need a mask.
        mbarrier.wait(q_full.index(place), (turn // Q_STAGES) & 1)
        mbarrier.wait(k_full.index(block % STAGES), (block // STAGES) & 1)
        _await_turn(turns, block, G, TURNS)
        scores = _scores(q, tiles, barriers, block, STAGES, BLOCK_N, S_LAYOUT)
        if TURNS:
            mbarrier.arrive(turns.index((G + 1) % GROUPS), count=1)
        scores = warpgroup_mma_wait(0, deps=(scores,))
        mbarrier.arrive(k_empty.index(block % STAGES), count=1)
        at = (steps - 1) * BLOCK_N
        if MASK:
            scores = _mask(scores, _last(at, first_row, len_q, len_k, CAUSAL, S_LAYOUT), BLOCK_N, S_LAYOUT)
        weights, _, top, total = _softmax(scores, top, total, factor, MASK)
        p = gl.convert_layout(weights.to(dtype), P_LAYOUT)
        block += 1
        plain = steps - 1
        if CAUSAL and not EVEN:
            plain = gl.minimum(gl.maximum(first_row + len_k - len_q + 1, 0) // BLOCK_N, plain)
            for _ in range(steps - 1 - plain):
                at -= BLOCK_N
                acc, p, top, total = _step(
                    q, tiles, barriers, acc, p, top, total, block, at, first_row, len_q, len_k, factor,
                    G, HEAD_DIM, BLOCK_N, CAUSAL, True, GROUPS, STAGES, TURNS, S_LAYOUT, O_LAYOUT, P_LAYOUT,
                )  # fmt: skip
                block += 1
        for _ in range(plain):
            acc, p, top, total = _step(
                q, tiles, barriers, acc, p, top, total, block, 0, first_row, len_q, len_k, factor,
                G, HEAD_DIM, BLOCK_N, CAUSAL, False, GROUPS, STAGES, TURNS, S_LAYOUT, O_LAYOUT, P_LAYOUT,
            )  # fmt: skip
            block += 1
        mbarrier.arrive(q_empty.index(place), count=1)
        acc = _add_values(p, acc, tiles, barriers, block - 1, STAGES, BLOCK_N, HEAD_DIM)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(v_empty.index((block - 1) % STAGES), count=1)
        empty = total == 0.0
        over = 1.0 / gl.where(empty, 1.0, total)
        acc = acc * gl.convert_layout(over, gl.SliceLayout(1, O_LAYOUT))[:, None]
        tma.store_wait(0)  # the tile before has left
        out.reshape([GROUP_ROWS, HEAD_DIM]).store(acc.to(dtype))
        fence_async_shared()
        _store_tile(out_tensor, [batch, head, first_row, 0], out)
        if LSE:
            rows = first_row + gl.arange(0, GROUP_ROWS, layout=gl.SliceLayout(1, S_LAYOUT))
            lse = gl.where(empty, float("-inf"), (top * factor + gl.log2(gl.where(empty, 1.0, total))) * LN_2)
            gl.store(lse_ptr + (batch * heads + head).to(gl.int64) * len_q + rows, lse, mask=rows < len_q)
    tma.store_wait(0)


@gluon.jit
def _barriers(number: gl.constexpr, arrivals: gl.constexpr):
    made = gl.allocate_shared_memory(gl.int64, [number, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(number):
        mbarrier.init(made.index(i), count=arrivals)
    return made


@gluon.jit(do_not_specialize=["blocks", "heads", "group", "batches", "lanes", "len_q", "len_k"])
def _attention_hopper_kernel(
    q_tensor,  # [B, H, S_q, D] in tiles of [1, 1, 64, D]
    k_tensor,  # [B, G, S_k, D] in tiles of [1, 1, BLOCK_N, D]
    v_tensor,  # as K
    out_tensor,  # as Q
    lse_ptr,  # [B, H, S_q] float32, contiguous
    blocks,  # of 64 GROUPS query rows, in a head
    heads,
    group,  # query heads that share a key/value head
    batches,
    lanes,  # heads at a time
    len_q,
    len_k,
    scale,
    HEAD_DIM: gl.constexpr,
    BLOCK_N: gl.constexpr,
    CAUSAL: gl.constexpr,
    EVEN: gl.constexpr,  # the mask's edge crosses one block of keys in 64 rows: nothing but a tile's first step has it
    RAGGED: gl.constexpr,  # S_k is no multiple of BLOCK_N
    GROUPS: gl.constexpr,
    STAGES: gl.constexpr,
    TURNS: gl.constexpr,
    AHEAD: gl.constexpr,  # queries come a tile ahead, unseen keys are passed by, every other round goes backwards
    LSE: gl.constexpr,
):
    Q_STAGES: gl.constexpr = 1 + AHEAD
    dtype: gl.constexpr = q_tensor.dtype
    q_tiles = gl.allocate_shared_memory(dtype, [Q_STAGES * GROUPS] + q_tensor.block_type.shape, q_tensor.layout)
    k_tiles = gl.allocate_shared_memory(dtype, [STAGES] + k_tensor.block_type.shape, k_tensor.layout)
    v_tiles = gl.allocate_shared_memory(dtype, [STAGES] + v_tensor.block_type.shape, v_tensor.layout)
    out_tiles = gl.allocate_shared_memory(dtype, [GROUPS] + out_tensor.block_type.shape, out_tensor.layout)
    tiles = (q_tiles, k_tiles, v_tiles, out_tiles)
    barriers = (
        _barriers(Q_STAGES * GROUPS, 1), _barriers(Q_STAGES * GROUPS, 1), _barriers(STAGES, 1),
        _barriers(STAGES, GROUPS), _barriers(STAGES, 1), _barriers(STAGES, GROUPS), _barriers(GROUPS, 1),
    )  # fmt: skip
    fence_async_shared()
    sizes = (blocks, heads, group, batches, lanes, len_q, len_k)
    factor = scale * LOG2_E
    # The registers of each group's threads: 65536 over all, little for the warp that loads.
    if GROUPS == 1:
        gl.warp_specialize([
            (_multiply, (out_tensor, lse_ptr, tiles, barriers, sizes, factor, gl.constexpr(0), HEAD_DIM, BLOCK_N,
                         CAUSAL, EVEN, RAGGED, GROUPS, STAGES, TURNS, AHEAD, LSE)),
            (_load, (q_tensor, k_tensor, v_tensor, tiles, barriers, sizes, BLOCK_N, CAUSAL, GROUPS, STAGES, AHEAD)),
        ], [1], [24])  # fmt: skip
    elif GROUPS == 2:
        gl.warp_specialize([
            (_multiply, (out_tensor, lse_ptr, tiles, barriers, sizes, factor, gl.constexpr(0), HEAD_DIM, BLOCK_N,
                         CAUSAL, EVEN, RAGGED, GROUPS, STAGES, TURNS, AHEAD, LSE)),
            (_multiply, (out_tensor, lse_ptr, tiles, barriers, sizes, factor, gl.constexpr(1), HEAD_DIM, BLOCK_N,
                         CAUSAL, EVEN, RAGGED, GROUPS, STAGES, TURNS, AHEAD, LSE)),
            (_load, (q_tensor, k_tensor, v_tensor, tiles, barriers, sizes, BLOCK_N, CAUSAL, GROUPS, STAGES, AHEAD)),
        ], [4, 1], [240, 24])  # fmt: skip
    else:
        gl.warp_specialize([
            (_multiply, (out_tensor, lse_ptr, tiles, barriers, sizes, factor, gl.constexpr(0), HEAD_DIM, BLOCK_N,
                         CAUSAL, EVEN, RAGGED, GROUPS, STAGES, TURNS, AHEAD, LSE)),
            (_multiply, (out_tensor, lse_ptr, tiles, barriers, sizes, factor, gl.constexpr(1), HEAD_DIM, BLOCK_N,
                         CAUSAL, EVEN, RAGGED, GROUPS, STAGES, TURNS, AHEAD, LSE)),
            (_multiply, (out_tensor, lse_ptr, tiles, barriers, sizes, factor, gl.constexpr(2), HEAD_DIM, BLOCK_N,
                         CAUSAL, EVEN, RAGGED, GROUPS, STAGES, TURNS, AHEAD, LSE)),
            (_load, (q_tensor, k_tensor, v_tensor, tiles, barriers, sizes, BLOCK_N, CAUSAL, GROUPS, STAGES, AHEAD)),
        ], [4, 4, 1], [160, 160, 32])  # fmt: skip
