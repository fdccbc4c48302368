"""What ``test_team`` runs in two processes: the same teaching by one and by both, and errors in one of them."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import BertConfig, BertForSequenceClassification

from lepto.compiler.data import NO_LABEL
from lepto.compiler.encoder import Encoder
from lepto.compiler.training import loop, pool
from lepto.compiler.training.guide import Guide
from lepto.compiler.training.loop import Schedule
from lepto.compiler.training.pool import Pool, Targets, array_collate, text_collate
from lepto.compiler.training.qat import quantization_aware
from lepto.compiler.training.team import Team, current, joined

# Rounded to bfloat16 a sum of two parts is not that of the whole.
pool.has_bf16 = lambda: False

# Of 35 samples in batches of 16 the last batch has three: too few for two processes.
SAMPLES, SCHEDULE = 35, Schedule(epochs=2, batch_size=16, learning_rate=1e-3)
RNG = np.random.default_rng(0)

steps: list[dict[str, torch.Tensor | None]] = []
clip = Accelerator.clip_grad_norm_


def remember(self: Any, parameters: Any, *rest: Any) -> Any:
    given = list(parameters)
    steps.append({str(i): None if p.grad is None else p.grad.clone() for i, p in enumerate(given)})
    return clip(self, given, *rest)


Accelerator.clip_grad_norm_ = remember


def taught(team: Team, module: torch.nn.Module, samples: Pool, guide: Guide | None = None) -> list[Any]:
    steps.clear()
    arguments = (module, None if guide else "head", samples, [], SCHEDULE, guide, "student")
    losses = loop._train(team, *arguments) if team.size == 1 else team.run(loop._train, *arguments)
    return [losses, [*steps]]


def largest_difference(make: Callable[[], tuple[Any, ...]]) -> dict[str, float]:
    """Between one process and two: of the losses, and of the gradients of all steps beside the largest of the step."""
    alone, both = make(), make()
    (losses, steps), (losses_2, steps_2) = taught(Team(), *alone), taught(current(), *both)
    assert len(steps) == len(steps_2) == 6
    apart = 0.0
    for step, step_2 in zip(steps, steps_2, strict=True):
        assert [name for name, g in step.items() if g is None] == [name for name, g in step_2.items() if g is None]
        size = max(float(g.abs().max()) for g in step.values() if g is not None)
        pairs = [(g, step_2[name]) for name, g in step.items() if g is not None]
        apart = max(apart, *(float((g - h).abs().max()) / size for g, h in pairs))
    weights = zip(alone[0].state_dict().values(), both[0].state_dict().values(), strict=True)
    return {
        "gradients": apart,
        "losses": float(np.abs(np.subtract(losses, losses_2)).max()),
        "state": max(float((a.double() - b.double()).abs().max()) for a, b in weights),
        "unused": float(sum(g is None for g in steps[0].values())),
    }


class Small(torch.nn.Module):
    """With a layer that nothing uses: the optimizer must leave it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.idle = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(self.body(x).relu()))


class Normalized(Small):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16))


X = RNG.standard_normal((SAMPLES, 8)).astype(np.float32)
TARGETS = Targets(
    list(RNG.standard_normal((SAMPLES, 4)).astype(np.float32)), list(RNG.random((SAMPLES, 16)).astype(np.float32))
)
ARRAYS = Pool(array_collate({"x": X}), [1] * SAMPLES, [NO_LABEL if i % 3 else i % 4 for i in range(SAMPLES)], TARGETS)

ROWS = [RNG.integers(3, 40, 4 + i % 5).tolist() for i in range(SAMPLES)]
TEXTS = Pool(text_collate(ROWS, 0, ("input_ids", "attention_mask")), [*map(len, ROWS)], [0] * SAMPLES,
             Targets(list(RNG.standard_normal((SAMPLES, 3)).astype(np.float32)), []))  # fmt: skip


def small() -> tuple[torch.nn.Module, Pool]:
    torch.manual_seed(0)
    return Small(), ARRAYS


def guided() -> tuple[torch.nn.Module, Pool, Guide]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=3
    )
    teacher = BertForSequenceClassification(config).eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    encoders = [Encoder.of(model) for model in (teacher, student)]
    return student, TEXTS, Guide(*encoders, [TEXTS], hidden=1.0, relations=1.0, relation_heads=2)


def ranges(team: Team) -> dict[str, tuple[float, float]]:
    module, samples = small()
    with quantization_aware(module, exclude=["idle"]) as rounding:
        taught(team, module, samples)
    return rounding.ranges()


def statistics(team: Team) -> torch.Tensor:
    torch.manual_seed(0)
    module = Normalized()
    taught(team, module, ARRAYS)
    return module.body[1].running_mean


class OddError(Exception):
    """Cannot be copied: pickle would call it with one argument."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def fails(team: Team, who: int, where: str) -> None:
    if team.rank == who and where == "outside":
        raise MemoryError("out of memory")
    with team.together():
        if team.rank == who:
            raise OddError("no", "copy") if where == "odd" else ValueError("on purpose")


def failures() -> list[str]:
    """What the first process is told; the team lives on."""
    said = []
    for who in (0, 1):
        for where in ("inside", "outside", "odd"):
            try:
                current().run(fails, who, where)
            except Exception as error:
                said.append(f"{type(error).__name__}: {error} {getattr(error, '__notes__', [])}")
    return said


def answers(teacher: torch.nn.Module) -> float:
    one = pool._teach(Team(), teacher, "head", [1] * SAMPLES, ARRAYS.collate, 4)
    both = pool.teach(teacher, "head", [1] * SAMPLES, ARRAYS.collate, batch=4)
    pairs = [*zip(one.logits, both.logits, strict=True), *zip(one.features, both.features, strict=True)]
    assert len(pairs) == 2 * SAMPLES
    return float(max(np.abs(a - b).max() for a, b in pairs))


def leaves(team: Team) -> None:
    with team.together():
        if team.rank == 1:
            os._exit(7)


def main() -> None:
    torch.set_num_threads(1)
    with joined() as leads:
        if not leads:
            return
        if "leave" in sys.argv:
            current().run(leaves)
        alone, both = ranges(Team()), ranges(current())
        found = {
            "size": current().size,
            "small": largest_difference(small),
            "guided": largest_difference(guided),
            "ranges": max(abs(a - b) for name in alone for a, b in zip(alone[name], both[name], strict=True)),
            "statistics": float((statistics(Team()) - statistics(current())).abs().max()),
            "failures": failures(),
            "answers": answers(small()[0].eval()),
        }
        print(json.dumps(found))


if __name__ == "__main__":
    main()
