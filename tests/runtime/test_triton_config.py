from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lepto.runtime import triton_config
from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import Manifest, Tensor

GOLDEN = Path(__file__).parent / "golden"
LABELS = ("place_order", "cancel_order", "get_refund")

Parts = Callable[..., dict[str, Any]]


@pytest.fixture
def text_manifest(text_parts: Parts) -> Manifest:
    manifest = text_parts()["manifest"]
    assert isinstance(manifest, Manifest)
    return manifest


def _with_result(manifest: Manifest, **changes: Any) -> Manifest:
    return manifest.model_copy(update={"result": manifest.result.model_copy(update=changes)})


@pytest.mark.parametrize("model", ["intents.tokenizer", "intents.model", "intents"])
def test_text_configurations_are_the_reviewed_ones(text_manifest: Manifest, model: str) -> None:
    configs = triton_config.text_configs("intents", 2, text_manifest, labels=LABELS)

    assert triton_config.render(configs[model]) == (GOLDEN / f"{model}.pbtxt").read_text()


def test_tensor_configuration_is_the_reviewed_one(tensor_parts: Parts) -> None:
    config = triton_config.tensor_config("linear", 1, tensor_parts()["manifest"])

    assert triton_config.render(config) == (GOLDEN / "linear.pbtxt").read_text()


def test_text_and_back(text_manifest: Manifest) -> None:
    for config in triton_config.text_configs("intents", 2, text_manifest, labels=LABELS).values():
        assert triton_config.parse(triton_config.render(config), source="here") == config


def test_every_model_joins_requests_without_a_policy_that_makes_a_lone_client_wait(text_manifest: Manifest) -> None:
    configs = triton_config.text_configs("intents", 1, text_manifest, labels=LABELS)
    for name in ("intents.tokenizer", "intents.model"):
        config = configs[name]
        assert config.HasField("dynamic_batching")
        assert not config.dynamic_batching.HasField("default_queue_policy")
        assert config.dynamic_batching.max_queue_delay_microseconds == 0
        assert [group.count for group in config.instance_group] == [1]
        assert len(config.model_warmup) == 1


def test_a_model_whose_rows_touch_each_other_is_run_row_by_row(text_manifest: Manifest) -> None:
    touchy = _with_result(text_manifest, batch_invariant=False)

    def rows(manifest: Manifest, keep: Manifest | None = None) -> tuple[str, list[int]]:
        config = triton_config.text_configs("intents", 1, manifest, labels=LABELS, keep=keep)["intents.model"]
        return config.parameters["batch_rows"].string_value, list(config.dynamic_batching.preferred_batch_size)

    assert rows(text_manifest) == ("together", [])
    assert rows(touchy) == ("separate", [1])
    # While two versions are served from one configuration, the careful way is right for both.
    assert rows(text_manifest, keep=touchy) == ("separate", [1])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bool", "TYPE_BOOL"), ("int8", "TYPE_INT8"), ("float16", "TYPE_FP16"), ("float64", "TYPE_FP64")],
)
def test_element_types(tensor_parts: Parts, dtype: str, expected: str) -> None:
    tensor = Tensor(name="x", dtype=dtype, shape=("batch", "time", 3))  # type: ignore[arg-type]  # parametrized
    manifest = tensor_parts()["manifest"].model_copy(update={"inputs": (tensor,)})

    (entry,) = triton_config.tensor_config("linear", 1, manifest).input

    assert triton_config.pb.DataType.Name(entry.data_type) == expected
    assert list(entry.dims) == [-1, 3]


def test_a_vector_goes_over_the_wire_as_a_column(tensor_parts: Parts) -> None:
    tensor = Tensor(name="x", dtype="float32", shape=("batch",))
    manifest = tensor_parts()["manifest"].model_copy(update={"inputs": (tensor,)})

    (entry,) = triton_config.tensor_config("linear", 1, manifest).input

    assert list(entry.dims) == [1]
    assert entry.HasField("reshape")
    assert list(entry.reshape.shape) == []


def test_versions_are_replaced_in_a_copy(tensor_parts: Parts) -> None:
    config = triton_config.tensor_config("linear", 1, tensor_parts()["manifest"])

    changed = triton_config.set_versions(config, [3, 2, 3])

    assert list(changed.version_policy.specific.versions) == [2, 3]
    assert triton_config.production_version(config) == 1
    with pytest.raises(LeptoError, match=r"must name one version .* got \[2, 3\]"):
        triton_config.production_version(changed)


def test_a_broken_file_is_an_error_with_its_place() -> None:
    with pytest.raises(LeptoError, match=r"repo/x/config.pbtxt is broken: 2:1"):
        triton_config.parse('name: "x"\nnope: 1', source="repo/x/config.pbtxt")


def test_interface_ignores_the_names_of_axes_and_sees_the_rest(text_manifest: Manifest) -> None:
    renamed = text_manifest.model_copy(
        update={"inputs": tuple(t.model_copy(update={"shape": ("batch", "tokens")}) for t in text_manifest.inputs)}
    )

    before = triton_config.interface(text_manifest, LABELS)

    assert triton_config.interface(renamed, LABELS) == before
    assert triton_config.interface(text_manifest, LABELS[::-1]) != before
    assert triton_config.interface(text_manifest, None) != before
