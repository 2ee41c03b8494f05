"""Attention through torch's fused kernel: its masks, its bias, and its dropout."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from bipe import SCHEMES, BipeConfig, BipeForCausalLM, BipeModel
from bipe.attention import ATTENTIONS, Visible, sdpa
from bipe.encodings.inter import Relation

from .attention_cases import BATCHES, TableBias, ids_of, logits_and_gradients, random_attention_inputs

ModelMaker = Callable[..., BipeForCausalLM]


def has_bias(scheme: str) -> bool:
    """Whether a scheme's encoding adds a bias, seen on two tokens."""
    sizes = {"hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = BipeConfig.from_scheme(scheme, end_token_ids=[3], tokens_per_segment=3.0, vocab_size=9, **sizes)
    model = BipeModel(config)
    positions = model.positions(torch.tensor([[3, 5]]))
    return model.inter(positions, positions, torch.float32).bias is not None


ROTATION_ONLY = [name for name in sorted(SCHEMES) if not has_bias(name)]


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
