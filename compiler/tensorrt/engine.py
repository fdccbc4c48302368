"""Build an engine in a process of its own, with a time limit: a builder can crash, and must not take Lepto with it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import onnx

from lepto.compiler.model import OnnxModel
from lepto.compiler.tensorrt.standard import layer_of, prefix
from lepto.runtime.errors import LeptoError
from lepto.runtime.machine import this_machine
from lepto.runtime.package import BUILD_SCRIPT, BUILD_SPEC, ENGINE, ENGINE_RECORD, MODEL
from lepto.runtime.targets import Target

TIME_LIMIT_S = 600.0
_REFUSED = 3


@dataclass(frozen=True)
class Engine:
    """A built engine.

    Attributes:
        plan: Its bytes.
        record: What is known of it, as in ``engine.json``.
    """

    plan: bytes
    record: Mapping[str, Any]


class EngineError(LeptoError):
    """An engine could not be built.

    Attributes:
        node: Name of the node that is to blame; empty where none could be named.
    """

    def __init__(self, message: str, node: str = "") -> None:
        super().__init__(message, exit_code=1)
        self.node = node


def find_builder(target: Target) -> tuple[str, str]:
    """The module that builds engines for a target on this machine.

    Returns:
        Its name, empty if there is none; and then why, and what to do.
    """
    if target.builder == "tensorrt-rtx":
        if importlib.util.find_spec("tensorrt_rtx") is None:
            return "", "TensorRT for RTX is not installed: pip install 'lepto[rtx]'"
        return "tensorrt_rtx", ""
    if importlib.util.find_spec("tensorrt") is None:
        return "", "TensorRT is not installed: it comes with JetPack, or from NVIDIA as the Python package tensorrt"
    capabilities = [gpu.compute_capability for gpu in this_machine().gpus]
    if target.compute_capability not in capabilities:
        return "", f"no GPU of compute capability {target.compute_capability} ({target.name}) is here"
    return "tensorrt", ""


def build_engine(model: OnnxModel, spec: Mapping[str, Any], module: str, *, limit_s: float = TIME_LIMIT_S) -> Engine:
    """Build an engine.

    Args:
        model: The prepared graph.
        spec: As in ``build.json``.
        module: ``tensorrt`` or ``tensorrt_rtx``.
        limit_s: The build is ended after so many seconds.

    Raises:
        EngineError: The builder refused the graph, crashed, or took too long; the node is named where it can be.
    """
    start = time.monotonic()
    outcome = _build(model, spec, module, limit_s)
    if isinstance(outcome, Engine):
        return outcome
    node, operator = _named(outcome, model)
    if not node and outcome.crashed:  # a parser that crashed left its trail; a builder that crashed did not
        node, operator = _first_to_fail(model, spec, module, limit_s - (time.monotonic() - start))
    where = f" at node {node!r} ({operator})" if node else ""
    layer = _layer(model, node)
    where += f" of layer {layer!r}" if layer else ""
    raise EngineError(
        f"{module} {outcome.what}{where}: {outcome.said}. "
        + (_advice(operator) if node else "Leave parts out of fp16 or int8 with the options keep and exclude"),
        node,
    )


@dataclass(frozen=True)
class _Failed:
    what: str
    said: str
    node: str = ""
    operator: str = ""
    crashed: bool = False


def _build(model: OnnxModel, spec: Mapping[str, Any], module: str, limit_s: float) -> Engine | _Failed:
    with tempfile.TemporaryDirectory(prefix="lepto-") as name:
        folder, trail = Path(name) / "kit", Path(name) / "trail"
        folder.mkdir()
        (folder / MODEL).write_bytes(model.data)
        (folder / BUILD_SPEC).write_text(json.dumps({**spec, "model_sha256": model.digest}))
        with as_file(files("lepto.compiler.tensorrt").joinpath(BUILD_SCRIPT)) as script:
            command = [sys.executable, str(script), "build", str(folder), "--output", str(folder), "--no-check"]
            try:
                ran = subprocess.run(
                    [*command, "--trail", str(trail)],
                    capture_output=True,
                    text=True,
                    timeout=max(limit_s, 0.1),
                    env={**os.environ, "LEPTO_TENSORRT": module},
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return _Failed("was ended", f"the build took longer than {limit_s:.0f} s", *_last(trail), False)
        if ran.returncode == 0:
            return Engine((folder / ENGINE).read_bytes(), json.loads((folder / ENGINE_RECORD).read_text()))
        if ran.returncode < 0:
            name = signal.Signals(-ran.returncode).name
            return _Failed("crashed", f"signal {name}", *_last(trail), True)
        said = _document(ran.stdout)
        if ran.returncode == _REFUSED and said.get("refused"):
            first = said["refused"][0]
            return _Failed("refuses the graph", first["said"], first["node"], first["operator"])
        return _Failed("cannot build it", said.get("error") or ran.stderr.strip()[-500:] or "no reason was given")


def _document(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        return {}


def _last(trail: Path) -> tuple[str, str]:
    """The node that was being read when the process ended; nothing if all were read."""
    lines = trail.read_text().splitlines() if trail.exists() else []
    if not lines or lines[-1] == "parsed" or "parsed" in lines:
        return "", ""
    named = [line.partition("Parsing node: ")[2] for line in lines if "Parsing node: " in line]
    if not named:
        return "", ""
    node, _, operator = named[-1].rpartition(" [")
    return node, operator.rstrip("]")


def _named(outcome: _Failed, model: OnnxModel) -> tuple[str, str]:
    """The node of an outcome, else the one whose name the message has."""
    nodes = {node.name: node.op_type for node in model.proto().graph.node}
    if outcome.node:
        return outcome.node, outcome.operator or nodes.get(outcome.node, "")
    mentioned = [name for name in nodes if name and name in outcome.said]
    name = max(mentioned, key=len, default="")
    return name, nodes.get(name, "")


def _first_to_fail(model: OnnxModel, spec: Mapping[str, Any], module: str, left_s: float) -> tuple[str, str]:
    """The last node of the shortest beginning of the graph that crashes the builder, by halving."""
    deadline = time.monotonic() + left_s
    nodes = model.proto().graph.node
    good, bad = 0, len(nodes)
    while bad - good > 1:
        middle = (good + bad) // 2
        part = prefix(model, middle)
        names = {value.name for value in part.proto().graph.input}
        small = {**spec, "profile": {name: shapes for name, shapes in spec["profile"].items() if name in names}}
        left = deadline - time.monotonic()
        if left <= 0:
            return "", ""
        outcome = _build(part, small, module, left)
        good, bad = (good, middle) if isinstance(outcome, _Failed) and outcome.crashed else (middle, bad)
    return nodes[bad - 1].name, nodes[bad - 1].op_type


def _layer(model: OnnxModel, node: str) -> str:
    found: list[onnx.NodeProto] = [one for one in model.proto().graph.node if one.name == node]
    return layer_of(found[0]) if found and node else ""


def _advice(operator: str) -> str:
    if operator == "NonZero":  # what takes the padding out
        return (
            "Sizes that depend on values are for TensorRT itself: leave unpad out of the pass attention, or compile "
            "for another GPU"
        )
    return (
        f"Write {operator} in other operators in the model, keep the node in float32 or out of int8 "
        "(tensorrt(keep=[…],exclude=[…])), or compile for a CPU"
    )
