"""Documents packed into a row: each is read as if alone, and its first token is no target."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bipe import SCHEMES, BipeForCausalLM

from .batches import assert_close, documents_of, ids_of

ModelMaker = Callable[..., BipeForCausalLM]
SCHEME_NAMES = sorted(SCHEMES)
LENGTHS = (5, 1, 9, 3)


def resets_of(lengths: tuple[int, ...]) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths])[None]


PACKINGS: dict[str, dict[str, Tensor]] = {
    "document_ids": {"document_ids": documents_of(LENGTHS)},
    "position_ids": {"position_ids": resets_of(LENGTHS)},
    "position_ids_and_mask": {
        "position_ids": resets_of(LENGTHS),
        "attention_mask": torch.ones(1, sum(LENGTHS), dtype=torch.int64),
    },
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("packing", sorted(PACKINGS))
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_packed_documents_are_as_if_alone(
    make_model: ModelMaker, scheme: str, packing: str, rows: int, attention: str
) -> None:
    model = make_model(scheme, attn_implementation=attention)
    ids = ids_of(rows, sum(LENGTHS))
    borders = {name: tensor.expand(rows, -1) for name, tensor in PACKINGS[packing].items()}
    packed = model(ids, labels=ids, **borders)
    alone = [model(piece).logits for piece in ids.split(LENGTHS, dim=1)]
    assert_close(packed.logits, torch.cat(alone, dim=1))
    losses = [
        nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), piece[:, 1:].flatten(), reduction="sum")
        for logits, piece in zip(alone, ids.split(LENGTHS, dim=1), strict=True)
        if piece.shape[1] > 1
    ]
    targets = rows * sum(length - 1 for length in LENGTHS)
    expected = torch.stack(losses).sum() / targets
    torch.testing.assert_close(packed.loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("scheme", ["rope", "bipe-alibi"])
def test_a_name_used_again_after_another_document_is_a_new_document(
    make_model: ModelMaker, scheme: str, attention: str
) -> None:
    model, ids = make_model(scheme, attn_implementation=attention), ids_of(1, sum(LENGTHS))
    again = model(ids, labels=ids, document_ids=documents_of(LENGTHS, (4, 9, 4, 9)))
    once = model(ids, labels=ids, document_ids=documents_of(LENGTHS))
    assert_close(again.logits, once.logits)
    assert_close(again.loss, once.loss)


def test_position_ids_of_one_row_describe_every_row(make_model: ModelMaker) -> None:
    model, ids, resets = make_model("bipe-rope"), ids_of(3, sum(LENGTHS)), resets_of(LENGTHS)
    one = model(ids, labels=ids, position_ids=resets)
    each = model(ids, labels=ids, position_ids=resets.expand(3, -1))
    assert torch.equal(one.logits, each.logits)
    assert torch.equal(one.loss, each.loss)


@pytest.mark.parametrize("packing", sorted(PACKINGS))
def test_the_first_token_of_a_document_is_no_target(make_model: ModelMaker, packing: str) -> None:
    model, ids = make_model("bipe-rope"), ids_of(1, sum(LENGTHS))
    labels = ids.clone()
    labels[0, [5, 6, 15]] = (labels[0, [5, 6, 15]] + 1) % 12
    losses = [model(ids, labels=given, **PACKINGS[packing]).loss for given in (ids, labels)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 14, dtype=torch.int64)])
def test_the_first_token_of_a_document_is_no_target_after_a_cache(
    make_model: ModelMaker, mask: Tensor | None
) -> None:
    model, ids, documents = make_model("bipe-rope"), ids_of(1, 14), documents_of((9, 5))
    other = ids.clone()
    other[0, 9] = (other[0, 9] + 1) % 12
    losses = []
    for labels in (ids, other):
        cache = model(ids[:, :6], document_ids=documents[:, :6]).past_key_values
        rest = {"document_ids": documents[:, 6:], "labels": labels[:, 6:]}
        losses.append(model(ids[:, 6:], attention_mask=mask, past_key_values=cache, **rest).loss)
    assert torch.equal(*losses)


def test_padding_inside_a_packed_row_joins_no_documents(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-alibi"), ids_of(1, 14)
    mask = torch.ones_like(ids)
    mask[0, 5:8] = 0
    documents = torch.tensor([[3] * 5 + [0] * 3 + [8] * 6])
    packed = model(ids, attention_mask=mask, document_ids=documents).logits
    assert_close(packed[:, :5], model(ids[:, :5]).logits)
    assert_close(packed[:, 8:], model(ids[:, 8:]).logits)


def test_the_loss_leaves_out_the_starts_of_documents_that_positions_tell_of(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), torch.randint(12, (2, 20))
    documents = (torch.arange(20) > 8).long().expand(2, -1)
    by_documents = model(ids, document_ids=documents, labels=ids)
    by_positions = model(ids, positions=model.positions(ids, document_ids=documents), labels=ids)
    assert torch.equal(by_positions.logits, by_documents.logits)
    assert torch.equal(by_positions.loss, by_documents.loss)
    assert not torch.equal(by_documents.loss, model(ids, labels=ids).loss)


def test_documents_of_each_row_are_its_own(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), torch.randint(12, (3, 20))
    borders = [4, 13, 19]
    documents = torch.stack([(torch.arange(20) >= border).long() for border in borders])
    together = model(ids, document_ids=documents).logits
    for row, border in enumerate(borders):
        for part in (slice(0, border), slice(border, 20)):
            alone = model(ids[row : row + 1, part]).logits[0]
            torch.testing.assert_close(together[row, part], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("scheme", ["bipe-rope", "bipe-alibi", "rope", "bipe3-rope"])
def test_given_positions_tell_no_border_at_padding(make_model: ModelMaker, scheme: str, packed: bool) -> None:
    model, ids, mask = make_model(scheme), ids_of(3, 24), torch.ones(3, 24, dtype=torch.int64)
    mask[0, :4] = mask[1, 9:12] = mask[2, 20:] = 0
    documents = (torch.arange(24) >= 15).long().expand(3, -1) if packed else None
    positions = model.positions(ids, mask, documents)
    expected = model(ids, mask, document_ids=documents, labels=ids)
    found = model(ids, mask, positions=positions, labels=ids)
    assert_close(found.logits[mask.bool()], expected.logits[mask.bool()])
    assert_close(found.loss, expected.loss)
