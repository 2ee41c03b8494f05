"""What every segmenter promises, and each one's own rule."""

import copy
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bipe.segmentation import (
    SEGMENTERS,
    EveryToken,
    FixedLength,
    Levels,
    Never,
    NewlineRun,
    Segmenter,
    TokenSet,
    build_segmenter,
)
from bipe.segmentation.newline_run import newlines_of

TOKENS = 12
NEWLINES = [
    (index, *newlines_of(text))
    for index, text in enumerate([b"\n", b".\n", b" ", b"\n\n", b"a\n\nb", b"\n c", b"\n\n\n"], start=2)
]
SEGMENTERS_BY_TYPE: dict[str, st.SearchStrategy[Segmenter]] = {
    "every_token": st.just(EveryToken()),
    "never": st.just(Never()),
    "fixed_length": st.integers(1, 9).map(FixedLength),
    "token_set": st.sets(st.integers(0, TOKENS), min_size=1).map(TokenSet),
    "newline_run": st.integers(1, 3).map(lambda count: NewlineRun(count, NEWLINES)),
    "levels": st.integers(2, 3).map(lambda count: Levels([TokenSet([1, 4]), NewlineRun(count, NEWLINES)])),
}
BATCHES = st.integers(1, 3).flatmap(
    lambda rows: st.integers(0, 16).flatmap(
        lambda columns: st.lists(
            st.lists(st.integers(0, TOKENS), min_size=columns, max_size=columns), min_size=rows, max_size=rows
        ).map(lambda ids: torch.tensor(ids, dtype=torch.int64))
    )
)


def any_segmenter(kind: str) -> st.SearchStrategy[Segmenter]:
    return SEGMENTERS_BY_TYPE[kind]


@pytest.mark.parametrize("kind", sorted(SEGMENTERS))
@given(data=st.data())
def test_a_prefix_is_cut_as_in_the_whole(kind: str, data: st.DataObject) -> None:
    segmenter, ids = data.draw(any_segmenter(kind)), data.draw(BATCHES)
    length = data.draw(st.integers(0, ids.shape[1]))
    token_index = torch.arange(ids.shape[1]).expand_as(ids) + data.draw(st.integers(0, 5))
    assert torch.equal(segmenter(ids[:, :length]), segmenter(ids)[:, :length])
    assert torch.equal(
        segmenter(ids[:, :length], token_index[:, :length]), segmenter(ids, token_index)[:, :length]
    )


@pytest.mark.parametrize("kind", sorted(SEGMENTERS))
@given(data=st.data())
def test_the_result_is_bool_and_rows_do_not_mix(kind: str, data: st.DataObject) -> None:
    segmenter, ids = data.draw(any_segmenter(kind)), data.draw(BATCHES)
    is_end = segmenter(ids)
    assert is_end.dtype is torch.bool
    assert is_end.shape == ids.shape
    assert torch.equal(is_end, torch.cat([segmenter(row[None]) for row in ids]))


@pytest.mark.parametrize("kind", sorted(SEGMENTERS))
@given(data=st.data())
def test_a_segmenter_survives_its_spec_and_copies(kind: str, data: st.DataObject) -> None:
    segmenter = data.draw(any_segmenter(kind))
    segmenter(torch.tensor([[1, 2]]))  # fills what it keeps per device
    assert segmenter.to_spec()["type"] == kind
    for other in (
        build_segmenter(segmenter.to_spec()),
        pickle.loads(pickle.dumps(segmenter)),
        copy.deepcopy(segmenter),
    ):
        assert other == segmenter
        assert hash(other) == hash(segmenter)
        assert repr(other) == repr(segmenter)


@given(ids=BATCHES, ends=st.sets(st.integers(0, TOKENS), min_size=1))
def test_token_set_ends_exactly_at_its_tokens(ids: Tensor, ends: set[int]) -> None:
    expected = torch.tensor([[index in ends for index in row] for row in ids.tolist()], dtype=torch.bool)
    assert torch.equal(TokenSet(ends)(ids), expected.view(ids.shape))


@given(ids=BATCHES, n=st.integers(1, 9))
def test_fixed_length_counts_from_the_first_token_of_each_document(ids: Tensor, n: int) -> None:
    token_index = (ids * 7) % 11
    assert torch.equal(FixedLength(n)(ids, token_index), (token_index + 1).remainder(n) == 0)
    assert torch.equal(FixedLength(1)(ids), EveryToken()(ids))


def test_token_set_knows_ids_outside_every_vocabulary() -> None:
    ids = torch.tensor([[-100, -1, 0, 13, 14, 2**62]])
    assert TokenSet([13])(ids).tolist() == [[False, False, False, True, False, False]]
    assert TokenSet([13])(ids[:, :5].to(torch.int32)).tolist() == [[False, False, False, True, False]]


def test_token_set_is_sorted_and_without_repeats() -> None:
    ends: list[Any] = [29889, 13, np.int64(13)]
    segmenter = TokenSet(iter(ends))
    assert segmenter.end_token_ids == (13, 29889)
    assert segmenter == TokenSet({29889, 13})
    assert repr(segmenter) == "TokenSet(end_token_ids=(13, 29889))"


def test_tracing_leaves_no_traced_tensor_behind() -> None:
    class Cut(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.segmenter = TokenSet([3, 5])

        def forward(self, ids: Tensor) -> Tensor:
            return self.segmenter(ids)

    module, ids = Cut(), torch.tensor([[3, 4, 5]])
    exported = torch.export.export(module, (ids,), strict=False)
    assert exported.module()(ids).tolist() == module(ids).tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    ("end_token_ids", "message"),
    [
        ([], "end_token_ids is empty, so no segment would ever end. Give at least one id, or use Never()."),
        ([13, -1], "end_token_ids holds whole numbers of at least 0; got -1."),
        ([2**63], f"end_token_ids holds whole numbers of at least 0; got {2**63}."),
        ([True], "end_token_ids holds whole numbers of at least 0; got True."),
        ([1.0], "end_token_ids holds whole numbers of at least 0; got 1.0."),
        (["."], "end_token_ids holds whole numbers of at least 0; got '.'."),
        (13, "end_token_ids is a list of token ids, such as [13, 29889]; got 13."),
        ("13", "end_token_ids is a list of token ids, such as [13, 29889]; got '13'."),
        (None, "end_token_ids is a list of token ids, such as [13, 29889]; got None."),
    ],
)
def test_token_set_refuses_what_are_no_ids(end_token_ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TokenSet(end_token_ids)


@pytest.mark.parametrize("n", [0, -3, True, 2.0, "4", None])
def test_fixed_length_refuses_what_is_no_length(n: Any) -> None:
    with pytest.raises(ValueError, match=rf"whole number of at least 1; got {re.escape(repr(n))}\."):
        FixedLength(n)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"type": "sentence"},
            "Unknown segmenter 'sentence'. Choose one of: every_token, fixed_length, levels, never, newline_run, token_set.",
        ),
        ({"type": "token_set"}, "The segmenter 'token_set' needs the option 'end_token_ids'."),
        ({"type": "never", "n": 4}, "Unknown option 'n' of segmenter 'never'. Its options: none."),
        ({"type": "fixed_length", "n": 0}, "whole number of at least 1; got 0."),
        ({"n": 4}, 'The segmenter is given as {"type": name, ...}'),
    ],
)
def test_a_wrong_spec_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build_segmenter(spec)
