"""Read just enough of an ONNX file, without the ``onnx`` package, to know that it stands alone.

A model may keep its weights in other files ("external data"), named by a path that the model chooses. A package is one
file: what a server opens on behalf of a package must be the package. So the protobuf wire format is walked and every
tensor with ``data_location = EXTERNAL`` is refused. The field numbers are those of ``onnx.proto``
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto); they can never change.
"""

from __future__ import annotations

from collections.abc import Iterator

from lepto.runtime.errors import LeptoError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 100


# Which fields of a message lead to tensors, and through which message.
_CHILDREN = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
_TENSOR_NAME, _TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION, _EXTERNAL = 8, 13, 14, 1


def check_single_file(data: bytes, *, name: str) -> None:
    """Check that an ONNX model keeps all its weights in its own file.

    Args:
        data: The bytes of the model.
        name: What to call it in messages.

    Raises:
        LeptoError: A tensor lies in another file, or the bytes are no ONNX model.
    """
    try:
        found = _external(memoryview(data), "Model", 0)
    except (ValueError, IndexError) as error:
        raise LeptoError(f"{name} is no ONNX model or is cut short: {error}") from error
    if found is not None:
        raise LeptoError(
            f"{name} keeps the tensor {found[0]!r} in another file ({found[1]!r}): a package's model is one file; "
            "save it without external data"
        )
    if not any(number == 7 for number, _, _ in _fields(memoryview(data))):
        raise LeptoError(f"{name} is no ONNX model: it has no graph")


def _external(data: memoryview, kind: str, depth: int) -> tuple[str, str] | None:
    """Name and location of the first external tensor below a message."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"messages are nested more than {_MAX_DEPTH} deep")
    if kind == "Tensor":
        return _external_tensor(data)
    children = _CHILDREN[kind]
    for number, wire, value in _fields(data):
        if wire == _BYTES and number in children and isinstance(value, memoryview):
            found = _external(value, children[number], depth + 1)
            if found is not None:
                return found
    return None


def _external_tensor(data: memoryview) -> tuple[str, str] | None:
    name, location, external = "", "", False
    for number, _, value in _fields(data):
        if number == _TENSOR_NAME and isinstance(value, memoryview):
            name = bytes(value).decode(errors="replace")
        elif number == _TENSOR_DATA_LOCATION:
            external = value == _EXTERNAL
        elif number == _TENSOR_EXTERNAL_DATA and isinstance(value, memoryview):
            entry = {n: bytes(v).decode(errors="replace") for n, _, v in _fields(value) if isinstance(v, memoryview)}
            if entry.get(1) == "location":
                location = entry.get(2, "")
    return (name, location) if external or location else None


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """The fields of a message: number, wire type, value (https://protobuf.dev/programming-guides/encoding/)."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {wire} at byte {position}")
        if number == 0 or position + size > len(data):
            raise ValueError(f"a field of {size} bytes at byte {position} runs over the end ({len(data)} bytes)")
        yield number, wire, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError(f"a number at byte {position} has no end")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
