"""Attention inside a TensorRT engine: ahead-of-time Python plugins, TensorRT 10.10 and later.

A plugin of this kind gives TensorRT, while it builds, a kernel as PTX, and as expressions over the shapes how it is
launched. The engine has both in it and needs neither Python nor Triton where it runs.

A plugin has the name of the ONNX operator (`lepto.kernels.ship.onnx`), ``lepto::AttentionMask`` for one. The parser
takes a model's own function before a plugin, so the model for the plugins, `plugin_model`, has none.

Sources: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/tensorrt.plugin/, and
https://github.com/NVIDIA/TensorRT, ``samples/python/quickly_deployable_plugins``.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper

from lepto.kernels.attention.tables import architecture as find_architecture
from lepto.kernels.attention.validation import check_head_dim
from lepto.kernels.ship.manifest import HIDDEN
from lepto.kernels.ship.onnx import DOMAIN, Variant, variant_of
from lepto.kernels.ship.plugin_specification import PluginSpecification

if TYPE_CHECKING:
    import tensorrt.plugin as trtp

_PTX_VERSIONS = {"sm_100": 86}
"""What an architecture needs; the others take 8.0, which every driver for CUDA 12 reads (JetPack 6 included)."""
SHARED_BYTES = 48 * 1024
"""What a kernel may have without a call that raises its limit; that TensorRT makes one is written nowhere."""
_LONG, _SHORT = 1, 2
"""TensorRT times both launches of the tables, and keeps the faster one: how long sequences are, it knows better."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What an engine gets.

    Attributes:
        symbol: The function in the PTX.
        ptx: It takes the inputs, the whole numbers and the output, in this order, and nothing else.
        threads: Of one block.
        shared_bytes: Dynamic shared memory.
    """

    symbol: str
    ptx: str
    threads: int
    shared_bytes: int


def plugin_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model for a parser that has the plugins: its ``lepto`` nodes ask for them and have no function body.

    Args:
        model: With nodes of domain ``lepto``.

    Raises:
        ValueError: It has none.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kept = [function for function in result.functions if function.domain != DOMAIN]
    del result.functions[:]
    result.functions.extend(kept)
    nodes = [node for node in result.graph.node if node.domain == DOMAIN]
    if not nodes:
        raise ValueError("the model has no node of domain lepto: apply the pass attention first")
    for node in nodes:
        others = [a for a in node.attribute if a.name not in ("aot", "plugin_namespace")]
        del node.attribute[:]
        node.attribute.extend(others)
        # Since TensorRT 10.10 the node's domain is the namespace as well.
        node.attribute.extend([helper.make_attribute("plugin_namespace", DOMAIN), helper.make_attribute("aot", 1)])
    return result


def operators(model: onnx.ModelProto) -> list[str]:
    """The names of the ``lepto`` operators in a model, each once."""
    return sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN})


def compile_plugin(specification: PluginSpecification) -> Kernel:
    """Cross-compile the kernel of a node; no GPU is needed.

    Raises:
        ValueError: The architecture is in no table, head_dim is not supported, or the kernel wants too much memory.
        RuntimeError: Triton is in interpreter mode, or the kernel does not take what TensorRT passes.
    """
    from lepto.kernels.ship.cross import cross_compile

    check_head_dim(specification.head_dim)
    version = _PTX_VERSIONS.get(specification.architecture, 80)
    compiled = cross_compile(specification, ptx_version=version)
    stages = specification.launch.num_stages
    while compiled.shared_bytes > SHARED_BYTES and stages > 1:
        stages -= 1
        compiled = cross_compile(replace(specification, stages=stages), ptx_version=version)
    if compiled.shared_bytes > SHARED_BYTES:
        raise ValueError(
            f"{specification.name} needs {compiled.shared_bytes} bytes of shared memory, and a plugin's kernel has "
            f"{SHARED_BYTES}: let TensorRT read the model's function bodies instead"
        )
    if compiled.scratch_bytes:
        raise RuntimeError(f"{specification.name} wants {compiled.scratch_bytes} bytes of memory that TensorRT has not")
    ptx = without_hidden(compiled.ptx, len(compiled.arguments))
    return Kernel(compiled.symbol, ptx, 32 * compiled.num_warps, compiled.shared_bytes)


def parameters(ptx: str) -> list[str]:
    """The declarations of what the kernel in a PTX text takes, in order."""
    found = re.search(r"\.entry\s+\w+\((.*?)\)", ptx, re.DOTALL)
    return [] if found is None else [part.strip() for part in found[1].split(",")]


def without_hidden(ptx: str, count: int) -> str:
    """Take the pointers off that Triton appends for its own runtime; TensorRT would pass nothing for them.

    Args:
        ptx: Of one kernel.
        count: The arguments before them.

    Raises:
        RuntimeError: There are not as many as expected, or the kernel reads one.
    """
    declared = parameters(ptx)
    if len(declared) != count + HIDDEN:
        raise RuntimeError(
            f"a kernel must take {count} arguments and {HIDDEN} of Triton's own, this one takes {len(declared)}: this "
            "version of Triton has another ABI"
        )
    head, rest = ptx.split(declared[count - 1] + ",", 1)
    last = declared[-1]
    body = rest[rest.index(last) + len(last) :]
    for one in declared[count:]:
        name = one.split()[-1]
        if re.search(rf"\b{name}\b", body):
            raise RuntimeError(f"the kernel reads {name}, which only Triton's own runtime could pass")
    return head + declared[count - 1] + body


def register(
    op_types: Sequence[str], architecture: str, compile_: Callable[[PluginSpecification], Kernel] = compile_plugin
) -> None:
    """Register plugins with TensorRT in this process, before the parser or ``tensorrt.plugin.op.lepto`` is used.

    Args:
        op_types: Names of `operators`.
        architecture: Of the GPU that the engine is built for, such as ``sm_89``.
        compile_: Makes the kernel of a node.

    Raises:
        ValueError: An operator is unknown, registered twice, or the architecture is in no table.
        ImportError: TensorRT is not installed, or too old.
    """
    find_architecture(architecture)
    variants = [variant_of(op_type) for op_type in op_types]
    try:
        import tensorrt as trt
        import tensorrt.plugin as trtp
    except ImportError as error:
        raise ImportError(
            f"the plugins need TensorRT's Python package, 10.10 or later ({error}): it comes with JetPack, or from "
            "NVIDIA as the Python package tensorrt"
        ) from error
    if not hasattr(trtp, "aot_impl"):
        raise ImportError(f"the plugins need TensorRT 10.10 or later, this is {trt.__version__}")
    for variant in variants:
        _register(variant, architecture, compile_)


def _register(variant: Variant, architecture: str, compile_: Callable[[PluginSpecification], Kernel]) -> None:
    import tensorrt.plugin as trtp

    name = f"{DOMAIN}::{variant.op_type}"
    tensors = dict.fromkeys(variant.inputs, trtp.TensorDesc)
    attributes = {name: float if name in ("scale", "softcap") else int for name in variant.attributes}
    mask = {"": [], "bool": ["BOOL"], "float": ["FP16|BF16"], "packed": ["INT32", "INT32"]}[variant.mask]

    def describe(*inputs: "trtp.TensorDesc", **_: Any) -> "trtp.TensorDesc":
        return inputs[0].like()

    def tune(*_: Any) -> list["trtp.AutoTuneCombination"]:
        value = "FP16|BF16"
        return [trtp.AutoTuneCombination(", ".join([value] * 3 + mask + [value]), "LINEAR", [_LONG, _SHORT])]

    def implement(*arguments: Any) -> tuple[str, str, "trtp.KernelLaunchParams", "trtp.SymIntExprs"]:
        inputs, values = arguments[: len(tensors)], arguments[len(tensors) : -2]
        given = dict(zip(attributes, values, strict=True))
        specification = _specification(variant, architecture, inputs, given, arguments[-1] == _SHORT)
        kernel = compile_(specification)
        launch, extras = _launch(variant, specification, inputs, kernel)
        return kernel.symbol, kernel.ptx, launch, extras

    # TensorRT reads what a plugin takes from the signature, and these are as many as there are variants.
    outputs = {"outputs": tuple[trtp.TensorDesc]}
    made = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]
    _sign(describe, {**tensors, **attributes}, trtp.TensorDesc)
    _sign(tune, {**tensors, **outputs}, list[trtp.AutoTuneCombination])
    _sign(implement, {**tensors, **attributes, **outputs, "tactic": int}, made)
    trtp.register(name)(describe)
    trtp.autotune(name)(tune)
    trtp.aot_impl(name)(implement)


def _sign(function: Callable[..., object], annotations: dict[str, Any], returns: Any) -> None:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    takes = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in annotations.items()]
    function.__signature__ = inspect.Signature(takes, return_annotation=returns)  # type: ignore[attr-defined]  # PEP 362


def _specification(
    variant: Variant, architecture: str, inputs: Sequence["trtp.TensorDesc"], given: dict[str, Any], short: bool
) -> PluginSpecification:
    import tensorrt as trt

    q = inputs[0]
    dtypes = {trt.DataType.HALF: "float16", trt.DataType.BF16: "bfloat16"}
    if q.dtype not in dtypes:
        raise TypeError(f"{DOMAIN}::{variant.op_type} runs in float16 or bfloat16, Q is {q.dtype}")
    if variant.mask in ("bool", "float") and inputs[3].ndim != 4:
        raise ValueError(f"{DOMAIN}::{variant.op_type}: mask must have 4 dimensions, it has {inputs[3].ndim}")
    width, heads = q.shape[q.ndim - 1], given["num_heads"]
    if width < 1 or width % heads:
        raise ValueError(
            f"{DOMAIN}::{variant.op_type}: the last dimension of Q must be known and a multiple of num_heads={heads}, "
            f"got {width}"
        )
    right = given.get("window_right", -1)
    return PluginSpecification(
        architecture=architecture,
        head_dim=width // heads,
        heads=heads,
        kv_heads=given["kv_num_heads"],
        scale=given["scale"],
        mask=variant.mask,
        dtype=dtypes[q.dtype],
        window_left=given.get("window_left", -1),
        window_right=0 if variant.causal else right,
        softcap=given.get("softcap", 0.0),
        short=short,
    )


def _launch(
    variant: Variant, specification: PluginSpecification, inputs: Sequence["trtp.TensorDesc"], kernel: Kernel
) -> tuple["trtp.KernelLaunchParams", "trtp.SymIntExprs"]:
    """The grid and the whole numbers, as expressions over the shapes of the inputs."""
    import tensorrt.plugin as trtp

    if variant.mask == "packed":
        batch, rows = inputs[3].shape_expr[0] - 1, inputs[4].shape_expr[0]
        numbers = [rows, rows]
    else:
        batch, rows = inputs[0].shape_expr[0], inputs[0].shape_expr[1]
        numbers = [rows, inputs[1].shape_expr[1]]
        if variant.mask:
            numbers += [inputs[3].shape_expr[axis] for axis in range(4)]
    launch = trtp.KernelLaunchParams()
    launch.grid_x = trtp.cdiv(rows, specification.launch.block_m) * specification.heads * batch
    launch.block_x = kernel.threads
    launch.shared_mem = kernel.shared_bytes
    return launch, trtp.SymIntExprs.from_tuple([trtp.SymInt32(number) for number in numbers])
