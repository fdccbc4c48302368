"""The command ``lepto``: finds its sub-commands by entry point and turns what goes wrong into messages and exit codes.

===  =======================================================================
0    done, and every check passed
1    a verdict against the model: a check failed, a budget was not met
2    usage, broken input, or a missing part of the installation
3    a question left undecided (``lepto gate``)
70   a fault in Lepto itself; ``--debug`` shows where
130  interrupted (Ctrl-C); 143 terminated (SIGTERM), 129 hung up (SIGHUP)
141  the reader of the output has gone
===  =======================================================================
"""

from __future__ import annotations

import difflib
import errno
import importlib.metadata
import inspect
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from lepto.runtime.discovery import CommandEntry, find_commands
from lepto.runtime.errors import LeptoError, is_full_disk
from lepto.runtime.signals import Terminated, unwinding

INTERNAL_ERROR = 70
BROKEN_PIPE = 128 + 13
_USAGE = 2
_ENTRY = "lepto.runtime.cli.entry"
# typer carries its own copy of click since 0.2x and uses the installed one before: the way to click's exceptions that
# is right with both goes through the one that typer exports.
_ClickException: type[Any] = typer.BadParameter.__mro__[2]
_EXAMPLE_SECTIONS = ("Example:", "Examples:")
_HIDDEN_SECTIONS = ("Args:", "Raises:", "Returns:", "Yields:", "Note:")


class LazyGroup(typer.core.TyperGroup):
    """A group whose commands are imported only when one is called; help reads their source instead."""

    _loading = False

    @property
    def entries(self) -> dict[str, CommandEntry]:
        """The installed commands."""
        if not hasattr(self, "_entries"):
            self._entries = find_commands()
        return self._entries

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands."""
        return list(self.entries)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command itself if it is about to run, else a stand-in with its name and summary."""
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        if self._loading:
            ctx.meta[_ENTRY] = entry
            return build_command(entry)
        return typer.core.TyperCommand(name=cmd_name, help=_plain(entry.summary()))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find and import the command that is called.

        Raises:
            LeptoError: There is no such command, or it cannot be imported.
        """
        name = args[0]
        if name not in self.entries and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.entries, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(self.entries)}"
            raise LeptoError(f"unknown command {name!r}: {hint}")
        self._loading = True
        try:
            return super().resolve_command(ctx, args)
        finally:
            self._loading = False


def build_command(entry: CommandEntry) -> Any:
    """Import a command and make it ready to be parsed.

    Raises:
        LeptoError: It cannot be imported.
    """
    value = entry.load()
    if isinstance(value, typer.Typer):
        command: Any = typer.main.get_group(value)  # also with a single sub-command, which get_command would swallow
        command.name = entry.name
    else:
        app = typer.Typer(add_completion=False, rich_markup_mode="rich")
        app.command(entry.name, help=help_text(value))(value)
        command = typer.main.get_command(app)
    _plain_help(command)
    return command


def help_text(function: Any) -> str:
    """A docstring as help: its prose and its example; the sections for programmers are left out.

    Lines of prose are joined, for the terminal to break them; an example keeps its lines.
    """
    shown = []
    for paragraph in re.split(r"\n\s*\n", (inspect.getdoc(function) or "").strip()):
        first = paragraph.partition("\n")[0].strip()
        if first in _HIDDEN_SECTIONS:
            continue
        keep_lines = first in _EXAMPLE_SECTIONS or paragraph.startswith(" ")
        text = paragraph if keep_lines else " ".join(paragraph.split())
        shown.append(re.sub(r"``([^`]+)``", r"\1", text))
    return "\n\n".join(shown)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _plain_help(command: Any) -> None:
    """Show help as it was written: what stands in brackets, as in ``lepto[compile]``, is text and no markup."""
    if command.help:
        command.help = _plain(command.help)
    for parameter in command.params:
        if getattr(parameter, "help", None):
            parameter.help = _plain(parameter.help)
    for child in getattr(command, "commands", {}).values():
        if child.help is not None and child.callback is not None:
            child.help = help_text(child.callback) if child.callback.__doc__ else child.help
        _plain_help(child)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"lepto {importlib.metadata.version('lepto')}")
        raise typer.Exit


_app = typer.Typer(
    name="lepto",
    cls=LazyGroup,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="`lepto COMMAND --help` shows the options of a command and an example.",
)


@_app.callback(invoke_without_command=True)
def _lepto(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from; also after the command, or LEPTO_DEBUG=1.")
    ] = False,
) -> None:
    """Make a trained model light: compile it, prove it, gate it, and serve it on Triton."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit(_USAGE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``lepto`` and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run ``lepto`` with these arguments and give its exit code; messages go to stderr, never a traceback."""
    with unwinding():
        return _run(*_take_debug(arguments))


def _run(arguments: list[str], debug: bool) -> int:
    group = typer.main.get_command(_app)
    entry: list[CommandEntry] = []
    try:
        code = _invoke(group, arguments, entry)
        sys.stdout.flush()
        return code
    except BaseException as error:
        if debug and not isinstance(error, SystemExit | BrokenPipeError):
            traceback.print_exc()
        if isinstance(error, ModuleNotFoundError) and entry:
            error = entry[0].missing(error)
        return _report(error)


def _take_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Take ``--debug`` out, wherever it stands before ``--``."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    debug = len(kept) < end or os.environ.get("LEPTO_DEBUG", "") not in ("", "0")
    return [*kept, *arguments[end:]], debug


def _invoke(group: Any, arguments: list[str], entry: list[CommandEntry]) -> int:
    # Not group.main(): it turns a closed pipe into exit 1 and Ctrl-C into its own "Aborted!".
    try:
        with group.make_context("lepto", list(arguments)) as context:
            try:
                group.invoke(context)
            finally:
                entry.extend(filter(None, [context.meta.get(_ENTRY)]))
    except typer.Exit as done:
        return int(done.exit_code)
    return 0


def _report(error: BaseException) -> int:
    """Say what went wrong on stderr and give the exit code for it."""
    code, message = _explain(error)
    if message:
        notes = [note for note in getattr(error, "__notes__", ()) if note not in message]
        with suppress(OSError, ValueError):  # stderr may be closed, or full
            sys.stderr.write("\n".join([message, *(f"  {note}" for note in notes)]) + "\n")
            sys.stderr.flush()
    return code


def _explain(error: BaseException) -> tuple[int, str]:  # one row for each kind of error
    if isinstance(error, LeptoError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, _ClickException):
        context = getattr(error, "ctx", None)
        hint = f"; see `{context.command_path} --help`" if context is not None else ""
        return _USAGE, f"error: {error.format_message().rstrip('.')}{hint}"
    if isinstance(error, Terminated):
        return error.exit_code, f"interrupted by {error}; what was under way was cleaned up"
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 128 + signal.SIGINT, "interrupted; what was under way was cleaned up"
    if isinstance(error, SystemExit):
        return _exit_code(error)
    if isinstance(error, BrokenPipeError) and _stdout_is_broken():
        return BROKEN_PIPE, ""
    if isinstance(error, OSError):
        return _USAGE, f"error: {describe_os_error(error)}"
    if is_full_disk(error):
        return _USAGE, "error: no space left on device; free some and run again"
    if isinstance(error, ValueError | TypeError):
        return _USAGE, f"error: {error if str(error) else type(error).__name__}"
    if isinstance(error, MemoryError):
        return _USAGE, f"error: not enough memory{f': {error}' if str(error) else ''}; use a machine with more"
    kind = type(error).__name__
    return INTERNAL_ERROR, f"internal error: {kind}: {error}; run again with --debug to see where"


def describe_os_error(error: OSError) -> str:
    """An operating system's error in words, with the file and the way out."""
    where = f": {error.filename}" if error.filename is not None else ""
    if error.errno == errno.EFBIG:
        return f"file too large for its file system, or for this process's limit (ulimit -f){where}; raise the limit"
    if is_full_disk(error):
        return f"no space left on device{where}; free some and run again"
    if error.strerror is None:
        return str(error) or type(error).__name__
    return f"{error.strerror[0].lower()}{error.strerror[1:]}{where}"


def _exit_code(error: SystemExit) -> tuple[int, str]:
    if isinstance(error.__context__, BrokenPipeError):  # how rich ends when nobody reads the help
        return BROKEN_PIPE, ""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0, ""
    return 1, str(error.code)


def _stdout_is_broken() -> bool:
    """Whether it is our own output that nobody reads; if so, keep Python from complaining about it at exit."""
    try:
        output = sys.stdout.fileno()
        poll = select.poll()
        poll.register(output, select.POLLOUT)
        if not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            return False
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    except (OSError, ValueError, AttributeError):  # closed, no real file, or no poll on this system
        return False
    return True


if __name__ == "__main__":
    main()
