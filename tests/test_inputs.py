"""What the model is given: what it takes, and what must be refused."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from transformers import DynamicCache

from bipe import BipeForCausalLM

from .batches import documents_of, ids_of

ModelMaker = Callable[..., BipeForCausalLM]


@pytest.mark.parametrize("bad", [-1, 12, 10**9])
def test_ids_outside_the_vocabulary_are_named(make_model: ModelMaker, bad: int) -> None:
    ids = ids_of(1, 6)
    ids[0, 3] = bad
    with pytest.raises(ValueError, match=rf"{bad}.*vocabulary of 12"):
        make_model("bipe-rope")(ids)


def test_embeddings_alone_do_not_tell_positions(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), ids_of(2, 8)
    embedded = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match=r"inputs_embeds.*positions"):
        model(inputs_embeds=embedded)
    logits = model(inputs_embeds=embedded, positions=model.positions(ids)).logits
    assert torch.equal(logits, model(ids).logits)


def test_ids_and_embeddings_together_are_refused(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), ids_of(2, 8)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(ids, inputs_embeds=model.get_input_embeddings()(ids))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("attention_mask", (2, 7)),
        ("attention_mask", (2, 9)),
        ("attention_mask", (2, 1, 8, 8)),
        ("attention_mask", (3, 8)),
        ("document_ids", (2, 7)),
        ("document_ids", (8,)),
        ("position_ids", (2, 7)),
        ("position_ids", (8,)),
        ("labels", (2, 7)),
    ],
)
def test_shapes_that_do_not_fit_the_ids_are_refused(
    make_model: ModelMaker, name: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=name):
        make_model("bipe-rope")(ids_of(2, 8), **{name: torch.ones(shape, dtype=torch.int64)})


def test_positions_are_those_of_the_segmenter(make_model: ModelMaker) -> None:
    ids = torch.tensor([[5, 1, 4, 6, 8, 7, 9]])
    positions = make_model("bipe-rope").positions(ids)
    assert positions.segment.tolist() == [[0, 0, 1, 2, 2, 2, 3]]
    assert positions.offset.tolist() == [[0, 1, 0, 0, 1, 2, 0]]
    assert positions.token.tolist() == [[0, 1, 2, 3, 4, 5, 6]]


def test_the_decoder_and_the_language_model_agree_on_positions(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), ids_of(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    documents = documents_of((5, 4)).expand(2, -1)
    for first, second in zip(
        model.positions(ids, mask, documents), model.model.positions(ids, mask, documents), strict=True
    ):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["documents_ids", "attn_mask", "head_mask"])
def test_an_unknown_argument_is_refused(make_model: ModelMaker, name: str) -> None:
    model, ids = make_model("bipe-rope"), torch.tensor([[1, 2, 3]])
    for called in (model, model.model):
        with pytest.raises(TypeError, match=f"no argument '{name}'"):
            called(ids, **{name: ids})


@pytest.mark.parametrize("name", ["seq_idx", "cu_seq_lens_q", "cu_seq_lens_k"])
def test_borders_that_nothing_reads_are_refused(make_model: ModelMaker, name: str) -> None:
    """Packing collators of transformers give position_ids beside them, which are read."""
    model, ids = make_model("bipe-rope"), torch.tensor([[1, 2, 3, 5, 6]])
    given = {name: torch.tensor([[0, 0, 1, 1, 1]])}
    for called in (model, model.model):
        with pytest.raises(ValueError, match=f"{name} alone is not read"):
            called(ids, **given)
    resets = torch.tensor([[0, 1, 0, 1, 2]])
    assert model(ids, position_ids=resets, **given).logits.equal(model(ids, position_ids=resets).logits)


def test_reading_in_both_directions_is_refused(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), torch.tensor([[1, 2, 3]])
    assert model(ids, is_causal=True).logits.equal(model(ids).logits)
    with pytest.raises(ValueError, match="left to right only"):
        model(ids, is_causal=False)


def test_what_tokenizers_return_is_taken(make_model: ModelMaker) -> None:
    ids = torch.tensor([[1, 2, 3]])
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }
    model = make_model("bipe-rope")
    assert torch.equal(model(**given).logits, model(ids).logits)


def test_labels_need_all_logits(make_model: ModelMaker) -> None:
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match="labels or logits_to_keep, not both"):
        make_model("bipe-rope")(ids, labels=ids, logits_to_keep=2)


def test_a_mask_beside_positions_covers_the_cache(make_model: ModelMaker) -> None:
    model, ids, cache = make_model("bipe-rope"), torch.tensor([[1, 2, 3, 5, 6]]), DynamicCache()
    model(ids[:, :3], past_key_values=cache)
    with pytest.raises(ValueError, match=r"attention_mask must have the shape \(1, 5\)"):
        model(
            ids[:, 3:],
            positions=model.positions(ids),
            attention_mask=torch.ones_like(ids[:, 3:]),
            past_key_values=cache,
        )


def test_positions_of_another_kind_or_shape_are_refused(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), ids_of(2, 9)
    positions = model.positions(ids)
    for wrong in (tuple(positions), positions._replace(segment=positions.segment[:, :5])):
        with pytest.raises(ValueError, match="positions"):
            model(ids, positions=cast("Any", wrong))


@pytest.mark.parametrize("shape", [(5,), (1, 1, 5)])
def test_ids_that_are_no_batch_are_refused(make_model: ModelMaker, shape: tuple[int, ...]) -> None:
    ids = torch.ones(shape, dtype=torch.long)
    for ask in (make_model("bipe-rope"), make_model("bipe-rope").positions):
        with pytest.raises(ValueError, match=r"input_ids must have the shape \(batch, tokens\)"):
            ask(ids)


@pytest.mark.parametrize("scheme", ["xpos", "bipe-xpos"])
def test_given_positions_that_leap_are_refused_where_channels_fade(
    make_model: ModelMaker, scheme: str
) -> None:
    model, ids = make_model(scheme), torch.tensor([[1, 2, 3, 4]])
    positions = model.positions(ids)
    assert torch.equal(model(ids, positions=positions).logits, model(ids).logits)
    leaping = positions._replace(segment=torch.tensor([[0, 1, 5, 6]]))
    with pytest.raises(ValueError, match="may grow by at most 1"):
        model(ids, positions=leaping)
    other = make_model(scheme.replace("xpos", "rope"))
    assert torch.isfinite(other(ids, positions=leaping).logits).all()
