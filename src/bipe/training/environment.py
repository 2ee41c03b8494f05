"""What a run ran on, so that its numbers can be made again."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers


def describe_environment() -> dict[str, Any]:
    """Versions, machine, commit of this package's source and command line, as JSON values.

    The commit is None where the package does not run from a git checkout of its own.
    """
    return {
        "bipe": _version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "commit": _commit(Path(__file__)),
        "command": _command(),
    }


def _version() -> str | None:
    try:
        return version("bipe")
    except PackageNotFoundError:  # sources on the path, not installed
        return None


def _command() -> str:
    """The command line as it can be given again, also where `python -m bipe_cli` stood for `bipe`."""
    program = Path(sys.argv[0])
    name = "bipe" if program.parent.name == "bipe_cli" or program.name == "bipe" else sys.argv[0]
    return shlex.join([name, *sys.argv[1:]])


def _commit(source: Path) -> str | None:
    # A package installed inside another project's checkout must not report that project's commit.
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return None
    commit = _git(source.parent, "rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and _git(source.parent, "status", "--porcelain", "-uno") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
