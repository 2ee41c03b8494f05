"""Time works in turn, so that what slows the machine slows all of them, and measure what memory they take."""

import os
import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch.profiler import ProfilerActivity, profile

K = TypeVar("K", bound=Hashable)
Work = Callable[[], Any]


def seconds_of(works: Mapping[K, Work], rounds: int) -> dict[K, list[float]]:
    """Wall times of each work, one a round, after a round that does not count.

    Args:
        works: by name; each round runs all in an order of its own, so that no work always finds the caches as
            the same other left them.
        rounds: at least 1.

    Raises:
        ValueError: no round.
    """
    if rounds < 1:
        raise ValueError(f"A benchmark takes at least one round; got {rounds}.")
    names = list(works)
    times: dict[K, list[float]] = {name: [] for name in works}
    draw = random.Random(0)
    for index in range(-1, rounds):
        draw.shuffle(names)
        for name in names:
            _wait()
            start = time.perf_counter()
            works[name]()
            _wait()
            if index >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: Sequence[float], baseline: Sequence[float]) -> dict[str, float | int]:
    """How long a work takes relative to a baseline in the same rounds: a row of JSON, to four digits.

    >>> ratio([2.0, 3.0, 2.5], [1.0, 1.0, 1.0])
    {'median': 2.5, 'low': 2.0, 'high': 3.0, 'rounds': 3}
    """
    found = [mine / other for mine, other in zip(times, baseline, strict=True)]
    spread = {"median": statistics.median(found), "low": min(found), "high": max(found)}
    return {**{name: float(f"{value:.4g}") for name, value in spread.items()}, "rounds": len(found)}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def extra_peak_bytes(work: Work) -> int:
    """The most memory that tensors made by the work hold at once, beyond what was held before it.

    By the allocator's own records, so it is the same every time.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler says that it starts, and that it stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        kept = work()  # else what it returns would be freed inside or outside, as it happens
    events = cast("Any", found.profiler).kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    del kept
    return peak
