"""How each kernel is launched on each architecture: data, checked by cross-compilation in the tests."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch configuration.

    Attributes:
        block_m: Query rows of one program.
        block_n: Keys of one step of its loop.
        num_warps: Warps of one program.
        num_stages: Depth of the software pipeline that loads keys and values.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Specialized:
    """One launch configuration of the kernel of `hopper`.

    Attributes:
        block_n: Keys of one step.
        groups: Of four warps, each for 64 query rows.
        stages: Blocks of keys, and of values, that shared memory holds.
        turns: The groups multiply one after another.
        programs: That share a multiprocessor.
        step_us: What a step takes, in microseconds, measured; `schedule` compares launches by it.
        extra: What else a tile takes, in steps.
        ahead: Queries are fetched a tile ahead, keys that a group does not see are passed by, and every other round of
            tiles goes backwards. Three groups without a mask were 3 % slower so on an H200; why is not known.
        causal: With the causal mask only, without it only, or None: both.
        rows: The most query rows that it is for.
    """

    block_n: int
    groups: int
    stages: int
    turns: bool = True
    programs: int = 1
    step_us: float = 1.0
    extra: float = 1.0
    causal: bool | None = None
    ahead: bool = True
    rows: int = 1 << 31

    @property
    def block_m(self) -> int:
        """Query rows of a tile."""
        return 64 * self.groups

    @property
    def registers(self) -> int:
        """Of one thread before they are shared out: 65536 over all warps, those of the one that loads included."""
        return min(248, 65536 // (128 * (self.groups + 1) * self.programs) // 8 * 8)


@dataclass(frozen=True, slots=True)
class Copy:
    """One launch configuration of `pack` and `unpack`, which are bound by memory.

    Attributes:
        rows: Tokens of one program.
        width: Values of a token that one step copies, at most.
        num_warps: Warps of one program.
    """

    rows: int
    width: int
    num_warps: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a kernel may use there, and the launches by the largest padded head_dim that each serves.

    Attributes:
        shared_bytes: Shared memory that one program can have (CUDA C++ programming guide, compute capabilities).
        tensor_core: The PTX instruction that a matrix product must have become.
        long: For more than 64 query rows.
        short: For at most 64 query rows: a larger block would compute rows that do not exist.
        tiny: For at most 16; empty: as ``short``.
        rich: With a bias, ALiBi or a soft cap, at any length: their addresses and scores want registers of their own.
        decode: For a cache and at most 16 rows, bound by the memory that the cache is read from. ``block_m`` is the
            least, here and in ``decode_many`` and ``decode_few``.
        decode_few: For those where each program has a multiprocessor and a whole sequence to itself: larger blocks keep
            as much of it on its way. Empty: as ``decode``.
        decode_many: For a cache and more rows, whose sums want registers.
        packed: For packed batches whose longest sequence has more than 128 tokens; empty: as ``long``.
        packed_short: For those up to 128, most of whose sequences are far shorter; empty: as ``short`` or ``long``.
        copy: For `pack` and `unpack`.
        plugin: For a TensorRT plugin, in place of entries of ``long`` that want more than its 48 KiB at any depth.
        specialized: For the warp-specialized kernel of `hopper`, and nothing else; empty where there is none.
    """

    shared_bytes: int
    tensor_core: str
    long: dict[int, Launch]
    short: dict[int, Launch]
    rich: dict[int, Launch]
    decode: dict[int, Launch]
    decode_many: dict[int, Launch]
    copy: Copy
    tiny: dict[int, Launch] = field(default_factory=dict)
    packed: dict[int, Launch] = field(default_factory=dict)
    packed_short: dict[int, Launch] = field(default_factory=dict)
    plugin: dict[int, Launch] = field(default_factory=dict)
    decode_few: dict[int, Launch] = field(default_factory=dict)
    specialized: dict[int, tuple[Specialized, ...]] = field(default_factory=dict)


_DECODE = {
    32: Launch(16, 128, 4, 2),  # a third stage spills with an int8 cache on sm_86 to 89
    64: Launch(16, 128, 4, 3),
    128: Launch(16, 64, 4, 3),
    256: Launch(16, 32, 4, 2),
}
_DECODE_MANY = {  # with mma.sync: 64 rows want eight warps, or fewer keys at a time
    32: Launch(32, 64, 4, 3),
    64: Launch(32, 64, 4, 3),
    128: Launch(32, 64, 8, 3),
    256: Launch(32, 32, 8, 2),
}
_COPY = Copy(16, 256, 4)
_AMPERE_LARGE = Architecture(  # A100, Jetson Orin: room for a deep pipeline
    shared_bytes=163 * 1024,
    tensor_core="mma.sync",
    long={
        32: Launch(128, 64, 4, 3),
        64: Launch(128, 32, 4, 3),
        96: Launch(128, 32, 8, 3),
        128: Launch(128, 64, 8, 3),
        256: Launch(64, 32, 8, 2),
    },
    short={32: Launch(64, 64, 4, 3), 64: Launch(64, 64, 4, 2), 128: Launch(64, 32, 4, 3), 256: Launch(64, 32, 8, 2)},
    rich={32: Launch(64, 32, 8, 3), 64: Launch(64, 64, 8, 3), 128: Launch(64, 32, 8, 2), 256: Launch(32, 32, 8, 2)},
    decode=_DECODE,
    decode_many=_DECODE_MANY,
    copy=_COPY,
)
_AMPERE_SMALL = Architecture(  # A10, RTX 30, L4, RTX 40
    shared_bytes=99 * 1024,
    tensor_core="mma.sync",
    long={
        32: Launch(128, 64, 4, 3),
        64: Launch(128, 32, 4, 3),
        128: Launch(128, 32, 8, 3),
        256: Launch(64, 32, 8, 2),
    },
    short={32: Launch(64, 64, 4, 3), 64: Launch(64, 64, 4, 2), 128: Launch(64, 32, 4, 3), 256: Launch(64, 32, 8, 2)},
    rich={32: Launch(64, 32, 8, 3), 64: Launch(64, 64, 8, 3), 128: Launch(64, 32, 8, 2), 256: Launch(32, 32, 8, 2)},
    decode=_DECODE,
    decode_many=_DECODE_MANY,
    copy=_COPY,
)
_HOPPER = (
    Architecture(  # wgmma works on 64 rows for each group of four warps; chosen on an H200 (baselines/kernels.json)
        shared_bytes=227 * 1024,
        tensor_core="wgmma",
        long={
            32: Launch(64, 64, 4, 3),
            64: Launch(128, 64, 8, 3),
            128: Launch(128, 64, 8, 3),
            256: Launch(128, 32, 8, 2),
        },
        short={
            32: Launch(64, 64, 4, 1),
            64: Launch(64, 64, 4, 1),
            128: Launch(64, 64, 4, 3),
            256: Launch(64, 32, 4, 2),
        },
        rich={32: Launch(64, 32, 8, 3), 64: Launch(64, 64, 8, 3), 128: Launch(64, 32, 8, 2), 256: Launch(64, 16, 8, 3)},
        decode=_DECODE | {128: Launch(16, 64, 4, 4)},
        decode_many=_DECODE,
        decode_few={64: _DECODE[64], 128: Launch(16, 128, 8, 3)},
        copy=_COPY,
        tiny={64: Launch(16, 16, 1, 1)},
        packed={64: Launch(64, 32, 4, 3)},
        packed_short={32: Launch(32, 16, 1, 1), 64: Launch(16, 16, 1, 1)},
        specialized={
            32: (
                Specialized(64, 1, 3, turns=False, programs=3, step_us=0.70, extra=2, rows=512),
                Specialized(128, 2, 3, step_us=0.93, extra=1.1),
                Specialized(128, 3, 3, step_us=1.18, causal=False, ahead=False),
            ),
            64: (
                Specialized(64, 1, 2, turns=False, programs=3, step_us=0.90, extra=2, rows=512),
                Specialized(128, 1, 2, turns=False, programs=2, step_us=1.10, extra=1.3, causal=False, rows=512),
                Specialized(128, 2, 3, step_us=1.26, extra=1.1),
                Specialized(128, 3, 4, step_us=1.43, causal=False, ahead=False, rows=512),
                Specialized(128, 3, 3, step_us=1.44, causal=False, ahead=False),
                Specialized(128, 3, 3, step_us=1.62, causal=True),
            ),
            128: (Specialized(64, 1, 2, turns=False, step_us=0.9, rows=64), Specialized(128, 2, 2, step_us=1.55)),
        },
    )
)
_BLACKWELL = Architecture(
    shared_bytes=227 * 1024,
    tensor_core="tcgen05",
    long={
        32: Launch(128, 64, 4, 3),
        64: Launch(128, 64, 8, 3),
        128: Launch(128, 64, 8, 3),
        256: Launch(128, 32, 8, 2),
    },
    short={32: Launch(64, 64, 4, 3), 64: Launch(64, 64, 4, 3), 128: Launch(64, 64, 4, 3), 256: Launch(64, 32, 8, 2)},
    rich={32: Launch(64, 32, 8, 3), 64: Launch(64, 64, 8, 3), 128: Launch(64, 32, 8, 2), 256: Launch(64, 16, 8, 2)},
    decode=_DECODE,
    decode_many=_DECODE,
    copy=_COPY,
    plugin={128: Launch(128, 32, 8, 1)},  # 64 keys want 52 KiB at one stage
)

ARCHITECTURES: dict[str, Architecture] = {
    "sm_80": _AMPERE_LARGE,
    "sm_86": _AMPERE_SMALL,
    "sm_87": _AMPERE_LARGE,
    "sm_89": _AMPERE_SMALL,
    "sm_90": _HOPPER,
    "sm_100": _BLACKWELL,
}
PACKED_SHORT = 128
"""Tokens of the longest sequence of a packed batch, up to which small blocks are used."""
CHAINED = ("sm_90", "sm_100")
"""Where a kernel can be launched while the one before it runs (programmatic dependent launch, from 9.0 on)."""
# Triton's interpreter has no limits; small blocks let short sequences cross block borders.
INTERPRETER = Launch(32, 32, 4, 1)
# A float32 product runs without tensor cores: small blocks keep it in registers.
FLOAT32 = Launch(32, 32, 4, 1)


def architecture(name: str) -> Architecture:
    """The entry of an architecture such as ``sm_90``.

    Raises:
        ValueError: There is none.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    why = (
        "Triton emits no tensor-core instruction for it; a T4 gets TensorRT's own attention"
        if name in {"sm_70", "sm_72", "sm_75"}
        else "nothing was compiled and checked for it"
    )
    raise ValueError(
        f"lepto's attention kernels run on {', '.join(ARCHITECTURES)}; the architecture is {name}: {why}. "
        "implementation='reference' computes the same anywhere, slowly"
    )


def padded_head_dim(head_dim: int, *, int8: bool = False) -> int:
    """The power of two that a block of head_dim values is held in, at least what a matrix product needs."""
    return max(32 if int8 else 16, 1 << (head_dim - 1).bit_length())


def choose(
    name: str,
    head_dim: int,
    rows: int,
    *,
    float32: bool = False,
    rich: bool = False,
    plugin: bool = False,
    packed: bool = False,
) -> Launch:
    """The launch for an architecture, a head_dim and the largest number of query rows in a sequence.

    Args:
        name: Such as ``sm_90``, or ``interpreter``.
        head_dim: D.
        rows: Query rows of the longest sequence.
        float32: The tensors are float32.
        rich: There is a bias, ALiBi or a soft cap.
        plugin: It is launched by TensorRT.
        packed: The batch is packed.
    """
    if name == "interpreter":
        return INTERPRETER
    entry = architecture(name)
    if float32:
        return FLOAT32
    if packed and not rich:
        table = entry.packed_short if rows <= PACKED_SHORT else entry.packed
        if table and head_dim <= max(table):
            return _of(table, head_dim)
    if rows <= 16 and not rich and entry.tiny and head_dim <= max(entry.tiny):
        return _of(entry.tiny, head_dim)
    long = entry.long | entry.plugin if plugin else entry.long
    return _of(entry.rich if rich else entry.short if rows <= 64 else long, head_dim)


def choose_decode(name: str, head_dim: int, rows: int, *, few: bool = False) -> Launch:
    """The launch of decode.

    Args:
        name: As `choose` has it.
        head_dim: D.
        rows: Query rows of one program.
        few: Each program has a multiprocessor and a whole sequence to itself.
    """
    if name == "interpreter":
        return INTERPRETER
    entry = architecture(name)
    if few and rows <= 16 and entry.decode_few and head_dim <= max(entry.decode_few):
        return _of(entry.decode_few, head_dim)
    return _of(entry.decode if rows <= 16 else entry.decode_many, head_dim)


def choose_specialized(name: str, head_dim: int) -> tuple[Specialized, ...]:
    """The launches of the warp-specialized kernel, of which `schedule` takes one.

    Raises:
        ValueError: The architecture has none, or none for this head_dim.
    """
    table = architecture(name).specialized
    if head_dim not in table:
        able = [
            f"{known} (head_dim {', '.join(map(str, e.specialized))})"
            for known, e in ARCHITECTURES.items()
            if e.specialized
        ]
        raise ValueError(
            f"implementation='hopper' runs on {', '.join(able)}, got {name} with head_dim {head_dim}: use "
            "implementation='triton'"
        )
    return table[head_dim]


def choose_copy(name: str) -> Copy:
    """The launch of `pack` and `unpack`."""
    return _COPY if name == "interpreter" else architecture(name).copy


def _of(table: dict[int, Launch], head_dim: int) -> Launch:
    return next(launch for largest, launch in sorted(table.items()) if head_dim <= largest)
