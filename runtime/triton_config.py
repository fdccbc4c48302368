"""From a manifest to Triton's ``config.pbtxt``, through Triton's own protobuf.

A text package becomes three models: ``NAME`` (an ensemble: strings in, scores with labels out) over ``NAME.tokenizer``
and ``NAME.model``. Where each word has a label, the ensemble also says where the words begin and end (``spans``), and
its parameter ``lepto.labels`` holds the labels, since Triton's classification extension knows one label for each text.
A package that takes tensors is one model, ``NAME``. The schema is ``model_config.proto`` of Triton,
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb  # type: ignore[import-untyped]  # ships no types
from tritonclient.utils import np_to_triton_dtype  # type: ignore[import-untyped]

from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import Manifest, Tensor
from lepto.runtime.plans import Plan

LABELS_FILE = "labels.txt"
MODEL_FILE = "model.onnx"
TEXT_INPUT = "TEXT"
SCORES_OUTPUT = "scores"
SPANS_OUTPUT = "spans"
"""[B, S, 2]: at the first token of a word where it begins and ends in its text, in characters; -1 at other tokens."""

TOKENIZER_SUFFIX = ".tokenizer"
MODEL_SUFFIX = ".model"

MAX_BATCH_SIZE = 32
WARMUP_TOKENS = 16

LABELS = "lepto.labels"
"""The parameter of an ensemble that gives a label to every word: its labels as a JSON list, in the order of scores."""

TENSORRT = "lepto.tensorrt"
"""The parameter that says which version of TensorRT built an engine; its own runtime reads no other."""

OWNER = "lepto.package"
"""The parameter that marks a model as published by Lepto; its value is the package's name.

The C++ onnxruntime backend looks parameters up by name and never sees the ones it does not know, such as this one.
"""


def text_configs(
    name: str,
    version: int,
    manifest: Manifest,
    *,
    labels: Sequence[str] | None,
    keep: Manifest | None = None,
    plan: Plan | None = None,
) -> dict[str, Any]:
    """The three models of a text package, with one version in production.

    Args:
        name: The published name.
        version: The version in production, the one that the ensemble's steps are pinned to.
        manifest: Of that version.
        labels: If the scores have labels.
        keep: A manifest that must be served correctly beside it, for the time of a change.
        plan: The engine that is served instead of ``model.onnx``.

    Returns:
        Model name to ``ModelConfig``, the ensemble last.
    """
    if manifest.preprocessing is None:
        raise ValueError(f"package {manifest.name!r} takes tensors, not text: it has no preprocessing")
    tokenizer = _base(name + TOKENIZER_SUFFIX, "python", manifest, [version])
    tokenizer.input.add(name=TEXT_INPUT, data_type=pb.TYPE_STRING, dims=[1])
    for tensor in manifest.inputs:
        tokenizer.output.add(name=tensor.name, data_type=_type(tensor), dims=_dims(tensor))
    spans = Tensor(name=SPANS_OUTPUT, dtype="int64", shape=(*manifest.inputs[0].shape, 2))
    words = [spans] if manifest.preprocessing.kind == "words" else []
    for tensor in words:
        tokenizer.output.add(name=tensor.name, data_type=_type(tensor), dims=_dims(tensor))
    _schedule(tokenizer)
    _warm_up(tokenizer)

    model = _model(name + MODEL_SUFFIX, version, manifest, labels=labels, keep=keep, plan=plan)

    ensemble = pb.ModelConfig(name=name, platform="ensemble", max_batch_size=MAX_BATCH_SIZE)
    ensemble.version_policy.specific.versions.append(version)
    ensemble.parameters[OWNER].string_value = manifest.name
    ensemble.input.add(name=TEXT_INPUT, data_type=pb.TYPE_STRING, dims=[1])
    for tensor in [*_answers(manifest), *words]:
        _add_output(ensemble, tensor, labels)
    if words and labels is not None:
        ensemble.parameters[LABELS].string_value = json.dumps(list(labels), ensure_ascii=False)
    names = [tensor.name for tensor in manifest.inputs]
    first = ensemble.ensemble_scheduling.step.add(model_name=tokenizer.name, model_version=version)
    first.input_map[TEXT_INPUT] = TEXT_INPUT
    second = ensemble.ensemble_scheduling.step.add(model_name=model.name, model_version=version)
    for tensor_name in names:
        # Tensors of an ensemble share one namespace with its inputs and outputs.
        first.output_map[tensor_name] = f"tokens.{tensor_name}"
        second.input_map[tensor_name] = f"tokens.{tensor_name}"
    for tensor in words:
        first.output_map[tensor.name] = tensor.name
    for tensor in _answers(manifest):
        second.output_map[tensor.name] = tensor.name
    for config in (tokenizer, ensemble):
        config.max_batch_size = model.max_batch_size
    return {config.name: config for config in (tokenizer, model, ensemble)}


def tensor_config(
    name: str, version: int, manifest: Manifest, *, labels: Sequence[str] | None = None, plan: Plan | None = None
) -> Any:
    """The one model of a package that takes tensors, with one version in production."""
    return _model(name, version, manifest, labels=labels, keep=None, plan=plan)


def set_versions(config: Any, versions: Sequence[int]) -> Any:
    """A copy of a configuration that serves exactly these versions."""
    changed = pb.ModelConfig()
    changed.CopyFrom(config)
    changed.version_policy.specific.ClearField("versions")
    changed.version_policy.specific.versions.extend(sorted(set(versions)))
    return changed


def production_version(config: Any) -> int:
    """The version that a published model's clients get.

    Raises:
        LeptoError: The configuration does not name exactly one.
    """
    versions = list(config.version_policy.specific.versions)
    if len(versions) != 1:
        raise LeptoError(
            f"config.pbtxt of {config.name!r} must name one version in version_policy.specific, got {versions}; "
            "publish the package again"
        )
    return int(versions[0])


def owner(config: Any) -> str | None:
    """The name of the package that a model was published from, or None if Lepto did not publish it."""
    return config.parameters[OWNER].string_value if OWNER in config.parameters else None


QUEUE_BOUND = 128
"""How many requests may wait for a model where nobody says otherwise: four full batches."""


def bound_queue(config: Any, waiting: int) -> None:
    """Let Triton refuse, with 503, what comes while so many requests wait; changes the configuration.

    A second instance goes with it, so that one mostly waits for work when a request comes: see :func:`_schedule` for
    what happens otherwise. An ensemble has no queue of its own.

    Args:
        config: A ``ModelConfig``.
        waiting: At least 1; 0 leaves the queue without a bound.
    """
    if waiting and config.HasField("dynamic_batching"):
        config.dynamic_batching.default_queue_policy.max_queue_size = waiting
        config.instance_group[0].count = 2


def queue_bound(config: Any) -> int:
    """How many requests may wait; 0 without a bound."""
    return int(config.dynamic_batching.default_queue_policy.max_queue_size)


def render(config: Any) -> str:
    """The text of ``config.pbtxt``."""
    return str(text_format.MessageToString(config))


def parse(text: str, *, source: str) -> Any:
    """Read a ``config.pbtxt``.

    Raises:
        LeptoError: It is not one; the message names ``source`` and the line.
    """
    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        raise LeptoError(f"{source} is broken: {error}") from error


def interface(manifest: Manifest, labels: Sequence[str] | None, plan: Plan | None = None) -> dict[str, Any]:
    """What clients of a published model rely on, and what its configuration says once for all versions."""
    return {
        "backend": "onnxruntime" if plan is None else f"tensorrt_plan for compute capability {plan.compute_capability}",
        "input kind": "tensors" if manifest.preprocessing is None else manifest.preprocessing.kind,
        "inputs": [_signature(tensor) for tensor in manifest.inputs],
        "outputs": [_signature(tensor) for tensor in manifest.outputs],
        "labels": None if labels is None else list(labels),
    }


def _model(
    name: str,
    version: int,
    manifest: Manifest,
    *,
    labels: Sequence[str] | None,
    keep: Manifest | None,
    plan: Plan | None,
) -> Any:
    if plan is None:
        return _onnx_model(name, version, manifest, labels=labels, keep=keep)
    return _plan_model(name, version, manifest, labels=labels, plan=plan)


def _plan_model(name: str, version: int, manifest: Manifest, *, labels: Sequence[str] | None, plan: Plan) -> Any:
    """A model of TensorRT's backend: https://github.com/triton-inference-server/tensorrt_backend."""
    config = pb.ModelConfig(name=name, platform="tensorrt_plan", max_batch_size=plan.max_batch)
    config.version_policy.specific.versions.append(version)
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU)
    # No default file: on a GPU of another compute capability the server finds none, and says so.
    config.cc_model_filenames[plan.compute_capability] = plan.file
    config.parameters[OWNER].string_value = manifest.name
    config.parameters[TENSORRT].string_value = plan.tensorrt
    for tensor in manifest.inputs:
        _shape(config.input.add(name=tensor.name, data_type=_type(tensor), dims=_dims(tensor)), tensor)
    for tensor in manifest.outputs:
        _add_output(config, tensor, labels)
    _schedule(config)
    _warm_up(config, plan)
    return config


def _onnx_model(
    name: str, version: int, manifest: Manifest, *, labels: Sequence[str] | None, keep: Manifest | None
) -> Any:
    config = _base(name, "onnxruntime", manifest, [version])
    config.default_model_filename = MODEL_FILE
    for tensor in manifest.inputs:
        _shape(config.input.add(name=tensor.name, data_type=_type(tensor), dims=_dims(tensor)), tensor)
    for tensor in manifest.outputs:
        _add_output(config, tensor, labels)
    config.parameters["intra_op_thread_count"].string_value = str(manifest.threads)
    config.parameters["inter_op_thread_count"].string_value = "1"
    separate = not all(one.result.batch_invariant for one in (manifest, keep) if one is not None)
    config.parameters["batch_rows"].string_value = "separate" if separate else "together"
    if manifest.preprocessing is not None:
        pads = {"input_ids": manifest.preprocessing.pad_id, "token_type_ids": manifest.preprocessing.pad_type_id}
        for tensor_name in manifest.preprocessing.inputs:
            config.parameters[f"pad_value.{tensor_name}"].string_value = str(pads.get(tensor_name, 0))
    _schedule(config, alone=separate)
    _warm_up(config)
    return config


def _base(name: str, backend: str, manifest: Manifest, versions: Sequence[int]) -> Any:
    config = pb.ModelConfig(name=name, backend=backend, max_batch_size=MAX_BATCH_SIZE)
    config.version_policy.specific.versions.extend(versions)
    # Without a group the server chooses: two instances on a CPU, one for each GPU it sees.
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    config.parameters[OWNER].string_value = manifest.name
    return config


def _schedule(config: Any, *, alone: bool = False) -> None:
    # No max_queue_delay_microseconds: requests that come while the model is busy are joined anyway, and a lone request
    # would wait for company in vain, in each step of the ensemble, for about as long as a light model runs.
    #
    # A default_queue_policy comes with `bound_queue`: with one, of whatever kind, Triton wakes its batcher only if an
    # instance waits for work at the moment when a request comes, and otherwise looks again after 500 ms. A client that
    # asks again as soon as it is answered comes before that, unless there is a second instance: with one, 132 answers a
    # second instead of 583 on two CPUs (p99 508 ms instead of 14), with two 573 (15 ms), for four HTTP clients
    # (scheduler_utils.cc of Triton's core, `support_prefetching_`; with 2.51).
    batching = config.dynamic_batching
    batching.SetInParent()
    if alone:
        # The C++ backend does not know `batch_rows`: keep Triton from joining requests of one row in the first place.
        batching.preferred_batch_size.append(1)


def _warm_up(config: Any, plan: Plan | None = None) -> None:
    # The first run allocates and picks kernels; a client should not wait for that.
    sample = config.model_warmup.add(name="zeros", batch_size=1)
    for entry in config.input:
        value = sample.inputs[entry.name]
        value.data_type = entry.data_type
        for axis, dim in enumerate(entry.dims, 1):
            free = WARMUP_TOKENS if plan is None else plan.inside(entry.name, axis, WARMUP_TOKENS)
            value.dims.append(free if dim == -1 else dim)
        value.zero_data = True


def _add_output(config: Any, tensor: Tensor, labels: Sequence[str] | None) -> None:
    output = config.output.add(name=tensor.name, data_type=_type(tensor), dims=_dims(tensor))
    _shape(output, tensor)
    if labels is not None and list(tensor.shape[1:]) == [len(labels)]:
        output.label_filename = LABELS_FILE


def _answers(manifest: Manifest) -> list[Tensor]:
    """The outputs that the ensemble gives: the scores of a classifier, else everything."""
    scores = [tensor for tensor in manifest.outputs if tensor.name == SCORES_OUTPUT]
    return scores if manifest.label_count is not None else list(manifest.outputs)


def _dims(tensor: Tensor) -> list[int]:
    # Triton has no empty dims beside a batch: a vector [B] goes over the wire as [B, 1].
    return [-1 if isinstance(axis, str) else axis for axis in tensor.shape[1:]] or [1]


def _shape(entry: Any, tensor: Tensor) -> None:
    if len(tensor.shape) == 1:
        entry.reshape.SetInParent()


def _type(tensor: Tensor) -> int:
    return int(pb.DataType.Value(f"TYPE_{np_to_triton_dtype(np.dtype(tensor.dtype))}"))


def _signature(tensor: Tensor) -> str:
    axes = ", ".join("?" if isinstance(axis, str) else str(axis) for axis in tensor.shape)
    return f"{tensor.name} {tensor.dtype} [{axes}]"
