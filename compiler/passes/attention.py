"""Attention as nodes of domain ``lepto``: what a GPU's kernels take, and any runtime can compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lepto.compiler.context import Context, Left
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.fusions import graph as g
from lepto.compiler.passes.fusions.lepto_attention import PACKED, to_attention_nodes, unpad
from lepto.kernels.ship.onnx import DOMAIN, LOWEST_OPSET, VERSION, declare


@dataclass(frozen=True, slots=True)
class Attention:
    """Replace attention by nodes of domain ``lepto`` whose function bodies are standard operators.

    A runtime with lepto's kernels takes the node; any other runs the body. With ``unpad`` an encoder works on tokens
    alone from its embedding to what its head reads: no padding is embedded, projected or attended.

    Attributes:
        unpad: Take the padding out (encoders with one output a row).
    """

    name: ClassVar[str] = "attention"
    preserves_function: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ()

    unpad: bool = False

    def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
        """Return the model with ``lepto`` nodes.

        Raises:
            Left: No attention was found, the opset is too low, or the padding cannot be taken out.
            PassError: The graph lost nodes that it should not have.
        """
        graph = model.ir()
        opset = graph.opset_imports.get("", 0)
        if opset < LOWEST_OPSET:
            raise Left(f"attention as a lepto node needs opset {LOWEST_OPSET}, the graph has {opset}")
        made, reasons = to_attention_nodes(graph)
        told = f", {len(reasons)} left ({reasons[0]})" if reasons else ""
        if not made:
            raise Left(f"no attention was found{told}")
        g.finish(graph)  # what read the old masks would still count
        note = f"{made} x attention{told}"
        if self.unpad:
            found = "some attention is none of lepto's" if reasons else unpad(graph)
            if isinstance(found, str):
                raise Left(f"the padding stays: {found}")
            note += f"; {found} nodes without padding"
        g.finish(graph)
        graph.graph.opset_imports[DOMAIN] = VERSION
        result = OnnxModel.from_proto(declare(OnnxModel.from_ir(graph).proto()))
        nodes = [node.op_type for node in result.proto().graph.node if node.domain == DOMAIN]
        context.expect(len(nodes) == made, f"{made} attentions were replaced, {len(nodes)} nodes stand in the graph")
        context.expect(
            not self.unpad or set(nodes) == {PACKED}, f"after unpadding {', '.join(sorted(set(nodes)))} stand there"
        )
        context.note(note)
        return result
