"""Run a package in this process, on the CPU, through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import Tensor
from lepto.runtime.onnxfile import check_single_file
from lepto.runtime.package import Package, check_tensors, open_package

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

# What goes wrong is an exception; ONNX Runtime would write it to the terminal, too.
_FATAL_ONLY = 4
# ONNX Runtime's names of element types where they are not NumPy's.
_ORT_TYPES = {"float": "float32", "double": "float64"}


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """The options of every session of Lepto, so that all measure and run the same thing.

    Args:
        threads: Intra-op threads; inter-op stays 1, since requests and not branches fill the cores.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    # A session's threads wait for work in a loop while it runs, and by default for some 60 ms after that: on a machine
    # with few cores they keep one from everybody else, the next request's tokenizer among them. After 2 ms they sleep:
    # a run that follows at once finds them awake.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "2000")
    return options


def load(source: bytes | str, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Load a model, or its path, for the CPU; one in bf16 is emulated, see :func:`lepto.runtime.bfloat16.on_a_cpu`."""
    import onnxruntime

    def made(model: bytes | str) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    try:
        return made(source)
    except Exception as error:  # see onnxruntime_session
        if type(error).__name__ != "NotImplemented":
            raise
        from lepto.runtime.bfloat16 import on_a_cpu

        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        try:
            emulated = on_a_cpu(data)
        except ImportError:
            raise LeptoError(
                f"{_first_line(error)}; if the model is in bf16: pip install onnx, to emulate it"
            ) from None
        if emulated == data:
            raise
        return made(emulated)


def onnxruntime_session(model: bytes | Path, *, threads: int) -> onnxruntime.InferenceSession:
    """Load a model for the CPU with :func:`session_options`.

    Args:
        model: The ONNX model, its bytes or its file.
        threads: See :func:`session_options`.

    Raises:
        ValueError: ``threads`` is below 1.
        LeptoError: ONNX Runtime cannot load the model.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    import onnxruntime

    options = session_options(threads)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return load(source, options)
    except Exception as error:  # ONNX Runtime's exceptions share no base class below Exception
        what = "the model" if isinstance(model, bytes) else str(model)
        raise LeptoError(f"onnxruntime {onnxruntime.__version__} cannot load {what}: {_first_line(error)}") from error


class Session:
    """A loaded package that takes and gives arrays.

    Shapes are written ``["batch", …]``: an integer is a fixed dimension, a name is dynamic. Safe to use from several
    threads at once.

    Args:
        package: An opened package or its folder.
        threads: Intra-op threads; by default those it was measured with.

    Raises:
        LeptoError: The package is broken, or its graph does not have the inputs and outputs of its manifest.
    """

    def __init__(self, package: Package | str | Path, *, threads: int | None = None) -> None:
        self.package = package if isinstance(package, Package) else open_package(package)
        self.threads = self.package.manifest.threads if threads is None else threads
        model = self.package.model_path
        check_single_file(model.read_bytes(), name=str(model))
        self._session = onnxruntime_session(model, threads=self.threads)
        for what, tensors, nodes in (
            ("input", self.inputs, self._session.get_inputs()),
            ("output", self.outputs, self._session.get_outputs()),
        ):
            _check_graph(what, tensors, nodes, self.package.path)
        self._output_names = [tensor.name for tensor in self.outputs]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The model's inputs."""
        return self.package.manifest.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The model's outputs."""
        return self.package.manifest.outputs

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once.

        Args:
            inputs: One array for each input, of its dtype and shape, all with one batch size.

        Returns:
            One array for each output.

        Raises:
            ValueError: An input is missing, unknown, or of the wrong dtype or shape, or the model refuses its values.
            TypeError: An input is no NumPy array.
        """
        self._check(inputs)
        try:
            values = self._session.run(self._output_names, dict(inputs))
        except Exception as error:  # see onnxruntime_session
            raise ValueError(f"{self.package.manifest.name} refused its input: {_first_line(error)}") from error
        return dict(zip(self._output_names, values, strict=True))

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        import numpy as np

        tensors = {tensor.name: tensor for tensor in self.inputs}
        if inputs.keys() != tensors.keys():
            missing, unknown = sorted(tensors.keys() - inputs.keys()), sorted(inputs.keys() - tensors.keys())
            raise ValueError(
                f"{self.package.manifest.name} takes {sorted(tensors)}: missing {missing}, unknown {unknown}"
            )
        for name, array in inputs.items():
            if not isinstance(array, np.ndarray):
                raise TypeError(f"input {name!r} must be a NumPy array, got {type(array).__name__}")
        check_tensors({f"input {name!r}": (tensors[name], array) for name, array in inputs.items()})


def _check_graph(what: str, tensors: tuple[Tensor, ...], nodes: list[Any], path: Path) -> None:
    graph = {node.name: node for node in nodes}
    if graph.keys() != {tensor.name for tensor in tensors}:
        raise LeptoError(
            f"{path}: the manifest names the {what}s {[tensor.name for tensor in tensors]}, the model has {list(graph)}"
        )
    for tensor in tensors:
        node = graph[tensor.name]
        found = node.type.removeprefix("tensor(").removesuffix(")")
        dtype = _ORT_TYPES.get(found, found)
        # The graph may leave open what the manifest knows (an output's fixed size), but may not contradict it.
        fits = len(node.shape) == len(tensor.shape) and all(
            not isinstance(have, int) or have == want for have, want in zip(node.shape, tensor.shape, strict=True)
        )
        if dtype != tensor.dtype or not fits:
            raise LeptoError(
                f"{path}: the manifest says {what} {tensor.name!r} is {tensor.dtype} {list(tensor.shape)}, "
                f"the model has {dtype} {node.shape}"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
