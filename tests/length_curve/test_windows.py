"""The windows that each protocol cuts from documents."""

import numpy as np
import pytest

from bipe.evaluation.windows import PROTOCOLS

from .texts import CUTS, DOCUMENTS, document, few_windows_are_fine, spans_of


@few_windows_are_fine
def test_the_same_targets_are_scored_at_every_length() -> None:
    targets = [
        [(index, token) for index, _, end in windows.spans for token in range(end - windows.scored, end)]
        for windows in spans_of("same_targets").values()
    ]
    assert targets[0] == targets[1] == targets[2]
    assert len(set(targets[0])) == len(targets[0])


@few_windows_are_fine
def test_the_same_targets_are_the_last_half_of_the_shortest_length_and_leave_nothing_out() -> None:
    windows = spans_of("same_targets")
    assert {given.scored for given in windows.values()} == {4}
    ends = [(index, end) for index, _, end in windows[32].spans]
    assert ends == [(0, end) for end in range(32, 72, 4)] + [(2, 32), (2, 36)]


@few_windows_are_fine
@pytest.mark.parametrize("protocol", CUTS)
def test_windows_have_their_length_and_stay_in_one_document(protocol: str) -> None:
    for length, windows in spans_of(protocol).items():
        for index, first, end in windows.spans:
            assert end - first == length
            assert 0 <= first < end <= len(DOCUMENTS[index])


def test_blocks_are_consecutive_and_score_all_but_their_first_token() -> None:
    windows = spans_of("blocks")[16]
    assert windows.spans == [
        (0, 0, 16),
        (0, 16, 32),
        (0, 32, 48),
        (0, 48, 64),
        (2, 0, 16),  # the second document is shorter than the longest length
        (2, 16, 32),
    ]
    assert windows.scored == 15


@few_windows_are_fine
@pytest.mark.parametrize("most", [1, 2, 5])
def test_at_most_so_many_windows_are_spread_evenly(most: int) -> None:
    text = [document(400)]
    every = PROTOCOLS["same_targets"](text, [8, 32], None)[32].spans
    some = PROTOCOLS["same_targets"](text, [8, 32], most)[32].spans
    assert len(some) == most
    assert set(some) <= set(every)
    if most > 1:
        places = [every.index(span) for span in some]
        assert (places[0], places[-1]) == (0, len(every) - 1)
        gaps = np.diff(places)
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("most", "counts"), [(12, {8: 12, 16: 6, 32: 3}), (None, {8: 56, 16: 28, 32: 14})], ids=["capped", "all"]
)
def test_blocks_of_every_length_cover_the_same_text(most: int | None, counts: dict[int, int]) -> None:
    windows = PROTOCOLS["blocks"]([document(400), document(20), document(90)], [8, 16, 32], most)
    covered = {
        length: {(index, place) for index, first, end in found.spans for place in range(first, end)}
        for length, found in windows.items()
    }
    assert covered[8] == covered[16] == covered[32]
    assert {length: len(found.spans) for length, found in windows.items()} == counts
    assert (windows[32].spans[0], windows[32].spans[-1]) == ((0, 0, 32), (2, 32, 64))
