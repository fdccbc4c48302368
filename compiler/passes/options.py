"""Passes as a user names them: ``quantize-static(method=entropy,samples=128)``.

A pass's fields are its options. The text form is the one that recipes and manifests keep; a mapping
``{quantize-static: {method: entropy}}`` of a YAML recipe is written as text first.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

from lepto.compiler.passes import PASSES

_FORM = re.compile(r"\s*([^\s(),|]+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_BARE = re.compile(r"[^\s,|()\[\]{}\"'=]+")
_WORDS = {"true": True, "yes": True, "false": False, "no": False}


@dataclass(frozen=True)
class Named:
    """A pass and the options given to it.

    Attributes:
        name: As in :data:`lepto.compiler.passes.PASSES`.
        options: By name, as text or as lists of texts.
    """

    name: str
    options: Mapping[str, str | list[str]]

    def __str__(self) -> str:
        """The text form."""
        if not self.options:
            return self.name
        return f"{self.name}({','.join(f'{name}={_written(value)}' for name, value in self.options.items())})"


def split_outside(text: str, separator: str) -> list[str]:
    """Split at a character, but not inside of brackets or quotes; parts are stripped, empty ones stay.

    Raises:
        ValueError: A bracket or a quote is not closed, or closed and never opened.
    """
    parts, start, depth, quote, escaped = [], 0, [], "", False
    pairs = {")": "(", "]": "["}
    for i, character in enumerate(text):
        if quote:
            if character == quote and not escaped:
                quote = ""
            escaped = character == "\\" and not escaped
        elif character in "\"'":
            quote = character
        elif character in "([":
            depth.append(character)
        elif character in ")]":
            if not depth or depth.pop() != pairs[character]:
                raise ValueError(f"{character!r} closes nothing in {text!r}")
        elif character == separator and not depth:
            parts.append(text[start:i].strip())
            start = i + 1
    if depth or quote:
        raise ValueError(f"{depth[-1] if depth else quote!r} is not closed in {text!r}")
    return [*parts, text[start:].strip()]


def alternatives(entry: str) -> list[str]:
    """The passes of one step of a plan, of which the better one is taken: they are joined by ``|``."""
    return split_outside(entry, "|")


def parse_pass(text: str) -> Named:
    """Read the text form; whether the pass has such options is not looked at.

    Raises:
        ValueError: It is no name with options in parentheses, or the pass is unknown.
    """
    split_outside(text, ",")  # brackets first: what is not closed is said better here
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"a pass is written as name or name(option=value,...), got {text!r}")
    name, inside = match[1], match[2]
    if name not in PASSES:
        raise ValueError(f"unknown pass {name!r}{_near(name, PASSES)}; passes: {', '.join(PASSES)}")
    options: dict[str, str | list[str]] = {}
    for part in split_outside(inside, ",") if inside and inside.strip() else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        key = key.replace("-", "_")
        if not key or not equals or not value:
            raise ValueError(f"{name}: an option is written as name=value, got {part!r}")
        if key in options:
            raise ValueError(f"{name}: option {key!r} stands twice")
        options[key] = _read(value)
    return Named(name, options)


def write_pass(entry: Any) -> str:
    """The text form of an entry of a recipe's list: a text, or a mapping of one name to its options.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(entry, str):
        return "|".join(str(parse_pass(part)) for part in alternatives(entry))
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, options),) = entry.items()
        if options is None:
            options = {}
        if isinstance(name, str) and isinstance(options, Mapping):
            read = {str(key).replace("-", "_"): _plain(value) for key, value in options.items()}
            return str(parse_pass(str(Named(name, read))))
    raise ValueError(f"a pass is a name, name(option=value,...) or {{name: {{option: value}}}}, got {entry!r}")


def pass_class(name: str) -> Any:
    """The class of a pass."""
    module, _, attribute = PASSES[name].partition(":")
    return getattr(import_module(f"lepto.compiler.passes.{module}"), attribute)


def make_pass(text: str, defaults: Mapping[str, Any] | None = None) -> Any:
    """The pass that a text names.

    Args:
        text: The text form.
        defaults: Options that fit the target and the request; used where the pass has them and the text does not.

    Raises:
        ValueError: The pass or an option is unknown, or a value is wrong; the message names both.
    """
    named = parse_pass(text)
    cls = pass_class(named.name)
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    values = {name: value for name, value in (defaults or {}).items() if name in known}
    for name, value in named.options.items():
        if name not in known:
            raise ValueError(
                f"{named.name}: unknown option {name!r}{_near(name, known)}; its options: {', '.join(known) or 'none'}"
            )
        try:
            values[name] = _typed(value, hints[name])
        except ValueError as error:
            raise ValueError(f"{named.name}: {name} {error}") from None
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{named.name}: {error}") from None


@dataclass(frozen=True)
class Option:
    """An option as it is shown to people."""

    name: str
    default: str
    values: str
    about: str


def describe(name: str) -> tuple[str, list[Option]]:
    """What a pass does, in its first line, and its options."""
    cls = pass_class(name)
    text = (inspect.getdoc(cls) or "").replace("``", "")
    hints = typing.get_type_hints(cls)
    _, _, listed = text.partition("Attributes:")
    about: dict[str, str] = {}
    for line in listed.splitlines():
        if match := re.match(r"    (\w+): (.*)", line):
            about[last := match[1]] = match[2]
        elif about and line.strip():
            about[last] += f" {line.strip()}"
    options = [
        Option(f.name, _written(_plain(f.default)), _kind(hints[f.name]), about.get(f.name, ""))
        for f in dataclasses.fields(cls)
    ]
    return text.splitlines()[0], options


def _kind(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return "names: [a, b]"
    return {bool: "true, false", int: "whole number", float: "number"}.get(hint, "text")


def _typed(value: str | list[str], hint: Any) -> Any:
    """A value of the type that a field asks for; whether the pass allows it, the pass itself says."""
    if get_origin(hint) is tuple:
        return tuple(value) if isinstance(value, list) else (value,)
    if isinstance(value, list):
        raise ValueError(f"must be one value, got {_written(value)}")
    if get_origin(hint) is Literal:
        # 4 for Literal[4, 8], and the text itself for words.
        return next((allowed for allowed in get_args(hint) if str(allowed) == value), value)
    if hint is bool:
        if value.lower() not in _WORDS:
            raise ValueError(f"must be true or false, got {value!r}")
        return _WORDS[value.lower()]
    if hint in (int, float):
        try:
            return hint(value)
        except ValueError:
            raise ValueError(f"must be a {'whole ' if hint is int else ''}number, got {value!r}") from None
    return value


def _read(text: str) -> str | list[str]:
    if text.startswith("[") and text.endswith("]"):
        inside = text[1:-1].strip()
        return [_unquoted(part) for part in split_outside(inside, ",")] if inside else []
    return _unquoted(text)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            raise ValueError(f"no text: {text}") from None
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == "'" else text


def _plain(value: Any) -> str | list[str]:
    """A value of YAML as text."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [str(item) for item in value]
    return str(value).lower() if isinstance(value, bool) else str(value)


def _written(value: str | list[str]) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return value if _BARE.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
