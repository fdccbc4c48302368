"""The gate file: what is judged, by which limits, on which data. YAML in; mistakes are told with their line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lepto.benchmarks.checks.accuracy import RULES
from lepto.benchmarks.checks.check import Limit
from lepto.benchmarks.checks.pairs import LOOKS, Plan
from lepto.benchmarks.checks.registry import QUANTILES, REGISTRY, Setting
from lepto.runtime.errors import LeptoError

DEFAULT_CHECKS: Final = ("accuracy", "latency", "bytes")


class GateConfig(BaseModel):
    """What a gate judges.

    Attributes:
        eval: Labelled samples: a file, a datasets id, or ``package.module:factory``.
        text_column: Column of the text.
        label_column: Column of the label.
        digest: SHA-256 of the samples; others are refused.
        source: The package whose answers flip-rate and kl compare with; by default the baseline.
        threads: Intra-op threads; by default the baseline's.
        seed: Of all random orders.
        alpha: Chance of a false alarm, over all checks and looks.
        beta: Chance that a candidate worse by a limit passes that check.
        looks: After how many pairs of blocks latency and throughput are judged.
        wait_s: How long to wait for a quieter machine, in seconds.
        checks: By name, each with its limit and options.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    eval: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{12,64}$")
    source: str | None = None
    threads: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    beta: float = Field(default=0.05, gt=0, lt=0.5)
    looks: tuple[int, ...] = LOOKS
    wait_s: float = Field(default=30.0, ge=0)
    checks: dict[str, Setting] = Field(default_factory=lambda: {name: setting(name, None) for name in DEFAULT_CHECKS})

    def plan(self) -> Plan:
        """The declared looks; alpha is shared by all checks with chance in them.

        Raises:
            ValueError: The looks cannot decide at these levels.
        """
        chances = 0
        for name, one in self.checks.items():
            kind = REGISTRY[name]
            quantiles = set(one.limits) & set(QUANTILES)
            chances += len(quantiles) if quantiles else kind.chances
        return Plan(self.looks, self.alpha, self.beta, max(1, chances))


def setting(name: str, value: Any) -> Setting:
    """Read what a gate file says of one check: nothing, a limit, or a mapping with ``limit`` and options.

    Raises:
        KeyError: There is no such check, or it has no such option; the argument is the message.
        ValueError: A limit or an option's value is wrong.
    """
    if name not in REGISTRY:
        raise KeyError(f"unknown check {name!r}{nearest(name, REGISTRY)}")
    kind = REGISTRY[name]
    options = dict(value) if isinstance(value, Mapping) else {} if value is None else {"limit": value}
    for option in options:
        if option != "limit" and option not in kind.options:
            raise KeyError(f"the check {name!r} has no option {option!r}{nearest(option, ('limit', *kind.options))}")
    limits = {}
    for key in ("limit", *QUANTILES):
        if key in options and (key == "limit" or name == "latency"):
            limits[key] = Limit.parse(options.pop(key), kind.units)
    if not limits:
        limits["limit"] = Limit.parse(kind.default, kind.units)
    if "by" in options:
        by = options["by"]
        options["by"] = [by] if isinstance(by, str) else [str(one) for one in by]
    if options.get("rule", RULES[0]) not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {options['rule']!r}")
    if name == "accuracy" and limits["limit"].value >= 1:
        raise ValueError(f"a drop must be below 100%, got {limits['limit']}")
    for key in ("least", "batch", "samples", "seeds"):
        if key in options and (isinstance(options[key], bool) or not isinstance(options[key], int) or options[key] < 1):
            raise ValueError(f"{key} must be a whole number above 0, got {options[key]!r}")
    return Setting(name, limits, options)


def nearest(name: Any, known: Any) -> str:
    """``; did you mean …?`` and what there is."""
    names = [str(one) for one in known]
    near = difflib.get_close_matches(str(name).replace("_", "-"), names, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else ":"
    return f"{hint} There are {', '.join(names)}"


def read_config(path: Path) -> GateConfig:
    """Read a gate file.

    Raises:
        LeptoError: It cannot be read, has an unknown key, check or option, or a limit without a unit; the message
            tells the line.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        document = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LeptoError(f"cannot read the gate file {path}: {error.strerror}") from error
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise LeptoError(f"{path}{line}: no valid YAML: {error.problem}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise LeptoError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(document, Mapping):
        raise LeptoError(f"{path} must have keys such as `eval:` and `checks:`, got {type(document).__name__}")
    for key in document:
        if key not in GateConfig.model_fields:
            hint = nearest(key, GateConfig.model_fields)
            raise LeptoError(f"{path}, line {_line(document, key)}: unknown key {key!r}{hint}")
    values = {key: _plain(value) for key, value in document.items() if key != "checks"}
    if "checks" in document:
        values["checks"] = _checks(path, document)
    try:
        config = GateConfig(**values)
        config.plan()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = first["loc"][0] if first["loc"] else ""
        where = f"line {_line(document, key)}" if key in document else "in it"
        raise LeptoError(f"{path}, {where}: {key}: {first['msg'].removeprefix('Value error, ')}") from error
    except ValueError as error:
        raise LeptoError(f"{path}: {error}") from error
    return config


def _checks(path: Path, document: Any) -> dict[str, Setting]:
    found = document["checks"]
    if not isinstance(found, Mapping) or not found:
        raise LeptoError(
            f"{path}, line {_line(document, 'checks')}: checks must name at least one of {', '.join(REGISTRY)}"
        )
    settings = {}
    for name, value in found.items():
        try:
            settings[name] = setting(name, _plain(value))
        except (KeyError, ValueError) as error:
            line = _line(found, name)
            for key in value if isinstance(value, Mapping) else ():
                if repr(key) in str(error) or repr(str(value[key])) in str(error):
                    line = _line(value, key)
            raise LeptoError(f"{path}, line {line}: {name}: {error.args[0]}") from error
    return settings


def _line(mapping: Any, key: Any) -> int:
    try:
        return int(mapping.lc.key(key)[0]) + 1
    except (AttributeError, KeyError, TypeError):
        return 1


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value
