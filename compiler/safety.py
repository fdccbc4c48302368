"""Files are checked before anything reads them: whole safetensors, no pickles, no ONNX weights from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from lepto.runtime.errors import LeptoError


def check_safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the header of a safetensors file and check that the file is whole.

    Returns:
        Name and shape of every tensor.

    Raises:
        LeptoError: The file is empty, truncated or no safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except SafetensorError as error:
        raise LeptoError(
            f"{path} is no whole safetensors file ({path.stat().st_size:,} bytes): {error}. "
            "It may have been cut off while copying: fetch it again"
        ) from error


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with all its weights.

    External data may lie only in the model's own folder: absolute paths, ``..``, symbolic links and hard links are
    refused, since each of them can make a model carry a file of this machine into a package.

    Raises:
        LeptoError: The file is no ONNX model, or its external data may not be read.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise LeptoError(f"{path} is no ONNX model, or it was cut off ({path.stat().st_size:,} bytes)") from error
    if not model.graph.node:
        raise LeptoError(f"{path} is no ONNX model: it has no nodes ({path.stat().st_size:,} bytes)")
    for tensor in _all_tensors(model):
        if uses_external_data(tensor):
            try:
                info = ExternalDataInfo(tensor)
            except ValueError as error:
                raise LeptoError(
                    f"{path}: where the weights of {tensor.name!r} lie is not readable: {error}"
                ) from error
            _check_external(path, tensor.name, info)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        raise LeptoError(f"{path} is no valid ONNX model: {str(error).strip().splitlines()[0]}") from error
    return model


def _check_external(model: Path, tensor: str, info: ExternalDataInfo) -> None:
    location = info.location
    where = f"{model}: the weights of {tensor!r} are said to lie in {location!r}"
    if PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive or location.startswith("\\"):
        raise LeptoError(f"{where}, an absolute path: external data must lie in the model's own folder")
    if ".." in PurePosixPath(location).parts or ".." in PureWindowsPath(location).parts:
        raise LeptoError(f"{where}, outside the model's folder: external data must lie in the model's own folder")
    folder = model.parent.resolve()
    file = model.parent / location
    # A link anywhere below the folder may lead out of it, so no part of the path may be one.
    for part in [file, *file.parents]:
        if part == model.parent:
            break
        if part.is_symlink():
            raise LeptoError(f"{where}, but {part} is a symbolic link: put the file itself into the folder")
    if not file.is_file():
        raise LeptoError(f"{where}, but there is no such file beside the model")
    if not file.resolve().is_relative_to(folder):
        raise LeptoError(f"{where}, outside the model's folder: external data must lie in the model's own folder")
    stat = file.stat()
    if stat.st_nlink > 1:
        raise LeptoError(
            f"{where}, which is a hard link ({stat.st_nlink} names): put a copy of the file into the folder"
        )
    end = (info.offset or 0) + (info.length or 0)
    if min(info.offset or 0, info.length or 0) < 0 or end > stat.st_size:
        raise LeptoError(f"{where} up to byte {end:,}, but the file has only {stat.st_size:,} bytes: it was cut off")


def _all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
    for training in model.training_info:
        yield from _tensors(training.initialization)
        yield from _tensors(training.algorithm)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for inner in attribute.graphs:
                yield from _tensors(inner)


def readable_folder(path: Path, what: str) -> Path:
    """The folder itself, or an error that says what is wrong with the path."""
    if not path.exists():
        raise LeptoError(f"{what} {path} does not exist (looked in {Path(os.getcwd())})")
    if not path.is_dir():
        raise LeptoError(f"{what} {path} is a file, not a folder")
    return path
