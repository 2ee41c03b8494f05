"""What the clock and the allocator's records are made into."""

import pytest
import torch

from bipe.benchmarks.interleaved import extra_peak_bytes, ratio, seconds_of


def test_works_take_turns_in_changing_order_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    times = seconds_of({name: lambda name=name: order.append(name) for name in "abc"}, rounds=12)
    rounds = ["".join(order[start : start + 3]) for start in range(0, len(order), 3)]
    assert len(rounds) == 13 and {"".join(sorted(found)) for found in rounds} == {"abc"}
    assert len(set(rounds)) >= 4
    assert list(times) == ["a", "b", "c"] and [len(found) for found in times.values()] == [12] * 3
    assert min(min(found) for found in times.values()) >= 0


def test_ratios_are_of_the_same_round() -> None:
    # The machine was three times as slow in the second round, which leaves the ratio alone.
    found = ratio([2.0, 6.0, 1.0], [4.0, 12.0, 1.0])
    assert found == {"median": 0.5, "low": 0.5, "high": 1.0, "rounds": 3}


def test_no_round_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one round; got 0"):
        seconds_of({"a": list}, rounds=0)


def test_the_peak_is_what_is_held_at_once() -> None:
    def work() -> torch.Tensor:
        first = torch.zeros(1_000_000)
        second = first + 1
        del first
        third = second + 1
        del second
        return third.clone()

    assert 8_000_000 <= extra_peak_bytes(work) <= 8_000_100
    assert extra_peak_bytes(lambda: None) == 0
