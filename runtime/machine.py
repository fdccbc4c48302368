"""Facts about this machine, as plain values; nothing heavy is imported to learn them."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# x86-64 micro-architecture levels in the words of /proc/cpuinfo ("pni" is SSE3, "abm" is LZCNT), from the x86-64 psABI
# (https://gitlab.com/x86-psABIs/x86-64-ABI, "Micro-Architecture Levels").
_X86_LEVELS: tuple[tuple[str, frozenset[str]], ...] = (
    ("x86-64-v2", frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"})),
    ("x86-64-v3", frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"})),
    ("x86-64-v4", frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})),
)

# What decides how fast an int8 or bfloat16 model runs; the kernel's word -> the word people use.
_NOTABLE = {
    "avx2": "avx2",
    "avx_vnni": "avx-vnni",
    "avx512f": "avx512",
    "avx512_vnni": "avx512-vnni",
    "avx512_bf16": "avx512-bf16",
    "avx512_fp16": "avx512-fp16",
    "amx_tile": "amx",
    "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
}
_ARCHITECTURES = {"amd64": "x86_64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU, as ``nvidia-smi`` tells it.

    Attributes:
        name: The product's name.
        memory_bytes: Its memory.
        compute_capability: For example ``8.9``; empty if the driver does not tell.
        driver: The driver's version.
    """

    name: str
    memory_bytes: int
    compute_capability: str
    driver: str


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine.

    Attributes:
        system: Operating system and its release.
        architecture: ``x86_64``, ``arm64``, or what the system calls it.
        cpu: The CPU's model name.
        cpus: CPUs that this process may use: its affinity, cut by the container's quota.
        cpus_online: CPUs of the machine.
        isa_levels: Targets whose instructions this CPU has, lowest first: ``x86-64-v2`` … or ``arm64``.
        instruction_sets: The notable ones: ``avx2``, ``avx512``, ``avx512-vnni``, ``amx``, ``neon``, …
        memory_bytes: Memory that this process may use: the machine's, cut by the container's limit.
        gpus: NVIDIA GPUs.
    """

    system: str
    architecture: str
    cpu: str
    cpus: int
    cpus_online: int
    isa_levels: tuple[str, ...]
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    gpus: tuple[Gpu, ...]


@functools.cache
def this_machine() -> Machine:
    """The machine that this process runs on."""
    flags = cpu_flags()
    architecture = _architecture()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        architecture=architecture,
        cpu=_cpu_model(),
        cpus=usable_cpus(),
        cpus_online=os.cpu_count() or 1,
        isa_levels=isa_levels(architecture, flags),
        instruction_sets=tuple(word for flag, word in _NOTABLE.items() if flag in flags),
        memory_bytes=_memory_bytes(),
        gpus=_gpus(),
    )


def isa_levels(architecture: str, flags: Iterable[str]) -> tuple[str, ...]:
    """The targets whose instructions a CPU has.

    Args:
        architecture: ``x86_64`` or ``arm64``.
        flags: The CPU's features in the words of Linux's ``/proc/cpuinfo``.

    Returns:
        The levels, lowest first; a level counts only if all below it are there.
    """
    if architecture == "arm64":
        return ("arm64",)
    if architecture != "x86_64":
        return ()
    have = set(flags)
    levels = []
    for level, needed in _X86_LEVELS:
        if not needed <= have:
            break
        levels.append(level)
    return tuple(levels)


def missing_flags(level: str, flags: Iterable[str]) -> tuple[str, ...]:
    """What a CPU lacks for an x86-64 level, in the words of ``/proc/cpuinfo``."""
    have = set(flags)
    missing: set[str] = set()
    for name, needed in _X86_LEVELS:
        missing |= needed - have
        if name == level:
            return tuple(sorted(missing))
    raise ValueError(f"level must be one of {[name for name, _ in _X86_LEVELS]}, got {level!r}")


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The CPU's features in the words of Linux; empty where they cannot be read."""
    if sys.platform == "darwin":
        return frozenset({"asimd"}) if _architecture() == "arm64" else frozenset()
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())


def usable_cpus() -> int:
    """How many CPUs this process may use: its affinity, cut by the container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup("cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        count = min(count, max(1, int(quota[0]) // int(quota[1])))
    return max(1, count)


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Installed versions of packages from their metadata, without importing them; None if one is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _architecture() -> str:
    machine = platform.machine().lower()
    return _ARCHITECTURES.get(machine, machine)


def _cpu_model() -> str:
    if sys.platform == "darwin":
        name = _output(["sysctl", "-n", "machdep.cpu.brand_string"]).strip()
    else:
        name = _cpuinfo("model name")
    return name or platform.processor() or "unknown"


def _cpuinfo(key: str) -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _memory_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup("memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _cgroup(name: str) -> str:
    # Inside a container /sys/fs/cgroup is the container's own group (cgroup v2).
    return _read(Path("/sys/fs/cgroup") / name)


def _gpus() -> tuple[Gpu, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    query = "--query-gpu=name,memory.total,compute_cap,driver_version"
    return parse_nvidia_smi(_output(["nvidia-smi", query, "--format=csv,noheader,nounits"]))


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """Read the answer to ``nvidia-smi --query-gpu=name,memory.total,compute_cap,driver_version``; MiB, no header."""
    gpus = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4:
            name, memory, capability, driver = fields
            # A Jetson shares its memory with the CPU and answers "[N/A]".
            gpus.append(Gpu(name, int(memory) * 2**20 if memory.isdigit() else 0, capability, driver))
    return tuple(gpus)


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""  # a broken driver means: no GPU to use
    return done.stdout


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
