"""The program as a person meets it: help at once, one line for what went wrong, and the exit status."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from bipe_cli.main import app, run

# What takes long to load; none of it may be loaded before a command runs.
HEAVY = {"bipe", "torch", "transformers", "datasets", "numpy", "scipy", "matplotlib", "rich"}
COMMANDS = sorted(getattr(get_command(app), "commands", {}))


def in_new_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import json, sys
from bipe_cli.main import app, run
status = run(app, {arguments!r})
print(json.dumps([status, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""
    finished = in_new_process(code)
    assert "Usage: bipe" in finished.stdout, finished.stderr
    status, loaded = json.loads(finished.stdout.splitlines()[-1])
    assert status == 0
    assert HEAVY.isdisjoint(loaded)


def test_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["--version"]) == 0
    assert capsys.readouterr().out == f"bipe {importlib.metadata.version('bipe')}\n"


def raising(error: BaseException) -> typer.Typer:
    """A program of one command that raises `error`."""
    program = typer.Typer(name="bipe", pretty_exceptions_enable=False)

    @program.command()
    def fails() -> None:
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            ValueError("Unknown scheme 'rop'.\n  Choose one of: alibi, rope."),
            2,
            "Unknown scheme 'rop'. Choose one of: alibi, rope.",
        ),
        (RuntimeError("The loss is NaN at step 7."), 1, "The loss is NaN at step 7."),
        (
            FileNotFoundError(2, "No such file or directory", "a.txt"),
            1,
            "[Errno 2] No such file or directory: 'a.txt'",
        ),
        (EOFError(), 1, "The input ended before an answer was given."),
        (RuntimeError(), 1, "RuntimeError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_expected_failure_is_one_line(
    error: Exception, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error), []) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.strip() == f"bipe: {line}"


def test_unexpected_failure_keeps_its_traceback() -> None:
    with pytest.raises(KeyError, match="segment"):
        run(raising(KeyError("segment")), [])


def test_traceback_of_an_expected_failure_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIPE_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="shapes"):
        run(raising(RuntimeError("shapes")), [])


def test_interruption_says_that_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    program = typer.Typer(name="bipe", pretty_exceptions_enable=False)

    @program.command()
    def train() -> None:
        raise KeyboardInterrupt

    @program.command()
    def generate() -> None:
        raise KeyboardInterrupt

    assert run(program, ["train"]) == 130
    assert "give the same command again" in capsys.readouterr().err
    assert run(program, ["generate"]) == 130
    assert capsys.readouterr().err == "bipe: Interrupted.\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "bipe: Missing command; see 'bipe --help'."),
        (["--colour"], "bipe: No such option: --colour; see 'bipe --help'."),
        (["sing"], "bipe: No such command 'sing'; see 'bipe --help'."),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, arguments) == 2
    assert capsys.readouterr().err.strip() == line


def test_wrong_use_of_a_command_names_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    program = typer.Typer(name="bipe")
    program.callback()(lambda: None)

    @program.command()
    def count(number: int) -> None:
        typer.echo(number)

    assert run(program, ["count", "many"]) == 2
    printed = capsys.readouterr().err
    assert "'number'" in printed
    assert printed.rstrip().endswith("see 'bipe count --help'.")


def test_a_warning_is_one_line() -> None:
    code = (
        "import sys, typer, warnings\n"
        "from bipe_cli import main as program\n"
        "program.app = typer.Typer(name='bipe')\n"
        "@program.app.command()\n"
        "def warn() -> None: warnings.warn('Only 3 windows\\nfit.', stacklevel=1)\n"
        "sys.argv = ['bipe']\n"
        "program.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "bipe: warning: Only 3 windows fit.\n"


PRINTS_FOR_EVER = """
import itertools, sys, typer
from bipe_cli.main import run
program = typer.Typer(name="bipe")
@program.command()
def numbers() -> None:
    for number in itertools.count():
        print(number, flush=True)
sys.exit(run(program, []))
"""


def test_closed_pipe_is_quiet() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS_FOR_EVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 1
    assert errors == b""
    process.stderr.close()


def test_output_cut_off_at_the_end_is_quiet(tmp_path: Path) -> None:
    # Little output stays in the buffer until the command is over: only then does the closed pipe show.
    code = PRINTS_FOR_EVER.replace("itertools.count()", "range(3)").replace(", flush=True", "")
    reader, writer = os.pipe()
    os.close(reader)
    with (tmp_path / "errors").open("w+") as errors, os.fdopen(writer, "w") as closed:
        status = subprocess.run(
            [sys.executable, "-c", code], stdout=closed, stderr=errors, check=False
        ).returncode
        errors.seek(0)
        assert errors.read() == ""
    assert status == 1


def test_signal_interrupts_a_real_process() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS_FOR_EVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "bipe: Interrupted.\n"
