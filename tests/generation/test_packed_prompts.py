"""Prompts of several documents, which are continued as the last of them would be alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from bipe import SCHEMES, BipeForCausalLM

from .conftest import NEW, PROMPT, generate, recompute

ModelMaker = Callable[..., BipeForCausalLM]
SCHEME_NAMES = sorted(SCHEMES)


def packed_prompt() -> tuple[Tensor, Tensor, Tensor]:
    """Two documents in a row, the second of them `PROMPT`."""
    ids = torch.cat((torch.tensor([[9, 1, 4, 8, 3, 2]]), PROMPT), dim=1)
    documents = torch.tensor([[5] * 6 + [6] * 10])
    resets = torch.cat((torch.arange(6), torch.arange(10)))[None]
    return ids, documents, resets


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_a_packed_prompt_goes_on_in_its_last_document(
    make_model: ModelMaker, scheme: str, use_cache: bool
) -> None:
    model = make_model(scheme)
    ids, documents, _ = packed_prompt()
    expected = recompute(model, PROMPT)[0, -NEW:].tolist()
    generated = generate(model, ids, document_ids=documents, use_cache=use_cache)
    assert generated[0, -NEW:].tolist() == expected


@pytest.mark.parametrize("scheme", ["rope", "bipe-rope", "bipe-alibi"])
def test_a_packed_prompt_told_by_resets_goes_on_in_its_last_document(
    make_model: ModelMaker, scheme: str
) -> None:
    model = make_model(scheme)
    ids, _, resets = packed_prompt()
    generated = generate(model, ids, position_ids=resets)
    assert generated[0, -NEW:].tolist() == recompute(model, PROMPT)[0, -NEW:].tolist()


@pytest.mark.parametrize("scheme", ["rope", "bipe-rope", "bipe-alibi"])
def test_a_cache_remembers_documents(make_model: ModelMaker, scheme: str) -> None:
    model, cache = make_model(scheme), DynamicCache()
    ids, documents, _ = packed_prompt()
    model(ids[:, :9], document_ids=documents[:, :9], past_key_values=cache)
    step = model(ids[:, 9:10], past_key_values=cache).logits
    told = model(ids[:, 10:], document_ids=documents[:, 10:], past_key_values=cache).logits
    alone = model(PROMPT).logits
    torch.testing.assert_close(torch.cat((step, told), dim=1), alone[:, 3:], rtol=1e-4, atol=1e-4)


def test_a_new_document_may_begin_after_a_cache(make_model: ModelMaker) -> None:
    model, cache = make_model("bipe-rope"), DynamicCache()
    ids, documents, _ = packed_prompt()
    model(ids[:, :6], document_ids=documents[:, :6], past_key_values=cache)
    logits = model(ids[:, 6:], document_ids=documents[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(logits, model(PROMPT).logits, rtol=1e-4, atol=1e-4)


PACKED = torch.tensor(
    [[5, 1, 6, 8, 4, 9, 2, 3, 1, 10, 2, 2, 6, 1, 5, 8], [3, 9, 7, 7, 2, 1, 5, 5, 6, 4, 8, 2, 3, 1, 9, 9]]
)
BORDER = 9
DOCUMENT_IDS = (torch.arange(16) >= BORDER).long().expand(2, -1)
RESETS = torch.cat((torch.arange(BORDER), torch.arange(16 - BORDER))).expand(2, -1)


@pytest.fixture
def packed_answer(make_model: ModelMaker) -> Tensor:
    """What follows the second document alone, which the whole packed prompt must not be continued like."""
    model = make_model("bipe-rope")
    answer = recompute(model, PACKED[:, BORDER:])[:, -NEW:]
    assert answer.tolist() != recompute(model, PACKED)[:, -NEW:].tolist()
    return answer


@pytest.mark.parametrize("chunk", [None, 4, 9, 16])
@pytest.mark.parametrize("borders", [{"document_ids": DOCUMENT_IDS}, {"position_ids": RESETS}], ids=sorted)
def test_a_packed_prompt_stays_packed_in_chunks(
    make_model: ModelMaker, packed_answer: Tensor, borders: dict[str, Tensor], chunk: int | None
) -> None:
    model = make_model("bipe-rope")
    options = {} if chunk is None else {"prefill_chunk_size": chunk, "past_key_values": DynamicCache()}
    assert generate(model, PACKED, **borders, **options)[:, -NEW:].tolist() == packed_answer.tolist()


@pytest.mark.parametrize("start", [3, BORDER])
@pytest.mark.parametrize("named", ["document_ids", "position_ids"])
def test_a_border_behind_cached_tokens_is_kept(make_model: ModelMaker, named: str, start: int) -> None:
    model, cache = make_model("bipe-rope"), DynamicCache()
    borders = {"document_ids": DOCUMENT_IDS, "position_ids": RESETS}[named]
    expected = model(PACKED, document_ids=DOCUMENT_IDS).logits
    model(PACKED[:, :start], past_key_values=cache)
    logits = model(PACKED[:, start:], past_key_values=cache, **{named: borders[:, start:]}).logits
    torch.testing.assert_close(logits, expected[:, start:], rtol=1e-4, atol=1e-4)


def test_a_new_turn_may_start_a_document(make_model: ModelMaker, packed_answer: Tensor) -> None:
    model, cache = make_model("bipe-rope"), DynamicCache()
    model(PACKED[:, :BORDER], past_key_values=cache)
    given = {"document_ids": DOCUMENT_IDS, "past_key_values": cache}
    assert generate(model, PACKED, **given)[:, -NEW:].tolist() == packed_answer.tolist()


def test_borders_of_the_new_turn_alone_are_refused(make_model: ModelMaker) -> None:
    model, cache = make_model("bipe-rope"), DynamicCache()
    model(PACKED[:, :BORDER], past_key_values=cache)
    with pytest.raises(ValueError, match="must cover the 9 cached tokens too, 16 in all; got 7"):
        generate(
            model,
            PACKED[:, BORDER:],
            document_ids=DOCUMENT_IDS[:, BORDER:],
            attention_mask=torch.ones_like(PACKED),
            past_key_values=cache,
        )


@pytest.mark.parametrize("columns", [3, 12])
def test_documents_of_another_length_than_the_prompt_are_refused(
    make_model: ModelMaker, columns: int
) -> None:
    model = make_model("bipe-rope")
    with pytest.raises(ValueError, match=r"document_ids must have the shape \(1, 10\); got \(1, "):
        generate(model, PROMPT, document_ids=torch.zeros(1, columns, dtype=torch.int64))


@pytest.mark.parametrize("length", [40, 50, 64, 90])
@pytest.mark.parametrize("scheme", ["xpos", "bipe-xpos", "bipe-alibi"])
def test_a_static_cache_holds_documents_in_order(make_model: ModelMaker, scheme: str, length: int) -> None:
    model, ids = make_model(scheme), torch.randint(12, (2, 24))
    documents = (torch.arange(24) >= torch.tensor([[5], [17]])).long()
    dynamic = generate(model, ids, document_ids=documents)
    static = StaticCache(config=model.config, max_cache_len=length)
    assert generate(model, ids, document_ids=documents, past_key_values=static).tolist() == dynamic.tolist()


def test_generate_refuses_positions(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope")
    with pytest.raises(ValueError, match="generate cannot take positions"):
        generate(model, PACKED, positions=model.positions(PACKED))
