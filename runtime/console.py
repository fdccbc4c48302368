"""Where commands write: one place decides what goes to people and what goes to scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table


class Output:
    """What a command prints.

    With ``as_json`` the only thing on stdout is one JSON document, given by :meth:`result`; everything for people goes
    to stderr. Without it, people's output goes to stdout.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True)

    def settings(self, title: str, values: Mapping[str, Any]) -> None:
        """Echo the resolved settings before the work starts."""
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in values.items():
            table.add_row(f"  {name}", "-" if value is None else str(value), style=None)
        self.console.print(table)

    def print(self, *what: Any) -> None:
        """Print for people (rich markup and renderables)."""
        self.console.print(*what)

    def result(self, document: Mapping[str, Any]) -> None:
        """Print the machine-readable result: stdout, only with ``--json``."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, indent=2, default=str, allow_nan=False) + "\n")
            sys.stdout.flush()

    def progress(self) -> Progress:
        """A progress bar for long work; use it as a context manager and add tasks to it."""
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
