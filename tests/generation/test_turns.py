"""Conversations and chunks of prompts that go on from a cache, padded ones too."""

from collections.abc import Callable

import pytest
import torch
from transformers import DynamicCache

from bipe import SCHEMES, BipeForCausalLM

from .conftest import MASK, NEW, PROMPT, PROMPTS, generate, recompute

ModelMaker = Callable[..., BipeForCausalLM]
SCHEME_NAMES = sorted(SCHEMES)


@pytest.mark.parametrize("whole_text", [True, False])
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_a_conversation_goes_on_from_its_cache(make_model: ModelMaker, scheme: str, whole_text: bool) -> None:
    model = make_model(scheme)
    cache = DynamicCache(config=model.config)
    first = generate(model, PROMPT, past_key_values=cache)
    turn = torch.tensor([[2, 4, 11]])
    full = torch.cat((first, turn), dim=1)
    # The last token that was generated has not been through the model.
    given = full if whole_text else full[:, cache.get_seq_length() :]
    mask = torch.ones_like(full)
    second = generate(model, given, attention_mask=mask, past_key_values=cache)
    assert second[:, -NEW:].tolist() == recompute(model, full)[:, -NEW:].tolist()


@pytest.mark.parametrize("whole_text", [True, False])
def test_a_conversation_of_padded_rows_goes_on_from_its_cache(
    make_model: ModelMaker, whole_text: bool
) -> None:
    model = make_model("bipe-rope")
    cache = DynamicCache(config=model.config)
    first = generate(model, PROMPTS, attention_mask=MASK, past_key_values=cache)
    full = torch.cat((first, PROMPTS[:, -2:]), dim=1)
    mask = torch.cat((MASK, torch.ones(3, NEW + 2, dtype=torch.int64)), dim=1)
    given = full if whole_text else full[:, cache.get_seq_length() :]
    second = generate(model, given, attention_mask=mask, past_key_values=cache)
    assert second[:, -NEW:].tolist() == recompute(model, full, mask)[:, -NEW:].tolist()


@torch.no_grad()
@pytest.mark.parametrize("pads_at", ["zero", "one"])
@pytest.mark.parametrize("scheme", ["rope", "bipe-rope", "bipe-alibi", "bipe3-rope"])
def test_a_call_that_begins_with_padding_goes_on_from_its_cache(
    make_model: ModelMaker, scheme: str, pads_at: str
) -> None:
    """As the second turn of a batch, or a chunk of a prompt: transformers numbers padding 0."""
    model = make_model(scheme)
    ids, mask = torch.randint(12, (3, 20)), torch.ones(3, 20, dtype=torch.int64)
    mask[1, 12:15] = mask[2, :13] = 0
    expected = model(ids, mask).logits
    places = (mask.cumsum(dim=-1) - 1).masked_fill(mask == 0, 0 if pads_at == "zero" else 1)
    cache = DynamicCache(config=model.config)
    for part in (slice(0, 12), slice(12, 20)):
        found = model(
            ids[:, part], mask[:, : part.stop], position_ids=places[:, part], past_key_values=cache
        ).logits
        there = mask[:, part].bool()
        torch.testing.assert_close(found[there], expected[:, part][there], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("whole_text", [True, False])
@pytest.mark.parametrize("scheme", ["rope", "bipe-rope", "bipe-alibi"])
def test_a_turn_that_is_padded_goes_on_from_its_cache(
    make_model: ModelMaker, scheme: str, whole_text: bool
) -> None:
    model = make_model(scheme)
    cache = DynamicCache(config=model.config)
    first = generate(model, PROMPTS, attention_mask=MASK, past_key_values=cache)
    full = torch.cat((first, torch.tensor([[0, 0, 8, 4], [3, 1, 9, 2], [0, 6, 6, 5]])), dim=1)
    turn = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    mask = torch.cat((MASK, torch.ones(3, NEW, dtype=torch.int64), turn), dim=1)
    given = full if whole_text else full[:, cache.get_seq_length() :]
    second = generate(model, given, attention_mask=mask, past_key_values=cache)
    assert second[:, -NEW:].tolist() == recompute(model, full, mask)[:, -NEW:].tolist()


@pytest.mark.parametrize("size", [3, 5, 6, 7])
@pytest.mark.parametrize("scheme", ["rope", "bipe-rope", "bipe-alibi"])
def test_a_chunk_may_begin_with_padding(make_model: ModelMaker, scheme: str, size: int) -> None:
    model, mask = make_model(scheme), MASK.clone()
    mask[1, 5:8] = 0
    found = generate(model, PROMPTS, attention_mask=mask, prefill_chunk_size=size)
    assert found.tolist() == recompute(model, PROMPTS, mask).tolist()
