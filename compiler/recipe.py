"""What the user asks for: one value from flags, a YAML file or Python."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lepto.compiler.passes import PASSES
from lepto.compiler.passes.options import alternatives, make_pass, parse_pass, split_outside, write_pass
from lepto.compiler.passes.order import check_order
from lepto.compiler.workers import Workers
from lepto.runtime.errors import LeptoError
from lepto.runtime.targets import TARGETS

NO_SEARCH = "0"
"""The search budget that asks for no search."""

DEFAULT_SEARCH = "30m"

_DROP = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)")


class Recipe(BaseModel):
    """A compile request. Flags of ``lepto compile`` have the same names, with hyphens."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = Field(
        min_length=1, description="A Hugging Face directory or hub id, an ONNX file, or package.module:factory."
    )
    task: str | None = Field(default=None, description="The task; by default what the model's configuration says.")
    train: str | None = Field(default=None, description="Training data, for calibration: file, datasets id or factory.")
    eval: str | None = Field(default=None, description="Evaluation data: file, datasets id or factory.")
    text_column: str = Field(default="text", min_length=1, description="Column of the text.")
    label_column: str = Field(default="label", min_length=1, description="Column of the label.")
    target: str = Field(default="host", description=f"Hardware: host or one of {', '.join(TARGETS)}.")
    max_drop: str = Field(
        default="1%", description="Largest drop of the metric: '1%' of the source's value, or 0.01 absolute."
    )
    threads: Annotated[int, Field(ge=1, le=1024)] = Field(
        default_factory=lambda: min(2, os.cpu_count() or 1), description="Intra-op threads, measured and served with."
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Seed of everything random.")
    passes: tuple[str, ...] | None = Field(
        default=None,
        description=f"The passes in order, of {', '.join(PASSES)}; options in parentheses, "
        "quantize-static(method=entropy), or as a mapping; alternatives joined by |; by default chosen by measurement.",
    )
    name: str | None = Field(default=None, description="Name of the package; by default that of the output folder.")
    publish: str | None = Field(default=None, description="Model repository to publish into.")
    dev: str | None = Field(
        default=None, description="Development data that steers the search; by default carved from the training data."
    )
    unlabelled: str | None = Field(
        default=None,
        description="More training inputs without labels, like train: the source answers them, and students learn "
        "from its answers.",
    )
    search_budget: str | None = Field(
        default=None,
        description="How long to search for a smaller model: 30m, 90s, 1h, or 0 for no search. By default 30m where "
        "training and evaluation data are given and passes are not.",
    )
    objective: Literal["latency", "throughput", "size"] = Field(
        default="latency",
        description="What the search makes better: median latency of one sample, samples a second in batches of 32, "
        "or bytes.",
    )
    latency_budget: str | None = Field(
        default=None, description="The most that the median of one sample may take: 1ms, 0.5ms."
    )
    size_budget: str | None = Field(default=None, description="The most that the model's file may hold: 5MB, 800kB.")
    confidence: float | None = Field(
        default=None,
        gt=0.5,
        lt=1,
        description="Ask that the one-sided lower bound of the paired difference keeps max_drop, at this level, and "
        "not the point estimate alone: 0.95.",
    )

    workers: str | None = Field(
        default=None,
        description="Teach the candidates of a search side by side as Ray tasks: a number, or ray://host:port.",
    )

    @field_validator("max_drop", mode="before")
    @classmethod
    def _drop_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("max_drop")
    @classmethod
    def _known_drop(cls, value: str) -> str:
        match = _DROP.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"must be a share like 1% (of the source's metric) or a number like 0.01, got {value!r}")
        number = float(match[1]) / (100 if match[2] else 1)
        if number >= 1:
            raise ValueError(f"must be below {'100%' if match[2] else '1'}, got {value!r}: did you mean {match[1]}%?")
        return value.strip()

    @field_validator("search_budget")
    @classmethod
    def _known_budget(cls, value: str | None) -> str | None:
        if value is not None and value.strip() != NO_SEARCH:
            seconds(value)
        return value

    @field_validator("workers", mode="before")
    @classmethod
    def _known_workers(cls, value: Any) -> Any:
        if value is None:
            return None
        Workers.parse(str(value))
        return str(value)

    @field_validator("latency_budget")
    @classmethod
    def _known_latency(cls, value: str | None) -> str | None:
        if value is not None:
            milliseconds(value)
        return value

    @field_validator("size_budget")
    @classmethod
    def _known_size(cls, value: str | None) -> str | None:
        if value is not None:
            number_of_bytes(value)
        return value

    @field_validator("passes", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        entries = split_outside(value, ",") if isinstance(value, str) else value
        return tuple(write_pass(entry) for entry in entries if entry) if isinstance(entries, list | tuple) else entries

    @field_validator("passes")
    @classmethod
    def _known_passes(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        steps = [[parse_pass(part) for part in alternatives(entry)] for entry in value or ()]
        check_order([[named.name for named in step] for step in steps])
        for named in (named for step in steps for named in step if named.options):
            make_pass(str(named))  # the pass itself knows what it allows
        return value

    @field_validator("target")
    @classmethod
    def _known_target(cls, value: str) -> str:
        if value != "host" and value not in TARGETS:
            raise ValueError(f"unknown target {value!r}{_near(value, TARGETS)}; targets: host, {', '.join(TARGETS)}")
        return value

    @model_validator(mode="after")
    def _named(self) -> Self:
        searching = self.search_budget is not None and self.search_budget.strip() != NO_SEARCH
        given = [n for n in ("latency_budget", "size_budget") if getattr(self, n) is not None]
        if (searching or given) and self.passes is not None:
            name = given[0] if given else "search_budget"
            raise ValueError(f"{name} is for a search, which chooses the passes itself: leave either it or passes out")
        if given and not searching and self.search_budget is not None:
            raise ValueError(f"{given[0]} chooses among the candidates of a search: leave search_budget: 0 out")
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise ValueError(f"name must match [A-Za-z0-9_.-]+ and not begin with '.' or '-', got {self.name!r}")
        return self

    def allowed_drop(self, source_metric: float) -> float:
        """The largest drop in the metric's own units."""
        return allowed_drop(self.max_drop, source_metric)

    @property
    def size_limit(self) -> int | None:
        """Bytes that the result may hold."""
        return None if self.size_budget is None else number_of_bytes(self.size_budget)


def allowed_drop(text: str, source_metric: float) -> float:
    """The largest drop in the metric's own units: ``1%`` is a share of the source's metric, ``0.01`` absolute.

    Raises:
        ValueError: It is neither.
    """
    match = _DROP.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"must be a share like 1% (of the source's metric) or a number like 0.01, got {text!r}")
    return float(match[1]) / 100 * source_metric if match[2] else float(match[1])


def seconds(text: str) -> float:
    """Seconds in ``90s``, ``30m``, ``1.5h`` or a plain number.

    Raises:
        ValueError: It is no such duration, or not above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([smh]?)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"must be a duration like 90s, 30m or 1h, got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def milliseconds(text: str) -> float:
    """Milliseconds in ``1ms``, ``500us`` or ``0.01s``.

    Raises:
        ValueError: It is no such duration, or not above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(us|µs|ms|s)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"must be a time like 1ms, 0.5ms or 800us, got {text!r}")
    return float(match[1]) * {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}[match[2]]


def number_of_bytes(text: str) -> int:
    """Bytes in ``5MB``, ``800kB`` or ``4MiB``.

    Raises:
        ValueError: It is no such size, or not above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([kKmMgG]?)(i?)B?", text.strip())
    if match is None or float(match[1]) <= 0 or (match[3] and not match[2]):
        raise ValueError(f"must be a size like 5MB, 800kB or 4MiB, got {text!r}")
    power = " kmg".index(match[2].lower() or " ")
    return round(float(match[1]) * float((1024 if match[3] else 1000) ** power))


def make_recipe(values: dict[str, Any], *, origin: str = "the recipe", lines: dict[str, str] | None = None) -> Recipe:
    """Check values and make a recipe of them.

    Args:
        values: By name; hyphens count as underscores.
        origin: What to call them in messages.
        lines: Where each name stands, for messages.

    Raises:
        LeptoError: A name is unknown or a value is not allowed.
    """
    try:
        return Recipe(**{name.replace("-", "_"): value for name, value in values.items()})
    except ValidationError as error:
        raise LeptoError("\n".join(_explain(item, origin, lines or {}) for item in error.errors())) from None


def _explain(item: Any, origin: str, lines: dict[str, str]) -> str:
    name = str(item["loc"][0]) if item["loc"] else ""
    where = f"{origin}{lines.get(name, '')}"
    if item["type"] == "extra_forbidden":
        known, name = [flag(field) for field in Recipe.model_fields], flag(name)
        return f"{where}: unknown key {name!r}{_near(name, known)}; keys: {', '.join(known)}"
    if item["type"] == "missing":
        return f"{where}: {name!r} is missing: give it in the recipe or as --{flag(name)}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] != "value_error":  # pydantic's own messages do not tell the value
        message = f"{message[0].lower()}{message[1:]}, got {item['input']!r}"
    # A message that names the thing itself ("unknown target 'x'") needs no name before it.
    return f"{where}: {message}" if message.startswith("unknown") or not name else f"{where}: {name}: {message}"


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe's file, under the names of the flags."""
    schema = Recipe.model_json_schema()
    schema["properties"] = {flag(name): about for name, about in schema["properties"].items()}
    return schema


def flag(name: str) -> str:
    """A field's name as the command line and recipes write it."""
    return name.replace("_", "-")


def load_recipe_values(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a YAML recipe.

    Returns:
        The values, and for each name its place as ``, line L, column C``.

    Raises:
        LeptoError: The file is missing, no YAML, or no mapping.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    if path.is_dir() or path.suffix == ".onnx":
        raise LeptoError(f"{path} is no recipe, which is a YAML file: a model is given with --model {path}")
    if not path.is_file():
        raise LeptoError(f"recipe {path} does not exist")
    try:
        loaded: Any = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise LeptoError(f"{path}{where}: no valid YAML: {error.problem}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise LeptoError(f"{path}: no valid YAML: {error}") from error
    if loaded is None:
        raise LeptoError(f"{path} is empty: it needs at least 'model: …' (lepto recipe schema shows all keys)")
    if not isinstance(loaded, CommentedMap):
        what = "a list" if isinstance(loaded, list) else f"only {str(loaded)[:40]!r}"
        raise LeptoError(f"{path} must hold a mapping of names to values, like 'model: ./my-model', got {what}")
    lines: dict[str, str] = {}
    values: dict[str, Any] = {}
    for key in loaded:
        line, column = loaded.lc.key(key)
        plain = str(key).replace("-", "_")
        if plain in values:
            raise LeptoError(f"{path}, line {line + 1}, column {column + 1}: {plain!r} stands twice")
        lines[plain] = f", line {line + 1}, column {column + 1}"
        value = loaded[key]
        entries = isinstance(value, list)
        values[plain] = [item if isinstance(item, dict) else str(item) for item in value] if entries else value
    return values, lines


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
