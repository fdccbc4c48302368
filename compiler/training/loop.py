"""The loop that teaches a student: plain torch, moved and stepped by accelerate, in one process or in several.

Several take the steps of one: each batch is shared, and what they find is added up (:mod:`.team`, :mod:`.exchange`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lepto.compiler.context import PassError
from lepto.compiler.data import NO_LABEL
from lepto.compiler.source import first_output
from lepto.compiler.training.exchange import pack, statistics_of, unpack
from lepto.compiler.training.first_row import first_row_only
from lepto.compiler.training.guide import Guide
from lepto.compiler.training.losses import (
    Part,
    direction_distance,
    distillation,
    divisors,
    feature_distance,
    to_labels,
    whole_loss,
)
from lepto.compiler.training.observed import ends, observed_in, set_ends
from lepto.compiler.training.pool import Features, Pool, on_device, reduced_precision
from lepto.compiler.training.team import Team, current

_TERMS = ("logits", "labels", "features")

TOKENS = 1024
"""Tokens of a batch that a CPU runs at once.

What layers keep for the way back grows with them. Three layers of width 768 held 1.11 GiB at most while they learned
from 64 batches of questions, in place of 1.37, and took 28 and 24 s in place of 27 and 28 (float32, 2 threads; two runs
each). On a GPU many tokens at once are what makes it fast.
"""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a student is taught.

    Attributes:
        epochs: Passes over the pools; each epoch reads the original samples and one of the augmented copies.
        batch_size: Samples in a step.
        learning_rate: Peak of AdamW's learning rate.
        warmup: Share of the steps in which the rate rises linearly; it then falls to zero along a cosine.
        weight_decay: Of AdamW, on matrices only.
        temperature: Of the softened distributions.
        logits: Weight of the distance to the teacher's logits, or to its vectors.
        features: Weight of the distance to what the teacher's classifier reads.
        labels: Weight of the cross-entropy to the labels.
        train_tables: Whether embedding tables learn too.
        seed: Of the order of the batches and of dropout.
    """

    epochs: float = 4
    batch_size: int = 32
    learning_rate: float = 4e-4
    warmup: float = 0.05
    weight_decay: float = 0.01
    temperature: float = 2.0
    logits: float = 1.0
    features: float = 1.0
    labels: float = 0.2
    train_tables: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("epochs", "batch_size", "learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("logits", "features", "labels", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0.0 <= self.warmup < 1.0:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")

    def rate(self, step: int, steps: int) -> float:
        """Factor on the learning rate: linear warm-up, then half a cosine to zero."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))


def train(
    student: torch.nn.Module,
    path: str | None,
    original: Pool,
    augmented: Sequence[Pool],
    schedule: Schedule,
    *,
    guide: Guide | None = None,
    name: str = "student",
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Teach a student; changes it. Under ``torchrun`` all processes take part, each with its share of every batch.

    Args:
        student: The module; left in evaluation mode.
        path: Its classifier, whose inputs are compared with the teacher's where their shapes agree.
        original: The training samples.
        augmented: Copies of them, of which each epoch reads the next one.
        schedule: How.
        guide: Asks the teacher about hidden states and relations while the student learns.
        name: What to call it in errors.
        progress: Told after every step how many of how many are done.

    Returns:
        The mean loss of each epoch.

    Raises:
        PassError: The loss is not finite.
    """
    return current().run(_train, student, path, original, augmented, schedule, guide, name, progress=progress)


def _train(
    team: Team,
    student: torch.nn.Module,
    path: str | None,
    original: Pool,
    augmented: Sequence[Pool],
    schedule: Schedule,
    guide: Guide | None,
    name: str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    from accelerate import Accelerator  # type: ignore[import-untyped]  # it ships no types

    # Every process drops other values; the order of the batches is that of all.
    torch.manual_seed(schedule.seed + team.rank)
    rng = np.random.default_rng(schedule.seed)
    per_pool = [math.ceil(len(pool) / schedule.batch_size) for pool in (original, *augmented[:1])]
    steps = max(1, round(schedule.epochs * sum(per_pool)))
    # Its precision is a setting of the whole process, which may be set already: precision is chosen in _parts.
    accelerator = Accelerator()
    # Made ready as if it were only run: gradients are added up here, exactly, and not averaged as by DDP, which knows
    # neither how many samples a process had nor what a guide projects.
    model = accelerator.prepare_model(student, evaluation_mode=True)
    groups = _groups(student, schedule)
    if guide is not None:
        guide.projections.to(accelerator.device)
        guide.teacher.module.to(accelerator.device).eval()
        groups.append({"params": guide.parameters(), "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, fused=True)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.rate(step, steps))
    optimizer = accelerator.prepare_optimizer(optimizer)
    parameters = [p for group in groups for p in group["params"]]
    statistics, observed = statistics_of(student), observed_in(student)
    model.train()
    # The teacher's answers and the augmented copies keep a student from learning the samples by heart; dropout would
    # only blur what it is told.
    dropouts = [(module, module.p) for module in student.modules() if isinstance(module, torch.nn.Dropout)]
    for module, _ in dropouts:
        module.p = 0.0
    terms = _TERMS if guide is None else (*_TERMS, *guide.terms)
    done, epoch, losses = 0, 0, []
    with contextlib.ExitStack() as stack:
        seen = stack.enter_context(Features(student, path))
        if guide is None:  # a guide compares whole hidden states
            stack.enter_context(first_row_only(student, on_device(original.longest(), accelerator.device)))
        while done < steps:
            places = [0, *([1 + epoch % len(augmented)] if augmented else [])]
            pools = {place: augmented[place - 1] if place else original for place in places}
            batches = [(p, rows) for p in places for rows in pools[p].batches(schedule.batch_size, rng)]
            total = count = 0.0
            for index in rng.permutation(len(batches)):
                place, rows = batches[index]
                share = team.share(rows)
                # A guide compares whole hidden states; ranges and statistics move with each pass.
                whole = guide is not None or bool(observed or statistics) or accelerator.device.type != "cpu"
                pieces = [share] if whole and share else in_pieces(share, pools[place].sizes)
                parts: dict[str, Part] = {}
                with team.together():
                    if len(pieces) == 1:
                        parts = _parts(model, seen, pools[place], share, schedule, accelerator.device)
                        if guide is not None:
                            parts |= guide.parts(place, share, accelerator.device)
                    elif share:
                        parts = _aims(pools[place], share, schedule, accelerator.device)
                    over = divisors(parts, terms, accelerator.device)
                over = team.sum(over)
                with team.together():
                    value = 0.0
                    for piece in pieces:
                        if len(pieces) > 1:
                            parts = _parts(model, seen, pools[place], piece, schedule, accelerator.device)
                        loss = whole_loss(parts, terms, over)
                        accelerator.backward(loss)
                        value += float(loss.detach())
                    row = pack(value, len(share), parameters, statistics) if team.size > 1 else None
                    ranges = ends(observed, bool(share)) if team.size > 1 and observed else None
                if row is not None:
                    value = unpack(team.add_up(row), parameters, statistics)
                if ranges is not None:
                    set_ends(observed, team.smallest(ranges))
                if not math.isfinite(value):
                    raise PassError(
                        f"{name}: the loss became {value} in step {done + 1} of {steps} "
                        f"(learning rate {schedule.learning_rate:g})"
                    )
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                decay.step()
                optimizer.zero_grad(set_to_none=True)
                total, count, done = total + value * len(rows), count + len(rows), done + 1
                if progress is not None:
                    progress(done, steps)
                if done >= steps:
                    break
            losses.append(total / max(count, 1))
            epoch += 1
    student.eval()
    if guide is not None:
        guide.close()
    for module, p in dropouts:
        module.p = p
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    return losses


def in_pieces(rows: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    """The samples of a batch in pieces that are run one after the other: a step holds what one of them makes.

    Args:
        rows: The samples; those of like size are neighbours.
        sizes: Tokens of each sample of the pool.

    Returns:
        Pieces of about the same number of samples; none of no samples.
    """
    if not rows:
        return []
    count = min(len(rows), math.ceil(len(rows) * max(sizes[i] for i in rows) / TOKENS))
    size = math.ceil(len(rows) / count)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _parts(
    model: Any, seen: Features, pool: Pool, rows: Sequence[int], schedule: Schedule, device: torch.device
) -> dict[str, Part]:
    """What some samples add to each loss, by a forward pass."""
    inputs, *told = pool.batch(rows)
    with reduced_precision(device):
        output = first_output(model(**on_device(inputs, device)))
    return _distances(output.float(), seen.value, told, pool, rows, schedule, device)


def _aims(pool: Pool, rows: Sequence[int], schedule: Schedule, device: torch.device) -> dict[str, Part]:
    """What the teacher itself would add: what a loss is divided by depends on what it said, and on no student."""
    _, *told = pool.batch(rows)
    return _distances(told[0].to(device), told[1], told, pool, rows, schedule, device)


def _distances(
    output: torch.Tensor,
    read: torch.Tensor | None,
    told: Sequence[Any],
    pool: Pool,
    rows: Sequence[int],
    schedule: Schedule,
    device: torch.device,
) -> dict[str, Part]:
    """The losses of outputs, and of what the classifier read, against what the teacher said of the same samples."""
    logits, features, labels = told
    logits, labels = logits.to(device), labels.to(device)
    ours = output
    if output.ndim == 3:  # a label at every token: only real tokens count
        real = torch.zeros(output.shape[:2], dtype=torch.bool, device=device)
        for place, row in enumerate(rows):
            real[place, : pool.sizes[row]] = True
        ours, logits, labels = output[real], logits[real], labels[real]
    apart = direction_distance(ours, logits) if pool.vectors else distillation(ours, logits, schedule.temperature)
    parts = {"logits": schedule.logits * apart}
    if schedule.labels and bool((labels != NO_LABEL).any()):
        parts["labels"] = schedule.labels * to_labels(ours, labels)
    if schedule.features and features is not None and read is not None:
        wanted = features.to(device)
        if output.ndim == 3:
            read, wanted = read[real], wanted[real]
        if read.shape == wanted.shape:
            parts["features"] = schedule.features * feature_distance(read, wanted)
    return parts


def _groups(model: torch.nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    """Parameters that decay (matrices) and that do not; tables stay as they are where they are not to learn."""
    if not schedule.train_tables:
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight.requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": schedule.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
