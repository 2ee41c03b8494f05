"""The model against Llama and against itself: what must change nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from transformers import LlamaConfig, LlamaForCausalLM

from bipe import SCHEMES, BipeConfig, BipeForCausalLM

from .batches import assert_close, documents_of, ids_of

ModelMaker = Callable[..., BipeForCausalLM]
SCHEME_NAMES = sorted(SCHEMES)
IGNORED = -100


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(first: nn.Module, second: nn.Module) -> None:
    left, right = gradients(first), gradients(second)
    assert left.keys() == right.keys()
    assert left
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


LLAMAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped_query": {"num_key_value_heads": 2},
    "one_key_value_head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "head_dim_24": {"head_dim": 24},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "dynamic_beyond_its_length": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        "max_position_embeddings": 16,
        "use_cache": False,
    },
}
LLAMA_SIZES: dict[str, Any] = {
    "vocab_size": 12,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", sorted(LLAMAS))
def test_rope_is_llama_bit_for_bit(kind: str, attention: str) -> None:
    fields = {**LLAMA_SIZES, **LLAMAS[kind], "attn_implementation": attention}
    llama = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    ours = BipeForCausalLM(BipeConfig.from_scheme("rope", **fields)).eval()
    ours.load_state_dict(llama.state_dict())
    ids = ids_of(2, 40)
    labels = ids.masked_fill(ids == 3, IGNORED)
    theirs_out, ours_out = llama(ids, labels=labels), ours(ids, labels=labels)
    theirs_out.loss.backward()
    ours_out.loss.backward()
    assert torch.equal(ours_out.logits, theirs_out.logits)
    assert torch.equal(ours_out.loss, theirs_out.loss)
    assert_equal_gradients(ours, llama)


@pytest.mark.parametrize("scheme", ["learned", "sinusoidal"])
def test_one_segment_is_plain_absolute_positions(make_model: ModelMaker, scheme: str) -> None:
    ours = make_model(scheme)
    llama = LlamaForCausalLM(LlamaConfig(**{**LLAMA_SIZES, "num_key_value_heads": 2})).eval()
    llama.load_state_dict({k: v for k, v in ours.state_dict().items() if ".intra." not in k})
    # Llama without its rotation: every cosine is 1 and every sine 0.
    llama.model.rotary_emb.forward = lambda x, position_ids: (torch.ones(1, 12, 8), torch.zeros(1, 12, 8))
    ids = ids_of(2, 12)
    embedded = ours.get_input_embeddings()(ids)
    if scheme == "learned":
        absolute = ours.get_parameter("model.intra.embedding.weight")[:12]
    else:
        angle = torch.arange(12.0)[:, None] / 10_000 ** (torch.arange(16.0) / 16)
        absolute = 0.3 * torch.cat((angle.sin(), angle.cos()), dim=-1)
    assert_close(ours(ids).logits, llama(inputs_embeds=embedded + absolute).logits)


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_logits_of_a_prefix_do_not_depend_on_later_tokens(make_model: ModelMaker, scheme: str) -> None:
    model, ids = make_model(scheme), ids_of(2, 24)
    whole = model(ids).logits
    for length in (1, 2, 9, 23):
        assert_close(model(ids[:, :length]).logits, whole[:, :length])


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_shifting_all_segments_leaves_the_logits(make_model: ModelMaker, scheme: str) -> None:
    model, ids = make_model(scheme), ids_of(2, 24)
    positions = model.positions(ids)
    moved = positions._replace(segment=positions.segment + 29)
    assert torch.equal(model(ids, positions=positions).logits, model(ids).logits)
    torch.testing.assert_close(model(ids, positions=moved).logits, model(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scheme", sorted(set(SCHEME_NAMES) - {"nope"}))
def test_positions_reach_the_logits(make_model: ModelMaker, scheme: str) -> None:
    model, ids = make_model(scheme), ids_of(2, 24)
    positions = model.positions(ids)
    flat = type(positions)(*(torch.zeros_like(field) for field in positions))
    assert (model(ids, positions=flat).logits - model(ids).logits).abs().max() > 0.05


@pytest.mark.parametrize("pad", [0, 1, 11])
@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_padding_changes_no_logits(make_model: ModelMaker, scheme: str, side: str, pad: int) -> None:
    model, ids = make_model(scheme), ids_of(2, 15)
    left, right = {"left": (6, 0), "right": (0, 6), "both": (4, 2)}[side]
    padded = nn.functional.pad(ids, (left, right), value=pad)
    mask = nn.functional.pad(torch.ones_like(ids), (left, right))
    logits = model(padded, attention_mask=mask).logits[:, left : left + 15]
    assert_close(logits, model(ids).logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("scheme", ["rope", "bipe-rope", "bipe-alibi"])
def test_padding_changes_no_loss(make_model: ModelMaker, scheme: str, side: str) -> None:
    model, ids = make_model(scheme), ids_of(2, 15)
    borders = (6, 0) if side == "left" else (0, 6)
    padded = nn.functional.pad(ids, borders, value=1)
    mask = nn.functional.pad(torch.ones_like(ids), borders)
    labels = nn.functional.pad(ids, borders, value=IGNORED)
    loss = model(padded, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(loss, model(ids, labels=ids).loss, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_gradient_checkpointing_gives_equal_gradients(
    make_model: ModelMaker, scheme: str, reentrant: bool
) -> None:
    plain, saving = make_model(scheme).train(), make_model(scheme).train()
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    ids, documents = ids_of(2, 20), documents_of((9, 11)).expand(2, -1)
    for model in (plain, saving):
        torch.manual_seed(0)  # some encodings draw at random in training
        model(ids, labels=ids, document_ids=documents, use_cache=False).loss.backward()
    assert_equal_gradients(plain, saving)


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_half_precision_stays_finite_and_near(make_model: ModelMaker, scheme: str) -> None:
    model, ids = make_model(scheme, initializer_range=0.05), ids_of(2, 200)
    mask = torch.ones_like(ids)
    mask[0, :50] = 0
    exact = model(ids, attention_mask=mask).logits
    rough = model.bfloat16()(ids, attention_mask=mask).logits
    assert rough.dtype == torch.bfloat16
    assert rough.isfinite().all()
    torch.testing.assert_close(rough.float()[mask.bool()], exact[mask.bool()], rtol=0, atol=0.1)


@pytest.mark.parametrize("scheme", ["bipe-rope", "bipe-alibi", "sinusoidal"])
def test_autocast_stays_near_float32(make_model: ModelMaker, scheme: str) -> None:
    model, ids = make_model(scheme, initializer_range=0.05), ids_of(2, 200)
    exact = model(ids).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(ids).logits
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.1)


def test_only_asked_for_logits_are_made(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), ids_of(2, 9)
    whole = model(ids).logits
    places = torch.tensor([[0, 8, 3], [5, 5, 1]])
    for kept, expected in (
        (0, whole),
        (2, whole[:, -2:]),
        (torch.tensor([4, 1]), whole[:, [4, 1]]),
        (places, whole[torch.arange(2)[:, None], places]),
        (ids > 5, whole[ids > 5]),
    ):
        torch.testing.assert_close(model(ids, logits_to_keep=kept).logits, expected, rtol=0, atol=1e-6)


def test_a_tuple_can_be_asked_for(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), ids_of(2, 9)
    assert torch.equal(model(ids, return_dict=False)[0], model(ids).logits)


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.10"),
    reason="the compiler of torch 2.9 traces no method of a named tuple",
)
@pytest.mark.parametrize("scheme", ["rope", "bipe-rope", "bipe-alibi", "sinusoidal"])
def test_lengths_share_graphs_and_one_exported_program(make_model: ModelMaker, scheme: str) -> None:
    """Not more graphs than a fixed first and a dynamic second one; data-dependent shapes would break both."""
    model = make_model(scheme)
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for length in (20, 33, 47, 64, 100, 130, 200, 301, 513, 600):
            ids = torch.randint(12, (2, length))
            torch.testing.assert_close(compiled(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2
    torch._dynamo.reset()
    length = torch.export.Dim("length", min=4, max=4096)
    shapes = {"input_ids": {1: length}, "use_cache": None}
    program = torch.export.export(
        model,
        (),
        {"input_ids": torch.randint(12, (2, 20)), "use_cache": False},
        dynamic_shapes=shapes,
        strict=False,
    )
    for tokens in (7, 300):
        ids = torch.randint(12, (2, tokens))
        exported = program.module()(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(exported, model(ids).logits, rtol=1e-4, atol=1e-4)
