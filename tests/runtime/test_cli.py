import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from lepto.runtime import cli, entry
from lepto.runtime.discovery import CommandEntry, find_commands

MODULE = '''
"""Commands for tests of the command line."""
import errno, os, signal
from typing import Annotated
import typer
from lepto.runtime.errors import LeptoError

IMPORTED = True


def fail(how: Annotated[str, typer.Argument(help="How, one of [lepto|value].")] = "lepto") -> None:
    """Fail in some way.

    This prose is broken
    into lines, mentions ``code`` and lepto[compile].

    Args:
        how: For programmers only.

    Example:
        lepto fail value
        lepto fail [lepto]
    """
    if how == "lepto":
        raise LeptoError("the budget is not met", exit_code=1)
    if how == "value":
        error = ValueError("ratio must be in [0, 1), got 2")
        error.add_note("in layer 'fc1'")
        raise error
    if how == "type":
        raise TypeError
    if how == "missing":
        open("/no/such/file")
    if how == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/model.onnx")
    if how == "full in rust":
        raise Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    if how == "internal":
        raise KeyError("impossible")
    if how == "memory":
        raise MemoryError
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "import":
        import no_such_module_here
    if how == "exit":
        raise typer.Exit(3)
    if how == "quit":
        raise SystemExit("no more")
    if how in ("SIGTERM", "SIGHUP"):
        try:
            os.kill(os.getpid(), getattr(signal, how))
            signal.pause()
        finally:
            print("cleaned up")


tool = typer.Typer(help="A command with one sub-command, see lepto[compile].\\n\\nMore.")


@tool.command()
def schema(deep: bool = False) -> None:
    """Print the schema of lepto[compile].

    Example:
        lepto tool schema
    """
    print("schema", deep)
'''


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Let the command line find `fail`, `tool`, `broken` (needs what is not installed) and `gone` (no such module)."""
    (tmp_path / "cli_test_commands.py").write_text(MODULE)
    (tmp_path / "cli_test_broken.py").write_text(
        'import no_such_module_here\n\n\ndef broken() -> None:\n    """Needs what is not here."""\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = {
        "fail": CommandEntry("fail", "cli_test_commands", "fail", ("compile",)),
        "tool": CommandEntry("tool", "cli_test_commands", "tool", ()),
        "broken": CommandEntry("broken", "cli_test_broken", "broken", ("compile",)),
        "gone": CommandEntry("gone", "lepto.no_such_folder.commands", "gone", ("compile",)),
    }
    monkeypatch.setattr(cli, "find_commands", lambda: entries)
    monkeypatch.delenv("LEPTO_DEBUG", raising=False)
    yield entries
    sys.modules.pop("cli_test_commands", None)


@pytest.fixture
def lepto(commands, capfd):
    """A function that runs the command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(arguments)
        out, err = capfd.readouterr()
        return code, out, err

    return run


# --- finding commands ---------------------------------------------------------------------------------------------


def test_help_lists_all_commands_and_imports_none(lepto):
    code, out, _ = lepto("--help")
    assert code == 0
    assert "Fail in some way." in out
    assert "A command with one sub-command, see lepto[compile]." in out
    assert "Needs what is not here." in out
    assert "gone" in out
    assert "cli_test_commands" not in sys.modules


def test_no_arguments_show_the_help_and_are_a_usage_error(lepto):
    code, out, _ = lepto()
    assert code == 2
    assert "Usage: lepto" in out


def test_version(lepto):
    code, out, _ = lepto("--version")
    assert code == 0
    assert out.startswith("lepto ")


def test_help_of_a_command_has_its_example_and_nothing_for_programmers(lepto):
    code, out, _ = lepto("fail", "--help")
    assert code == 0
    assert "This prose is broken into lines, mentions code and lepto[compile]." in out
    lines = [line.strip() for line in out.splitlines()]
    example = lines.index("Example:")
    assert lines[example + 1 : example + 3] == ["lepto fail value", "lepto fail [lepto]"]
    assert "[lepto|value]" in out
    assert "programmers" not in out


def test_a_typer_with_one_command_keeps_its_sub_command(lepto):
    assert lepto("tool", "schema", "--deep")[:2] == (0, "schema True\n")
    code, out, _ = lepto("tool", "schema", "--help")
    assert code == 0
    assert "Print the schema of lepto[compile]." in out
    assert "lepto tool schema" in out


@pytest.mark.parametrize(("typed", "meant"), [("fial", "fail"), ("tol", "tool")])
def test_unknown_command_gets_the_nearest_name(lepto, typed, meant):
    assert lepto(typed) == (2, "", f"error: unknown command {typed!r}: did you mean {meant!r}?\n")


def test_unknown_command_without_a_near_name(lepto):
    assert lepto("xyzzy")[2] == "error: unknown command 'xyzzy': there are fail, tool, broken, gone\n"


@pytest.mark.parametrize("arguments", [("broken",), ("broken", "--help"), ("fail", "import")])
def test_a_missing_package_names_the_extra(lepto, arguments):
    code, out, err = lepto(*arguments)
    assert (code, out) == (2, "")
    assert err == (
        f"error: the command {arguments[0]!r} needs the extra: pip install 'lepto[compile]' "
        "(the module 'no_such_module_here' is not installed)\n"
    )


def test_a_missing_part_of_lepto_itself(lepto):
    assert lepto("gone")[2] == (
        "error: the command 'gone' is not part of this installation: it has no lepto.no_such_folder\n"
    )


def test_the_installed_commands_are_found():
    entries = find_commands()
    assert {"doctor", "verify", "publish", "serve", "compile", "gate"} <= entries.keys()
    assert entries["compile"].extras == ("compile",)
    assert entries["doctor"].extras == ()
    assert entries["doctor"].summary() == "Show this machine and what can be built, run and served on it."


def test_every_command_of_this_installation_has_a_summary():
    entries = find_commands()
    assert {"bench", "compile", "doctor", "workload"} <= {*entries}
    assert [name for name, entry in entries.items() if not entry.summary()] == []
    assert entries["workload"].summary() == "List the workloads, write their data, train their models."


def test_summaries_that_cannot_be_read_are_empty(tmp_path, monkeypatch):
    (tmp_path / "cli_test_syntax.py").write_text("def broken(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("cli_test_syntax", "cli_test_nowhere", "sys", "lepto.runtime.nowhere"):
        assert CommandEntry("x", module, "broken", ()).summary() == ""


# --- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("lepto", 1, "error: the budget is not met\n"),
        ("value", 2, "error: ratio must be in [0, 1), got 2\n  in layer 'fc1'\n"),
        ("type", 2, "error: TypeError\n"),
        ("missing", 2, "error: no such file or directory: /no/such/file\n"),
        ("full", 2, "error: no space left on device: out/model.onnx; free some and run again\n"),
        ("full in rust", 2, "error: no space left on device; free some and run again\n"),
        ("memory", 2, "error: not enough memory; use a machine with more\n"),
        ("internal", 70, "internal error: KeyError: 'impossible'; run again with --debug to see where\n"),
        ("interrupt", 130, "interrupted; what was under way was cleaned up\n"),
        ("exit", 3, ""),
        ("quit", 1, "no more\n"),
    ],
)
def test_errors_are_messages_and_codes(lepto, how, code, message):
    assert lepto("fail", how) == (code, "", message)


@pytest.mark.parametrize(
    "arguments", [("fail", "--nope"), ("fail", "a", "b"), ("--nope",), ("tool", "nope"), ("tool", "schema", "x")]
)
def test_usage_errors(lepto, arguments):
    code, out, err = lepto(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "--help`" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [("--debug", "fail", "value"), ("fail", "--debug", "value"), ("fail", "value", "--debug")]
)
def test_debug_shows_the_traceback_wherever_it_stands(lepto, arguments):
    code, _, err = lepto(*arguments)
    assert code == 2
    assert err.startswith("Traceback")
    assert "error: ratio must be in" in err


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_debug_by_environment(lepto, monkeypatch, value, shown):
    monkeypatch.setenv("LEPTO_DEBUG", value)
    assert ("Traceback" in lepto("fail", "value")[2]) is shown


def test_debug_after_a_double_dash_is_an_argument():
    assert cli._take_debug(["infer", "--", "--debug"]) == (["infer", "--", "--debug"], False)
    assert cli._take_debug(["infer", "--debug", "--", "x"]) == (["infer", "--", "x"], True)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_unwind_and_handlers_are_put_back(lepto, name, code):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored
    try:
        assert lepto("fail", name) == (
            code,
            "cleaned up\n",
            f"interrupted by {name}; what was under way was cleaned up\n",
        )
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_runs_outside_the_main_thread(lepto):
    results = []
    thread = threading.Thread(target=lambda: results.append(cli.run(["fail", "lepto"])))
    thread.start()
    thread.join()
    assert results == [1]


def test_every_kind_of_os_error_reads_well():
    assert cli.describe_os_error(OSError("odd")) == "odd"
    assert cli.describe_os_error(OSError()) == "OSError"
    assert cli.describe_os_error(PermissionError(errno.EACCES, "Permission denied", "x")) == "permission denied: x"


# --- the real command ---------------------------------------------------------------------------------------------


def command(*arguments: str, **options) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "lepto.runtime.cli", *arguments]
    return subprocess.Popen(program, stderr=subprocess.PIPE, text=True, **options)


def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    for arguments in (("doctor",), ("doctor", "--json"), ("--help",)):
        process = command(*arguments, stdout=writer)
        err = process.communicate()[1]
        assert process.returncode == 141
        assert "error" not in err
        assert "Traceback" not in err
    os.close(writer)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_to_a_full_disk_is_an_error():
    with open("/dev/full", "w") as full:
        process = command("doctor", stdout=full)
        err = process.communicate()[1]
    assert process.returncode == 2
    assert err == "error: no space left on device; free some and run again\n"


def test_help_imports_nothing_heavy():
    code = textwrap.dedent(
        """
        import sys
        from lepto.runtime import cli
        code = cli.run(["--help"])
        heavy = {"torch", "onnxruntime", "numpy", "pydantic", "transformers", "tritonclient"} & set(sys.modules)
        sys.exit(f"help imported {heavy}" if heavy else code)
        """
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_ctrl_c_while_the_command_is_imported_is_no_traceback(monkeypatch, capsys):
    class Interrupts:
        def find_spec(self, name, path=None, target=None):
            if name == "lepto.runtime.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "lepto.runtime.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupts(), *sys.meta_path])
    with pytest.raises(SystemExit) as caught:
        entry.main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
