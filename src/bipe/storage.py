"""Tensors in files: whole or not there, and an error that names the file."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, renamed into place when they are whole.

    Raises:
        OSError: they cannot be written, as on a full disk.
    """
    path = Path(path)
    draft = path.with_name(f"{path.name}.draft")
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
