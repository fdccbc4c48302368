"""TensorRT engines in a model repository: which may be published, and what their configuration must keep to.

An engine is for one GPU and one version of TensorRT. It is published under a file name that only a GPU of its compute
capability is told (``cc_model_filenames``), so that a server on another one refuses it instead of trying.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepto.runtime.errors import LeptoError
from lepto.runtime.machine import this_machine
from lepto.runtime.package import BUILD_SCRIPT, ENGINE, ENGINE_FILES, ENGINE_RECORD, Package


@dataclass(frozen=True, slots=True)
class Plan:
    """An engine that was built and checked.

    Attributes:
        compute_capability: Of the only kind of GPU that runs it, such as ``8.7``.
        tensorrt: The version that built it.
        profile: For each input its smallest and largest shape, batch included.
    """

    compute_capability: str
    tensorrt: str
    profile: Mapping[str, tuple[Sequence[int], Sequence[int]]]

    @property
    def file(self) -> str:
        """Its name in a version's folder."""
        return f"sm{self.compute_capability.replace('.', '')}.plan"

    @property
    def max_batch(self) -> int:
        """The largest batch that every input takes."""
        return min(int(largest[0]) for _, largest in self.profile.values())

    def inside(self, name: str, axis: int, size: int) -> int:
        """The size next to ``size`` that an input's axis takes; the batch is axis 0."""
        if name not in self.profile:  # it has one shape
            return size
        smallest, largest = self.profile[name]
        return min(max(size, int(smallest[axis])), int(largest[axis]))

    def __str__(self) -> str:
        """For people."""
        return f"TensorRT {self.tensorrt}, compute capability {self.compute_capability}"


def read_plan(folder: Path) -> Plan | None:
    """What a published version's folder says of its engine; None if it is no engine.

    Raises:
        LeptoError: It cannot be read.
    """
    try:
        return _plan(json.loads((folder / ENGINE_RECORD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LeptoError(f"{folder / ENGINE_RECORD} is broken ({error}): publish the package again") from error


def publishable_plan(package: Package) -> Plan | None:
    """The engine of a package that may be published; None for a package without one.

    Raises:
        LeptoError: There is a build kit but no engine, the engine is not Triton's, was never run, differed from the
            stored probe when it was, or is for another GPU than the one that is here.
    """
    if not ENGINE_FILES & set(package.manifest.files):
        return None
    where = f"python3 {BUILD_SCRIPT}"
    if ENGINE not in package.manifest.files:
        raise LeptoError(
            f"{package.path} is a build kit for {package.manifest.target} and has no engine yet: copy it there, "
            f"run `{where} build {package.path} --output built`, and publish `built`"
        )
    try:
        record: dict[str, Any] = json.loads((package.path / ENGINE_RECORD).read_text(encoding="utf-8"))
        runtime, check = record["runtime"], record["check"]
        plan = _plan(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LeptoError(f"{package.path / ENGINE_RECORD} is broken ({error}): build the engine again") from error
    if runtime != "tensorrt":
        raise LeptoError(
            f"{package.path} has an engine of {runtime} for {package.manifest.target}: Triton's tensorrt_plan backend "
            "reads engines of TensorRT alone; publish a package for l4, t4, h200 or jetson-orin, or for a CPU"
        )
    if record.get("plan_sha256") != hashlib.sha256((package.path / ENGINE).read_bytes()).hexdigest():
        raise LeptoError(f"{package.path / ENGINE} is not the engine of {ENGINE_RECORD}: build it again")
    if not check:
        raise LeptoError(
            f"the engine of {package.path} was never run: run `{where} check {package.path}` on the device, which "
            "compares it with the stored probe, and publish it then"
        )
    if not check.get("ok"):
        raise LeptoError(
            f"the engine of {package.path} is not published: on the device it differed from the stored probe: "
            f"{json.dumps(check)}; compile with more layers in float32",
            exit_code=1,
        )
    smallest = {name: int(shapes[0][0]) for name, shapes in plan.profile.items()}
    if any(size > 1 for size in smallest.values()):
        raise LeptoError(
            f"the profile of {package.path} begins at a batch of {max(smallest.values())}, and a request may hold one "
            "row: build it with a minimum of 1"
        )
    gpus = [gpu.compute_capability for gpu in this_machine().gpus]
    if gpus and plan.compute_capability not in gpus:
        raise LeptoError(
            f"{package.path} is for a GPU of compute capability {plan.compute_capability}, and the GPU here has "
            f"{', '.join(sorted(set(gpus)))}: build the engine on this machine"
        )
    return plan


def _plan(record: Mapping[str, Any]) -> Plan:
    profile = {name: (shapes["min"], shapes["max"]) for name, shapes in record["profile"].items()}
    if not profile:
        raise ValueError("it has no profile")
    return Plan(str(record["compute_capability"]), str(record["version"]), profile)
