"""Calls with a cache of what came before, and caches that are refused."""

from collections.abc import Callable
from typing import cast

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from bipe import SCHEMES, BipeForCausalLM
from bipe.models.cache import append_state, read_state

from .conftest import MASK, PROMPT, PROMPTS, generate, recompute

ModelMaker = Callable[..., BipeForCausalLM]
SCHEME_NAMES = sorted(SCHEMES)


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_one_token_at_a_time_gives_the_logits_of_the_whole(
    make_model: ModelMaker, scheme: str, attention: str | None
) -> None:
    model = make_model(scheme, attn_implementation=attention)
    ids = torch.randint(12, (3, 30), generator=torch.Generator().manual_seed(2))
    whole, cache = model(ids, use_cache=False).logits, DynamicCache()
    for start, stop in [(0, 7), (7, 8), (8, 9), (9, 14), (14, 15), *((n, n + 1) for n in range(15, 30))]:
        logits = model(ids[:, start:stop], past_key_values=cache).logits
        torch.testing.assert_close(logits, whole[:, start:stop], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask_covers", ["everything", "this_call"])
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_one_token_at_a_time_after_padding(make_model: ModelMaker, scheme: str, mask_covers: str) -> None:
    model = make_model(scheme)
    ids = torch.cat((PROMPTS, PROMPTS.flip(0)), dim=1)
    mask = torch.cat((MASK, torch.ones_like(MASK)), dim=1)
    whole, cache = model(ids, attention_mask=mask, use_cache=False).logits, DynamicCache()
    for start, stop in [(0, 10), (10, 13), *((n, n + 1) for n in range(13, 20))]:
        given = mask[:, :stop] if mask_covers == "everything" else mask[:, start:stop]
        logits = model(ids[:, start:stop], attention_mask=given, past_key_values=cache).logits
        real = mask[:, start:stop].bool()
        torch.testing.assert_close(logits[real], whole[:, start:stop][real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", ["rope", "bipe-rope", "bipe-alibi"])
def test_a_static_cache_may_be_used_directly(make_model: ModelMaker, scheme: str) -> None:
    model = make_model(scheme)
    cache = StaticCache(config=model.config, max_cache_len=40)
    ids = torch.cat((PROMPTS, PROMPTS.flip(0)), dim=1)
    whole = model(ids, use_cache=False).logits
    for start, stop in [(0, 10), (10, 13), (13, 14), (14, 20)]:
        logits = model(ids[:, start:stop], past_key_values=cache).logits
        torch.testing.assert_close(logits, whole[:, start:stop], rtol=1e-4, atol=1e-4)


def test_a_cropped_cache_goes_on_from_where_it_was_cut(make_model: ModelMaker) -> None:
    model, cache = make_model("bipe-rope"), DynamicCache()
    model(PROMPT, past_key_values=cache)
    cache.crop(-6)
    logits = model(PROMPT[:, 4:], past_key_values=cache).logits
    torch.testing.assert_close(logits, model(PROMPT).logits[:, 4:], rtol=1e-4, atol=1e-4)


def test_a_reordered_cache_keeps_each_row_with_its_positions(make_model: ModelMaker) -> None:
    model, cache, order = make_model("bipe-alibi"), DynamicCache(), torch.tensor([2, 0, 1])
    model(PROMPTS[:, :6], past_key_values=cache)
    cache.reorder_cache(cast("torch.LongTensor", order))
    ids = PROMPTS[order]
    logits = model(ids[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(logits, model(ids).logits[:, 6:], rtol=1e-4, atol=1e-4)


def test_a_cache_filled_by_another_model_is_refused(make_model: ModelMaker) -> None:
    model, cache = make_model("bipe-rope"), DynamicCache()
    llama = LlamaForCausalLM(LlamaConfig.from_dict(model.config.to_dict()))
    llama(PROMPT, past_key_values=cache)
    with pytest.raises(ValueError, match="10 tokens but not their segments"):
        model(PROMPT[:, :1], past_key_values=cache)


def test_a_cache_filled_from_embeddings_is_refused_without_positions(make_model: ModelMaker) -> None:
    model, cache = make_model("bipe-rope"), DynamicCache()
    positions = model.positions(PROMPT)
    embedded = model.get_input_embeddings()(PROMPT[:, :6])
    first = type(positions)(*(field[:, :6] for field in positions))
    model(inputs_embeds=embedded, positions=first, past_key_values=cache)
    with pytest.raises(ValueError, match="positions"):
        model(PROMPT[:, 6:], past_key_values=cache)
    logits = model(PROMPT[:, 6:], positions=positions, past_key_values=cache).logits
    torch.testing.assert_close(logits, model(PROMPT).logits[:, 6:], rtol=1e-4, atol=1e-4)


def test_a_cache_without_segments_goes_on_where_the_whole_text_is_given(make_model: ModelMaker) -> None:
    model, cache = make_model("bipe-rope"), DynamicCache()
    positions = model.positions(PROMPT[:, :6])
    embedded = model.get_input_embeddings()(PROMPT[:, :6])
    model(inputs_embeds=embedded, positions=positions, past_key_values=cache)
    generated = generate(model, PROMPT, past_key_values=cache)
    assert generated.tolist() == recompute(model, PROMPT).tolist()


def test_positions_that_do_not_cover_the_cache_are_refused(make_model: ModelMaker) -> None:
    model, cache = make_model("bipe-rope"), DynamicCache()
    model(PROMPT[:, :6], past_key_values=cache)
    with pytest.raises(ValueError, match=r"positions.*10"):
        model(PROMPT[:, 6:], positions=model.positions(PROMPT[:, 6:]), past_key_values=cache)


def dynamic_model(make_model: ModelMaker) -> BipeForCausalLM:
    scaling = {"rope_type": "dynamic", "factor": 2.0, "original_max_segments": 4}
    return make_model("bipe-rope", inter={"type": "rope", "scaling": scaling})


def test_frequencies_that_depend_on_length_allow_no_cache(make_model: ModelMaker) -> None:
    model = dynamic_model(make_model)
    with pytest.raises(ValueError, match="use_cache=False"):
        model(PROMPT, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="use_cache=False"):
        generate(model, PROMPT, use_cache=True)


def test_frequencies_that_depend_on_length_generate_without_a_cache(make_model: ModelMaker) -> None:
    model = dynamic_model(make_model)
    assert generate(model, PROMPT, use_cache=False).tolist() == recompute(model, PROMPT).tolist()


def test_offsets_that_are_drawn_allow_no_cache(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope-randomized").train()
    with pytest.raises(ValueError, match="use_cache=False"):
        model(PROMPT, past_key_values=DynamicCache())
    assert model(PROMPT).past_key_values is None
    generate(model, PROMPT)  # without one
    assert model.eval()(PROMPT).past_key_values is not None


def test_longer_texts_leave_no_trace_on_short_ones(make_model: ModelMaker) -> None:
    model = dynamic_model(make_model)
    before = model(PROMPT[:, :3], use_cache=False).logits
    model(PROMPT.repeat(1, 4), use_cache=False)
    assert torch.equal(model(PROMPT[:, :3], use_cache=False).logits, before)


def test_a_call_without_a_cache_returns_one_to_go_on_from(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope")
    cache = model(PROMPT[:, :6]).past_key_values
    assert cache is not None
    logits = model(PROMPT[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(logits, model(PROMPT).logits[:, 6:], rtol=1e-4, atol=1e-4)
    assert model(PROMPT, use_cache=False).past_key_values is None


def test_an_offloaded_cache_brings_the_first_layer_back(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moving keys takes an accelerator; which layer is asked for does not."""
    model, cache, brought = make_model("bipe-rope"), DynamicCache(), []
    model(PROMPT, past_key_values=cache)
    state = read_state(cache, 2, 10).columns(0, 1)
    cache.offloading = cache.only_non_sliding = True
    monkeypatch.setattr(cache, "prefetch", lambda layer, only: brought.append((layer, only)))
    append_state(cache, 2, state)
    assert brought == [(0, True)]
