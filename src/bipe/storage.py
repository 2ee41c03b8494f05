"""Files that are whole or not there, folders that one process writes, and errors that name them."""

import errno
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

LOCK = ".lock"
"""File in a folder that its writer has locked; it stays, and says nothing by being there."""
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""What a file system answers that has none."""
SAFETENSORS_DRAFT = r"\.tmp[A-Za-z0-9]{6}"
"""How safetensors calls a file until it is whole, as a regular expression."""


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader, or a stop of this process, finds the old text or the new one."""
    draft = _draft_of(path)
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def is_draft(path: Path, of: str | None = None) -> bool:
    """Whether a file is what a process that was killed left of one it was writing, of that name if given.

    One that safetensors was writing has no name of its own yet, and so counts only where none is given.
    """
    drafts = rf".+\.\d+\.draft|{SAFETENSORS_DRAFT}" if of is None else rf"{re.escape(of)}\.\d+\.draft"
    return re.fullmatch(drafts, path.name) is not None


def discard_drafts(folder: Path) -> None:
    """Delete what processes that were killed left half-written in a folder that is ours alone."""
    for path in (*folder.glob("*.draft"), *folder.glob(".tmp*")):
        if is_draft(path):
            path.unlink(missing_ok=True)


@contextmanager
def sole_writer(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep every other process from writing into a folder.

    Whether this holds for other machines too is up to the file system; where it has no locks, a warning says
    so. The process that writes may ask again. However it ends, the folder is free then.

    Args:
        folder: known to be ours.
        wait: whether to wait until the other has ended.

    Raises:
        ValueError: another process writes there, and this one was not to wait.
    """
    lock = FileLock(folder.resolve() / LOCK, is_singleton=True, fallback_to_soft=False)
    said = f"Another process is writing into {folder}."
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise ValueError(f"{said} Wait until it has ended, or choose another folder.") from None
        warnings.warn(f"{said} Waiting for it.", stacklevel=3)
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(
            f"{folder} cannot be locked ({error}): see to it that no other command writes there.",
            stacklevel=3,
        )
    try:
        yield
    finally:
        lock.release()


def _draft_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.draft")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, renamed into place when they are whole.

    Raises:
        OSError: they cannot be written, as on a full disk.
    """
    path = Path(path)
    draft = _draft_of(path)
    try:
        save_file(dict(tensors), str(draft))
    except SafetensorError as error:
        draft.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written: {error}") from error
    os.replace(draft, path)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read what `write_tensors` wrote.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "counts.safetensors"
    >>> write_tensors(path, {"ones": Tensor([1.0, 1.0])})
    >>> read_tensors(path)
    {'ones': tensor([1., 1.])}

    Raises:
        ValueError: the file is missing or damaged; the message names it.
    """
    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Delete it and give the command again.") from error
