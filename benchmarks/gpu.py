"""Time packages on an NVIDIA GPU: CUDA events around replayed CUDA graphs, with clocks and temperature beside them.

A GPU works behind its program's back: a clock of the CPU would time the launching. Events are stamped by the GPU
itself, between the kernels of one stream; a graph is launched as a whole, so that the time is not that of Python and
onnxruntime. What is copied in and out is not in it. Clocks and temperature are read before, between and after the
blocks, since a GPU that is too hot, or short of power, slows down without a word.

Sources: CUDA Runtime API, "Event Management" and "Graph Management"; ONNX Runtime, "CUDA Execution Provider", "Using
CUDA Graphs"; NVML API Reference, "nvmlClocksThrottleReasons".
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.benchmarks.workers import Seconds
from lepto.runtime.errors import LeptoError
from lepto.runtime.measure import Runner, interleave
from lepto.runtime.package import Package
from lepto.runtime.session import Session

Feed = Mapping[str, npt.NDArray[Any]]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
FIELDS: Final = (
    "name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw",
    "clocks_throttle_reasons.active",
)  # fmt: skip
# Bits of NVML's mask that slow a GPU down against its will; idle and chosen clocks are none.
REASONS: Final = {
    0x04: "power cap", 0x08: "hardware slowdown", 0x20: "temperature (software)", 0x40: "temperature (hardware)",
    0x80: "power brake",
}  # fmt: skip
# Beyond this the clock moved by more than what two packages are compared by.
DRIFT: Final = 0.03
WARMUP: Final = 20
# The CPU's answer and the GPU's differ by rounding; what differs by more is another model.
TOLERANCE: Final = 1e-2
HINT: Final = "leave --device out to measure on the CPU"


@dataclass(frozen=True, slots=True)
class Reading:
    """What the driver said at one moment.

    Attributes:
        name: The GPU.
        driver: Version of its driver.
        sm_mhz: Clock of its multiprocessors; None where the driver does not tell, as for all that follows.
        max_sm_mhz: The highest they can have.
        memory_mhz: Clock of its memory.
        temperature_c: Degrees Celsius.
        power_w: Watts.
        slowed_by: Why it runs slower than it could.
    """

    name: str
    driver: str
    sm_mhz: float | None
    max_sm_mhz: float | None
    memory_mhz: float | None
    temperature_c: float | None
    power_w: float | None
    slowed_by: tuple[str, ...]


def parse_reading(line: str) -> Reading:
    """Read one line of ``nvidia-smi --query-gpu=… --format=csv,noheader,nounits`` with the ``FIELDS``.

    Raises:
        LeptoError: It is something else.
    """
    cells = [cell.strip() for cell in line.strip().split(",")]
    if len(cells) != len(FIELDS):
        raise LeptoError(f"nvidia-smi gave {line.strip()!r} where {len(FIELDS)} values were asked for: {HINT}")
    clock, most, memory, temperature, power = (_number(cell) for cell in cells[2:7])
    try:
        mask = int(cells[7], 16)
    except ValueError:
        mask = 0  # "[N/A]": the driver does not tell
    why = tuple(why for bit, why in REASONS.items() if mask & bit)
    return Reading(cells[0], cells[1], clock, most, memory, temperature, power, why)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def notes(readings: Sequence[Reading]) -> list[str]:
    """What makes times of a GPU doubtful: a reason to slow down, or a clock that moved."""
    found = []
    if why := sorted({reason for reading in readings for reason in reading.slowed_by}):
        found.append(f"the GPU slowed itself down ({', '.join(why)}): cool it or lower its load, and measure again")
    clocks = [reading.sm_mhz for reading in readings if reading.sm_mhz]
    if clocks and max(clocks) / min(clocks) - 1 > DRIFT:
        found.append(
            f"its clock moved between {min(clocks):.0f} and {max(clocks):.0f} MHz: fix it (`nvidia-smi -lgc MHZ`, as "
            "root) for times that can be compared from run to run; the ratios of this run are paired and hold"
        )
    return found


def find_gpu() -> Callable[[], Reading]:
    """Make sure that a GPU can be timed here; returns what reads its clocks and temperature.

    Raises:
        LeptoError: There is no GPU, no driver, no PyTorch with CUDA or no onnxruntime with CUDA; the message says what
            to do.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        raise LeptoError(f"--device cuda needs an NVIDIA GPU and its driver: there is no nvidia-smi here; {HINT}")

    def read() -> Reading:
        command = [program, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits", "-i", "0"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if ran.returncode != 0 or not ran.stdout.strip():
            raise LeptoError(f"nvidia-smi does not answer ({(ran.stdout + ran.stderr).strip()[:200]}): {HINT}")
        return parse_reading(ran.stdout.splitlines()[0])

    read()
    import onnxruntime
    import torch

    if not torch.cuda.is_available():
        raise LeptoError(f"this PyTorch ({torch.__version__}) sees no GPU: install one with CUDA (pytorch.org); {HINT}")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise LeptoError(
            f"this onnxruntime ({onnxruntime.__version__}) has no CUDA: pip install onnxruntime-gpu instead; {HINT}"
        )
    return read


def shapes_of(feed: Feed) -> Shapes:
    """Names and shapes: a graph is captured for each."""
    return tuple((name, array.shape) for name, array in sorted(feed.items()))


class GpuModel:
    """A package on the GPU, with a captured graph for every shape that it is fed.

    Args:
        package: The package.
        feeds: Its inputs.
        stream: A ``torch.cuda.Stream``.
        graph: Capture graphs; without, every run launches kernel by kernel.

    Raises:
        LeptoError: The model does not load, cannot be captured, or answers otherwise than on the CPU.
    """

    def __init__(self, package: Package, feeds: Sequence[Feed], stream: Any, *, graph: bool) -> None:
        import onnxruntime

        self._package, self._stream, self._graph = package, stream, graph
        self._bound: dict[Shapes, tuple[Any, dict[str, Any], dict[str, Any], Any]] = {}
        options = {
            "user_compute_stream": str(stream.cuda_stream),
            "enable_cuda_graph": str(int(graph)),
            "use_tf32": "0",
        }
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(package.model_path), settings, providers=[("CUDAExecutionProvider", options)]
            )
        except Exception as error:  # onnxruntime's exceptions share no base class below Exception
            why = str(error).partition("\n")[0]
            more = "; where nodes run on the CPU, give --no-cuda-graph" if graph else ""
            raise LeptoError(f"{package.path} does not load on the GPU: {why}{more}") from error
        cpu = Session(package)
        for feed in feeds:
            if shapes_of(feed) not in self._bound:
                self._bind(feed, cpu.run(dict(feed)))

    def load(self, feed: Feed) -> Any:
        """Copy an input to the GPU; returns what :meth:`run` takes."""
        import torch

        bound = self._bound[shapes_of(feed)]
        with torch.cuda.stream(self._stream):
            for name, array in feed.items():
                bound[1][name].copy_(torch.from_numpy(np.ascontiguousarray(array)))
        return bound

    def run(self, bound: Any) -> None:
        """Launch what was loaded; returns before the GPU is done."""
        self._session.run_with_iobinding(bound[0], bound[3])

    def _bind(self, feed: Feed, expected: Mapping[str, npt.NDArray[Any]]) -> None:
        import onnxruntime
        import torch

        binding, how = self._session.io_binding(), onnxruntime.RunOptions()
        how.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._graph:
            how.add_run_config_entry("gpu_graph_id", str(len(self._bound) + 1))
        inputs = {name: torch.from_numpy(np.ascontiguousarray(array)).cuda() for name, array in feed.items()}
        outputs = {name: torch.from_numpy(np.zeros_like(array)).cuda() for name, array in expected.items()}
        for bind, tensors, arrays in (
            (binding.bind_input, inputs, feed),
            (binding.bind_output, outputs, expected),
        ):
            for name, tensor in tensors.items():
                bind(name, "cuda", 0, arrays[name].dtype, list(tensor.shape), tensor.data_ptr())
        self._bound[shapes_of(feed)] = binding, inputs, outputs, how
        # The first run prepares, the next is captured, the third is a replay.
        for _ in range(3):
            self.run(self.load(feed))
        self._stream.synchronize()
        for name, array in expected.items():
            given = outputs[name].cpu().numpy()
            if not np.allclose(given, array, rtol=TOLERANCE, atol=TOLERANCE):
                worst = float(np.abs(given.astype(np.float64) - array).max())
                raise LeptoError(f"{self._package.path}: {name!r} on the GPU differs by {worst:.3g} from the CPU's")


def measure(
    packages: Sequence[Package],
    feeds: Sequence[Sequence[Feed]],
    *,
    blocks: int,
    runs: int,
    seed: int,
    graph: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Seconds], list[Reading]]:
    """Time packages on the GPU, in randomised ABBA blocks on the same inputs.

    Args:
        packages: The packages.
        feeds: For each its inputs; place i stands for the same sample in all.
        blocks: How many blocks.
        runs: Runs of each package in a block.
        seed: Of the order.
        graph: Whether runs are replays of captured graphs.
        progress: Told after each block.

    Returns:
        For each package ``[blocks, runs]`` seconds by the GPU's events, and the readings of clocks and temperature:
        first, after each block, last.

    Raises:
        LeptoError: There is no GPU that can be timed, or a package does not run on it.
    """
    read = find_gpu()
    import torch

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch gives it no types
    models = [GpuModel(package, own, stream, graph=graph) for package, own in zip(packages, feeds, strict=True)]
    readings = [read()]
    event: Any = torch.cuda.Event  # torch gives it no types
    first, last = event(enable_timing=True), event(enable_timing=True)
    prepared: dict[str, Any] = {}

    def runner(number: int) -> Runner:
        def run(place: int) -> None:
            prepared["model"], prepared["bound"] = models[number], models[number].load(feeds[number][place])

        return run

    def timed(run: Runner, place: Any) -> float:
        run(place)
        first.record(stream)
        prepared["model"].run(prepared["bound"])
        last.record(stream)
        last.synchronize()
        return float(first.elapsed_time(last)) * 1e-3

    def after(done: int, total: int) -> None:
        readings.append(read())
        if progress is not None:
            progress(done, total)

    for model, own in zip(models, feeds, strict=True):
        for i in range(WARMUP):
            model.run(model.load(own[i % len(own)]))
    stream.synchronize()
    found = interleave(
        {str(i): runner(i) for i in range(len(models))},
        range(len(feeds[0])),
        blocks=blocks,
        per_block=runs,
        warmup=0,
        seed=seed,
        progress=after,
        timer=timed,
    )
    return [found[str(i)] for i in range(len(models))], readings


def document(readings: Sequence[Reading], graph: bool) -> dict[str, Any]:
    """What is stored of the GPU."""
    temperatures = [one.temperature_c for one in readings if one.temperature_c is not None]
    clocks = [one.sm_mhz for one in readings if one.sm_mhz is not None]
    return {
        **asdict(readings[0]),
        "timed_by": f"CUDA events, {'replayed graphs' if graph else 'kernel by kernel'}; without copies",
        "sm_mhz": [min(clocks), max(clocks)] if clocks else None,
        "temperature_c": [min(temperatures), max(temperatures)] if temperatures else None,
        "slowed_by": sorted({why for one in readings for why in one.slowed_by}),
        "readings": [asdict(one) for one in readings],
        "notes": notes(readings),
    }
