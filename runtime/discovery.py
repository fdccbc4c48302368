"""Find the sub-commands of ``lepto`` without importing them.

Every folder of the project offers its commands as entry points of the group ``lepto.commands``. What ``lepto --help``
shows of a command is read from its source as text, so that help is instant where torch is installed and complete where
it is not.
"""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from lepto.runtime.errors import LeptoError

GROUP = "lepto.commands"


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A command that is installed, perhaps without the packages that it needs.

    Attributes:
        name: As on the command line.
        module: The module that has it.
        attribute: The function or ``typer.Typer`` in that module.
        extras: The extras that it needs.
    """

    name: str
    module: str
    attribute: str
    extras: tuple[str, ...]

    def load(self) -> Any:
        """Import the command.

        Raises:
            LeptoError: A package that it needs is not installed; the message names the extra that brings it.
        """
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise self.missing(error) from error
        return getattr(module, self.attribute)

    def missing(self, error: ModuleNotFoundError) -> LeptoError:
        """The error to show when a module that the command needs is not installed."""
        if error.name is not None and error.name.partition(".")[0] == "lepto":
            return LeptoError(f"the command {self.name!r} is not part of this installation: it has no {error.name}")
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        what = f"the module {error.name!r}" if error.name else str(error)
        needs = "the extra" if extras else "a complete installation"
        return LeptoError(
            f"the command {self.name!r} needs {needs}: pip install 'lepto{extras}' ({what} is not installed)"
        )

    def summary(self) -> str:
        """The first line of the command's help, from its source; empty if it cannot be read."""
        return _summary(self.module, self.attribute)


def find_commands() -> dict[str, CommandEntry]:
    """The installed commands by name, in alphabetical order."""
    entries = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        entries[point.name] = CommandEntry(point.name, point.module, point.attr, tuple(point.extras))
    return dict(sorted(entries.items()))


def _find_spec(module: str) -> ModuleSpec | None:
    # importlib.util.find_spec imports the parent packages; asking the finders for one part after the other does not.
    path: Sequence[str] | None = None
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        spec = _ask_finders(".".join(parts[:end]), path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
    return spec


def _ask_finders(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        spec = find_spec(name, path, None) if find_spec is not None else None
        if spec is not None:
            return spec  # type: ignore[no-any-return]  # a finder's attribute has no type
    return None


def _summary(module: str, attribute: str, hops: int = 3) -> str:
    """The summary of a function or group, also where the module has it from another one."""
    spec = _find_spec(module)
    if spec is None or spec.origin is None or not hops:
        return ""
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == attribute:
                    return _summary(node.module, alias.name, hops - 1)
        if isinstance(node, ast.FunctionDef) and node.name == attribute:
            return (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ")
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == attribute for target in targets):
                return _help_argument(node.value)
    return ""


def _help_argument(call: ast.Call) -> str:
    for keyword in call.keywords:
        if keyword.arg == "help" and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str):
            return keyword.value.value.strip().partition("\n\n")[0].replace("\n", " ")
    return ""
