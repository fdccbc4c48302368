"""Where commands write: one place decides what goes to people and what goes to scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table


def size_text(size: int) -> str:
    """Bytes for people: ``3.1 MB``, below a million ``37.5 kB``."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Let the command line decide what a closed pipe means; rich would exit with 1, which here is a verdict."""
        raise


class Output:
    """What a command prints.

    With ``as_json`` the only thing on stdout is one JSON document, given by :meth:`result`; everything for people goes
    to stderr. Without it, people's output goes to stdout.

    Args:
        as_json: Whether ``--json`` was given.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = _Console(stderr=as_json, highlight=False, soft_wrap=True)

    def settings(self, title: str, values: Mapping[str, Any]) -> None:
        """Echo the resolved settings before the work starts."""
        self.console.print(escape(title))
        width = max(map(len, values), default=0)
        for name, value in values.items():
            self.console.print(f"  {name:<{width}}  {'-' if value is None else escape(str(value))}")

    def print(self, *what: Any) -> None:
        """Print for people: rich markup and renderables; escape foreign text with ``rich.markup.escape``."""
        self.console.print(*what)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table of plain text. Cells are wrapped, never cut."""
        table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for column in columns:
            table.add_column(column, overflow="fold", header_style="dim")
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print(table, soft_wrap=False)

    def result(self, document: Mapping[str, Any]) -> None:
        """Print the machine-readable result: stdout, only with ``--json``."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, indent=2, default=str, allow_nan=False) + "\n")
            sys.stdout.flush()

    def progress(self) -> Progress:
        """A progress bar for long work with an estimate of the time left; a context manager to add tasks to."""
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("[dim]left[/]"),
            console=self.console,
            transient=True,
        )
