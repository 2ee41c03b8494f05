"""Counts of tokens per segment against a loop, and what is derived from them."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bipe.segmentation import EveryToken, FixedLength, Never, TokenSet
from bipe.segmentation.statistics import (
    HISTOGRAM_CAP,
    SegmentStatistics,
    fitting_lengths,
    mean_tokens_per_segment,
    segment_statistics,
    tokens_per_segment,
)

ROWS = st.integers(1, 3).flatmap(
    lambda rows: st.integers(1, 20).flatmap(
        lambda columns: st.lists(
            st.lists(st.booleans(), min_size=columns, max_size=columns),
            min_size=rows,
            max_size=rows,
        )
    )
)
DOCUMENTS = st.lists(st.lists(st.integers(0, 3), max_size=40).map(torch.tensor), min_size=1, max_size=4)


def counted(is_end: list[bool]) -> list[int]:
    """One row's tokens per segment, a token at a time."""
    counts, tokens = [], 0
    for column, end in enumerate(is_end):
        tokens += 1
        if end or column + 1 == len(is_end):
            counts.append(tokens)
            tokens = 0
    return counts


@given(rows=ROWS)
def test_counts_equal_a_loop(rows: list[list[bool]]) -> None:
    is_end = torch.tensor(rows)
    expected = [count for row in rows for count in counted(row)]
    before = is_end.clone()
    assert tokens_per_segment(is_end).tolist() == expected
    assert torch.equal(is_end, before)
    assert tokens_per_segment(is_end).sum() == is_end.numel()
    assert torch.equal(tokens_per_segment(is_end[0]), tokens_per_segment(is_end[:1]))


def test_no_token_makes_no_segment() -> None:
    assert tokens_per_segment(torch.zeros(0, dtype=torch.bool)).tolist() == []
    assert tokens_per_segment(torch.zeros(3, 0, dtype=torch.bool)).tolist() == []


@given(counts=st.lists(st.integers(1, 2 * HISTOGRAM_CAP), min_size=1, max_size=300).map(torch.tensor))
def test_statistics_describe_the_counts(counts: Tensor) -> None:
    statistics = SegmentStatistics.from_counts(counts)
    assert statistics.segments == len(counts)
    assert math.isclose(statistics.mean, sum(counts.tolist()) / len(counts))
    assert statistics.max == int(counts.max())
    for percentile, share in ((statistics.p50, 0.5), (statistics.p99, 0.99)):
        assert percentile in counts
        assert (counts <= percentile).double().mean() >= share > (counts < percentile).double().mean()
    assert sum(statistics.histogram) == len(counts)
    assert len(statistics.histogram) == min(statistics.max, HISTOGRAM_CAP) + 1
    for tokens, segments in enumerate(statistics.histogram):
        capped = tokens == HISTOGRAM_CAP
        assert segments == int((counts >= tokens if capped else counts == tokens).sum())
    assert json.loads(json.dumps(statistics.to_dict())) == statistics.to_dict()


def test_windows_are_texts_of_their_own() -> None:
    document = torch.tensor([1, 1, 0, 1, 1, 1, 1, 0, 1, 1])
    by_length = segment_statistics([document, document[:3]], TokenSet([0]), [5, 8])
    assert list(by_length) == [5, 8]
    assert by_length[5].to_dict()["histogram"] == [0, 0, 2, 2]  # 3 2 | 3 2
    assert by_length[8].to_dict()["histogram"] == [0, 0, 0, 1, 0, 1]  # 3 5
    assert segment_statistics([document], FixedLength(4), [6])[6].to_dict()["histogram"] == [0, 0, 1, 0, 1]


def test_support_is_bounded_and_alike_at_every_length() -> None:
    """Figure 1's point, on a text whose segments have 4 to 12 tokens."""
    lengths = torch.randint(4, 13, (4_000,), generator=torch.Generator().manual_seed(0))
    document = torch.ones(int(lengths.sum()), dtype=torch.int64)
    document[lengths.cumsum(0) - 1] = 0
    by_length = segment_statistics([document], TokenSet([0]), [256, 1024, 4096])
    assert {statistics.max for statistics in by_length.values()} == {12}
    assert {statistics.p50 for statistics in by_length.values()} == {8}
    whole = segment_statistics([document], Never(), [256, 1024])
    assert [statistics.max for statistics in whole.values()] == [256, 1024]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([0], "A length in tokens must be a whole number of at least 1; got 0."),
        ([4, 9], r"No document has 9 tokens \(the longest has 8\)"),
    ],
)
def test_impossible_lengths_are_refused(lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segment_statistics([torch.zeros(8, dtype=torch.int64)], Never(), lengths)


def test_fitting_lengths_are_never_empty() -> None:
    assert fitting_lengths([torch.zeros(512)]) == [256, 512]
    assert fitting_lengths([torch.zeros(5), torch.zeros(7)]) == [7]
    with pytest.raises(ValueError, match="The documents hold no tokens"):
        fitting_lengths([torch.zeros(0)])


@given(documents=DOCUMENTS, cap=st.integers(1, 12))
def test_mean_caps_each_segment(documents: list[Tensor], cap: int) -> None:
    if not any(len(document) for document in documents):
        with pytest.raises(ValueError, match="The documents hold no tokens"):
            mean_tokens_per_segment(documents, TokenSet([0]), cap)
        return
    capped: list[int] = []
    for document in documents:
        ends = (document == 0).tolist()
        capped += [min(count, cap) for count in counted(ends)]
    assert math.isclose(mean_tokens_per_segment(documents, TokenSet([0]), cap), sum(capped) / len(capped))


def test_mean_of_known_segmenters() -> None:
    documents = [torch.zeros(96, dtype=torch.int64)]
    assert mean_tokens_per_segment(documents, EveryToken(), 128) == 1.0
    assert mean_tokens_per_segment(documents, FixedLength(8), 128) == 8.0
    assert mean_tokens_per_segment(documents, Never(), 64) == 64.0
    with pytest.raises(ValueError, match=r"cap must be a whole number of at least 1; got 0\."):
        mean_tokens_per_segment(documents, Never(), 0)
