"""The processes that torchrun or accelerate started for one command: who writes, and who does what."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from accelerate import PartialState

T = TypeVar("T")

LONGEST_WAIT = timedelta(hours=1)
"""For the others: while the first process writes a checkpoint, or where shares differ."""


def processes() -> int:
    """How many there are, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this one, from 0 on."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def local_device() -> torch.device:
    """Where this process computes: an accelerator of its own if the machine has them, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if processes() > 1 else "cuda")


@contextmanager
def in_turn() -> Iterator[None]:
    """The first process goes first, so that the others find what it writes; then all wait for each other."""
    if processes() == 1:
        yield
        return
    state = join()
    with state.main_process_first():
        yield
    state.wait_for_everyone()


def share(items: Sequence[T]) -> Sequence[T]:
    """Those of some items that this process deals with: one in so many, so that all have as much to do."""
    return items[rank() :: processes()]


def gather(found: Sequence[T]) -> list[T]:
    """What all processes found for their `share` of some items, in the order of the items, in every process.

    >>> gather(share(["one", "process", "has", "all"]))
    ['one', 'process', 'has', 'all']

    Args:
        found: something for each item, that can be pickled.
    """
    if processes() == 1:
        return list(found)
    join()
    shares: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(shares, list(found))
    total = sum(map(len, shares))
    return [shares[place % processes()][place // processes()] for place in range(total)]


def join() -> PartialState:
    """Join the processes, if they have not been; accelerate's view of them."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
