"""Every implementation of attention against the eager one, and the eager one against a loop."""

import math
from collections.abc import Callable
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from bipe import SCHEMES, BipeForCausalLM
from bipe.attention import ATTENTIONS, Visible
from bipe.encodings.inter import INTER_ENCODINGS, Relation

from .attention_cases import BATCHES, TableBias, ids_of, logits_and_gradients, random_attention_inputs

ModelMaker = Callable[..., BipeForCausalLM]
FAST = sorted(set(ATTENTIONS) - {"eager", "flex"})  # flex has tests of its own
DECAYING = sorted(name for name, scheme in SCHEMES.items() if INTER_ENCODINGS[scheme.inter["type"]].decays)
PAIRS = [
    (name, scheme) for name in FAST for scheme in sorted(SCHEMES) if name == "sdpa" or scheme in DECAYING
]


@pytest.mark.parametrize("batch", sorted(BATCHES))
@pytest.mark.parametrize(("attention", "scheme"), PAIRS)
def test_fast_attention_matches_eager_in_logits_and_gradients(
    make_model: ModelMaker, attention: str, scheme: str, batch: str
) -> None:
    fast = logits_and_gradients(make_model(scheme, attn_implementation=attention), BATCHES[batch])
    slow = logits_and_gradients(make_model(scheme, attn_implementation="eager"), BATCHES[batch])
    torch.testing.assert_close(fast[0], slow[0], rtol=1e-4, atol=1e-4)
    assert fast[1].keys() == slow[1].keys()
    for name, gradient in slow[1].items():
        tolerance = 1e-5 * max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(fast[1][name], gradient, rtol=1e-3, atol=tolerance, msg=name)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("attention", "scheme"), [pair for pair in PAIRS if pair[1] in ("bipe-rope", "bipe-alibi")]
)
def test_grouped_query_heads_match_eager(
    make_model: ModelMaker, attention: str, scheme: str, kv_heads: int
) -> None:
    fast, slow = (
        make_model(scheme, num_key_value_heads=kv_heads, attn_implementation=name)
        for name in (attention, "eager")
    )
    for ids in (ids_of(2, 20), ids_of(2, 600)):
        torch.testing.assert_close(fast(ids).logits, slow(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", FAST)
def test_pieces_of_a_long_text_match_eager(make_model: ModelMaker, attention: str) -> None:
    batch = BATCHES["long_and_padded"]
    expected = make_model("bipe-alibi", attn_implementation="eager")(**batch).logits
    model, cache, found = make_model("bipe-alibi", attn_implementation=attention), DynamicCache(), []
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for start, stop in pairwise([0, 520, 590, *range(591, 601)]):
        found.append(model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache).logits)
    real = mask.bool()
    torch.testing.assert_close(torch.cat(found, dim=1)[real], expected[real], rtol=1e-4, atol=1e-4)


def naive_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, visible: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Softmax over the visible keys, one query at a time, in float64."""
    batch, heads, targets, width = query.shape
    group = heads // key.shape[1]
    mixed = torch.zeros(batch, targets, heads, width, dtype=torch.float64)
    weights = torch.zeros(batch, heads, targets, key.shape[2], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for t in range(targets):
                seen = [s for s in range(key.shape[2]) if visible[b, t, s]]
                logits = [
                    float(query[b, h, t].double() @ key[b, h // group, s].double()) * scaling
                    + float(bias[b, h, t, s])
                    for s in seen
                ]
                share = torch.tensor([math.exp(logit - max(logits)) for logit in logits], dtype=torch.float64)
                weights[b, h, t, seen] = share / share.sum()
                mixed[b, t, h] = weights[b, h, t] @ value[b, h // group].double()
    return mixed, weights


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("targets", "sources"), [(7, 7), (3, 9), (1, 9)])
def test_attention_is_a_softmax_over_visible_keys(attention: str, targets: int, sources: int) -> None:
    tensors = random_attention_inputs(targets, sources)
    bias = 3 * torch.randn(2, 4, targets, sources, generator=torch.Generator().manual_seed(4))
    visible = torch.ones(2, targets, sources).tril(sources - targets).bool()
    visible[1, :, 0] = targets == sources
    real = torch.ones(2, sources, dtype=torch.bool)
    real[1, 0] = targets == sources
    layer = SimpleNamespace(num_key_value_groups=2, training=False)
    mixed, weights = ATTENTIONS[attention](
        layer,
        *tensors.values(),
        Visible(targets, sources, sources - targets, real=real),
        relation=Relation(bias=TableBias(bias)),
        scaling=0.3,
    )
    expected, expected_weights = naive_attention(**tensors, bias=bias, visible=visible, scaling=0.3)
    torch.testing.assert_close(mixed.double(), expected, rtol=1e-5, atol=1e-5)
    if weights is not None:
        torch.testing.assert_close(weights.double(), expected_weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", ["bipe-rope", "bipe-alibi", "nope"])
def test_eager_weights_sum_to_one_over_what_may_be_seen(make_model: ModelMaker, scheme: str) -> None:
    model = make_model(scheme, attn_implementation="eager")
    batch = BATCHES["packed_and_padded"]
    attentions = model(**batch, output_attentions=True).attentions
    assert attentions is not None
    assert len(attentions) == 2
    real, documents = batch["attention_mask"].bool(), batch["document_ids"]
    visible = (
        (documents[:, :, None] == documents[:, None, :]) & real[:, None, :] & torch.ones(20, 20).tril().bool()
    )
    for weights in attentions:
        assert weights.shape == (2, 4, 20, 20)
        rows = weights.transpose(1, 2)[real]
        torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]))
        assert not rows[(~visible)[real][:, None].expand_as(rows)].any()


def test_the_default_is_the_fastest_exact_one(make_model: ModelMaker) -> None:
    assert make_model("bipe-rope").config._attn_implementation == "sdpa"
    assert make_model("bipe-alibi").config._attn_implementation == "segment_local"


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention", "spda"])
def test_an_unknown_implementation_is_refused_with_the_choices(
    make_model: ModelMaker, attention: str
) -> None:
    with pytest.raises(ValueError, match=rf"{attention}.*eager.*sdpa"):
        make_model("rope", attn_implementation=attention)
    with pytest.raises(ValueError, match=rf"{attention}.*eager.*sdpa"):
        make_model("rope").set_attn_implementation(attention)


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - set(DECAYING)))
def test_an_implementation_that_cannot_honour_the_scheme_is_refused(
    make_model: ModelMaker, scheme: str
) -> None:
    with pytest.raises(ValueError, match=r"decaying bias.*Choose one of: eager, (flex, )?sdpa"):
        make_model(scheme, attn_implementation="segment_local")
    with pytest.raises(ValueError, match=r"decaying bias.*Choose one of: eager, (flex, )?sdpa"):
        make_model(scheme).set_attn_implementation("segment_local")


def test_weights_are_refused_where_there_are_none(make_model: ModelMaker) -> None:
    model = make_model("rope", attn_implementation="sdpa")
    with pytest.raises(ValueError, match="eager"):
        model(ids_of(1, 4), output_attentions=True)
    with pytest.raises(ValueError, match="eager"):
        cast("Any", model).generate(
            ids_of(1, 4), max_new_tokens=2, output_attentions=True, return_dict_in_generate=True
        )


def test_the_decoder_alone_refuses_weights_too(make_model: ModelMaker) -> None:
    model = make_model("rope", attn_implementation="sdpa")
    with pytest.raises(ValueError, match="eager"):
        model.model(ids_of(1, 4), output_attentions=True)


def test_dropout_of_attention_is_off_in_eval_and_on_in_training(make_model: ModelMaker) -> None:
    for attention in ("eager", *FAST):
        model = make_model("bipe-alibi", attn_implementation=attention, attention_dropout=0.5)
        plain = make_model("bipe-alibi", attn_implementation=attention)
        ids = ids_of(2, 20)
        assert torch.equal(model(ids).logits, plain(ids).logits)
        assert not torch.equal(model.train()(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ["eager", *FAST])
def test_half_precision_does_not_look_ahead(
    make_model: ModelMaker, attention: str, dtype: torch.dtype
) -> None:
    """Steep slopes times many segments exceed what half precision holds, for keys in the future upwards."""
    model = make_model("bipe-alibi", num_attention_heads=8, attn_implementation=attention).to(dtype)
    ids = torch.cat((ids_of(2, 300), torch.full((2, 700), 4)), dim=1)
    other = ids.clone()
    other[:, 900:] = 6
    with torch.no_grad():
        assert torch.equal(model(ids).logits[:, :900], model(other).logits[:, :900])


@pytest.mark.parametrize("attention", FAST)
def test_half_precision_is_no_further_off_than_the_oracle_in_it(
    make_model: ModelMaker, attention: str
) -> None:
    ids, exact = ids_of(2, 600), make_model("bipe-alibi")(ids_of(2, 600)).logits
    errors = [
        (make_model("bipe-alibi", attn_implementation=name).bfloat16()(ids).logits - exact).norm()
        for name in (attention, "eager")
    ]
    assert errors[0] <= 1.2 * errors[1]


def test_the_oracle_stays_float32_under_autocast_and_in_double(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = make_model("bipe-alibi", attn_implementation="eager"), []
    product = torch.matmul
    monkeypatch.setattr(torch, "matmul", lambda *given: seen.append(product(*given)) or seen[-1])
    with torch.autocast("cpu", torch.bfloat16):
        assert model(ids_of(1, 20)).logits.dtype == torch.bfloat16
    assert {part.dtype for part in seen} == {torch.float32}
    assert model.double()(ids_of(1, 20)).logits.dtype == torch.float64


def test_a_query_that_sees_nothing_makes_no_nan(make_model: ModelMaker) -> None:
    for scheme, attention in (("bipe-alibi", "segment_local"), ("bipe-alibi", "sdpa"), ("bipe-rope", "sdpa")):
        model = make_model(scheme, attn_implementation=attention)
        logits, gradients = logits_and_gradients(model, BATCHES["left_padded"])
        assert logits.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        assert model(**BATCHES["left_padded"]).logits.isfinite().all()


def saved_bytes(model: BipeForCausalLM, tokens: int) -> int:
    """Bytes that a forward keeps for the backward pass, each storage once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids_of(1, tokens), use_cache=False)
    return sum(kept.values())


@pytest.mark.parametrize("attention", FAST)
def test_training_keeps_no_bias_in_memory(make_model: ModelMaker, attention: str) -> None:
    model = make_model("bipe-alibi", attn_implementation=attention)
    assert saved_bytes(model, 2048) < 2.2 * saved_bytes(model, 1024)


LEARNED = ["alibi-learned", "bipe-alibi2-learned", "bipe-kerple", "bipe-t5", "bipe-fire", "cope"]


@pytest.mark.parametrize(
    ("scheme", "attention"),
    [*product(LEARNED, ("sdpa", "eager")), *product(LEARNED[:3], ("segment_local",))],
)
def test_a_frozen_bias_leaves_other_gradients(make_model: ModelMaker, scheme: str, attention: str) -> None:
    """As adapters freeze it."""
    ids, found = ids_of(2, 200), []
    for frozen in (False, True):
        model = make_model(scheme, attn_implementation=attention).train()
        model.model.inter.requires_grad_(not frozen)
        model(ids, labels=ids).loss.backward()
        found.append({name: part.grad for name, part in model.named_parameters() if ".inter." not in name})
        assert all((part.grad is None) is frozen for part in model.model.inter.parameters())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5)
