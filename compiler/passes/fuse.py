"""Fuse: fewer, larger nodes that compute the same function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lepto.compiler.context import Context, Left
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.fusions import graph as g
from lepto.compiler.passes.fusions.attention import fuse_attention
from lepto.compiler.passes.fusions.embeddings import fold_constant_input
from lepto.compiler.passes.fusions.gelu import fuse_gelu
from lepto.compiler.passes.fusions.normalization import fuse_normalization
from lepto.compiler.passes.fusions.one_row import attend_one_row
from lepto.compiler.passes.fusions.rows import select_rows
from lepto.compiler.passes.fusions.shift import fold_shifts


@dataclass(frozen=True, slots=True)
class Fuse:
    """Replace attention, residual normalization and GELU by fused operators, and compute only the rows that are read.

    Fusions break silently whenever an exporter changes (onnxruntime issues 22629, 23864), so the pass counts: what it
    fused must stand in the result, and where the architecture is known to have attention, all of it must be fused.

    Attributes:
        attention: Fuse self-attention into ``com.microsoft::Attention``.
        normalization: Fuse residual layer normalization into ``com.microsoft::SkipSimplifiedLayerNormalization``.
        gelu: Fuse GELU into ``com.microsoft::BiasGelu``.
        rows: Where the head reads one position, compute what follows the last attention for that position alone.
        one_row: Where the last attention is read at one position, project nothing but what its one query needs.
        inputs: Fold inputs that always hold one value into the tables that they are looked up in.
        shifts: Fold the shifts of normalizations into the biases of what reads them.
    """

    name: ClassVar[str] = "fuse"
    preserves_function: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ()

    attention: bool = True
    normalization: bool = True
    gelu: bool = True
    rows: bool = True
    one_row: bool = True
    inputs: bool = True
    shifts: bool = True

    def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
        """Return the fused model.

        Raises:
            Left: Nothing in this graph can be fused.
            PassError: The graph lost or kept nodes that it should not have.
        """
        graph = model.ir()
        parts = (
            ("attention", self.attention, fuse_attention, ("Attention",)),
            ("normalization", self.normalization, fuse_normalization, ("SkipSimplifiedLayerNormalization",)),
            ("gelu", self.gelu, fuse_gelu, ("BiasGelu", "Gelu")),
        )
        before = model.operators()
        fused, wanted, notes = 0, dict[tuple[str, ...], int](), list[str]()
        if self.inputs and (dropped := fold_constant_input(graph, context.constant_inputs)):
            fused += dropped
            notes.append(f"{dropped} constant input folded into a table")
        for name, asked, fusion, operators in parts:
            if not asked:
                continue
            count, reasons = fusion(graph)
            fused += count
            wanted[operators] = count
            if count or reasons:
                notes.append(f"{count} x {name}" + (f", {len(reasons)} left ({reasons[0]})" if reasons else ""))
        g.finish(graph)  # what the fusions left behind would still count as readers
        if self.rows:
            moved, reasons = select_rows(graph)
            fused += moved
            if moved or reasons:
                notes.append(f"{moved} nodes for the row that is read" + (f" ({reasons[0]})" if reasons else ""))
        absorbed = attend_one_row(graph) if self.rows and self.one_row else 0
        if absorbed:
            fused += absorbed
            wanted[("Attention",)] = wanted.get(("Attention",), 0) - absorbed
            notes.append(f"{absorbed} attention for one query")
        if self.shifts and (folded := fold_shifts(graph)):
            fused += folded
            notes.append(f"{folded} shifts folded into biases")
        if not fused:
            raise Left("nothing to fuse: no attention, residual normalization or GELU was found" + _tail(notes))
        g.finish(graph)
        result = OnnxModel.from_ir(graph)
        after = result.operators()
        for made_of, count in wanted.items():
            made = sum(after[op] - before[op] for op in made_of)
            context.expect(made == count, f"{' + '.join(made_of)}: {count} were fused, {made} stand in the graph")
        if self.attention and context.layers:
            made = after["Attention"] + absorbed
            context.expect(
                made in (0, context.layers),
                f"Attention: the model has {context.layers} layers, but only {made} were fused: {notes[0]}",
            )
        context.note("; ".join(notes))
        return result


def _tail(notes: list[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""
