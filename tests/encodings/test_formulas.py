"""Every encoding against its paper's formula: the attention weights are compared with the model's."""

from collections.abc import Iterable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from bipe import SCHEMES, BipeConfig, BipeForCausalLM

from .formula_models import (
    ENDS,
    SEGMENTS,
    TOKENS,
    VOCABULARY,
    attentions_of,
    config_of,
    make,
    random_ids,
    texts_of,
)
from .formulas import EVERY, SPECS, Spec, weights_of

NO_INDEX = ("alibi2", "hirope")


def assert_as_formula(
    inter: Spec, segmenter: Spec, ids: Tensor, tolerance: float = 1e-5, **given: Any
) -> None:
    """Eager's weights are those of the formula, and the default implementation's logits are eager's."""
    fields = {key: given.pop(key) for key in ("intra",) if key in given}
    eager = make(inter, segmenter, attn_implementation="eager", **fields)
    default = make(inter, segmenter, **fields)
    with torch.no_grad():
        attentions = attentions_of(eager, ids, **given)
        assert torch.isfinite(attentions).all()
        texts = texts_of(eager, inter, ids, **given)
        found = eager.positions(ids, **given)
        for row, text in enumerate(texts):
            real = torch.tensor([place is not None for place in text.places])
            for name, index in found._asdict().items():
                by_hand = [getattr(place, name) for place in text.places if place is not None]
                assert index[row][real].tolist() == by_hand
            torch.testing.assert_close(
                attentions[row][:, real].double(), weights_of(text)[:, real], rtol=tolerance, atol=2e-7
            )
        expected, actual = eager(ids, **given).logits, default(ids, **given).logits
        assert torch.isfinite(actual).all()
        shown = given.get("attention_mask", torch.ones_like(ids)).bool()
        torch.testing.assert_close(actual[shown], expected[shown], rtol=1e-4, atol=2e-5)


PADDING = torch.tensor([[0] * 7 + [1] * 33, [1] * 40])
DOCUMENTS = torch.tensor([[4] * 13 + [1] * 20 + [4] * 7, [0] * 1 + [1] * 24 + [2] * 15])


@EVERY
def test_weights_between_segments_are_the_formulas(inter: Spec) -> None:
    assert_as_formula(inter, SEGMENTS, random_ids(40, 2))


@EVERY
def test_weights_between_tokens_are_the_formulas(inter: Spec) -> None:
    assert_as_formula(inter, TOKENS, random_ids(40, 2, seed=1))


@EVERY
def test_weights_by_the_token_index_are_the_formulas(inter: Spec) -> None:
    if inter["type"] in NO_INDEX:
        with pytest.raises(ValueError, match="index"):
            config_of({**inter, "index": "token"})
    else:
        assert_as_formula({**inter, "index": "token"}, SEGMENTS, random_ids(40, 2, seed=2))


@EVERY
def test_weights_of_padded_and_packed_text_are_the_formulas(inter: Spec) -> None:
    ids = random_ids(40, 2, seed=3)
    assert_as_formula(inter, SEGMENTS, ids, attention_mask=PADDING)
    assert_as_formula(inter, SEGMENTS, ids, document_ids=DOCUMENTS)


@EVERY
def test_weights_with_learned_offsets_padding_and_documents_are_the_formulas(inter: Spec) -> None:
    if inter["type"] not in NO_INDEX:
        inter = {**inter, "index": "token"}
    intra = {"type": "learned", "max_offset": 40}
    given: dict[str, Any] = {"attention_mask": PADDING, "document_ids": DOCUMENTS}
    assert_as_formula(inter, SEGMENTS, random_ids(40, 2, seed=4), intra=intra, **given)


@pytest.mark.parametrize("name", ["rope", "xpos-strong", "hirope", "rerope", "selfextend", "randomized-rope"])
def test_weights_of_another_theta_are_the_formulas(name: str) -> None:
    assert_as_formula({**SPECS[name], "theta": 50.0}, SEGMENTS, random_ids(40, 2, seed=5))


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("name", ["alibi", "alibi2", "kerple-log", "hirope", "cope"])
def test_weights_of_other_numbers_of_heads_are_the_formulas(name: str, heads: int) -> None:
    model = make(
        SPECS[name],
        attn_implementation="eager",
        num_attention_heads=heads,
        num_key_value_heads=1,
        hidden_size=8 * heads,
    )
    ids = random_ids(24, seed=6)
    with torch.no_grad():
        weights = weights_of(texts_of(model, SPECS[name], ids)[0])
        torch.testing.assert_close(attentions_of(model, ids)[0].double(), weights, rtol=1e-5, atol=2e-7)


def decoded(model: BipeForCausalLM, ids: Tensor, sizes: Iterable[int], **given: Any) -> Tensor:
    """The logits of a text read in pieces with a cache."""
    cache, at, pieces = None, 0, []
    for size in sizes:
        part = {name: value[:, : at + size] for name, value in given.items() if name == "attention_mask"}
        if "document_ids" in given:
            part["document_ids"] = given["document_ids"][:, at : at + size]
        out = model(ids[:, at : at + size], past_key_values=cache, use_cache=True, **part)
        cache, at = out.past_key_values, at + size
        pieces.append(out.logits)
    return torch.cat(pieces, dim=1)


@EVERY
@pytest.mark.parametrize("implementation", [None, "eager"])
def test_reading_with_a_cache_equals_reading_at_once(inter: Spec, implementation: str | None) -> None:
    ids = random_ids(40, 2, seed=7)
    model = make(inter, attn_implementation=implementation, num_hidden_layers=2)
    with torch.no_grad():
        for given in ({}, {"attention_mask": PADDING}, {"document_ids": DOCUMENTS}):
            shown = given.get("attention_mask", torch.ones_like(ids)).bool()
            whole = model(ids, **given).logits
            sizes = [1] * 40 if implementation is None else [9, 1, 13, 1, 1, 15]
            pieces = decoded(model, ids, sizes, **given)
            torch.testing.assert_close(pieces[shown], whole[shown], rtol=1e-4, atol=1e-4)


@EVERY
def test_text_longer_than_a_block_is_alike_in_every_implementation(inter: Spec) -> None:
    ids = random_ids(600, 2, seed=8)
    documents = torch.cat((torch.zeros(2, 290), torch.ones(2, 310)), dim=1).long()
    eager, default = make(inter, attn_implementation="eager"), make(inter)
    with torch.no_grad():
        for given in ({}, {"document_ids": documents}):
            expected, actual = eager(ids, **given).logits, default(ids, **given).logits
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("width", [2, 4, 6, 16])
@pytest.mark.parametrize("name", ["rope", "xpos-strong", "hirope", "cope", "selfextend"])
def test_weights_of_other_head_widths_are_the_formulas(name: str, width: int) -> None:
    model = make(SPECS[name], attn_implementation="eager", hidden_size=4 * width)
    ids = random_ids(24, seed=20)
    with torch.no_grad():
        weights = weights_of(texts_of(model, SPECS[name], ids)[0])
        torch.testing.assert_close(attentions_of(model, ids)[0].double(), weights, rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("name", ["alibi2", "xpos-strong", "fire", "cope", "rerope", "hirope"])
def test_the_measured_reach_holds_the_share_of_the_formulas_weights(name: str) -> None:
    model, ids = make(SPECS[name]), random_ids(30, seed=22)
    text = texts_of(model, SPECS[name], ids)[0]
    weights = weights_of(text)
    mass = model.reach(ids, share=0.8).mass
    assert mass is not None
    for head in range(4):
        for unit, found in mass._asdict().items():
            held: dict[int, float] = {}
            for i in range(15, 30):
                for j in range(i + 1):
                    distance = getattr(text.place(i), unit[:-1]) - getattr(text.place(j), unit[:-1])
                    held[distance] = held.get(distance, 0.0) + weights[head, i, j].item()
            total, within = sum(held.values()), 0.0
            for distance in sorted(held):
                within += held[distance]
                if within >= 0.8 * total:
                    assert found[0, head] == distance
                    break


# xPos where its damping is strong


@pytest.mark.parametrize("base", [3, 512])
def test_xpos_is_the_formula_where_the_powers_would_overflow(base: int) -> None:
    inter = {"type": "xpos", "scale_base": base}
    assert_as_formula(inter, TOKENS, random_ids(300, seed=9), 2e-5)


@pytest.mark.parametrize("base", [3, 512])
def test_xpos_in_bfloat16_is_near_the_same_weights_in_float32(base: int) -> None:
    ids = random_ids(300, seed=10)
    low = make({"type": "xpos", "scale_base": base}, TOKENS, initializer_range=0.1).bfloat16()
    high = make({"type": "xpos", "scale_base": base}, TOKENS, initializer_range=0.1).float()
    high.load_state_dict({name: value.float() for name, value in low.state_dict().items()}, strict=False)
    with torch.no_grad():
        actual, expected = low(ids).logits.float(), high(ids).logits
    assert torch.isfinite(actual).all()
    assert (actual - expected).abs().max() <= 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_xpos_of_a_long_text_is_finite(dtype: torch.dtype) -> None:
    model = make({"type": "xpos", "scale_base": 3}, TOKENS, num_attention_heads=1, num_key_value_heads=1)
    ids = random_ids(6000, seed=11)
    with torch.no_grad():
        assert torch.isfinite(cast("Any", model).to(dtype)(ids).logits).all()


def test_strong_xpos_is_read_with_a_cache_as_at_once() -> None:
    model, ids = make({"type": "xpos", "scale_base": 3}, TOKENS), random_ids(300, seed=12)
    with torch.no_grad():
        pieces = decoded(model, ids, [1] * 150 + [100, 1, 49])
        torch.testing.assert_close(pieces, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("segmenter", [TOKENS, SEGMENTS])
def test_padding_inside_a_text_changes_nothing_of_strong_xpos(segmenter: Spec) -> None:
    model, ids = make({"type": "xpos", "scale_base": 3}, segmenter), random_ids(300, seed=23)
    mask = torch.ones_like(ids)
    mask[:, 70:190] = 0
    with torch.no_grad():
        padded = model(ids, attention_mask=mask).logits[mask.bool()]
        torch.testing.assert_close(padded, model(ids[mask.bool()][None]).logits[0], rtol=1e-4, atol=1e-4)


# Offsets by segment with distances by token


@pytest.mark.parametrize("name", ["rope", "alibi"])
def test_the_token_index_with_offsets_is_the_encoding_on_tokens_with_offsets_added(name: str) -> None:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.3,
    }
    assert f"offset+{name}" in SCHEMES
    config = BipeConfig.from_scheme(f"offset+{name}", end_token_ids=list(ENDS), max_offset=40, **sizes)
    both = BipeForCausalLM(config).eval()
    plain = BipeForCausalLM(BipeConfig.from_scheme(name, **sizes)).eval()
    plain.load_state_dict(both.state_dict(), strict=False)
    ids = random_ids(50, 2, seed=14)
    with torch.no_grad():
        offsets = both.positions(ids).offset
        embeds = both.model.embed_tokens(ids) + cast("Any", both.model.intra).embedding.weight[offsets]
        expected = plain(inputs_embeds=embeds, positions=plain.positions(ids)).logits
        torch.testing.assert_close(both(ids).logits, expected, rtol=1e-5, atol=1e-5)
