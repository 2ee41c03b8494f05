"""How the tests here start several processes."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node")


def python(
    *arguments: str | Path, through: Sequence[str] = (), status: int | None = 0
) -> subprocess.CompletedProcess[str]:
    """Run Python on one thread, through the module of a launcher where one is given.

    Args:
        arguments: a script, or `-m` and a module, and what it gets.
        through: the launcher's module and its arguments.
        status: the exit status that it has to have; None for any but 0.
    """
    launcher = ["-m", *through] if through else []
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode != 0 if status is None else done.returncode == status, done.stderr
    return done


def together(
    processes: int, *arguments: str | Path, status: int | None = 0
) -> subprocess.CompletedProcess[str]:
    """Run a script, or `-m` and a module, in so many processes of torchrun."""
    return python(*arguments, through=(*TORCHRUN, str(processes)), status=status)
