"""The model that goes in: a Hugging Face directory or hub id, an ONNX file, or any module through a factory.

Opening a source reads its files and its configuration only; the weights become a module when :meth:`Source.module` is
first called, so that a compile whose every step is cached never loads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from lepto.compiler.context import Feed
from lepto.compiler.data import call_factory, first_line
from lepto.compiler.model import OnnxModel
from lepto.compiler.safety import load_onnx
from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import FEATURE_EXTRACTION, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, Preprocessing

if TYPE_CHECKING:
    import torch

    from lepto.compiler.channels import Cut
    from lepto.compiler.passes.learned import LearnedRanges

Axes = Mapping[str, Mapping[int, str]]
"""For each input the names of its dynamic axes, by position; axis 0 is ``batch``."""


@dataclass(frozen=True)
class Text:
    """What turns text into a text model's inputs.

    Attributes:
        tokenizer: The text of ``tokenizer.json``.
        preprocessing: Lengths, padding, inputs.
    """

    tokenizer: str
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Source:
    """A trained model as it was given.

    Attributes:
        kind: How it was given.
        reference: What the user wrote.
        description: What it is, for people.
        architecture: Name of the class or of the producer.
        task: The task.
        digest: Sha256 over weights, configuration and tokenizer.
        parameters: Number of parameters.
        bytes: Size of the weights.
        labels: Names of the outputs of a classifier, or None.
        text: The tokenizer, or None for models that take tensors.
        axes: Dynamic axes of the inputs.
        layers: Number of transformer layers, or None.
        maximum: Largest size of each dynamic axis but the batch.
        kept_tokens: For each token id the original one, where the vocabulary was trimmed; else None.
        besides: Of these the original ids that no training text has, and that were kept for texts to come.
        cut: The channels that are left of a pruned network; else None.
        learned: Ranges of activations that were trained with the weights; else None.
        load_module: Makes the PyTorch module; None for ONNX files.
        load_onnx: Reads the ONNX model; None for PyTorch.
        anew: Whether ``load_module`` gives the same weights each time: the module is held only while it is used.
        example: Inputs of batch 2 to trace with, by name.
    """

    kind: Literal["hugging-face", "onnx", "factory"]
    reference: str
    description: str
    architecture: str
    task: str
    digest: str
    parameters: int
    bytes: int
    labels: tuple[str, ...] | None
    text: Text | None
    axes: Axes
    example: Feed
    layers: int | None = None
    maximum: Mapping[str, int] = field(default_factory=dict)
    kept_tokens: tuple[int, ...] | None = None
    besides: tuple[int, ...] = ()
    cut: Cut | None = None
    learned: LearnedRanges | None = None
    load_module: Callable[[], torch.nn.Module] | None = None
    load_onnx: Callable[[], OnnxModel] | None = None
    anew: bool = False
    _made: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def module(self) -> torch.nn.Module:
        """The PyTorch module in evaluation mode, made once, or ``anew`` when nobody holds it any more."""
        if self.load_module is None:
            raise TypeError(f"{self.reference} is an ONNX file: it has no PyTorch module")
        held: Callable[[], torch.nn.Module | None] = self._made.get("module", lambda: None)
        module = held()
        if module is None:
            module = self.load_module().eval()
            self._made["module"] = weakref.ref(module) if self.anew else lambda: module
        return module

    def runner(self, threads: int) -> Callable[[Feed], npt.NDArray[np.float32]]:
        """A function from inputs to the first output, as the user runs the source today.

        PyTorch sources run eagerly with ``threads`` intra-op threads; ONNX sources run on ONNX Runtime.
        """
        if self.load_onnx is not None:
            from lepto.compiler.ort import session

            loaded = session(self.load_onnx(), threads)
            names = {value.name for value in loaded.get_inputs()}
            return lambda feed: loaded.run(None, {k: v for k, v in feed.items() if k in names})[0]
        import torch

        module = self.module()
        torch.set_num_threads(threads)

        def run(feed: Feed) -> npt.NDArray[np.float32]:
            tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feed.items()}
            try:
                with torch.inference_mode():
                    output = module(**tensors)
            except Exception as error:  # whatever the model's code raises
                shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
                raise LeptoError(f"{self.description} cannot run {shapes}: {first_line(error)}") from error
            array: npt.NDArray[np.float32] = first_output(output).float().numpy()
            return array

        return run


def first_output(output: Any) -> torch.Tensor:
    """The first tensor of whatever a module returned: a tensor, a tuple, a mapping or a model output."""
    import torch

    while not isinstance(output, torch.Tensor):
        if isinstance(output, Mapping):
            output = next(iter(output.values()))
        elif isinstance(output, Sequence) and output:
            output = output[0]
        else:
            raise LeptoError(f"the model returned {type(output).__name__}, and its first output is no tensor")
    return output


def text_digest(text: Text | None) -> bytes:
    """Digest of everything that decides what a text becomes."""
    if text is None:
        return b""
    return hashlib.sha256((text.tokenizer + text.preprocessing.model_dump_json()).encode()).digest()


def open_source(reference: str, task: str | None = None) -> Source:
    """Open a model.

    Args:
        reference: A Hugging Face directory or hub id, an ONNX file, or ``package.module:factory``.
        task: The task; by default what the model's configuration says.

    Raises:
        LeptoError: There is no such model, its files are broken or unsafe, or the task does not fit it.
    """
    path = Path(reference)
    if path.suffix.lower() == ".onnx" or (path.is_file() and not _is_factory(reference)):
        return _open_onnx(path, task)
    if path.is_dir() or not _is_factory(reference):
        from lepto.compiler.huggingface import open_huggingface

        return open_huggingface(reference, task)
    return _open_factory(reference, task)


def _is_factory(reference: str) -> bool:
    module, colon, function = reference.partition(":")
    return bool(colon) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _open_onnx(path: Path, task: str | None) -> Source:
    if not path.is_file():
        raise LeptoError(f"model {path} does not exist")
    if path.suffix.lower() != ".onnx":
        raise LeptoError(
            f"model {path} is no folder and no .onnx file: give a Hugging Face directory or id, an ONNX file, or "
            "package.module:factory"
        )
    proto = load_onnx(path)
    model = OnnxModel.from_proto(proto)
    initializers = {tensor.name for tensor in proto.graph.initializer}
    axes: dict[str, dict[int, str]] = {}
    example: dict[str, npt.NDArray[np.generic]] = {}
    import onnx

    rng = np.random.default_rng(0)
    for value in proto.graph.input:
        if value.name in initializers:
            continue
        dims = value.type.tensor_type.shape.dim
        axes[value.name] = {i: d.dim_param or f"axis_{i}" for i, d in enumerate(dims) if not d.dim_value}
        if 0 not in axes[value.name]:
            raise LeptoError(
                f"{path}: the first axis of input {value.name!r} is fixed at {dims[0].dim_value if dims else 0}: "
                "export it with a dynamic batch axis"
            )
        axes[value.name][0] = "batch"
        shape = [2 if i == 0 else 8 if i in axes[value.name] else d.dim_value for i, d in enumerate(dims)]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        # Ones are valid as ids and as masks; the second kind of token is something that not every model has.
        whole = np.zeros(shape) if value.name == "token_type_ids" else np.ones(shape)
        array = rng.standard_normal(shape) if np.issubdtype(dtype, np.floating) else whole
        example[value.name] = array.astype(dtype)
    text, labels, maximum = None, None, {}
    if (path.parent / "tokenizer.json").exists() and "input_ids" in axes:
        from lepto.compiler.huggingface import labels_of, text_of

        config = read_json(path.parent / "config.json")
        labels = labels_of(config)
        rank = len(proto.graph.output[0].type.tensor_type.shape.dim)
        if task is None and labels is not None:
            task = TOKEN_CLASSIFICATION if rank == 3 else TEXT_CLASSIFICATION
        if task == FEATURE_EXTRACTION and rank != 2:
            raise LeptoError(f"{path}: its first output has {rank} axes, and embeddings need [batch, width]: pool it")
        positions = config.get("max_position_embeddings")
        text = text_of(path.parent, tuple(axes), positions, words=task == TOKEN_CLASSIFICATION)
        maximum = {axes["input_ids"].get(1, "sequence"): text.preprocessing.max_length}
    task = task or "tensor"
    if task in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION) and (text is None or labels is None):
        raise LeptoError(
            f"{path}: task {task!r} needs tokenizer.json and config.json (with id2label) beside the ONNX file"
        )
    weights = [tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    return Source(
        kind="onnx",
        reference=str(path),
        description=f"ONNX file {path.name} by {proto.producer_name or 'unknown producer'}",
        architecture=proto.producer_name or "ONNX",
        task=task,
        digest=hashlib.sha256(model.data + text_digest(text) + repr(labels).encode()).hexdigest(),
        parameters=sum(int(np.prod(tensor.dims)) for tensor in weights),
        bytes=model.bytes,
        labels=labels,
        text=text,
        axes=axes,
        example=example,
        maximum=maximum,
        load_onnx=lambda: model,
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is no file."""
    import json

    if not path.exists():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LeptoError(f"{path} is no JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise LeptoError(f"{path} must hold a JSON object, got {type(loaded).__name__}")
    return loaded


def _open_factory(reference: str, task: str | None) -> Source:
    import torch

    if task in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION):
        raise LeptoError(
            f"{reference}: a factory's model takes tensors, and task {task!r} needs a tokenizer: leave --task out"
        )
    made = call_factory(reference, "model")
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise LeptoError(
            f"{reference} must return (module, inputs) or (module, inputs, dynamic_axes), got {type(made).__name__}"
        )
    module, inputs = made[0], made[1]
    if not isinstance(module, torch.nn.Module) or not isinstance(inputs, Mapping) or not inputs:
        raise LeptoError(f"{reference} must return an nn.Module and a non-empty mapping of inputs by argument name")
    example: dict[str, npt.NDArray[np.generic]] = {}
    for name, tensor in inputs.items():
        if not isinstance(tensor, torch.Tensor) or tensor.ndim < 1:
            raise LeptoError(f"{reference}: input {name!r} must be a tensor with a batch axis")
        # Tracing a batch of one would burn the batch size in.
        example[name] = (tensor if len(tensor) > 1 else torch.cat([tensor, tensor])).detach().numpy()
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in example}
    for name, named in (made[2] if len(made) == 3 else {}).items():
        if name not in axes:
            raise LeptoError(f"{reference}: dynamic_axes names {name!r}, which is no input (inputs: {', '.join(axes)})")
        axes[name].update({int(axis): str(label) for axis, label in dict(named).items() if int(axis) != 0})
    state = module.state_dict()
    _check_arguments(reference, module, list(example))
    digest = hashlib.sha256(repr(module).encode())
    digest.update(repr([(n, a.dtype, a.shape, axes[n]) for n, a in example.items()]).encode())
    _digest_code(digest, module)
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    parameters = list(module.parameters())
    labels = getattr(module, "labels", None)
    return Source(
        kind="factory",
        reference=reference,
        description=f"{type(module).__name__} from {reference}",
        architecture=type(module).__name__,
        task=task or "tensor",
        digest=digest.hexdigest(),
        parameters=sum(p.numel() for p in parameters),
        bytes=sum(p.numel() * p.element_size() for p in parameters),
        labels=None if labels is None else tuple(map(str, labels)),
        text=None,
        axes=axes,
        example=example,
        load_module=lambda: module,
    )


def _check_arguments(reference: str, module: torch.nn.Module, names: list[str]) -> None:
    import inspect

    try:
        inspect.signature(module.forward).bind(**dict.fromkeys(names))
    except TypeError as error:
        raise LeptoError(
            f"{reference}: the inputs must be named like the arguments of {type(module).__name__}.forward, "
            f"got {', '.join(names)}: {error}"
        ) from error


def _digest_code(digest: hashlib._Hash, module: torch.nn.Module) -> None:
    """Add what a module computes beyond its weights: the files that define its classes, and its plain attributes."""
    import inspect

    files = set()
    for name, child in module.named_modules():
        if not type(child).__module__.startswith("torch."):
            with contextlib.suppress(TypeError, OSError):  # made at run time: there is no file
                files.add(inspect.getfile(type(child)))
        plain = {k: v for k, v in vars(child).items() if isinstance(v, bool | int | float | str | tuple | None)}
        digest.update(repr((name, sorted(plain.items()))).encode())
    for file in sorted(files):
        digest.update(Path(file).read_bytes())
