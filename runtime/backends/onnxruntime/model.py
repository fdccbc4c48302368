"""Triton's ``onnxruntime`` backend in Python, for servers that do not have the C++ one.

Triton takes ``libtriton_onnxruntime.so`` when the server has it and this file otherwise, so one model repository serves
on both. It runs in Triton's python stub: it stands alone and imports nothing of Lepto.

Requests that Triton hands over together are concatenated, run once and split again. Each bad request gets its own
error; its neighbours are answered. What the configuration asks for and this backend cannot do is an error at load time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # exists only inside Triton's stub

# Official builds from 1.29 report what they run to their maker, unless they are told not to before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

Arrays = dict[str, np.ndarray[Any, Any]]

# Triton's configuration names types its own way: model_config.proto, `enum DataType`.
NUMPY_TYPES: dict[str, Any] = {
    "TYPE_BOOL": np.bool_,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
}
# The C++ backend's `optimization { graph { level } }`; 0 is its default.
GRAPH_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
MASK = "attention_mask"


class BadRequestError(ValueError):
    """A request that cannot be answered; the message goes to the client that sent it."""


@dataclass(frozen=True)
class Tensor:
    """An input or output as the configuration declares it.

    Attributes:
        name: Its name in the graph.
        dtype: NumPy element type.
        dims: Dimensions without the batch; -1 is variable.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int, ...]

    @classmethod
    def from_config(cls, entry: Mapping[str, Any]) -> Tensor:
        """Read one entry of the configuration's ``input`` or ``output``."""
        if entry["data_type"] not in NUMPY_TYPES:
            raise ValueError(f"tensor {entry['name']!r}: this backend has no data_type {entry['data_type']}")
        # With `reshape`, Triton has already reshaped what the client sent.
        dims = entry["reshape"].get("shape", []) if entry.get("reshape") else entry["dims"]
        return cls(entry["name"], np.dtype(NUMPY_TYPES[entry["data_type"]]), tuple(int(dim) for dim in dims))


@dataclass(frozen=True)
class Settings:
    """What the model's configuration asks of this backend.

    Attributes:
        options: For the onnxruntime session.
        pad_values: Input name to the value that pads its variable dimensions.
        separate: Run every row on its own (``batch_rows: separate``): neighbours would change a row's answer.
    """

    options: ort.SessionOptions
    pad_values: dict[str, int]
    separate: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Honour the configuration or refuse it.

        Raises:
            ValueError: It asks for something that this backend cannot do; the message names it.
        """
        for group in config.get("instance_group", []):
            if group.get("kind") not in ("KIND_CPU", "KIND_MODEL", "KIND_AUTO", None):
                raise ValueError(f"instance_group kind must be KIND_CPU for this backend, got {group['kind']}")
        options = ort.SessionOptions()
        # Threads wait in a loop for the next run, by default for some 60 ms: they would keep a core from the server
        # and from the tokenizer.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "2000")
        optimization = config.get("optimization") or {}
        accelerators = optimization.get("execution_accelerators") or {}
        for where, entries in accelerators.items():
            for entry in entries:
                raise ValueError(
                    f"optimization.execution_accelerators.{where} asks for {entry.get('name')!r}: "
                    "this backend runs on the CPU without accelerators; remove it or serve on Triton's C++ backend"
                )
        level = int((optimization.get("graph") or {}).get("level", 0))
        if level not in GRAPH_LEVELS:
            raise ValueError(f"optimization.graph.level must be one of {sorted(GRAPH_LEVELS)}, got {level}")
        options.graph_optimization_level = GRAPH_LEVELS[level]

        pad_values: dict[str, int] = {}
        separate = False
        for key, entry in (config.get("parameters") or {}).items():
            value = entry["string_value"]
            if key == "intra_op_thread_count":
                options.intra_op_num_threads = _integer(key, value)
            elif key == "inter_op_thread_count":
                options.inter_op_num_threads = _integer(key, value)
            elif key == "execution_mode":
                parallel = _one_of(key, value, ("0", "1")) == "1"
                options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if parallel else options.execution_mode
            elif key == "enable_mem_arena":
                options.enable_cpu_mem_arena = _boolean(key, value)
            elif key == "enable_mem_pattern":
                options.enable_mem_pattern = _boolean(key, value)
            elif key == "session.use_device_allocator_for_initializers":
                options.add_session_config_entry(key, value)
            elif key == "batch_rows":
                separate = _one_of(key, value, ("together", "separate")) == "separate"
            elif key.startswith("pad_value."):
                pad_values[key.removeprefix("pad_value.")] = _integer(key, value, lowest=None)
            elif not key.startswith("lepto."):  # who published the model: nothing to do
                raise ValueError(f"parameter {key!r} = {value!r} is unknown to this backend: remove it")
        return cls(options, pad_values, separate)


def _integer(key: str, value: str, lowest: int | None = 0) -> int:
    try:
        number = int(value)
    except ValueError:
        number = None
    if number is None or (lowest is not None and number < lowest):
        raise ValueError(f"parameter {key!r} must be a whole number{'' if lowest is None else ' >= 0'}, got {value!r}")
    return number


def _one_of(key: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"parameter {key!r} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def _boolean(key: str, value: str) -> bool:
    return _one_of(key, value.lower(), ("0", "1", "false", "true")) in ("1", "true")


class Model:
    """The session, and how the rows of several requests go through it.

    Arrays carry the batch first: [B, *dims].
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.settings = Settings.from_config(config)
        self.max_batch_size = int(config.get("max_batch_size", 0))
        self.inputs = [Tensor.from_config(entry) for entry in config["input"]]
        self.outputs = [Tensor.from_config(entry) for entry in config["output"]]
        self._session = ort.InferenceSession(path, self.settings.options, providers=["CPUExecutionProvider"])
        in_graph = {value.name: value.shape for value in self._session.get_inputs()}
        out_graph = {value.name: value.shape for value in self._session.get_outputs()}
        _check_names(f"inputs of {path.name}", in_graph, [tensor.name for tensor in self.inputs], all_of=True)
        _check_names(f"outputs of {path.name}", out_graph, [tensor.name for tensor in self.outputs], all_of=False)
        _check_names("pad_value parameters", in_graph, list(self.settings.pad_values), all_of=False)
        # Axis names after the batch: they tell which axis of an output grows with which axis of an input.
        self._in_axes = {name: list(shape[1:]) for name, shape in in_graph.items()}
        self._out_axes = {name: list(shape[1:]) for name, shape in out_graph.items()}
        known = {axis for axes in self._in_axes.values() for axis in axes}
        # Padding one request to the length of another is harmless only if a mask hides it from the model, and
        # only reversible if every variable axis of the outputs is an axis of the inputs.
        self._may_pad = MASK in in_graph and all(
            isinstance(axis, int) or axis in known for axes in self._out_axes.values() for axis in axes
        )

    def check(self, arrays: Mapping[str, np.ndarray[Any, Any] | None]) -> Arrays:
        """Validate one request's inputs.

        Raises:
            BadRequestError: An input is missing or has the wrong type or shape.
        """
        checked: Arrays = {}
        batched = self.max_batch_size > 0
        for tensor in self.inputs:
            array = arrays.get(tensor.name)
            if array is None:
                takes = ", ".join(known.name for known in self.inputs)
                raise BadRequestError(f"input {tensor.name!r} is missing: the model takes {takes}")
            if array.dtype != tensor.dtype:
                raise BadRequestError(f"input {tensor.name!r} must be {tensor.dtype}, got {array.dtype}")
            dims = array.shape[1:] if batched else array.shape
            expected = [*(["batch"] if batched else []), *("any" if dim == -1 else dim for dim in tensor.dims)]
            if (batched and array.ndim == 0) or len(dims) != len(tensor.dims):
                raise BadRequestError(f"input {tensor.name!r} must have shape {expected}, got {list(array.shape)}")
            if any(want not in (-1, got) for want, got in zip(tensor.dims, dims, strict=True)):
                raise BadRequestError(f"input {tensor.name!r} must have shape {expected}, got {list(array.shape)}")
            if 0 in array.shape:
                raise BadRequestError(f"input {tensor.name!r} is empty: its shape is {list(array.shape)}")
            checked[tensor.name] = array
        self._check_axes(checked)
        if batched:
            rows = {name: array.shape[0] for name, array in checked.items()}
            if len(set(rows.values())) > 1:
                raise BadRequestError(f"all inputs must have one batch size, got {rows}")
            count = next(iter(rows.values()))
            if not 1 <= count <= self.max_batch_size:
                raise BadRequestError(f"the batch size must be 1 to {self.max_batch_size}, got {count}")
        return checked

    def _check_axes(self, arrays: Arrays) -> None:
        # onnxruntime would broadcast a length of 1 without a word.
        known: dict[str, tuple[str, int]] = {}
        for name, array in arrays.items():
            shape = array.shape[1:] if self.max_batch_size > 0 else array.shape
            for axis, size in zip(self._in_axes[name], shape, strict=False):
                if isinstance(axis, str) and known.setdefault(axis, (name, size))[1] != size:
                    other, expected = known[axis]
                    raise BadRequestError(
                        f"inputs {other!r} and {name!r} must agree on axis {axis!r}, got {expected} and {size}"
                    )

    def answer(self, requests: Sequence[Arrays]) -> list[Arrays | Exception]:
        """Run checked requests; the answers are in their order, an exception for each one that failed."""
        answers: list[Arrays | Exception] = [RuntimeError("the request was not run")] * len(requests)
        for group in self._groups(requests):
            members = [requests[index] for index in group]
            results: list[Arrays | Exception]
            try:
                results = list(self._run_together(members))
            except Exception:  # whatever it is, it may be one member's fault: find out which
                results = [self._run_alone(member) for member in members]
            for index, result in zip(group, results, strict=True):
                answers[index] = result
        return answers

    def _groups(self, requests: Sequence[Arrays]) -> list[list[int]]:
        """Indices of the requests that may run as one batch."""
        if self.settings.separate or self.max_batch_size == 0:
            return [[index] for index in range(len(requests))]
        if self._may_pad:
            return [list(range(len(requests)))] if requests else []
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for index, request in enumerate(requests):
            key = tuple(request[tensor.name].shape[1:] for tensor in self.inputs)
            groups.setdefault(key, []).append(index)
        return list(groups.values())

    def _run_alone(self, request: Arrays) -> Arrays | Exception:
        try:
            return self._run_rows(request) if self.settings.separate else self._run(request)
        except Exception as error:
            return error

    def _run_together(self, requests: Sequence[Arrays]) -> list[Arrays]:
        if len(requests) == 1:
            (only,) = requests
            return [self._run_rows(only) if self.settings.separate else self._run(only)]
        feed = {
            tensor.name: _concatenate(
                [request[tensor.name] for request in requests], self.settings.pad_values.get(tensor.name, 0)
            )
            for tensor in self.inputs
        }
        outputs = self._run(feed)
        counts = [request[self.inputs[0].name].shape[0] for request in requests]
        ends = np.cumsum(counts)[:-1]
        parts = {name: np.split(array, ends) for name, array in outputs.items()}
        return [
            {name: self._cut(name, part[index], self._axis_sizes(request)) for name, part in parts.items()}
            for index, request in enumerate(requests)
        ]

    def _run_rows(self, request: Arrays) -> Arrays:
        """Each row on its own and without its padding, as if it had been the whole request."""
        rows = request[self.inputs[0].name].shape[0] if self.max_batch_size else 1
        if rows == 1 and not self._has_padding(request):
            return self._run(request)
        sizes = self._axis_sizes(request)
        results: list[Arrays] = []
        for row in range(rows):
            arrays = {name: array[row : row + 1] for name, array in request.items()}
            results.append(self._run(self._strip(arrays)))
        stacked: Arrays = {}
        for name, axes in self._out_axes.items():
            if name not in results[0]:
                continue
            parts = [result[name] for result in results]
            shape = [
                max(sizes.get(axis, 0) if isinstance(axis, str) else 0, *(part.shape[at] for part in parts))
                for at, axis in enumerate(axes, 1)
            ]
            stacked[name] = _concatenate(parts, 0, shape)
        return stacked

    def _has_padding(self, request: Arrays) -> bool:
        return MASK in request and not bool(request[MASK].all())

    def _strip(self, row: Arrays) -> Arrays:
        """Cut the trailing columns that the attention mask hides."""
        if MASK not in row or row[MASK].ndim != 2:
            return row
        shown = np.flatnonzero(row[MASK][0])
        length = int(shown[-1]) + 1 if shown.size else row[MASK].shape[1]
        sequence = self._in_axes[MASK][0]
        stripped: Arrays = {}
        for name, array in row.items():
            cuts = [slice(None)] + [slice(length) if axis == sequence else slice(None) for axis in self._in_axes[name]]
            stripped[name] = array[tuple(cuts)]
        return stripped

    def _axis_sizes(self, request: Arrays) -> dict[str, int]:
        """Size of each named axis in one request."""
        return {
            axis: size
            for name, array in request.items()
            for axis, size in zip(self._in_axes[name], array.shape[1:], strict=True)
            if isinstance(axis, str)
        }

    def _cut(self, name: str, array: np.ndarray[Any, Any], sizes: Mapping[str, int]) -> np.ndarray[Any, Any]:
        cuts = [slice(None)] + [
            slice(sizes[axis]) if isinstance(axis, str) and axis in sizes else slice(None)
            for axis in self._out_axes[name]
        ]
        cut: np.ndarray[Any, Any] = array[tuple(cuts)]
        return cut

    def _run(self, feed: Arrays) -> Arrays:
        names = [tensor.name for tensor in self.outputs]
        contiguous = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        return dict(zip(names, self._session.run(names, contiguous), strict=True))


def _check_names(what: str, in_graph: Iterable[str], in_config: Sequence[str], *, all_of: bool) -> None:
    unknown = sorted(set(in_config) - set(in_graph))
    missing = sorted(set(in_graph) - set(in_config)) if all_of else []
    if unknown or missing:
        raise ValueError(
            f"config.pbtxt and graph differ in the {what}: "
            f"unknown to the graph {unknown}, missing in the configuration {missing}"
        )


def _concatenate(
    arrays: Sequence[np.ndarray[Any, Any]], pad_value: int, shape: Sequence[int] | None = None
) -> np.ndarray[Any, Any]:
    """Concatenate [B, *dims] along the batch, padding at the end of each axis to ``shape`` or the largest."""
    if shape is None:
        shape = [max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True)]
    if all(list(array.shape[1:]) == list(shape) for array in arrays):
        return np.concatenate(arrays, axis=0)
    result = np.full((sum(array.shape[0] for array in arrays), *shape), pad_value, dtype=arrays[0].dtype)
    start = 0
    for array in arrays:
        end = start + array.shape[0]
        result[(slice(start, end), *(slice(size) for size in array.shape[1:]))] = array
        start = end
    return result


class TritonPythonModel:
    """What Triton's python stub calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model.

        Args:
            args: Triton's strings; ``model_repository`` is the model's own folder.
        """
        config = json.loads(args["model_config"])
        name = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"], args["model_version"], name)
        try:
            self._model = Model(path, config)
        except Exception as error:
            raise pb_utils.TritonModelException(f"cannot load {args['model_name']!r}: {error}") from error

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request, in order."""
        responses: list[Any] = [None] * len(requests)
        good: list[tuple[int, Arrays]] = []
        for index, request in enumerate(requests):
            try:
                good.append((index, self._model.check(self._read(request))))
            except BadRequestError as error:
                responses[index] = _error(str(error), pb_utils.TritonError.INVALID_ARG)
        answers = self._model.answer([arrays for _, arrays in good])
        for (index, _), answer in zip(good, answers, strict=True):
            responses[index] = self._respond(requests[index], answer)
        return responses

    def _read(self, request: Any) -> dict[str, np.ndarray[Any, Any] | None]:
        arrays: dict[str, np.ndarray[Any, Any] | None] = {}
        for tensor in self._model.inputs:
            given = pb_utils.get_input_tensor_by_name(request, tensor.name)
            arrays[tensor.name] = None if given is None else given.as_numpy()
        return arrays

    def _respond(self, request: Any, answer: Arrays | Exception) -> Any:
        if isinstance(answer, Exception):
            # onnxruntime names the node and the value: an id outside the vocabulary, say.
            code = pb_utils.TritonError.INVALID_ARG if "INVALID_ARGUMENT" in str(answer) else None
            return _error(f"the model failed on this request: {answer}", code or pb_utils.TritonError.INTERNAL)
        wanted = set(request.requested_output_names())
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in answer.items() if name in wanted
            ]
        )


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
