"""What this machine is and what it can build, run and serve, each "no" with its reason."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lepto.runtime.errors import LeptoError
from lepto.runtime.machine import Machine, cpu_flags, missing_flags, package_versions, this_machine
from lepto.runtime.measure import Load, machine_load
from lepto.runtime.targets import TARGETS, Target

# The names under which each component is published; the first that is installed counts.
_COMPONENTS: dict[str, tuple[str, ...]] = {
    "lepto": ("lepto",),
    "numpy": ("numpy",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tokenizers": ("tokenizers",),
    "tritonclient": ("tritonclient",),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "onnx": ("onnx",),
    "onnxscript": ("onnxscript",),
    "optimum": ("optimum",),
    "datasets": ("datasets",),
    "triton": ("triton",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "nvidia-pytriton": ("nvidia-pytriton",),
}
# The wheel's metadata does not tell which tritonserver it carries; each was started and says so in its log.
_SERVERS = {"0.7.0": "2.51.0"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something can be done here, and if not, or not quite, why."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TargetReport:
    """What can be done for one target on this machine."""

    target: Target
    build: Verdict
    run: Verdict
    serve: Verdict


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that is not here.

    Attributes:
        what: Its name.
        why: What it is needed for.
        how: How to get it.
    """

    what: str
    why: str
    how: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that ``lepto doctor`` knows.

    Attributes:
        machine: The hardware.
        load: How busy it is.
        versions: Components and their versions; None for one that is not installed.
        targets: What can be done for each target.
        missing: What is not here.
    """

    machine: Machine
    load: Load
    versions: dict[str, str | None]
    targets: tuple[TargetReport, ...]
    missing: tuple[Missing, ...]


def diagnose() -> Diagnosis:
    """Look at this machine."""
    machine = this_machine()
    versions = component_versions()
    lacking = missing_requirements("compile")
    server = server_verdict(versions)
    targets = tuple(
        report_target(target, machine, cpu_flags(), lacking=lacking, server=server, versions=versions)
        for target in TARGETS.values()
    )
    return Diagnosis(machine, machine_load(), versions, targets, _missing(lacking, server))


def component_versions() -> dict[str, str | None]:
    """The versions of what Lepto works with, from the installed metadata."""
    installed = package_versions(name for names in _COMPONENTS.values() for name in names)
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for component, names in _COMPONENTS.items():
        versions[component] = next((installed[name] for name in names if installed[name] is not None), None)
    wheel = versions["nvidia-pytriton"]
    versions["tritonserver"] = None if wheel is None else _SERVERS.get(wheel, "unknown")
    return versions


def missing_requirements(extra: str, requirements: Iterable[str] | None = None) -> tuple[str, ...]:
    """The packages of an extra that are not installed.

    Args:
        extra: The extra's name.
        requirements: Requirements as in a wheel's metadata; by default those of the installed Lepto.
    """
    if requirements is None:
        requirements = importlib.metadata.requires("lepto") or []
    names = []
    for requirement in requirements:
        specifier, _, marker = requirement.partition(";")
        name = re.match(r"[A-Za-z0-9._-]+", specifier.strip())
        if name is not None and re.search(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""", marker):
            names.append(name.group())
    return tuple(name for name, version in package_versions(names).items() if version is None)


def server_verdict(versions: Mapping[str, str | None]) -> Verdict:
    """Whether a tritonserver can be started here."""
    from lepto.runtime.tritonserver import find_installation

    try:
        find_installation()
    except LeptoError as error:
        return Verdict(False, str(error))
    numpy = versions.get("numpy") or ""
    if not numpy.startswith("1."):
        return Verdict(False, f"the wheel's python backend needs numpy < 2, found {numpy}: pip install 'numpy<2'")
    return Verdict(True)


def report_target(
    target: Target,
    machine: Machine,
    flags: Iterable[str],
    *,
    lacking: tuple[str, ...],
    server: Verdict,
    versions: Mapping[str, str | None] | None = None,
) -> TargetReport:
    """What can be done for a target.

    Args:
        target: The target.
        machine: The machine.
        flags: The CPU's features in the words of Linux.
        lacking: Packages of the extra ``compile`` that are not installed.
        server: Whether a tritonserver can be started.
        versions: Installed components; TensorRT's decide what can be built for a GPU.
    """
    if target.kind == "gpu":
        return _report_gpu(target, machine, lacking, server, versions or {})
    fits = _fits(target, machine, flags)
    build = fits
    if not fits.ok and machine.architecture == "x86_64" and target.isa != "arm64":
        build = Verdict(True, f"candidates are timed on this CPU in its place: {fits.reason}")
    elif not fits.ok:
        build = Verdict(False, f"candidates are timed on the target, and {fits.reason}")
    if build.ok and lacking:
        build = Verdict(False, f"not installed: {', '.join(lacking)}")
    return TargetReport(target, build=build, run=fits, serve=server if fits.ok else fits)


def _report_gpu(
    target: Target, machine: Machine, lacking: tuple[str, ...], server: Verdict, versions: Mapping[str, str | None]
) -> TargetReport:
    """An engine of TensorRT is built and run on its GPU, one of TensorRT for RTX is built anywhere."""
    here = any(gpu.compute_capability == target.compute_capability for gpu in machine.gpus)
    gpu = f"no GPU of compute capability {target.compute_capability} is here"
    installed = versions.get(target.builder) is not None
    if lacking:
        build = Verdict(False, f"not installed: {', '.join(lacking)}")
    elif target.builder == "tensorrt-rtx":
        how = "not installed: tensorrt-rtx (pip install 'lepto[rtx]'); a build kit is written instead"
        build = Verdict(True) if installed else Verdict(False, how)
    elif here and installed:
        build = Verdict(True)
    else:
        why = "tensorrt is not installed" if here else gpu
        build = Verdict(False, f"{why}: lepto compile writes a build kit, which makes the engine on the device")
    if not here:
        return TargetReport(target, build, Verdict(False, gpu), Verdict(False, gpu))
    run = Verdict(True) if installed else Verdict(False, f"not installed: {target.builder}")
    if target.builder == "tensorrt-rtx":
        serve = Verdict(False, "Triton's tensorrt_plan backend does not read engines of TensorRT for RTX")
    else:
        serve = server
    return TargetReport(target, build, run, serve)


def _fits(target: Target, machine: Machine, flags: Iterable[str]) -> Verdict:
    if target.isa in machine.isa_levels:
        return Verdict(True)
    family = "arm64" if target.isa == "arm64" else "x86_64"
    if machine.architecture != family:
        return Verdict(False, f"this is a machine of architecture {machine.architecture}, not {family}")
    return Verdict(False, f"this CPU lacks {', '.join(missing_flags(target.isa, flags))}")


def _missing(lacking: tuple[str, ...], server: Verdict) -> tuple[Missing, ...]:
    missing = []
    if lacking:
        missing.append(Missing(", ".join(lacking), "compile, inspect, bench, gate", "pip install 'lepto[compile]'"))
    if not server.ok:
        missing.append(Missing("tritonserver", "serve", server.reason))
    return tuple(missing)
