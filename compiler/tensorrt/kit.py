"""The build kit: what a device needs to make the engine itself and to check it, as files of the package."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.tensorrt import Tensorrt
from lepto.compiler.tensorrt.profiles import Profile, trtexec_shapes
from lepto.runtime.manifest import Tolerance
from lepto.runtime.package import BUILD_SCRIPT, BUILD_SPEC, MODEL
from lepto.runtime.targets import Target, Toolkit

TIMING_CACHE = "timing.cache"


def build_spec(
    model: OnnxModel, target: Target, profile: Profile, step: Tensorrt, tolerance: Tolerance
) -> dict[str, Any]:
    """What ``build.json`` says: everything about the engine but the engine."""
    return {
        "schema": "lepto.build/1",
        "target": target.name,
        "builder": target.builder,
        "compute_capability": target.compute_capability,
        "toolkits": [{"name": toolkit.name, "tensorrt": toolkit.tensorrt} for toolkit in target.toolkits],
        "model": MODEL,
        "model_sha256": model.digest,
        "precision": step.precision,
        "profile": {name: shapes.to_json() for name, shapes in profile.items()},
        "options": {
            "version_compatible": step.version_compatible,
            "same_compute_capability": step.same_compute_capability,
            "timing_cache": TIMING_CACHE,
        },
        "tolerance": {"atol": tolerance.atol, "rtol": tolerance.rtol},
        "trtexec": {toolkit.name: trtexec(target, toolkit, profile, step) for toolkit in target.toolkits},
    }


def trtexec(target: Target, toolkit: Toolkit, profile: Profile, step: Tensorrt) -> str:
    """The one line that builds the same engine with NVIDIA's own tool.

    Precision is in the graph: TensorRT 10 is told not to choose its own (``--stronglyTyped``), 11 never does.
    """
    parts = ["tensorrt_rtx" if target.builder == "tensorrt-rtx" else "trtexec", f"--onnx={MODEL}"]
    if target.builder == "tensorrt-rtx":
        parts.append(f"--computeCapabilities={target.compute_capability}")
    else:
        parts += ["--stronglyTyped"] if toolkit.tensorrt < 11 else []
        parts.append(f"--timingCacheFile=../{TIMING_CACHE}")
    parts += trtexec_shapes(profile)
    if step.version_compatible:
        parts.append("--versionCompatible")
    if step.same_compute_capability:
        parts.append("--hardwareCompatibilityLevel=sameComputeCapability")
    return " ".join([*parts, "--saveEngine=../engine.plan"])


def kit_files(spec: dict[str, Any]) -> dict[str, bytes]:
    """The kit's files by name."""
    script = files("lepto.compiler.tensorrt").joinpath(BUILD_SCRIPT).read_bytes()
    return {BUILD_SPEC: (json.dumps(spec, indent=2) + "\n").encode(), BUILD_SCRIPT: script}


def kit_text(spec: dict[str, Any]) -> str:
    """How to use it, for the model card."""
    lines = ["", "## Build the engine on the device", ""]
    lines += [f"The engine is made on the {spec['target']} itself, where TensorRT and its Python package are:", ""]
    lines += ["```", f"python3 {BUILD_SCRIPT} build . --output ../built", "```", ""]
    lines += ["It runs the stored probe there and compares; `lepto publish ../built` takes the result. The same with"]
    lines += ["NVIDIA's own tool, without the check:", ""]
    for name, line in spec["trtexec"].items():
        lines += [f"{name}:", "", "```", line, "```", ""]
    return "\n".join(lines)
