"""The manifest of a package: where a model came from, what was done to it, and what was measured.

``manifest.json`` is written once, by the compiler, and read everywhere: by ``lepto verify``, by the publisher, by the
gate. Every model here is frozen and refuses unknown keys, so that a typo or a newer schema is an error, never ignored.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

SCHEMA: Final = "lepto.package/1"
TEXT_CLASSIFICATION: Final = "text-classification"
TOKEN_CLASSIFICATION: Final = "token-classification"
FEATURE_EXTRACTION: Final = "feature-extraction"

BATCH = "batch"
"""The name of the first, dynamic axis of every input and output."""

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""The inputs that a text model may have, all int64 ``["batch", "sequence"]``."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# A name becomes a folder, a Triton model name and part of a command line that Triton leaves unquoted.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=200)]
DType = Literal[
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]
Axis = Annotated[int, Field(ge=1, strict=True)] | Annotated[str, StringConstraints(min_length=1, strict=True)]
Count = Annotated[int, Field(ge=0)]
Milliseconds = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    # JSON has no infinity and no NaN: a measurement that is one of them is a mistake, not a value.
    # The validators are built where a manifest is first read: a fifth of the time that the import took.
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False, defer_build=True)


class Metric(_Part):
    """A task metric with its confidence interval.

    Attributes:
        name: What was measured, for example ``accuracy``.
        value: The point estimate over ``n`` samples.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        n: Number of samples.
    """

    name: str = Field(min_length=1)
    value: float
    low: float
    high: float
    n: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_interval(self.low, self.high)
        return self


class Tensor(_Part):
    """One input or output of the model.

    Attributes:
        name: The tensor's name in the graph.
        dtype: NumPy's name of the element type.
        shape: An integer is a fixed dimension, a string names a dynamic axis; the first is ``"batch"``.
    """

    name: str = Field(min_length=1)
    dtype: DType
    shape: tuple[Axis, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _batched(self) -> Self:
        if self.shape[0] != BATCH:
            raise ValueError(f"the first axis of tensor {self.name!r} must be {BATCH!r}, got shape {list(self.shape)}")
        return self


class Preprocessing(_Part):
    """How text becomes the model's inputs; the vocabulary itself is in ``tokenizer.json``.

    Attributes:
        kind: What the tokenizer reads: a text as it is, or its words one by one (:mod:`lepto.runtime.words`).
        max_length: Longest sequence in tokens; longer texts are cut.
        pad_id: Token id of the padding.
        pad_type_id: Token type id of the padding.
        pad_token: The padding's token.
        inputs: Which of ``input_ids``, ``attention_mask`` and ``token_type_ids`` the model takes.
    """

    kind: Literal["text", "words"] = "text"
    max_length: int = Field(ge=1)
    pad_id: Count
    pad_type_id: Count = 0
    pad_token: str
    inputs: tuple[Literal["input_ids", "attention_mask", "token_type_ids"], ...]

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if "input_ids" not in self.inputs or len(set(self.inputs)) != len(self.inputs):
            raise ValueError(f"inputs must name input_ids, and each input once, got {list(self.inputs)}")
        return self


class PassRecord(_Part):
    """What one pass did, as measured.

    Attributes:
        pass_: The pass's name (``pass`` in JSON).
        options: Its options.
        kept: Whether its result went on to the next pass.
        reason: Why it was kept or dropped.
        metric: The task metric after it, if measured.
        p50_ms: Median latency after it, if measured.
        bytes: Size of the model after it.
        seconds: How long the pass took.
        cached: Whether the result came from the cache.
    """

    pass_: str = Field(alias="pass", min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)
    kept: bool
    reason: str
    metric: Metric | None = None
    p50_ms: Milliseconds | None = None
    bytes: Count
    seconds: float = Field(ge=0)
    cached: bool = False


class Source(_Part):
    """The model that went in.

    Attributes:
        digest: Content digest of the source model.
        parameters: Number of parameters.
        bytes: Size of its weights.
        metric: Its task metric, if measured.
        p50_ms: Its median latency, if measured.
        description: What it is, for people.
    """

    digest: str = Field(min_length=1)
    parameters: Count
    bytes: Count
    metric: Metric | None = None
    p50_ms: Milliseconds | None = None
    description: str = ""


class Speedup(_Part):
    """How many times faster than ``against``, measured in interleaved pairs, with a 95 % interval."""

    value: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    against: str = Field(min_length=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_interval(self.low, self.high)
        return self


class Result(_Part):
    """The model that came out.

    Attributes:
        digest: SHA-256 of ``model.onnx``.
        bytes: Size of ``model.onnx``.
        metric: Its task metric, if measured.
        agreement: Fraction of samples on which it decides like the source, in [0, 1].
        p50_ms: Its median latency, if measured.
        speedup: Against the source.
        batch_invariant: Whether a row's outputs are the same whatever rows and padding run beside it. Dynamic
            quantization breaks this (one scale over the whole batch); such a model is served row by row.
    """

    digest: Sha256
    bytes: Count
    metric: Metric | None = None
    agreement: float | None = Field(default=None, ge=0, le=1)
    p50_ms: Milliseconds | None = None
    speedup: Speedup | None = None
    batch_invariant: bool = True


class Tolerance(_Part):
    """How far a probe's outputs may lie from the stored ones: ``|a - b| <= atol + rtol * |b|``."""

    atol: float = Field(ge=0)
    rtol: float = Field(ge=0)


class Manifest(_Part):
    """Everything that is known about a package.

    Attributes:
        schema_: The format's version (``schema`` in JSON).
        name: The package's name, fit for a folder and for Triton.
        task: ``text-classification``, ``token-classification``, or another task, whose outputs are what they are.
        target: The hardware it was compiled for.
        threads: Intra-op threads it was measured with; the default of a session.
        recipe: The resolved recipe.
        source: The model that went in.
        passes: What was done, in order.
        result: The model that came out.
        inputs: The inputs of ``model.onnx``.
        outputs: The outputs of ``model.onnx``.
        preprocessing: How raw input becomes tensors; None if the caller gives tensors.
        tolerance: For re-running the probe, on any machine.
        environment: Versions and hardware at compile time.
        files: SHA-256 of every file of the package but the manifest.
    """

    schema_: Literal["lepto.package/1"] = Field(default=SCHEMA, alias="schema")
    name: Name
    task: str = Field(min_length=1)
    target: str = Field(min_length=1)
    threads: int = Field(ge=1)
    recipe: dict[str, Any] = Field(default_factory=dict)
    source: Source
    passes: tuple[PassRecord, ...] = ()
    result: Result
    inputs: tuple[Tensor, ...] = Field(min_length=1)
    outputs: tuple[Tensor, ...] = Field(min_length=1)
    preprocessing: Preprocessing | None = None
    tolerance: Tolerance
    environment: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, Sha256] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_unique("inputs", (tensor.name for tensor in self.inputs))
        _check_unique("outputs", (tensor.name for tensor in self.outputs))
        if self.preprocessing is not None:
            _check_text_inputs(self.inputs, self.preprocessing)
        if self.task in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION):
            kind = "text" if self.task == TEXT_CLASSIFICATION else "words"
            if self.preprocessing is None or self.preprocessing.kind != kind:
                raise ValueError(f"task {self.task!r} needs preprocessing of kind {kind!r}")
            places = self.inputs[0].shape if self.task == TOKEN_CLASSIFICATION else (BATCH,)
            _check_classifier_outputs(self.task, self.outputs, places)
        return self

    @property
    def label_count(self) -> int | None:
        """How many labels a classifier of texts or words has, the last axis of ``scores``; None for other tasks."""
        if self.task not in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION):
            return None
        (scores,) = (tensor for tensor in self.outputs if tensor.name == "scores")
        return int(scores.shape[-1])

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read the text of ``manifest.json``.

        Raises:
            ValueError: The text is no JSON or not of this schema; the message has one line for each field at fault.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError("\n".join(_explain(item) for item in error.errors(include_url=False))) from error


def _explain(item: Any) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).lstrip(".")
    if item["type"] == "json_invalid":
        return f"no valid JSON: {item['ctx']['error']}"
    if where == "schema":
        return f"schema must be {SCHEMA!r}, got {item['input']!r}: this package needs another version of lepto"
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    if item["type"] == "missing":
        return f"{where}: missing"
    message = item["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else str(message)


def _check_interval(low: float, high: float) -> None:
    if low > high:
        raise ValueError(f"low must not be above high, got [{low}, {high}]")


def _check_unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what}: the name {name!r} stands twice")
        seen.add(name)


def _check_text_inputs(inputs: tuple[Tensor, ...], preprocessing: Preprocessing) -> None:
    names = {tensor.name for tensor in inputs}
    if names != set(preprocessing.inputs):
        raise ValueError(f"preprocessing gives {sorted(preprocessing.inputs)} but the model takes {sorted(names)}")
    for tensor in inputs:
        if tensor.dtype != "int64" or len(tensor.shape) != 2 or not isinstance(tensor.shape[1], str):
            raise ValueError(
                f"a text model's input must be int64 ['batch', 'sequence'], "
                f"got {tensor.name!r} {tensor.dtype} {list(tensor.shape)}"
            )


def _check_classifier_outputs(task: str, outputs: tuple[Tensor, ...], places: tuple[Axis, ...]) -> None:
    by_name = {tensor.name: tensor for tensor in outputs}
    for name in ("logits", "scores"):
        tensor = by_name.get(name)
        if tensor is None:
            raise ValueError(f"task {task!r} needs an output {name!r}, got {sorted(by_name)}")
        if tensor.dtype != "float32" or tensor.shape[:-1] != places or not isinstance(tensor.shape[-1], int):
            raise ValueError(
                f"output {name!r} must be float32 {[*places, 'number of labels']}, "
                f"got {tensor.dtype} {list(tensor.shape)}"
            )
    if by_name["logits"].shape != by_name["scores"].shape:
        raise ValueError(
            f"logits and scores must have one shape, got {list(by_name['logits'].shape)} "
            f"and {list(by_name['scores'].shape)}"
        )
