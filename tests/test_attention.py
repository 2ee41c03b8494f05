"""Every implementation of attention against the eager one, and the eager one against a loop."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from bipe import SCHEMES, BipeConfig, BipeForCausalLM, BipeModel
from bipe.attention import ATTENTIONS, Visible, sdpa
from bipe.encodings.inter import INTER_ENCODINGS, Relation
from bipe.encodings.inter.base import Bias, Scorer

ModelMaker = Callable[..., BipeForCausalLM]
FAST = sorted(set(ATTENTIONS) - {"eager", "flex"})  # flex has tests of its own
DECAYING = sorted(name for name, scheme in SCHEMES.items() if INTER_ENCODINGS[scheme.inter["type"]].decays)
PAIRS = [
    (name, scheme) for name in FAST for scheme in sorted(SCHEMES) if name == "sdpa" or scheme in DECAYING
]


def has_bias(scheme: str) -> bool:
    """Whether a scheme's encoding adds a bias, seen on two tokens."""
    sizes = {"hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = BipeConfig.from_scheme(scheme, end_token_ids=[3], tokens_per_segment=3.0, vocab_size=9, **sizes)
    model = BipeModel(config)
    positions = model.positions(torch.tensor([[3, 5]]))
    return model.inter(positions, positions, torch.float32).bias is not None


ROTATION_ONLY = [name for name in sorted(SCHEMES) if not has_bias(name)]
BORDERS = torch.tensor([0, 7, 8, 15])


def ids_of(rows: int, tokens: int) -> Tensor:
    return torch.randint(12, (rows, tokens), generator=torch.Generator().manual_seed(tokens))


def mask_of(*pads: int, tokens: int) -> Tensor:
    """Rows padded on the left (positive) or on the right (negative)."""
    rows = [[0] * max(pad, 0) + [1] * (tokens - abs(pad)) + [0] * max(-pad, 0) for pad in pads]
    return torch.tensor(rows)


def documents_of(rows: int, tokens: int) -> Tensor:
    """The border moves by one from row to row."""
    column = torch.arange(tokens)
    return torch.stack([torch.bucketize(column, BORDERS + row, right=True) for row in range(rows)])


BATCHES: dict[str, dict[str, Tensor]] = {
    "plain": {"input_ids": ids_of(2, 20)},
    "one_token": {"input_ids": ids_of(3, 1)},
    "long": {"input_ids": ids_of(2, 600)},  # so long that segment_local leaves keys out
    "left_padded": {"input_ids": ids_of(3, 20), "attention_mask": mask_of(5, 0, 19, tokens=20)},
    "right_padded": {"input_ids": ids_of(3, 20), "attention_mask": mask_of(-5, 0, -19, tokens=20)},
    "long_and_padded": {"input_ids": ids_of(2, 600), "attention_mask": mask_of(140, -9, tokens=600)},
    "packed": {"input_ids": ids_of(2, 20), "document_ids": documents_of(2, 20)},
    "packed_and_padded": {
        "input_ids": ids_of(2, 20),
        "document_ids": documents_of(2, 20),
        "attention_mask": mask_of(3, -4, tokens=20),
    },
}


def logits_and_gradients(
    model: BipeForCausalLM, batch: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits at real tokens, and the gradients of a sum over them that treats no two alike."""
    logits = model(**batch).logits
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    logits = logits[real]
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    (logits * weights).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


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


@pytest.mark.parametrize("batch", sorted(BATCHES))
@pytest.mark.parametrize("scheme", ["rope", "bipe-rope", "bipe-xpos"])
def test_masks_of_some_queries_at_a_time_are_the_mask_of_all(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch, scheme: str, batch: str
) -> None:
    given = BATCHES[batch]
    whole = logits_and_gradients(make_model(scheme), given)
    monkeypatch.setattr(sdpa, "MASKED_PAIRS", 0)
    monkeypatch.setattr(sdpa, "MASKED_ROWS", 7)
    parts = logits_and_gradients(make_model(scheme), given)
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-5)
    for name, gradient in whole[1].items():
        tolerance = 1e-5 * max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(parts[1][name], gradient, rtol=1e-3, atol=tolerance, msg=name)


def test_a_piece_behind_cached_tokens_needs_no_mask_of_all_pairs(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, largest = ids_of(1, 600), 0
    expected = make_model("bipe-rope")(ids).logits
    monkeypatch.setattr(sdpa, "MASKED_PAIRS", 64 * 64)
    monkeypatch.setattr(sdpa, "MASKED_ROWS", 16)
    make = Visible.block

    def block(self: Visible, rows: slice, columns: slice) -> Tensor:
        nonlocal largest
        made = make(self, rows, columns)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(Visible, "block", block)
    model, cache = make_model("bipe-rope"), DynamicCache()
    found = [model(part, past_key_values=cache).logits for part in ids.split([200, 390, 10], dim=1)]
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=1e-4, atol=1e-4)
    assert 0 < largest <= 16 * 600


class TableBias(Bias):
    """A bias read from a `(B, H, T, S)` table."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def block(self, rows: slice, columns: slice, heads: slice = slice(None)) -> Tensor:
        return self.table[:, heads, rows, columns].clone()

    def scorer(self, targets: int, sources: int) -> Scorer:
        return lambda score, batch, head, query, key: score + self.table[batch, head, query, key]


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


def random_attention_inputs(targets: int, sources: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    shapes = {"query": (2, 4, targets, 8), "key": (2, 2, sources, 8), "value": (2, 2, sources, 8)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


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


class KernelCalls:
    """Stands in for torch's fused kernel and remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.kernel = nn.functional.scaled_dot_product_attention

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        self.calls.append(options)
        return self.kernel(query, key, value, **options)


@pytest.mark.parametrize("mask", [None, torch.ones(2, 20, dtype=torch.int64)])
@pytest.mark.parametrize("scheme", ROTATION_ONLY)
def test_rotations_alone_take_the_causal_kernel_without_a_mask(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch, scheme: str, mask: Tensor | None
) -> None:
    kernel = KernelCalls()
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", kernel)
    make_model(scheme, attn_implementation="sdpa")(ids_of(2, 20), attention_mask=mask)
    assert [(call["attn_mask"], call["is_causal"]) for call in kernel.calls] == [(None, True)] * 2


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


class LearnedBias(TableBias):
    """A table with gradients."""

    def __init__(self, table: Tensor) -> None:
        super().__init__(table)
        self.differentiable = (table,)


def test_gradients_reach_a_bias_that_learns() -> None:
    tensors = random_attention_inputs(300, 300)
    table = torch.randn(1, 4, 300, 300, generator=torch.Generator().manual_seed(4))
    layer = SimpleNamespace(num_key_value_groups=2, training=False)
    found = []
    for attention in ("eager", "sdpa"):
        learned = table.clone().requires_grad_()
        mixed, _ = ATTENTIONS[attention](
            layer,
            *tensors.values(),
            Visible(300, 300),
            relation=Relation(bias=LearnedBias(learned)),
            scaling=0.3,
        )
        (mixed * mixed.detach().cos()).sum().backward()
        found.append(learned.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    assert found[0].abs().max() > 1e-3


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


@pytest.mark.parametrize("tokens", [200, 1])
def test_autocast_leaves_the_bias_in_float32(tokens: int) -> None:
    """It would take the mask of the kernel, too, for something to halve."""
    tensors = {name: part.bfloat16() for name, part in random_attention_inputs(tokens, 200).items()}
    layer, bias = SimpleNamespace(num_key_value_groups=2, training=False), []
    found = []
    for enabled in (False, True):
        bias = TableBias(torch.randn(1, 4, 200, 200, generator=torch.Generator().manual_seed(4)))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            mixed, _ = ATTENTIONS["sdpa"](
                layer,
                *tensors.values(),
                Visible(tokens, 200, past=200 - tokens),
                relation=Relation(bias=bias),
                scaling=0.3,
            )
        found.append(mixed)
    assert found[0].equal(found[1])


def test_no_two_queries_drop_the_same_weights() -> None:
    """Values of which each key has its own channel show the weights."""
    tokens = 128
    zeros, value = torch.zeros(1, 1, tokens, tokens), torch.eye(tokens)[None, None]
    mixed, _ = ATTENTIONS["sdpa"](
        SimpleNamespace(num_key_value_groups=1, training=True),
        *(zeros, zeros, value),
        Visible(tokens, tokens),
        relation=Relation(bias=TableBias(zeros)),
        scaling=1.0,
        dropout=0.5,
    )
    kept = mixed[0, 31:, 0, :32] > 0  # of queries that see all of these keys
    assert len(kept.unique(dim=0)) == len(kept)


def test_dropout_is_the_same_in_both_directions() -> None:
    """The output is linear in the values, so their gradient must be that of the weights that were kept."""
    tensors = random_attention_inputs(300, 300)
    value = tensors["value"].requires_grad_()
    layer = SimpleNamespace(num_key_value_groups=2, training=True)
    bias = TableBias(torch.zeros(1, 4, 300, 300))
    mixed, _ = ATTENTIONS["sdpa"](
        layer, *tensors.values(), Visible(300, 300), relation=Relation(bias=bias), scaling=0.3, dropout=0.5
    )
    direction = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((mixed * direction).sum(), value)
    found, expected = ((one * two.detach()).sum() for one, two in ((gradient, value), (direction, mixed)))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
