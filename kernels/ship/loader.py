"""Load and launch a cubin through ``cuda.core``: no Triton, no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepto.kernels.ship.manifest import CubinError, Manifest, check_cubin, read_manifest


@dataclass(frozen=True, slots=True)
class Loaded:
    """A kernel on a GPU.

    Attributes:
        manifest: What it is.
        kernel: Of ``cuda.core``.
    """

    manifest: Manifest
    kernel: Any

    def launch(self, stream: Any, values: dict[str, int | float], *, blocks: int) -> None:
        """Launch it.

        Args:
            stream: A ``cuda.core.Stream``.
            values: Each argument by its name: pointers as addresses, strides in elements.
            blocks: ``cdiv(max_q, block_m) * heads * batch``.

        Raises:
            CubinError: An argument is missing or unknown.
        """
        from cuda.core import LaunchConfig, launch

        config = LaunchConfig(grid=blocks, block=self.manifest.threads, shmem_size=self.manifest.shared_bytes)
        launch(stream, config, self.kernel, *pack_arguments(self.manifest, values))


def load(path: str | Path) -> Loaded:
    """Load the cubin that a manifest describes on the current GPU.

    Args:
        path: Of the JSON file; the cubin lies beside it.

    Raises:
        CubinError: A check failed, or ``cuda.core`` or its driver is missing.
    """
    path = Path(path)
    manifest = read_manifest(path)
    cubin = path.with_suffix(".cubin").read_bytes()
    check_cubin(manifest, cubin, current_architecture())
    from cuda.core import ObjectCode

    kernel = ObjectCode.from_cubin(cubin, name=manifest.name).get_kernel(manifest.symbol)
    _allow_shared(kernel, manifest)
    return Loaded(manifest, kernel)


def _allow_shared(kernel: Any, manifest: Manifest) -> None:
    """More dynamic shared memory than 48 KiB must be asked for (CUDA C++ Programming Guide, compute capability 7.x)."""
    from cuda.bindings import driver
    from cuda.core import Device

    which = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    device = driver.CUdevice(Device().device_id)
    (status,) = driver.cuKernelSetAttribute(which, manifest.shared_bytes, kernel.handle, device)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise CubinError(
            f"{manifest.name} needs {manifest.shared_bytes} bytes of shared memory: the driver says {status}"
        )


def current_architecture() -> str:
    """That of the current GPU.

    Raises:
        CubinError: There is no ``cuda.core``, no driver, or no GPU.
    """
    try:
        from cuda.core import Device
    except ImportError as error:
        raise CubinError("cuda.core is missing, which loads cubins: pip install 'lepto[cubin]'") from error
    try:
        device = Device()
        device.set_current()
        capability = device.compute_capability
    except Exception as error:  # its errors without a driver have no common base
        raise CubinError(f"no NVIDIA GPU with a driver was found: {type(error).__name__}: {error}") from error
    return f"sm_{capability[0]}{capability[1]}"


def pack_arguments(manifest: Manifest, values: dict[str, int | float]) -> list[Any]:
    """The arguments in order, each of its C type (``cuda.core`` takes an int for a pointer), null for the hidden ones.

    Raises:
        CubinError: An argument is missing or unknown.
    """
    import ctypes

    names = [name for name, _ in manifest.arguments]
    if set(names) != set(values):
        wrong = ", ".join(sorted(set(names) ^ set(values)))
        raise CubinError(f"{manifest.name} takes {', '.join(names)}; missing or unknown: {wrong}")
    kinds: dict[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
    packed = [kinds.get(kind, int)(values[name]) for name, kind in manifest.arguments]
    return packed + [0] * manifest.hidden
