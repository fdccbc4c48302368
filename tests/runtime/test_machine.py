import os
import platform

import pytest

from lepto.runtime import machine
from lepto.runtime.machine import (
    Gpu,
    isa_levels,
    missing_flags,
    package_versions,
    parse_nvidia_smi,
    this_machine,
    usable_cpus,
)

V2 = ["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"]
V3 = [*V2, *["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"]]
V4 = [*V3, *["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]]


@pytest.mark.parametrize(
    ("flags", "levels"),
    [
        ([], ()),
        (V2, ("x86-64-v2",)),
        (V3, ("x86-64-v2", "x86-64-v3")),
        (V4, ("x86-64-v2", "x86-64-v3", "x86-64-v4")),
        ([flag for flag in V4 if flag != "fma"], ("x86-64-v2",)),  # AVX-512 without FMA is not v4
        ([flag for flag in V4 if flag != "avx512vl"], ("x86-64-v2", "x86-64-v3")),
    ],
)
def test_levels_of_x86(flags, levels):
    assert isa_levels("x86_64", flags) == levels


def test_other_architectures():
    assert isa_levels("arm64", ["asimd"]) == ("arm64",)
    assert isa_levels("riscv64", V4) == ()


def test_missing_flags():
    assert missing_flags("x86-64-v4", V3) == ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
    assert missing_flags("x86-64-v3", V4) == ()
    with pytest.raises(ValueError, match="x86-64-v9"):
        missing_flags("x86-64-v9", V4)


def test_this_machine():
    here = this_machine()
    assert 1 <= here.cpus <= here.cpus_online == os.cpu_count()
    assert here.memory_bytes > 2**27
    assert here.cpu
    if platform.machine() == "x86_64" and platform.system() == "Linux":
        assert here.architecture == "x86_64"
        assert here.isa_levels  # every machine that runs onnxruntime has SSE4.2 at least


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("", 8), ("nonsense", 8)]
)
def test_a_container_quota_cuts_the_cpus(monkeypatch, quota, expected):
    monkeypatch.setattr(machine, "_cgroup", lambda name: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_cpus() == expected


def test_container_limit_cuts_the_memory(monkeypatch):
    monkeypatch.setattr(machine, "_cgroup", lambda name: "1048576\n")
    assert machine._memory_bytes() == 2**20
    monkeypatch.setattr(machine, "_cgroup", lambda name: "max\n")
    assert machine._memory_bytes() > 2**27


def test_arm_features(monkeypatch):
    monkeypatch.setattr(machine, "_read", lambda path: "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    machine.cpu_flags.cache_clear()
    try:
        assert machine.cpu_flags() == {"fp", "asimd", "asimddp", "i8mm"}
    finally:
        machine.cpu_flags.cache_clear()


def test_nvidia_smi():
    text = "NVIDIA L4, 23034, 8.9, 570.86.10\nOrin (nvgpu), [N/A], 8.7, 540.4.0\n"
    assert parse_nvidia_smi(text) == (
        Gpu("NVIDIA L4", 23034 * 2**20, "8.9", "570.86.10"),
        Gpu("Orin (nvgpu)", 0, "8.7", "540.4.0"),
    )
    assert parse_nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate with the driver\n") == ()
    assert parse_nvidia_smi("") == ()


def test_a_broken_driver_means_no_gpu(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert machine._gpus() == ()


def test_versions_come_without_importing():
    versions = package_versions(["numpy", "no-such-package-here"])
    assert versions["numpy"]
    assert versions["no-such-package-here"] is None
