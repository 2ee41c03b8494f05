"""The processes of a run that torchrun or accelerate started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState


def processes() -> int:
    """How many there are, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def in_turn() -> Iterator[None]:
    """The first process goes first, so that the others find what it writes; then all wait for each other."""
    if processes() == 1:
        yield
        return
    state = PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():
        yield
    state.wait_for_everyone()
