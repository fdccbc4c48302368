import dataclasses

import pytest

from lepto.runtime.doctor import (
    Verdict,
    component_versions,
    diagnose,
    missing_requirements,
    report_target,
    server_verdict,
)
from lepto.runtime.machine import Gpu, Machine
from lepto.runtime.targets import TARGETS, find_target

V2 = frozenset(["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"])
LAPTOP = Machine("Linux", "x86_64", "old", 2, 2, ("x86-64-v2",), (), 2**32, ())
YES = Verdict(True)


def report(name, machine=LAPTOP, flags=V2, lacking=(), server=YES):
    return report_target(TARGETS[name], machine, flags, lacking=lacking, server=server)


def test_all_targets_of_the_release_are_told():
    assert set(TARGETS) >= {
        *("x86-64-v2", "x86-64-v3", "x86-64-v4", "arm64"),
        *("jetson-orin", "t4", "l4", "h200", "rtx-ada", "rtx-blackwell"),
    }
    for target in TARGETS.values():
        assert (target.kind == "cpu") == (target.builder == "onnxruntime") == (target.compute_capability == "")
        assert (target.kind == "gpu") == bool(target.toolkits)
    assert [toolkit.tensorrt for toolkit in TARGETS["jetson-orin"].toolkits] == [10, 11]


def test_a_target_that_fits():
    found = report("x86-64-v2")
    assert (found.build, found.run, found.serve) == (YES, YES, YES)


def test_a_cpu_without_the_instructions():
    found = report("x86-64-v3")
    assert not any(verdict.ok for verdict in (found.run, found.serve))
    assert "this CPU lacks abm, avx, avx2" in found.run.reason
    assert found.build.ok
    assert found.build.reason.startswith("candidates are timed on this CPU in its place: this CPU lacks abm")
    assert report("x86-64-v3", lacking=("torch",)).build == Verdict(False, "not installed: torch")
    assert not report("arm64").build.ok


def test_another_architecture():
    assert report("arm64").run.reason == "this is a machine of architecture x86_64, not arm64"
    arm = dataclasses.replace(LAPTOP, architecture="arm64", isa_levels=("arm64",))
    assert report("arm64", arm, frozenset({"asimd"})).run == YES
    assert "not x86_64" in report("x86-64-v2", arm, frozenset({"asimd"})).run.reason


def test_a_device_without_the_compiler_runs():
    found = report("x86-64-v2", lacking=("torch", "onnx"))
    assert found.build == Verdict(False, "not installed: torch, onnx")
    assert found.run == YES


def gpu_report(name, capability=None, **versions):
    gpus = () if capability is None else (Gpu("card", 2**34, capability, "580.1"),)
    machine = dataclasses.replace(LAPTOP, gpus=gpus)
    return report_target(TARGETS[name], machine, V2, lacking=(), server=YES, versions=versions)


def test_an_engine_of_tensorrt_is_built_on_its_gpu_alone():
    for name in ("t4", "l4", "h200", "jetson-orin"):
        found = gpu_report(name, tensorrt="11.4.0")
        assert not any(verdict.ok for verdict in (found.build, found.run, found.serve))
        assert "build kit" in found.build.reason
    assert "tensorrt is not installed" in gpu_report("l4", "8.9").build.reason
    found = gpu_report("l4", "8.9", tensorrt="11.4.0")
    assert (found.build, found.run, found.serve) == (YES, YES, YES)
    assert "8.9 is here" in gpu_report("l4", "9.0", tensorrt="11.4.0").run.reason


def test_an_engine_for_rtx_is_built_anywhere():
    found = gpu_report("rtx-ada", **{"tensorrt-rtx": "1.7.1.116"})
    assert found.build == YES
    assert not found.run.ok
    assert "lepto[rtx]" in gpu_report("rtx-blackwell").build.reason


def test_missing_requirements_come_from_the_metadata():
    requirements = [
        "numpy>=1.26",
        "no-such-runtime-package",
        "no-such-compiler>=2.9; extra == 'compile'",
        'numpy ; extra == "compile"',
        "no-such-server==1; python_version < '3.13' and extra == 'server'",
    ]
    assert missing_requirements("compile", requirements) == ("no-such-compiler",)
    assert missing_requirements("server", requirements) == ("no-such-server",)
    assert missing_requirements("compil", requirements) == ()


def test_server_needs_old_numpy(monkeypatch):
    monkeypatch.setattr("lepto.runtime.tritonserver.find_installation", lambda: None)
    assert server_verdict({"numpy": "1.26.4"}) == YES
    assert "needs numpy < 2, found 2.3.1" in server_verdict({"numpy": "2.3.1"}).reason


def test_versions_of_what_runs_here():
    versions = component_versions()
    assert versions["lepto"]
    assert versions["onnxruntime"]
    assert versions["python"]


def test_diagnosis_of_this_machine_is_consistent():
    diagnosis = diagnose()
    for found in diagnosis.targets:
        for verdict in (found.build, found.run, found.serve):
            assert verdict.ok or verdict.reason


def test_find_target():
    assert find_target("arm64").kind == "cpu"
    with pytest.raises(ValueError, match="unknown target 'x86-64-v5'; did you mean 'x86-64-v"):
        find_target("x86-64-v5")
    with pytest.raises(ValueError, match="unknown target 'toaster'; known targets: x86-64-v2"):
        find_target("toaster")
