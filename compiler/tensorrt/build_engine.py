#!/usr/bin/env python3
"""Build the TensorRT engine of a package on the device that will run it, and check it there.

It needs Python 3.8, numpy and TensorRT's Python package; nothing of Lepto.

    python3 build_engine.py build PACKAGE --output BUILT   build the engine; BUILT is the package with its engine
    python3 build_engine.py check BUILT                    run the stored probe and compare with the stored outputs

``build`` runs ``check`` too where there is a GPU. LEPTO_TENSORRT=tensorrt_rtx takes TensorRT for RTX instead.
Exit codes: 0 good, 1 outputs differ, 2 wrong input, 3 the graph is refused, 4 the build failed, 5 no GPU.
"""

import argparse
import ctypes
import ctypes.util
import hashlib
import importlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional

import numpy as np

MODULE = os.environ.get("LEPTO_TENSORRT", "tensorrt")
if TYPE_CHECKING:
    import tensorrt as trt
else:
    try:
        trt = importlib.import_module(MODULE)
    except ImportError as error:
        sys.exit("error: %s cannot be imported (%s): install TensorRT's Python package" % (MODULE, error))

SPEC, ENGINE, RECORD, MANIFEST, MODEL, PROBE = (
    "build.json",
    "engine.plan",
    "engine.json",
    "manifest.json",
    "model.onnx",
    "probe.npz",
)


class BuildError(Exception):
    """Something stopped the work; ``details`` is for programs."""

    def __init__(self, message: str, code: int, details: Optional[Dict[str, Any]] = None) -> None:
        super().__init__(message)
        self.code, self.details = code, details or {}


class Log(trt.ILogger):
    """Keeps errors, and writes which node is read to a file: the last line names the one that crashed the parser."""

    def __init__(self, trail: Optional[Path]) -> None:
        trt.ILogger.__init__(self)
        self.errors: List[str] = []
        self.trail = None if trail is None else trail.open("w")

    def log(self, severity: "trt.ILogger.Severity", msg: str) -> None:
        """Take one message of TensorRT."""
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(msg.strip())
        if self.trail is not None and ("Parsing node" in msg or "Searching for" in msg):
            self.mark(msg.strip())

    def mark(self, line: str) -> None:
        """Write a line to the trail at once."""
        if self.trail is not None:
            self.trail.write(line + "\n")
            self.trail.flush()


def check_spec(spec: Dict[str, Any]) -> None:
    """Refuse profiles that no engine could have."""
    for name, shapes in spec["profile"].items():
        low, middle, high = (shapes[key] for key in ("min", "opt", "max"))
        if not (len(low) == len(middle) == len(high)) or any(
            not 1 <= a <= b <= c for a, b, c in zip(low, middle, high)
        ):
            raise BuildError(
                "the profile of %r must have 1 <= min <= opt <= max, got %s, %s, %s" % (name, low, middle, high), 2
            )


def build(folder: Path, trail: Optional[Path] = None) -> Dict[str, Any]:
    """Build the engine of ``folder``; returns ``plan`` (bytes) and what is known of it."""
    spec = json.loads((folder / SPEC).read_text())
    check_spec(spec)
    rtx = MODULE.startswith("tensorrt_rtx")
    wanted = "tensorrt-rtx" if rtx else "tensorrt"
    if spec["builder"] != wanted:
        raise BuildError("target %s is built with %s, not with %s" % (spec["target"], spec["builder"], MODULE), 2)
    data = (folder / spec["model"]).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != spec["model_sha256"]:
        raise BuildError("%s was changed: its SHA-256 is not the one of %s" % (spec["model"], SPEC), 2)
    gpu = None if rtx else find_gpu(spec)
    start = time.time()
    log = Log(trail)
    builder = trt.Builder(log)
    # Since TensorRT 11 there are no other networks, and the flag may be gone.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(data):
        refused = [_refusal(parser.get_error(i)) for i in range(parser.num_errors)]
        first = refused[0] if refused else {"node": "", "operator": "", "said": "; ".join(log.errors)}
        raise BuildError(
            "%s cannot read node %r (%s): %s" % (MODULE, first["node"], first["operator"], first["said"]),
            3,
            {"refused": refused},
        )
    log.mark("parsed")
    config = builder.create_builder_config()
    _configure(config, builder, spec, rtx)
    cache = _timing_cache(config, folder, spec, rtx)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(
            "%s %s cannot build %s: %s" % (MODULE, trt.__version__, spec["model"], "; ".join(log.errors) or "?"),
            4,
            {"messages": log.errors},
        )
    if cache is not None:
        cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    content = bytes(plan)
    record = {
        "schema": "lepto.engine/1",
        "runtime": wanted,
        "version": trt.__version__,
        "target": spec["target"],
        "compute_capability": spec["compute_capability"],
        "gpu": None if gpu is None else gpu["name"],
        "version_compatible": spec["options"]["version_compatible"],
        "same_compute_capability": spec["options"]["same_compute_capability"],
        "profile": spec["profile"],
        "model_sha256": digest,
        "plan_sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "seconds": round(time.time() - start, 3),
        "check": None,
    }
    return {"plan": content, "record": record}


def _refusal(error: "trt.ParserError") -> Dict[str, str]:
    return {
        "node": error.node_name(),
        "operator": error.node_operator(),
        "said": error.desc().strip(),
        "code": str(error.code()),
    }


def _configure(config: "trt.IBuilderConfig", builder: "trt.Builder", spec: Dict[str, Any], rtx: bool) -> None:
    profile = builder.create_optimization_profile()
    for name, shapes in spec["profile"].items():
        profile.set_shape(name, shapes["min"], shapes["opt"], shapes["max"])
    config.add_optimization_profile(profile)
    options = spec["options"]
    if options["version_compatible"]:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options["same_compute_capability"]:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    if rtx:
        config.num_compute_capabilities = 1
        name = "SM" + spec["compute_capability"].replace(".", "")
        config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)


def _timing_cache(config: "trt.IBuilderConfig", folder: Path, spec: Dict[str, Any], rtx: bool) -> Optional[Path]:
    """Kernels that were timed once are not timed again; TensorRT for RTX times nothing at build time."""
    if rtx or not spec["options"].get("timing_cache"):
        return None
    # Beside the package: nothing unknown may be in it.
    path = folder.resolve().parent / str(spec["options"]["timing_cache"])
    config.set_timing_cache(config.create_timing_cache(path.read_bytes() if path.exists() else b""), False)
    return path


class Cuda:
    """The few calls of the CUDA runtime that a check needs, without a package."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("cudart")
        candidates = [name] if name else []
        candidates += ["libcudart.so", "libcudart.so.13", "libcudart.so.12", "/usr/local/cuda/lib64/libcudart.so"]
        for candidate in candidates:
            try:
                self.lib = ctypes.CDLL(candidate)
                break
            except OSError:
                continue
        else:
            raise BuildError("no GPU can be used here: the CUDA runtime (libcudart) was not found", 5)
        count = ctypes.c_int(0)
        if self.lib.cudaGetDeviceCount(ctypes.byref(count)) != 0 or count.value == 0:
            raise BuildError("no GPU can be used here: CUDA finds no device", 5)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function and refuse its error codes."""
        code = getattr(self.lib, name)(*arguments)
        if code != 0:
            raise BuildError("%s failed with CUDA error %d" % (name, code), 5)

    def attribute(self, number: int) -> int:
        """An attribute of device 0 (cudaDeviceAttr)."""
        value = ctypes.c_int(0)
        self.call("cudaDeviceGetAttribute", ctypes.byref(value), number, 0)
        return value.value

    def capability(self) -> str:
        """The compute capability of device 0."""
        return "%d.%d" % (self.attribute(75), self.attribute(76))

    def upload(self, array: "np.ndarray[Any, Any]") -> ctypes.c_void_p:
        """Copy an array to new memory on the device."""
        pointer = self.allocate(array.nbytes)
        self.call("cudaMemcpy", pointer, array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(array.nbytes), 1)
        return pointer

    def allocate(self, size: int) -> ctypes.c_void_p:
        """New memory on the device."""
        pointer = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return pointer

    def download(self, pointer: ctypes.c_void_p, array: "np.ndarray[Any, Any]") -> None:
        """Copy from the device into an array."""
        self.call("cudaMemcpy", array.ctypes.data_as(ctypes.c_void_p), pointer, ctypes.c_size_t(array.nbytes), 2)


def find_gpu(spec: Dict[str, Any]) -> Dict[str, str]:
    """The GPU of this machine, if it is the one that the package is for."""
    found = Cuda().capability()
    if found != spec["compute_capability"]:
        raise BuildError(
            "the package is for %s (compute capability %s), this GPU has %s: compile it for this GPU"
            % (spec["target"], spec["compute_capability"], found),
            2,
        )
    return {"name": "compute capability %s" % found}


def compare(found: Dict[str, Any], stored: Dict[str, Any], tolerance: Dict[str, float]) -> Dict[str, Any]:
    """How far outputs lie from the stored ones; NaN agrees with nothing."""
    result: Dict[str, Any] = {"ok": True, "outputs": {}}
    for name, expected in stored.items():
        value = np.asarray(found[name])
        a, b = value.astype(np.float64), np.asarray(expected).astype(np.float64)
        if a.shape != b.shape or not np.isfinite(a).all():
            result["ok"] = False
            result["outputs"][name] = {"max_abs": None, "shape": list(a.shape)}
            continue
        difference = np.abs(a - b)
        result["ok"] &= bool((difference <= tolerance["atol"] + tolerance["rtol"] * np.abs(b)).all())
        result["outputs"][name] = {"max_abs": float(difference.max()) if difference.size else 0.0}
    return result


def run(plan: bytes, inputs: Dict[str, Any], outputs: List[str]) -> Dict[str, Any]:
    """Run one batch through an engine."""
    cuda = Cuda()
    log = Log(None)
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildError("the engine is not for this GPU or this TensorRT %s: %s" % (trt.__version__, log.errors), 4)
    context = engine.create_execution_context()
    held: List[ctypes.c_void_p] = []
    try:
        for name, array in inputs.items():
            data = np.ascontiguousarray(array)
            if not context.set_input_shape(name, data.shape):
                raise BuildError("input %r of shape %s is outside of the profile" % (name, list(data.shape)), 2)
            held.append(cuda.upload(data))
            context.set_tensor_address(name, int(held[-1].value or 0))
        results = {}
        for name in outputs:
            array = np.empty(tuple(context.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name)))
            held.append(cuda.allocate(array.nbytes))
            context.set_tensor_address(name, int(held[-1].value or 0))
            results[name] = (held[-1], array)
        if not context.execute_async_v3(0):
            raise BuildError("the engine failed to run: %s" % log.errors, 4)
        cuda.call("cudaDeviceSynchronize")
        for pointer, array in results.values():
            cuda.download(pointer, array)
        return {name: array for name, (_, array) in results.items()}
    finally:
        for pointer in held:
            cuda.lib.cudaFree(pointer)


def check(folder: Path) -> Dict[str, Any]:
    """Run the stored probe, in batches that the profile takes, and compare."""
    spec = json.loads((folder / SPEC).read_text())
    plan = (folder / ENGINE).read_bytes()
    with np.load(str(folder / PROBE), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    inputs = {name[6:]: array for name, array in arrays.items() if name.startswith("input/")}
    expected = {name[7:]: array for name, array in arrays.items() if name.startswith("output/")}
    rows = len(next(iter(inputs.values())))
    step = min(shapes["max"][0] for shapes in spec["profile"].values())
    parts = [
        run(plan, {name: array[i : i + step] for name, array in inputs.items()}, list(expected))
        for i in range(0, rows, step)
    ]
    found = {name: np.concatenate([part[name] for part in parts]) for name in expected}
    result = compare(found, expected, spec["tolerance"])
    result["rows"] = rows
    return result


def write(source: Path, output: Path, plan: bytes, record: Dict[str, Any]) -> None:
    """Write the package again with its engine; the manifest knows the digests of the new files."""
    if output.resolve() != source.resolve():
        if output.exists():
            raise BuildError("%s exists: choose another folder" % output, 2)
        shutil.copytree(str(source), str(output))
    (output / ENGINE).write_bytes(plan)
    (output / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    manifest = output / MANIFEST
    if manifest.exists():
        document = json.loads(manifest.read_text())
        for name in (ENGINE, RECORD):
            document["files"][name] = hashlib.sha256((output / name).read_bytes()).hexdigest()
        document["files"] = dict(sorted(document["files"].items()))
        manifest.write_text(json.dumps(document, indent=2) + "\n")


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "check"])
    parser.add_argument("package", type=Path, help="folder with build.json, model.onnx and probe.npz")
    parser.add_argument("--output", type=Path, help="folder to write; build only")
    parser.add_argument("--trail", type=Path, help="file that names the node that is read")
    parser.add_argument("--no-check", action="store_true", help="do not run the engine after the build")
    arguments = parser.parse_args()
    try:
        if arguments.what == "build":
            if arguments.output is None:
                raise BuildError("give --output", 2)
            built = build(arguments.package, arguments.trail)
            write(arguments.package, arguments.output, built["plan"], built["record"])
            print(json.dumps(built["record"]))
            if arguments.no_check:
                return 0
        folder = arguments.output or arguments.package
        result = check(folder)
        record = json.loads((folder / RECORD).read_text())
        record["check"] = result
        write(folder, folder, (folder / ENGINE).read_bytes(), record)
        print(json.dumps(result))
        return 0 if result["ok"] else 1
    except BuildError as failure:
        print("error: %s" % failure, file=sys.stderr)
        print(json.dumps({"error": str(failure), **failure.details}))
        return failure.code


if __name__ == "__main__":
    sys.exit(main())
