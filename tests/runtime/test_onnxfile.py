import pytest

from lepto.runtime import LeptoError
from lepto.runtime.onnxfile import check_single_file


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


# A TensorProto with name "w", data_location EXTERNAL, external_data {location: "../w.bin"}.
TENSOR = field(8, b"w") + varint(14 << 3) + b"\x01" + field(13, field(1, b"location") + field(2, b"../w.bin"))
SPARSE = field(1, TENSOR)


def node(attribute: bytes) -> bytes:
    return field(1, field(5, attribute))


@pytest.mark.parametrize("name", ["text", "text_v2", "tensor"])
def test_models_in_one_file_pass(data, name):
    check_single_file((data / f"{name}.onnx").read_bytes(), name=name)


@pytest.mark.parametrize(
    "model",
    [
        field(7, field(5, TENSOR)),  # initializer
        field(7, field(15, SPARSE)),  # sparse initializer
        field(7, node(field(5, TENSOR))),  # attribute t
        field(7, node(field(10, TENSOR))),  # attribute tensors
        field(7, node(field(22, SPARSE))),  # attribute sparse_tensor
        field(7, node(field(6, field(5, TENSOR)))),  # subgraph
        field(7, node(field(11, node(field(6, field(5, TENSOR)))))),  # subgraph of a subgraph
        field(25, field(7, field(5, field(5, TENSOR)))) + field(7, b""),  # function
        field(7, b"") + field(7, field(5, TENSOR)),  # a second graph field is merged into the first
        field(20, field(1, field(5, TENSOR))) + field(7, b""),  # training
    ],
)
def test_external_tensors_are_found_wherever_they_hide(model):
    with pytest.raises(LeptoError, match=r"keeps the tensor 'w' in another file \('\.\./w\.bin'\)"):
        check_single_file(model, name="model.onnx")


def test_a_location_without_the_flag_is_refused_too():
    tensor = field(8, b"w") + field(13, field(1, b"location") + field(2, b"w.bin"))
    with pytest.raises(LeptoError, match="another file"):
        check_single_file(field(7, field(5, tensor)), name="model.onnx")


def test_every_truncation_is_refused_or_has_no_external_tensor(data):
    whole = (data / "external.onnx").read_bytes()
    for length in range(len(whole)):
        with pytest.raises(LeptoError):
            check_single_file(whole[:length], name="model.onnx")


@pytest.mark.parametrize("model", [b"", b"\x80", b"\xff" * 20, b"PK\x03\x04" * 9, b"\x80\x04\x95pickle", b"\x0b\x0c"])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(LeptoError, match="no ONNX model"):
        check_single_file(model, name="model.onnx")


def test_deep_nesting_is_refused_without_recursion_error():
    graph = b""
    for _ in range(3000):
        graph = node(field(6, graph))
    with pytest.raises(LeptoError, match="nested"):
        check_single_file(field(7, graph), name="model.onnx")
