"""Shapes of a network without attention: the channels and hidden units that are worth their time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from lepto.compiler.channel_groups import Groups
from lepto.compiler.channel_importance import allot, measure_channels, measure_costs
from lepto.compiler.channels import find_groups, prune_channels, rounded
from lepto.compiler.context import Left
from lepto.compiler.cutter import Shape
from lepto.compiler.derived import derive
from lepto.compiler.model import OnnxModel
from lepto.compiler.source import Source
from lepto.compiler.training.pool import Pool
from lepto.compiler.verify import runner
from lepto.runtime.measure import interleave

_SHARES = (0.7, 0.5, 0.35, 0.2, 0.1)
"""Of what the whole network costs, what candidates are cut to."""

_EVEN = (0.75, 0.5, 0.375, 0.25, 0.125)
"""Of its channels, what every layer keeps in the candidates beside those: the table holds one layer's cut at a time."""

_MANY = 12
"""With more groups than this the table has two widths of each, not four."""

Widths = Mapping[str, Mapping[int, float]]
"""For each group milliseconds of the whole network by channels kept."""

Remember = Callable[[Source, Callable[[], Widths]], Widths]
"""Gives what was measured of a network before, or measures it."""


@dataclass(frozen=True)
class ChannelCutter:
    """Cuts one network.

    Attributes:
        base: The network.
        groups: What can be cut of it.
        importance: Of each group's units.
        table: What its widths cost.
        remember: Where that comes from, and is kept.
        threads: Intra-op threads of measurements.
        seed: Of the order of runs.
        round_to: Channels are kept in multiples of this.
    """

    base: Source
    groups: Groups
    importance: Mapping[str, torch.Tensor]
    table: Widths
    remember: Remember
    threads: int = 1
    seed: int = 0
    round_to: int = 8

    def shapes(self) -> list[Shape]:
        """Candidates that cost a share of the whole by the table, and evenly narrower ones; ascending by cost."""
        channels = {group.name: group.channels for group in self.groups.groups}
        whole = max(max(costs.values()) for costs in self.table.values())
        # Groups share the products between them, so that what each saves alone does not add up: the most that can be
        # saved together is taken as the scale.
        most = sum(max(costs.values()) - min(costs.values()) for costs in self.table.values())
        found: dict[tuple[tuple[str, int], ...], Shape] = {}
        for share in _SHARES:
            saving = (1 - share) * most
            if saving <= 0:
                continue
            kept = allot(self.importance, self.table, channels, lambda name, n: self.table[name][n], saving)
            if all(kept[name] == count for name, count in channels.items()):
                continue
            total, of = sum(kept.values()), sum(channels.values())
            key = tuple(sorted(kept.items()))
            found[key] = Shape(f"{total} of {of} channels in {len(channels)} groups", whole * share, kept)
        for keep in _EVEN:
            kept = {g.name: rounded(g.channels, keep, self.round_to, g.tied) for g in self.groups.groups}
            total, of = sum(kept.values()), sum(channels.values())
            key = tuple(sorted(kept.items()))
            if total < of and key not in found:
                name = f"{total} of {of} channels, evenly, in {len(channels)} groups"
                found[key] = Shape(name, whole - (1 - keep) * most, kept)
        if not found:
            raise Left("no layer can be narrower")
        return sorted(found.values(), key=lambda shape: shape.predicted_ms)

    def larger(self) -> list[Shape]:
        """None: the candidates reach up to the source."""
        return []

    def cut(self, shape: Shape) -> Source:
        """A new source with the most important channels of that shape."""
        module, cut = prune_channels(
            self.base.module(), example_tensors(self.base), self.groups, self.importance, keep=shape.what
        )
        return derive(self.base, module, cut=cut if self.base.cut is None else self.base.cut.then(cut))

    def smaller(self, student: Source, shape: Shape, pool: Pool) -> tuple[Shape, Source] | None:
        """See :meth:`lepto.compiler.cutter.Cutter.smaller`; the dearest candidate of the student's own."""
        del shape
        try:
            cutter = channel_cutter(
                student, pool, threads=self.threads, seed=self.seed, round_to=self.round_to, remember=self.remember
            )
            chosen = max(cutter.shapes(), key=lambda s: s.predicted_ms)
            cut = cutter.cut(chosen)
        except Left:
            return None
        of = sum(group.channels for group in self.groups.groups)
        kept = sum(chosen.what.get(g.name, g.channels) for g in cutter.groups.groups)
        return dataclasses.replace(chosen, name=f"{kept} of {of} channels in {len(self.groups.groups)} groups"), cut


def channel_cutter(
    base: Source,
    pool: Pool,
    *,
    threads: int,
    seed: int,
    round_to: int = 8,
    remember: Remember = lambda _source, measure: measure(),
) -> ChannelCutter:
    """Find what can be cut of a network, what matters of it, and what each width costs.

    Raises:
        Left: Nothing can be cut, with the reasons.
    """
    module, example = base.module(), example_tensors(base)
    groups = find_groups(module, example)
    importance = measure_channels(module, groups, pool)
    steps = 4 if len(groups.groups) <= _MANY else 2
    table = remember(
        base,
        lambda: measure_costs(
            module,
            example,
            groups,
            lambda narrow: quick_ms(narrow, base, threads, seed),
            round_to=round_to,
            steps=steps,
        ),
    )
    # What is measured to cost more than the whole is noise, and would be taken for a price.
    return ChannelCutter(
        base,
        groups,
        importance,
        {
            group.name: {n: min(ms, table[group.name][group.channels]) for n, ms in table[group.name].items()}
            for group in groups.groups
        },
        remember,
        threads,
        seed,
        round_to,
    )


def example_tensors(source: Source) -> dict[str, torch.Tensor]:
    """The traced example as tensors."""
    return {name: torch.from_numpy(np.array(array)) for name, array in source.example.items()}


def quick_ms(module: torch.nn.Module, source: Source, threads: int, seed: int) -> float:
    """Lower quartile of one sample through ONNX Runtime; exported by tracing, which is quick, for timing alone."""
    import io
    import warnings

    example = {name: tensor[:1] for name, tensor in example_tensors(source).items()}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, kwargs=example, f=buffer,  # type: ignore[arg-type]  # it takes a file, too
            input_names=list(example), dynamo=False, opset_version=17, verbose=False
        )  # fmt: skip
    run = runner(OnnxModel(buffer.getvalue()), threads)
    feed = {name: tensor.numpy() for name, tensor in example.items()}
    seconds = interleave({"model": lambda _: run(feed)}, [{}], blocks=5, per_block=10, warmup=3, seed=seed)
    # Other work on the machine only ever adds.
    return float(np.quantile(seconds["model"], 0.25)) * 1e3
