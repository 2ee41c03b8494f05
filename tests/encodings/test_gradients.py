"""Gradients of every encoding against eager's and the formula's slopes, and what training keeps for them."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from bipe import BipeForCausalLM

from .formula_models import SEGMENTS, TOKENS, VOCABULARY, attentions_of, make, random_ids, texts_of
from .formulas import EVERY, SPECS, Spec, weights_of


def gradients(
    model: BipeForCausalLM, ids: Tensor, mix: Tensor | None = None, **given: Any
) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    out = model(ids, **given)
    scalar = out.loss if mix is None else (out.logits * mix).sum()
    assert scalar is not None
    scalar.backward()
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad.clone()
        for name, value in model.named_parameters()
    }


def assert_close_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        assert torch.isfinite(actual[name]).all(), name
        if name.startswith("model.inter."):
            assert gradient.abs().max() > 0, name
        error = (actual[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error <= 1e-4, f"{name}: {error.item():.2e}"


@EVERY
def test_gradients_are_those_of_eager(inter: Spec) -> None:
    eager, default = make(inter, attn_implementation="eager"), make(inter)
    for tokens in (40, 600):
        ids = random_ids(tokens, 2 if tokens == 40 else 1, seed=15)
        mix = torch.randn(*ids.shape, VOCABULARY, generator=torch.Generator().manual_seed(0))
        mix = mix / ids.numel() ** 0.5
        assert_close_gradients(gradients(default, ids, mix), gradients(eager, ids, mix))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@EVERY
def test_checkpointed_gradients_are_those_of_eager(inter: Spec) -> None:
    ids = random_ids(150, 2, seed=16)
    eager = make(inter, attn_implementation="eager", num_hidden_layers=2).train()
    default = make(inter, num_hidden_layers=2).train()
    default.gradient_checkpointing_enable({"use_reentrant": True})
    assert_close_gradients(
        gradients(default, ids, labels=ids, use_cache=False),
        gradients(eager, ids, labels=ids, use_cache=False),
    )


@EVERY
def test_gradients_are_the_slopes_of_the_formula(inter: Spec) -> None:
    model = make(inter, attn_implementation="eager")
    ids = random_ids(20, seed=17)
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(4, 20, 20, generator=generator, dtype=torch.float64)
    (attentions_of(model, ids)[0] * mix).sum().backward()
    names = [name for name, _ in model.model.inter.named_parameters(prefix="model.inter")]
    names += [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk"]
    for name in names:
        parameter = model.get_parameter(name)
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        step, sums = 1e-6, []
        for sign in (1, -1):
            changed = {name: parameter.detach().double() + sign * step * direction}
            text = texts_of(model, inter, ids, changed=changed)[0]
            sums.append((weights_of(text) * mix).sum().item())
        slope = (sums[0] - sums[1]) / (2 * step)
        assert (parameter.grad.double() * direction).sum().item() == pytest.approx(slope, rel=1e-3, abs=1e-5)


@EVERY
def test_training_keeps_no_tensor_of_all_pairs(inter: Spec) -> None:
    tokens, heads = 1536, 2
    model = make(inter, num_attention_heads=heads, num_key_value_heads=1, hidden_size=16).train()
    ids = random_ids(tokens, seed=18)
    largest, storages = 0, {}

    def keep(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    assert largest < tokens * tokens
    assert sum(storages.values()) < 4 * heads * tokens * tokens


@EVERY
@pytest.mark.parametrize("implementation", [None, "eager"])
def test_training_under_bfloat16_autocast_is_near_that_in_float32(
    inter: Spec, implementation: str | None
) -> None:
    model = make(inter, attn_implementation=implementation, initializer_range=0.1)
    ids = random_ids(150, 2, seed=19)
    expected = model(ids, labels=ids, use_cache=False).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids, use_cache=False).loss
    assert loss.item() == pytest.approx(expected.item(), abs=0.02)
    loss.backward()
    assert all(torch.isfinite(cast("Tensor", value.grad)).all() for value in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "segmenter"),
    [
        *((name, {}, TOKENS) for name in ("alibi", "alibi-learned", "kerple-log", "kerple-power")),
        *((name, {"index": "token"}, SEGMENTS) for name in ("alibi-learned", "kerple-power")),
        *((name, {}, SEGMENTS) for name in ("alibi-learned", "alibi2", "alibi2-learned")),
    ],
)
def test_leaving_out_far_keys_changes_neither_logits_nor_gradients(
    name: str, options: Spec, segmenter: Spec
) -> None:
    inter = {**SPECS[name], **options}
    eager, default = (
        make(inter, segmenter, attn_implementation=implementation, initializer_range=0.1)
        for implementation in ("eager", None)
    )
    ids = random_ids(1000, seed=21)
    documents = (torch.arange(1000) >= 290).long()[None]
    mix = torch.randn(1, 1000, VOCABULARY, generator=torch.Generator().manual_seed(0)) / 30
    with torch.no_grad():
        expected, actual = (model(ids, document_ids=documents).logits for model in (eager, default))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)
    assert_close_gradients(
        gradients(default, ids, mix, document_ids=documents),
        gradients(eager, ids, mix, document_ids=documents),
    )
