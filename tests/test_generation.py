"""Generation with a cache against recomputing every step from the full text."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from bipe import SCHEMES, BipeForCausalLM
from bipe.models.cache import append_state, read_state

ModelMaker = Callable[..., BipeForCausalLM]
SCHEME_NAMES = sorted(SCHEMES)
NEW = 12
PROMPT = torch.tensor([[5, 1, 6, 8, 4, 9, 2, 3, 1, 10]])
PROMPTS = torch.tensor(
    [
        [0, 0, 0, 5, 1, 6, 8, 4, 9, 2],
        [11, 7, 3, 3, 1, 1, 10, 2, 6, 5],
        [1, 1, 1, 1, 1, 1, 1, 1, 8, 4],
    ]
)
MASK = torch.tensor([[0] * 3 + [1] * 7, [1] * 10, [0] * 8 + [1] * 2])
"""Rows padded on the left, one with a pad id that also ends segments."""
GREEDY: Mapping[str, Any] = {
    "max_new_tokens": NEW,
    "do_sample": False,
    "pad_token_id": 0,
    "eos_token_id": None,
}


def generate(model: BipeForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    """The whole sequences that `generate` returns."""
    generated = cast("Any", model).generate(ids, **{**GREEDY, **options})
    assert isinstance(generated, Tensor)
    return generated


@torch.no_grad()
def recompute(model: BipeForCausalLM, ids: Tensor, mask: Tensor | None = None, new: int = NEW) -> Tensor:
    """Greedy decoding by a forward over the full text for each token."""
    mask = torch.ones_like(ids) if mask is None else mask
    for _ in range(new):
        logits = model(ids, attention_mask=mask, use_cache=False).logits
        assert logits is not None
        ids = torch.cat((ids, logits[:, -1:].argmax(-1)), dim=1)
        mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
    return ids


def crosses_segments(model: BipeForCausalLM, ids: Tensor) -> bool:
    """Whether the generated part has ends of segments, without which the comparison would say little."""
    return bool(torch.isin(ids[:, -NEW:], torch.tensor([1, 4, 7])).any())


@pytest.fixture(params=["eager", None], ids=["eager", "default"])
def attention(request: pytest.FixtureRequest) -> str | None:
    return request.param


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_cached_generation_matches_recomputation(
    make_model: ModelMaker, scheme: str, attention: str | None
) -> None:
    models = (make_model(scheme, attn_implementation=attention, seed=seed) for seed in range(2, 12))
    found = ((model, recompute(model, PROMPT)) for model in models)
    model, expected = next(pair for pair in found if crosses_segments(*pair))
    assert generate(model, PROMPT).tolist() == expected.tolist()


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_cached_generation_of_padded_batches_matches_recomputation(
    make_model: ModelMaker, scheme: str, attention: str | None
) -> None:
    model = make_model(scheme, attn_implementation=attention)
    expected = recompute(model, PROMPTS, MASK)
    assert generate(model, PROMPTS, attention_mask=MASK).tolist() == expected.tolist()


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_cached_generation_of_unpadded_batches_matches_recomputation(
    make_model: ModelMaker, scheme: str, attention: str | None
) -> None:
    model = make_model(scheme, attn_implementation=attention)
    together = generate(model, PROMPTS, attention_mask=torch.ones_like(PROMPTS))
    assert together.tolist() == recompute(model, PROMPTS).tolist()


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_each_row_of_a_padded_batch_is_generated_as_if_alone(make_model: ModelMaker, scheme: str) -> None:
    model = make_model(scheme)
    together = generate(model, PROMPTS, attention_mask=MASK)
    for row in range(3):
        alone = generate(model, PROMPTS[row : row + 1, MASK[row].bool()])
        assert together[row, -NEW:].tolist() == alone[0, -NEW:].tolist()


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


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_a_static_cache_changes_nothing(make_model: ModelMaker, scheme: str, attention: str | None) -> None:
    model = make_model(scheme, attn_implementation=attention)
    options = {"cache_implementation": "static", "disable_compile": True}
    assert generate(model, PROMPT, **options).tolist() == recompute(model, PROMPT).tolist()
    padded = generate(model, PROMPTS, attention_mask=MASK, **options)
    assert padded.tolist() == recompute(model, PROMPTS, MASK).tolist()


@pytest.mark.parametrize("scheme", ["rope", "bipe-rope", "bipe-alibi"])
def test_a_static_cache_may_be_used_directly(make_model: ModelMaker, scheme: str) -> None:
    model = make_model(scheme)
    cache = StaticCache(config=model.config, max_cache_len=40)
    ids = torch.cat((PROMPTS, PROMPTS.flip(0)), dim=1)
    whole = model(ids, use_cache=False).logits
    for start, stop in [(0, 10), (10, 13), (13, 14), (14, 20)]:
        logits = model(ids[:, start:stop], past_key_values=cache).logits
        torch.testing.assert_close(logits, whole[:, start:stop], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_beams_are_those_of_recomputation(make_model: ModelMaker, scheme: str) -> None:
    model = make_model(scheme)
    options = {"num_beams": 3, "attention_mask": MASK, "num_return_sequences": 2}
    cached, recomputed = (generate(model, PROMPTS, use_cache=use, **options) for use in (True, False))
    assert cached.shape == (6, 10 + NEW)
    assert cached.tolist() == recomputed.tolist()


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_samples_are_those_of_recomputation(make_model: ModelMaker, scheme: str) -> None:
    model, drawn = make_model(scheme), []
    for use_cache in (True, False):
        torch.manual_seed(11)
        options = {"do_sample": True, "num_return_sequences": 3, "use_cache": use_cache}
        drawn.append(generate(model, PROMPTS, attention_mask=MASK, **options).tolist())
    assert drawn[0] == drawn[1]
    assert len({tuple(row) for row in drawn[0]}) > 3


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_assisted_generation_is_greedy_generation(make_model: ModelMaker, scheme: str) -> None:
    model, assistant = make_model(scheme), make_model("bipe-rope", seed=1)
    expected = recompute(model, PROMPT).tolist()
    assert generate(model, PROMPT, assistant_model=assistant).tolist() == expected
    assert generate(model, PROMPT, assistant_model=model).tolist() == expected


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_prompt_lookup_is_greedy_generation(make_model: ModelMaker, scheme: str) -> None:
    model = make_model(scheme)
    prompt = PROMPT.repeat(1, 2)
    lookup = generate(model, prompt, prompt_lookup_num_tokens=4)
    assert lookup.tolist() == recompute(model, prompt).tolist()


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_prefill_in_chunks_changes_nothing(make_model: ModelMaker, scheme: str) -> None:
    model = make_model(scheme)
    chunked = generate(model, PROMPT, prefill_chunk_size=4)
    assert chunked.tolist() == recompute(model, PROMPT).tolist()
    padded = generate(model, PROMPTS, attention_mask=MASK, prefill_chunk_size=4)
    assert padded.tolist() == recompute(model, PROMPTS, MASK).tolist()


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


def test_generation_ends_at_the_end_of_text(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope")
    greedy = recompute(model, PROMPT)
    last = int(greedy[0, 13])
    stopped = generate(model, PROMPT, eos_token_id=last)[0].tolist()
    assert stopped == greedy[0, : len(stopped)].tolist()
    assert stopped[-1] == last


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


@pytest.mark.parametrize("inter", [{"type": "rope"}, {"type": "alibi", "scale": 8.0}])
def test_segments_of_fixed_length_are_counted_without_padding(
    make_model: ModelMaker, inter: dict[str, Any]
) -> None:
    model = make_model("bipe-rope", segmenter={"type": "fixed_length", "n": 3}, inter=inter)
    expected = recompute(model, PROMPTS, MASK)
    for options in (
        {},
        {"prefill_chunk_size": 4},
        {"cache_implementation": "static", "disable_compile": True},
    ):
        assert generate(model, PROMPTS, attention_mask=MASK, **options).tolist() == expected.tolist()
    alone = generate(model, PROMPTS[:1, 3:])
    assert alone[0, -NEW:].tolist() == expected[0, -NEW:].tolist()


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


def test_generation_from_embeddings_alone_is_refused(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope")
    embedded = model.get_input_embeddings()(PROMPT)
    with pytest.raises(ValueError, match="inputs_embeds"):
        cast("Any", model).generate(inputs_embeds=embedded, **GREEDY)


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


def test_generate_refuses_positions(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope")
    with pytest.raises(ValueError, match="generate cannot take positions"):
        generate(model, PACKED, positions=model.positions(PACKED))
