"""Everything that is decided before the first pass runs: model, data, target and plan, or why they do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepto.compiler.data import Samples, load_samples
from lepto.compiler.pipeline import Pass, plan
from lepto.compiler.recipe import DEFAULT_SEARCH, NO_SEARCH, Recipe
from lepto.compiler.source import Source, open_source
from lepto.compiler.training.team import current, processes
from lepto.compiler.unlabelled import apart_from, load_unlabelled
from lepto.runtime.errors import LeptoError
from lepto.runtime.machine import this_machine
from lepto.runtime.targets import TARGETS, Target

_BF16 = 8.0
"""The compute capability (Ampere) from which on matrix units take bf16."""

_LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4")


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before the first pass runs.

    Attributes:
        recipe: The request, with the target resolved.
        source: The model.
        train: Training data, or None.
        evaluation: Evaluation data, or None.
        target: The hardware.
        reduce_range: Whether weights must keep to seven bits on the target.
        plan: The passes by name; alternatives of one step are joined by ``|``.
        searches: Whether a smaller model is searched for first.
        notes: What was decided, and why.
        stand_in: The level of this CPU, where it lacks the target's own and candidates are timed on it all the same.
        unlabelled: Inputs without labels that students learn from as well, or None; none of the evaluation data.
    """

    recipe: Recipe
    source: Source
    train: Samples | None
    evaluation: Samples | None
    target: Target
    reduce_range: bool
    plan: tuple[str, ...]
    notes: tuple[str, ...]
    searches: bool = False
    stand_in: str | None = None
    unlabelled: Samples | None = None


def prepare(recipe: Recipe) -> Prepared:
    """Open the model and the data, and resolve the target and the plan; nothing is computed.

    Raises:
        LeptoError: Something cannot be used; the message says what and why.
    """
    _check_processes(recipe)
    target = resolve_target(recipe.target)
    source = open_source(recipe.model, recipe.task)
    check_weights(source)
    read: dict[str, Any] = {
        "text_column": recipe.text_column,
        "label_column": recipe.label_column,
        "labels": source.labels,
        "task": source.task,
    }
    train = load_samples(recipe.train, split="train", **read) if recipe.train else None
    evaluation = load_samples(recipe.eval, split="test", **read) if recipe.eval else None
    for samples in (train, evaluation):
        check_inputs(samples, source)
    if evaluation is not None and evaluation.one_label:
        raise LeptoError(f"{evaluation.origin}: all {len(evaluation)} samples have one label, which shows nothing")
    unlabelled, notes = _unlabelled(recipe, source, evaluation)
    instead = stand_in(target)
    if instead is not None:
        notes.append(
            f"this CPU has no {target.isa} ({this_machine().cpu}): candidates are timed on it as {instead} in place of "
            f"{target.name}, and weights keep to seven bits, which every {target.isa} computes alike. Measure the "
            "result there: lepto bench PACKAGE"
        )
    names: tuple[str, ...]
    gpu = target.kind == "gpu"
    if gpu or (recipe.passes is not None):
        names = ("tensorrt",) if recipe.passes is None else recipe.passes
        steps = [step for entry in names for step in plan(entry)]
        lossy = [step.name for step in steps if not step.preserves_function]
        if lossy and evaluation is None:
            raise LeptoError(
                f"{lossy[0]} may change answers, and without --eval nobody would know: give evaluation data"
            )
        _check_tensorrt(steps, target)
        if gpu and any(getattr(recipe, n) is not None for n in ("latency_budget", "size_budget")):
            raise LeptoError(f"no search is made for {target.name}: nothing can be timed here. Leave its budgets out")
        reading = [step.name for step in steps if "calibration" in step.reads]
        if reading and train is None:
            raise LeptoError(f"{reading[0]} looks at what activations reach on training data: give --train")
    else:
        names = ("fuse",)
        asked = [n for n in ("search_budget", "latency_budget", "size_budget") if getattr(recipe, n) is not None]
        if asked and recipe.search_budget != NO_SEARCH and (evaluation is None or train is None):
            raise LeptoError(
                f"--{asked[0].replace('_', '-')}: a search needs data to teach students and to judge the result: give "
                "--train and --eval"
            )
        if evaluation is None:
            notes.append("no evaluation data (--eval): only passes that keep the function are used")
        elif train is None:
            names = ("fuse", "quantize-dynamic")
            notes.append(
                "no training data (--train): no smaller model is searched for, since nothing can be taught, and static "
                "quantization cannot be calibrated; both are left out"
            )
        else:
            names = ("fuse", "quantize-dynamic|quantize-static")
    searches = (
        not gpu
        and recipe.passes is None
        and evaluation is not None
        and train is not None
        and recipe.search_budget != NO_SEARCH
    )
    if unlabelled is not None and not searches and not _teaches(recipe):
        raise LeptoError(
            "--unlabelled is what students learn from, and none is taught: leave it out, or --passes, or name distill "
            "among them"
        )
    if recipe.confidence is not None and evaluation is None:
        raise LeptoError("--confidence asks for a bound on evaluation data: give --eval")
    budget = (recipe.search_budget or DEFAULT_SEARCH) if searches else recipe.search_budget
    return Prepared(
        recipe.model_copy(update={"target": target.name, "task": source.task, "search_budget": budget}),
        source,
        train,
        evaluation,
        target,
        # U8S8 products saturate in 16 bits on AVX2, and on AVX-512 without VNNI.
        target.kind == "cpu" and target.isa in _LEVELS and not _has_vnni(target),
        names,
        tuple(notes),
        searches,
        instead,
        unlabelled,
    )


def _unlabelled(recipe: Recipe, source: Source, evaluation: Samples | None) -> tuple[Samples | None, list[str]]:
    """Inputs without labels, and what is to be told of them."""
    if recipe.unlabelled is None:
        return None, []
    if recipe.train is None:
        raise LeptoError("--unlabelled is answered beside labelled data, which says what is right: give --train")
    samples = load_unlabelled(recipe.unlabelled, text_column=recipe.text_column, task=source.task)
    check_inputs(samples, source)
    kept = apart_from(samples, [evaluation])
    if kept is None:
        raise LeptoError(f"{samples.origin} holds nothing but evaluation data, which nobody may learn from: give other")
    out = len(samples) - len(kept)
    return kept, [f"{out:,} of {len(samples):,} unlabelled samples are evaluation data: left out"] if out else []


def _teaches(recipe: Recipe) -> bool:
    """Whether a plan has a pass that learns from the source's answers."""
    names = {step.name for entry in recipe.passes or () for step in plan(entry)}
    return bool(names & {"distill", "quantization-aware"})


def _check_processes(recipe: Recipe) -> None:
    """Refuse to compile in each of several processes: they would wait for each other in the cache."""
    if (count := processes()) <= 1:
        return
    if current().size != count:
        raise LeptoError(
            f"this is one of {count} processes (WORLD_SIZE, as torchrun sets it), and one compiles while the others "
            "help: call it within lepto.compiler.training.team.joined(), as lepto compile does"
        )
    if recipe.workers is not None:
        raise LeptoError(
            f"--workers {recipe.workers}: under torchrun its {count} processes teach each student together; teach them "
            "side by side without torchrun, or leave --workers out"
        )


def _check_tensorrt(steps: list[Pass], target: Target) -> None:
    names = [step.name for step in steps]
    if target.kind == "cpu" and "tensorrt" in names:
        gpus = ", ".join(one.name for one in TARGETS.values() if one.kind == "gpu")
        raise LeptoError(f"tensorrt prepares a graph for a GPU, and the target is {target.name}: --target {gpus}")
    if target.kind == "gpu" and names[-1:] != ["tensorrt"]:
        raise LeptoError(f"the plan for {target.name} must end in tensorrt, got {', '.join(names)}")
    in_bf16 = [step for step in steps if getattr(step, "precision", "") == "bf16"]
    if target.kind == "gpu" and in_bf16 and float(target.compute_capability) < _BF16:
        raise LeptoError(
            f"bf16 needs a GPU of compute capability {_BF16:g} or later, and {target.name} has "
            f"{target.compute_capability}: use tensorrt(precision=fp16)"
        )


def resolve_target(name: str) -> Target:
    """The target of that name; ``host`` is the best level of this machine's CPU.

    Raises:
        LeptoError: It cannot be compiled for here.
    """
    machine = this_machine()
    if name == "host":
        known = [level for level in machine.isa_levels if level in TARGETS]
        if not known:
            raise LeptoError(f"no target is known for this machine's CPU ({machine.cpu}): name one with --target")
        return TARGETS[known[-1]]
    target = TARGETS[name]
    if target.kind == "gpu":
        return target  # nothing is timed here: the engine is built for it, or a kit that builds it there
    if target.isa not in machine.isa_levels and stand_in(target) is None:
        raise LeptoError(
            f"target {name!r} cannot be measured here: this CPU ({machine.cpu}) has "
            f"{', '.join(machine.isa_levels) or 'no known level'}. "
            "Compile on such a machine, or choose another --target"
        )
    return target


def stand_in(target: Target) -> str | None:
    """The best level of this CPU where it lacks the level of a CPU target of its own family; else None.

    ONNX Runtime chooses its kernels when a session is made, so that the same file runs on both, and what is faster on
    one level mostly is on the next. What was timed on a stand-in is marked as such wherever it is shown.
    """
    levels = [level for level in this_machine().isa_levels if level in _LEVELS]
    if target.kind != "cpu" or target.isa not in _LEVELS or target.isa in levels or not levels:
        return None
    return levels[-1]


def check_weights(source: Source) -> None:
    """Refuse a PyTorch model with a weight that is no finite number.

    Raises:
        LeptoError: It names the tensor, how many of its values are not finite, and where the first stands.
    """
    if source.load_module is None:
        return
    for name, tensor in source.module().state_dict().items():
        finite = tensor.isfinite() if tensor.is_floating_point() else None
        if finite is not None and not finite.all():
            place = (~finite).nonzero()[0].tolist()
            raise LeptoError(
                f"{source.reference}: the weight {name} is not finite: {int((~finite).sum())} of {tensor.numel()} "
                f"values, the first at {place} ({tensor[tuple(place)].item()}). Training diverged or the file is "
                "damaged: use an earlier checkpoint"
            )


def check_inputs(samples: Samples | None, source: Source) -> None:
    """Refuse samples that the model cannot take; None is taken.

    Raises:
        LeptoError: The samples are text and the model takes tensors, or a tensor is missing or of another kind.
    """
    if samples is None:
        return
    if isinstance(samples.inputs, tuple):
        if source.text is None:
            raise LeptoError(
                f"{samples.origin} holds text, but {source.description} takes tensors ({', '.join(source.axes)}): "
                "give a factory that returns (inputs, labels)"
            )
        return
    for name, example in source.example.items():
        array = samples.inputs.get(name)
        if array is None:
            raise LeptoError(f"{samples.origin} lacks the model's input {name!r}; it has {', '.join(samples.inputs)}")
        axes = source.axes[name]
        fits = array.ndim == example.ndim and all(
            i in axes or have == want for i, (have, want) in enumerate(zip(array.shape, example.shape, strict=True))
        )
        if array.dtype != example.dtype or not fits:
            raise LeptoError(
                f"{samples.origin}: input {name!r} must be {example.dtype} like {list(example.shape)}, "
                f"got {array.dtype} {list(array.shape)}"
            )


def check_output(output: Path, *, force: bool) -> None:
    """Refuse an output folder that exists before the work starts, not after it.

    Raises:
        LeptoError: It exists and ``force`` is not given, or it is no folder.
    """
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise LeptoError(f"output {output} is no folder: choose another one")
    if output.exists() and not force:
        raise LeptoError(f"output {output} exists: choose another folder, or replace it with --force")


def _has_vnni(target: Target) -> bool:
    return target.isa == "x86-64-v4" and any("vnni" in name for name in this_machine().instruction_sets)
