"""Positions against a loop over tokens, and what never changes them."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bipe import BilevelPositions, bilevel_positions
from bipe.positions import document_ids_from_position_ids, document_starts, token_index


class Batch(NamedTuple):
    """`(B, T)`: where segments end, which document a token is in, and whether it is real."""

    is_end: Tensor
    document_ids: Tensor
    attention_mask: Tensor


def naive_row(
    is_end: list[bool], document_ids: list[int], mask: list[int]
) -> tuple[list[int], list[int], list[int]]:
    """One row, a token at a time; pads are stepped over and have position 0."""
    segments, offsets, tokens = [], [], []
    segment = offset = token = 0
    document: int | None = None
    ended = False
    for end, identity, real in zip(is_end, document_ids, mask, strict=True):
        if not real:
            segments, offsets, tokens = [*segments, 0], [*offsets, 0], [*tokens, 0]
            continue
        if document is None or identity != document:
            segment = offset = token = 0
        elif ended:
            segment, offset, token = segment + 1, 0, token + 1
        else:
            offset, token = offset + 1, token + 1
        document, ended = identity, end
        segments, offsets, tokens = [*segments, segment], [*offsets, offset], [*tokens, token]
    return segments, offsets, tokens


def naive(batch: Batch) -> BilevelPositions:
    rows = [naive_row(*(field[row].tolist() for field in batch)) for row in range(len(batch.is_end))]
    return BilevelPositions(*(torch.tensor(list(column)) for column in zip(*rows, strict=True)))


def assert_same(first: BilevelPositions, second: BilevelPositions) -> None:
    for name, left, right in zip(BilevelPositions._fields, first, second, strict=True):
        assert left.tolist() == right.tolist(), name


def columns(batch: Batch, piece: slice) -> Batch:
    return Batch(*(field[:, piece] for field in batch))


def masks_of(length: int, shape: str) -> st.SearchStrategy[list[int]]:
    """No padding, or padding on one side, or anywhere."""
    pads = st.integers(0, length)
    return {
        "none": st.just([1] * length),
        "left": pads.map(lambda pad: [0] * pad + [1] * (length - pad)),
        "right": pads.map(lambda pad: [1] * (length - pad) + [0] * pad),
        "inner": st.lists(st.integers(0, 1), min_size=length, max_size=length),
    }[shape]


@st.composite
def batches(draw: st.DrawFn, shapes: tuple[str, ...] = ("none", "left", "right", "inner")) -> Batch:
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 14))

    def table(cells: st.SearchStrategy[int]) -> list[list[int]]:
        return [draw(st.lists(cells, min_size=length, max_size=length)) for _ in range(rows)]

    masks = [
        draw(st.sampled_from(shapes).flatmap(lambda shape: masks_of(length, shape))) for _ in range(rows)
    ]
    steps = torch.tensor(table(st.sampled_from([0, 0, 0, 1])))
    names = torch.tensor(draw(st.permutations(range(-2, 14))))
    return Batch(torch.tensor(table(st.integers(0, 1))).bool(), names[steps.cumsum(1)], torch.tensor(masks))


@given(batches())
def test_positions_are_those_of_a_loop_over_tokens(batch: Batch) -> None:
    assert_same(bilevel_positions(*batch), naive(batch))


@given(batches(shapes=("none",)))
def test_no_document_ids_and_no_mask_mean_one_document_without_padding(batch: Batch) -> None:
    plain = batch._replace(document_ids=torch.zeros_like(batch.document_ids))
    assert_same(bilevel_positions(batch.is_end), naive(plain))


@given(batches(), st.data())
def test_positions_of_a_prefix_never_change(batch: Batch, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, batch.is_end.shape[1]))
    whole = BilevelPositions(*(field[:, :length] for field in bilevel_positions(*batch)))
    assert_same(bilevel_positions(*columns(batch, slice(length))), whole)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=4))
def test_packed_documents_have_the_positions_they_have_alone(documents: list[list[bool]]) -> None:
    packed = torch.tensor([[flag for flags in documents for flag in flags]])
    identities = torch.tensor([[index for index, flags in enumerate(documents) for _ in flags]])
    alone = [bilevel_positions(torch.tensor([flags])) for flags in documents]
    joined = BilevelPositions(*(torch.cat(fields, dim=1) for fields in zip(*alone, strict=True)))
    assert_same(bilevel_positions(packed, identities), joined)


def test_a_name_used_again_after_another_document_is_a_new_document() -> None:
    positions = bilevel_positions(torch.zeros(1, 5, dtype=torch.bool), torch.tensor([[4, 4, 9, 4, 4]]))
    assert positions.token.tolist() == [[0, 1, 0, 0, 1]]


@given(batches(shapes=("none",)), st.integers(0, 5))
def test_padding_on_the_left_changes_no_position(batch: Batch, pads: int) -> None:
    rows = len(batch.is_end)
    padding = Batch(
        torch.ones(rows, pads, dtype=torch.bool),
        batch.document_ids[:, :1].repeat(1, pads),
        torch.zeros(rows, pads, dtype=torch.int64),
    )
    padded = Batch(*(torch.cat(fields, dim=1) for fields in zip(padding, batch, strict=True)))
    shifted = BilevelPositions(*(field[:, pads:] for field in bilevel_positions(*padded)))
    assert_same(shifted, bilevel_positions(*batch))


@given(batches())
def test_positions_are_int64_and_of_the_shape_of_the_flags(batch: Batch) -> None:
    for field in bilevel_positions(*batch):
        assert field.dtype == torch.int64
        assert field.shape == batch.is_end.shape


@given(batches())
def test_the_mask_may_be_booleans(batch: Batch) -> None:
    boolean = batch._replace(attention_mask=batch.attention_mask.bool())
    assert_same(bilevel_positions(*boolean), bilevel_positions(*batch))


@given(batches())
def test_token_index_and_starts_agree_with_the_loop(batch: Batch) -> None:
    real = batch.attention_mask.bool()
    assert token_index(real, batch.document_ids).tolist() == naive(batch).token.tolist()
    starts = real & (naive(batch).token == 0)
    assert document_starts(real, batch.document_ids).tolist() == starts.tolist()


def naive_documents(position_ids: list[int], mask: list[int]) -> list[int]:
    documents, document, previous = [], 0, None
    for position, real in zip(position_ids, mask, strict=True):
        if real and previous is not None and position != previous + 1:
            document += 1
        previous = position if real else previous
        documents.append(document)
    return documents


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.sampled_from(["none", "left", "right"]),
    st.data(),
)
def test_any_step_of_position_ids_but_one_starts_a_document(
    position_ids: list[int], shape: str, data: st.DataObject
) -> None:
    mask = data.draw(masks_of(len(position_ids), shape))
    real, none_end = torch.tensor([mask]).bool(), torch.zeros(1, len(mask), dtype=torch.bool)
    documents = document_ids_from_position_ids(torch.tensor([position_ids]), real)
    expected = torch.tensor([naive_documents(position_ids, mask)])
    assert documents.dtype == torch.int64
    assert documents[real].tolist() == expected[real].tolist()
    assert_same(bilevel_positions(none_end, documents, real), naive(Batch(none_end, expected, real)))


def test_position_ids_need_no_mask() -> None:
    documents = document_ids_from_position_ids(torch.tensor([[0, 1, 2, 0, 1, 5], [3, 4, 5, 6, 7, 8]]))
    assert documents.tolist() == [[0, 0, 0, 1, 1, 2], [0] * 6]


def test_last_takes_the_newest_columns() -> None:
    positions = bilevel_positions(torch.tensor([[False, True, False]]))
    assert_same(positions.last(2), BilevelPositions(*(field[:, 1:] for field in positions)))


def test_pad_to_appends_zeros() -> None:
    positions = bilevel_positions(torch.tensor([[True, False]])).pad_to(4)
    assert positions.segment.tolist() == [[0, 1, 0, 0]]
    assert positions.token.tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"is_end": torch.zeros(5, dtype=torch.bool)}, r"is_end.*\(B, T\).*\(5,\)"),
        ({"document_ids": torch.zeros(2, 4, dtype=torch.int64)}, r"document_ids.*\(2, 5\).*\(2, 4\)"),
        ({"attention_mask": torch.ones(2, 6)}, r"attention_mask.*\(2, 5\).*\(2, 6\)"),
        ({"attention_mask": torch.ones(2, 1, 5, 5)}, r"attention_mask.*\(2, 5\).*\(2, 1, 5, 5\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(arguments: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bilevel_positions(**{"is_end": torch.zeros(2, 5, dtype=torch.bool), **arguments})


def test_a_reset_behind_padding_inside_a_row_starts_a_document() -> None:
    real = torch.tensor([[1] * 5 + [0] * 3 + [1] * 4]).bool()
    reset = torch.tensor([[0, 1, 2, 3, 4, 0, 0, 0, 0, 1, 2, 3]])
    documents = document_ids_from_position_ids(reset, real)
    assert documents[real].tolist() == [0] * 5 + [1] * 4
    for goes_on in ([0, 1, 2, 3, 4, 0, 0, 0, 5, 6, 7, 8], list(range(12))):
        documents = document_ids_from_position_ids(torch.tensor([goes_on]), real)
        assert documents[real].tolist() == [0] * 9
