"""Generation with a cache against recomputing every step from the full text."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from bipe import SCHEMES, BipeForCausalLM

from .conftest import GREEDY, MASK, NEW, PROMPT, PROMPTS, generate, recompute

ModelMaker = Callable[..., BipeForCausalLM]
SCHEME_NAMES = sorted(SCHEMES)


def crosses_segments(model: BipeForCausalLM, ids: Tensor) -> bool:
    """Whether the generated part has ends of segments, without which the comparison would say little."""
    return bool(torch.isin(ids[:, -NEW:], torch.tensor([1, 4, 7])).any())


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
def test_a_static_cache_changes_nothing(make_model: ModelMaker, scheme: str, attention: str | None) -> None:
    model = make_model(scheme, attn_implementation=attention)
    options = {"cache_implementation": "static", "disable_compile": True}
    assert generate(model, PROMPT, **options).tolist() == recompute(model, PROMPT).tolist()
    padded = generate(model, PROMPTS, attention_mask=MASK, **options)
    assert padded.tolist() == recompute(model, PROMPTS, MASK).tolist()


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


def test_generation_ends_at_the_end_of_text(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope")
    greedy = recompute(model, PROMPT)
    last = int(greedy[0, 13])
    stopped = generate(model, PROMPT, eos_token_id=last)[0].tolist()
    assert stopped == greedy[0, : len(stopped)].tolist()
    assert stopped[-1] == last


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


def test_generation_from_embeddings_alone_is_refused(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope")
    embedded = model.get_input_embeddings()(PROMPT)
    with pytest.raises(ValueError, match="inputs_embeds"):
        cast("Any", model).generate(inputs_embeds=embedded, **GREEDY)
