"""A cache that drops keys against one that keeps all."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from bipe import BilevelPositions, BipeForCausalLM, BoundedCache

MakeModel = Callable[..., BipeForCausalLM]

STEEP = {"type": "alibi", "scale": 2000.0}
"""So steep that the tiny model's bound is a few tens of segments."""


def steep(make_model: MakeModel, **fields: object) -> BipeForCausalLM:
    return make_model("bipe-alibi", inter=STEEP, **fields)


def some_ids(rows: int, length: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 12, (rows, length))


@torch.no_grad()
def fed(
    model: BipeForCausalLM,
    cache: BoundedCache | DynamicCache,
    ids: Tensor,
    sizes: list[int],
    mask: Tensor | None = None,
    documents: Tensor | None = None,
) -> tuple[Tensor, list[int]]:
    """Logits of a text given in pieces, and how many keys the cache held after each."""
    logits, held, start = [], [], 0
    for size in sizes:
        piece = slice(start, start + size)
        start += size
        logits.append(
            model(
                ids[:, piece],
                attention_mask=None if mask is None else mask[:, :start],
                document_ids=None if documents is None else documents[:, piece],
                past_key_values=cache,
            ).logits
        )
        held.append(cache.layers[0].keys.shape[-2])
    return torch.cat(logits, dim=1), held


@pytest.mark.parametrize(
    "sizes", [[1] * 600, [350, *[1] * 250], [100] * 6, [600]], ids=["single", "prompt", "chunks", "whole"]
)
def test_logits_are_those_of_a_full_cache(make_model: MakeModel, sizes: list[int]) -> None:
    model, ids = steep(make_model), some_ids(2, 600)
    cache = BoundedCache(model)
    logits, held = fed(model, cache, ids, sizes)
    whole = model(ids, use_cache=False).logits
    torch.testing.assert_close(logits, whole, rtol=2e-5, atol=2e-5)
    segments = model.positions(ids).segment[:, -1]
    assert cache.reach < 100 < segments.min() and held[-1] < 400
    # What is held are the segments within reach and no others, in the row that needs more.
    near = model.positions(ids).segment >= segments[:, None] - cache.reach
    assert held[-1] == near.sum(dim=1).max()
    assert all(layer.get_seq_length() == 600 for layer in cache.layers)
    assert {layer.keys.shape[-2] for layer in cache.layers} == {held[-1]}


def test_memory_stops_growing(make_model: MakeModel) -> None:
    model, ids = steep(make_model), some_ids(1, 2000)
    _, held = fed(model, BoundedCache(model), ids, [100] * 20)
    assert max(held) < 100


def first_needed(segment: list[int], real: list[int], documents: list[int], reach: int) -> int:
    """The first column of a row that its next token may read, found a token at a time."""
    last = max((column for column, there in enumerate(real) if there), default=None)
    needed = [
        column
        for column, there in enumerate(real)
        if last is not None
        and there
        and documents[column] == documents[last]
        and segment[column] >= segment[last] - reach
    ]
    return min(needed, default=len(real) - 1)


@pytest.mark.parametrize("seed", range(4))
def test_padding_anywhere_and_documents(make_model: MakeModel, seed: int) -> None:
    model, ids = steep(make_model), some_ids(3, 700)
    draw = torch.Generator().manual_seed(seed)
    mask = torch.ones_like(ids)
    mask[0, :150] = 0  # on the left
    mask[1, 200:320] = 0  # inside, whole pieces of it
    mask[2, 500:] = 0  # a text that has ended
    mask[1, torch.randint(0, 700, (60,), generator=draw)] = 0
    documents = (torch.rand(3, 700, generator=draw) < 0.004).cumsum(dim=1)
    sizes = [60] * 10 + [1] * 100
    whole = model(ids, attention_mask=mask, document_ids=documents, use_cache=False).logits
    cache = BoundedCache(model)
    logits, held = fed(model, cache, ids, sizes, mask, documents)
    torch.testing.assert_close(logits[mask.bool()], whole[mask.bool()], rtol=2e-5, atol=2e-5)
    segment, dropped, stop = model.positions(ids, mask, documents).segment, 0, 0
    for size, found in zip(sizes, held, strict=True):
        stop += size
        parts = [part[:, :stop].tolist() for part in (segment, mask, documents)]
        first = min(first_needed(*row, cache.reach) for row in zip(*parts, strict=True))
        dropped = max(dropped, first)
        assert found == stop - dropped
    assert dropped > 300


def test_a_far_key_that_a_head_reads_is_kept_and_no_shorter_reach_would_do(make_model: MakeModel) -> None:
    """Weights and hidden states that attain the bound's maximum: 50 nats, which a slope of 2 takes 25 segments for."""
    model = make_model(
        "alibi",
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        num_hidden_layers=1,
        inter={"type": "alibi", "scale": 512.0},
    )
    layer = model.model.layers[0]
    with torch.no_grad():
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.weight.copy_(5 * torch.eye(16, 32))
        far, near = model.model.embed_tokens.weight[:2]
        far.zero_()[0] = 1.0
        near.zero_()[[0, 20]] = torch.tensor([0.5, math.sqrt(0.75)])
    ids = torch.tensor([[0] + [1] * 80])
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
    assert (whole[0, 20] - whole[0, 80]).abs().max() > 0.1  # 20 tokens on, the far key is what is read
    errors = {}
    for reach in (None, 23):
        cache = BoundedCache(model)
        cache.reach = cache.reach if reach is None else reach
        logits, held = fed(model, cache, ids, [1] * 81)
        errors[reach] = float((logits - whole).abs().max())
        assert held[-1] == cache.reach + 1 < 81
    assert errors[None] < 2e-5
    assert errors[23] > 0.1


def test_positions_that_are_given_cover_dropped_keys_too(make_model: MakeModel) -> None:
    model, ids = steep(make_model), some_ids(2, 600)
    mask = torch.ones_like(ids)
    mask[0, :70] = 0
    mask[1, 300:330] = 0
    documents = (torch.arange(600) >= 500).long().expand(2, -1)
    positions, cache, parts = model.positions(ids, mask, documents), BoundedCache(model), []
    for start in range(0, 600, 50):
        so_far = BilevelPositions(*(index[:, : start + 50] for index in positions))
        parts.append(
            model(
                inputs_embeds=model.get_input_embeddings()(ids[:, start : start + 50]),
                positions=so_far,
                past_key_values=cache,
                attention_mask=mask[:, : start + 50],
                document_ids=documents[:, : start + 50],
            ).logits
        )
    whole = model(ids, attention_mask=mask, document_ids=documents, use_cache=False).logits
    real = mask.bool()
    torch.testing.assert_close(torch.cat(parts, dim=1)[real], whole[real], rtol=2e-5, atol=2e-5)
    assert cache.layers[0].keys.shape[-2] < 300


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"prefill_chunk_size": 64}], ids=str)
def test_generation_is_that_of_the_default_cache(make_model: MakeModel, settings: dict[str, int]) -> None:
    model, ids = steep(make_model, attn_implementation="eager"), some_ids(2, 500)
    mask = torch.ones_like(ids)
    mask[0, :20] = 0
    given = {"attention_mask": mask, "max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, **settings}
    cache = BoundedCache(model)
    assert model.generate(ids, past_key_values=cache, **given).equal(model.generate(ids, **given))
    assert cache.layers[0].keys.shape[-2] < 400


def test_half_precision_is_within_the_rounding(make_model: MakeModel) -> None:
    model, ids = steep(make_model).bfloat16(), some_ids(1, 600)
    logits, held = fed(model, BoundedCache(model), ids, [50] * 12)
    full, _ = fed(model, DynamicCache(config=model.config), ids, [50] * 12)
    torch.testing.assert_close(logits, full, rtol=0.05, atol=0.05)
    assert held[-1] < 500


def test_adapted_weights_count(make_model: MakeModel) -> None:
    plain, adapted = steep(make_model), steep(make_model)

    class Adapted(torch.nn.Module):
        """As adapters do, a projection with a term beside it."""

        def __init__(self, projection: torch.nn.Module) -> None:
            super().__init__()
            self.projection = projection

        def forward(self, inputs: Tensor) -> Tensor:
            return self.projection(inputs) + 3 * self.projection(inputs)

    attention = adapted.model.layers[0].self_attn
    attention.q_proj = Adapted(attention.q_proj)
    assert BoundedCache(adapted).reach > 2 * BoundedCache(plain).reach


def test_what_was_dropped_does_not_come_back(make_model: MakeModel) -> None:
    model, ids = steep(make_model), some_ids(1, 600)
    cache = BoundedCache(model.model)  # the decoder will do
    assert not cache.is_croppable
    fed(model, cache, ids, [600])
    with pytest.raises(ValueError, match="cannot go back"):
        cache.crop(-1)
    cache.reset()
    assert cache.get_seq_length() == 0
    again, _ = fed(model, cache, ids, [300, 300])
    torch.testing.assert_close(again, model(ids, use_cache=False).logits, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("scheme", "fields"),
    [("bipe-rope", {}), ("nope", {}), ("alibi", {"inter": {"type": "alibi", "scale": 0.0}})],
)
def test_models_that_read_everything_are_refused(
    make_model: MakeModel, scheme: str, fields: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="use the default cache"):
        BoundedCache(make_model(scheme, **fields))
