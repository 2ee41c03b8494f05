"""The `bipe` program: its commands, and what each way of failing prints and exits with."""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from bipe_cli.bench import bench
from bipe_cli.compare import compare
from bipe_cli.convert import convert
from bipe_cli.evaluate import evaluate
from bipe_cli.extend import extend
from bipe_cli.generate import generate
from bipe_cli.plan import plan
from bipe_cli.report import report
from bipe_cli.reproduce import reproduce
from bipe_cli.segment import segment
from bipe_cli.theory import theory
from bipe_cli.train import train

LONGEST_LINE = 1500
"""Characters of an error."""

RESUMED = {"compare", "extend", "reproduce", "train"}
"""Commands that go on where they stopped."""

EXIT_FAILURE = 1
EXIT_WRONG_USE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what shells report

# Plain help: rich's panels take longer to load than everything else here together.
app = typer.Typer(name="bipe", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"bipe {version('bipe')}")
        raise typer.Exit


@app.callback(
    epilog="BIPE_TRACEBACK=1 in the environment makes a failure show where in the code it happened."
)
def _bipe(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Train language models on short text, use them on long text, and compare their positional encodings."""


# These take every setting of a recipe as --name value.
WITH_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}

app.add_typer(bench)
app.command(context_settings=WITH_SETTINGS)(compare)
app.command()(convert)
app.command()(evaluate)
app.command(context_settings=WITH_SETTINGS)(extend)
app.command()(generate)
app.command(context_settings=WITH_SETTINGS)(plan)
app.command()(report)
app.command(context_settings=WITH_SETTINGS)(reproduce)
app.command()(segment)
app.add_typer(theory)
app.command(context_settings=WITH_SETTINGS)(train)


def main() -> None:
    """Run the program on the process's arguments and exit with its status."""
    warnings.formatwarning = lambda message, *_: f"bipe: warning: {' '.join(str(message).split())}\n"
    sys.exit(run(app))


def run(program: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run a typer program and return its exit status, having said in one line what went wrong.

    >>> program = typer.Typer()
    >>> @program.command()
    ... def double(number: int) -> None:
    ...     print(2 * number)
    >>> run(program, ["21"])
    42
    0

    Args:
        program: the typer application.
        arguments: the command line without the program's name; the process's own by default.

    Returns:
        0 on success, 1 on failure, 2 on wrong use, 130 when interrupted.

    Raises:
        Exception: what a command did not mean to raise, or anything at all where BIPE_TRACEBACK is set.
    """
    try:
        status = program(args=arguments, prog_name=program.info.name, standalone_mode=False)
        sys.stdout.flush()  # a reader that is gone shows here, where it can still be caught
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        status = _leave_closed_pipe()
    except Abort:  # the end of the input where a prompt waited for an answer
        status = _fail("The input ended before an answer was given.", EXIT_FAILURE)
    except TyperException as error:
        status = _fail(_wrong_use(error), error.exit_code)
    except ValueError as error:
        status = _fail(error, EXIT_WRONG_USE)
    except (RuntimeError, OSError) as error:
        status = _fail(error, EXIT_FAILURE)
    if status == EXIT_INTERRUPTED:
        given = sys.argv[1:] if arguments is None else arguments
        resumed = bool(RESUMED.intersection(given[:1]))
        kept = " What was finished is kept: give the same command again and the run goes on."
        _say(f"Interrupted.{kept if resumed else ''}")
    return status if isinstance(status, int) else 0


def _fail(reason: Exception | str, status: int) -> int:
    if isinstance(reason, Exception) and os.environ.get("BIPE_TRACEBACK"):
        raise reason
    _say(str(reason) or type(reason).__name__)
    return status


def _say(text: str) -> None:
    line = " ".join(text.split())
    if len(line) > LONGEST_LINE:  # of a library that repeats all that it was given
        line = f"{line[:LONGEST_LINE]} ... ({len(line):,} characters in all)"
    print("bipe:", line, file=sys.stderr)


def _wrong_use(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "bipe"
    return f"{error.format_message().rstrip('.')}; see '{command} --help'."


def _leave_closed_pipe() -> int:
    """Point the output at nothing, so that the interpreter's own flush at exit does not fail aloud."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_FAILURE
