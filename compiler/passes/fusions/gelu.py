"""The error-function GELU, as exporters write it out, becomes ``com.microsoft::BiasGelu`` or ``Gelu``.

``x * 0.5 * (1 + erf(x / sqrt 2))`` (Hendrycks and Gimpel, arXiv 1606.08415): five element-wise nodes and the bias of
the linear layer before them become one.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from lepto.compiler.passes.fusions import graph as g


def fuse_gelu(model: ir.Model) -> tuple[int, list[str]]:
    """Fuse every exact GELU of the graph.

    Returns:
        The number of fused activations, and for each ``Erf`` that was left alone a line that says why.
    """
    graph = model.graph
    fused, reasons = 0, []
    for erf in [node for node in graph if node.op_type == "Erf" and node.domain == ""]:
        found = _match(erf)
        if found is None:
            reasons.append(f"{erf.outputs[0].name}: it is no GELU")
            continue
        x, out, readers = found
        node = out.producer()
        assert node is not None
        add = g.producer(x, "Add")
        # The bias moves into the activation only where nothing else reads the biased sum.
        alone = {use.node for use in x.uses()} <= readers and not x.is_graph_output()
        inputs = _bias(add) if add is not None and alone else None
        if inputs is None:
            gelu = g.insert(graph, node, "Gelu", [x], domain=g.MICROSOFT, like=out)
        else:
            gelu = g.insert(graph, node, "BiasGelu", inputs, domain=g.MICROSOFT, like=out)
        g.replace(out, gelu)
        fused += 1
    return fused, reasons


def _bias(add: ir.Node) -> list[ir.Value] | None:
    left, right = add.inputs
    for data, bias in ((left, right), (right, left)):
        array = g.constant(bias)
        if data is not None and bias is not None and array is not None and array.ndim == 1 and g.constant(data) is None:
            return [data, bias]
    return None


def _match(erf: ir.Node) -> tuple[ir.Value, ir.Value, set[ir.Node]] | None:
    """From the Erf to its argument x before the division, to the product at the end, and the nodes that read x."""
    inner = erf.inputs[0]
    scale = None if inner is None else inner.producer()
    if scale is None or scale.inputs[0] is None or len(scale.inputs) != 2:
        return None
    factor = g.scalar(scale.inputs[1])
    if (scale.op_type, _near(factor, math.sqrt(2)), _near(factor, math.sqrt(0.5))) not in (
        ("Div", True, False),
        ("Mul", False, True),
    ):
        return None
    x = scale.inputs[0]
    plus = g.only_user(erf.outputs[0])
    if plus is None or plus.op_type != "Add" or not _near(g.scalar(g.other(plus, erf.outputs[0])), 1.0):
        return None
    # Products with x and with one half follow, in any order: (x * 0.5) * e, x * (0.5 * e) or 0.5 * (x * e).
    readers, missing_x, missing_half = {scale}, True, True
    value = plus.outputs[0]
    while missing_x or missing_half:
        product = g.only_user(value)
        if product is None or product.op_type != "Mul":
            return None
        operand = g.other(product, value)
        halved = g.producer(operand, "Mul")
        if operand is x and missing_x:
            missing_x = False
            readers.add(product)
        elif _near(g.scalar(operand), 0.5) and missing_half:
            missing_half = False
        elif (
            halved is not None
            and x in halved.inputs
            and _near(g.scalar(g.other(halved, x)), 0.5)
            and missing_x
            and missing_half
        ):
            missing_x = missing_half = False
            readers.add(halved)
        else:
            return None
        value = product.outputs[0]
    return x, value, readers


def _near(value: float | None, wanted: float) -> bool:
    return value is not None and bool(np.isclose(value, wanted, rtol=1e-5))
