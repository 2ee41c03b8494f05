"""The model against Llama and against itself: what must change nothing, and what must be refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
)

from bipe import SCHEMES, BipeConfig, BipeForCausalLM, BipeModel
from bipe.models.initialization import initialize_by_name

ModelMaker = Callable[..., BipeForCausalLM]
SCHEME_NAMES = sorted(SCHEMES)
SEPARATORS = (1, 4, 7)
IGNORED = -100


def ids_of(rows: int, tokens: int, vocab_size: int = 12) -> Tensor:
    return torch.randint(vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(tokens))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


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


LENGTHS = (5, 1, 9, 3)


def documents_of(lengths: tuple[int, ...], names: tuple[int, ...] | None = None) -> Tensor:
    return torch.repeat_interleave(torch.tensor(names or range(len(lengths))), torch.tensor(lengths))[None]


def resets_of(lengths: tuple[int, ...]) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths])[None]


PACKINGS: dict[str, dict[str, Tensor]] = {
    "document_ids": {"document_ids": documents_of(LENGTHS)},
    "position_ids": {"position_ids": resets_of(LENGTHS)},
    "position_ids_and_mask": {
        "position_ids": resets_of(LENGTHS),
        "attention_mask": torch.ones(1, sum(LENGTHS), dtype=torch.int64),
    },
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("packing", sorted(PACKINGS))
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_packed_documents_are_as_if_alone(
    make_model: ModelMaker, scheme: str, packing: str, rows: int, attention: str
) -> None:
    model = make_model(scheme, attn_implementation=attention)
    ids = ids_of(rows, sum(LENGTHS))
    borders = {name: tensor.expand(rows, -1) for name, tensor in PACKINGS[packing].items()}
    packed = model(ids, labels=ids, **borders)
    alone = [model(piece).logits for piece in ids.split(LENGTHS, dim=1)]
    assert_close(packed.logits, torch.cat(alone, dim=1))
    losses = [
        nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), piece[:, 1:].flatten(), reduction="sum")
        for logits, piece in zip(alone, ids.split(LENGTHS, dim=1), strict=True)
        if piece.shape[1] > 1
    ]
    targets = rows * sum(length - 1 for length in LENGTHS)
    expected = torch.stack(losses).sum() / targets
    torch.testing.assert_close(packed.loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("scheme", ["rope", "bipe-alibi"])
def test_a_name_used_again_after_another_document_is_a_new_document(
    make_model: ModelMaker, scheme: str, attention: str
) -> None:
    model, ids = make_model(scheme, attn_implementation=attention), ids_of(1, sum(LENGTHS))
    again = model(ids, labels=ids, document_ids=documents_of(LENGTHS, (4, 9, 4, 9)))
    once = model(ids, labels=ids, document_ids=documents_of(LENGTHS))
    assert_close(again.logits, once.logits)
    assert_close(again.loss, once.loss)


def test_position_ids_of_one_row_describe_every_row(make_model: ModelMaker) -> None:
    model, ids, resets = make_model("bipe-rope"), ids_of(3, sum(LENGTHS)), resets_of(LENGTHS)
    one = model(ids, labels=ids, position_ids=resets)
    each = model(ids, labels=ids, position_ids=resets.expand(3, -1))
    assert torch.equal(one.logits, each.logits)
    assert torch.equal(one.loss, each.loss)


@pytest.mark.parametrize("packing", sorted(PACKINGS))
def test_the_first_token_of_a_document_is_no_target(make_model: ModelMaker, packing: str) -> None:
    model, ids = make_model("bipe-rope"), ids_of(1, sum(LENGTHS))
    labels = ids.clone()
    labels[0, [5, 6, 15]] = (labels[0, [5, 6, 15]] + 1) % 12
    losses = [model(ids, labels=given, **PACKINGS[packing]).loss for given in (ids, labels)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 14, dtype=torch.int64)])
def test_the_first_token_of_a_document_is_no_target_after_a_cache(
    make_model: ModelMaker, mask: Tensor | None
) -> None:
    model, ids, documents = make_model("bipe-rope"), ids_of(1, 14), documents_of((9, 5))
    other = ids.clone()
    other[0, 9] = (other[0, 9] + 1) % 12
    losses = []
    for labels in (ids, other):
        cache = model(ids[:, :6], document_ids=documents[:, :6]).past_key_values
        rest = {"document_ids": documents[:, 6:], "labels": labels[:, 6:]}
        losses.append(model(ids[:, 6:], attention_mask=mask, past_key_values=cache, **rest).loss)
    assert torch.equal(*losses)


def test_padding_inside_a_packed_row_joins_no_documents(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-alibi"), ids_of(1, 14)
    mask = torch.ones_like(ids)
    mask[0, 5:8] = 0
    documents = torch.tensor([[3] * 5 + [0] * 3 + [8] * 6])
    packed = model(ids, attention_mask=mask, document_ids=documents).logits
    assert_close(packed[:, :5], model(ids[:, :5]).logits)
    assert_close(packed[:, 8:], model(ids[:, 8:]).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_a_saved_model_comes_back_with_equal_logits(
    make_model: ModelMaker, tmp_path: Path, scheme: str, dtype: torch.dtype
) -> None:
    model = cast("Any", make_model(scheme, max_trained_offset=5)).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    assert type(loaded) is BipeForCausalLM
    assert loaded.config.max_trained_offset == 5
    ids = ids_of(2, 60)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_a_model_loaded_in_bfloat16_is_the_model_cast_to_it(
    make_model: ModelMaker, tmp_path: Path, scheme: str
) -> None:
    model = make_model(scheme)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ids = ids_of(2, 60)
    assert torch.equal(loaded(ids).logits, model.bfloat16()(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_buffers_survive_the_meta_device(
    make_model: ModelMaker, tmp_path: Path, scheme: str, dtype: torch.dtype
) -> None:
    model = make_model(scheme)
    model.save_pretrained(tmp_path)
    loaded = BipeForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    expected, found = dict(model.named_buffers()), dict(loaded.named_buffers())
    assert found.keys() == expected.keys()
    for name, buffer in expected.items():
        assert found[name].dtype == buffer.dtype == torch.float32
        assert torch.equal(found[name], buffer), name


def test_auto_classes_know_the_model(make_model: ModelMaker, tmp_path: Path) -> None:
    make_model("bipe-rope").save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is BipeConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is BipeModel
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is BipeForCausalLM


def test_tied_embeddings_are_saved_once_and_stay_tied(make_model: ModelMaker, tmp_path: Path) -> None:
    model = make_model("bipe-rope", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    loaded = BipeForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded(ids_of(1, 9)).logits, model(ids_of(1, 9)).logits)


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


def test_initial_values_are_shared_by_all_schemes(make_model: ModelMaker) -> None:
    models = [make_model(scheme, seed=index) for index, scheme in enumerate(SCHEME_NAMES)]
    for index, model in enumerate(models):
        torch.manual_seed(index)
        initialize_by_name(model, 7)
    seen: dict[str, Tensor] = {}
    for model in models:
        for name, parameter in model.named_parameters():
            # What an encoding between segments is told makes it another one.
            key = f"{model.config.inter} {name}" if ".inter." in name else name
            assert torch.equal(seen.setdefault(key, parameter), parameter), name


def test_initial_values_leave_the_global_generator_alone(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    initialize_by_name(model, 7)
    assert torch.equal(torch.rand(4), expected)


def test_initial_values_differ_by_seed_and_by_name(make_model: ModelMaker) -> None:
    first, second = make_model("bipe-rope"), make_model("bipe-rope")
    initialize_by_name(first, 1)
    initialize_by_name(second, 2)
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)
    queries = [first.get_parameter(f"model.layers.{n}.self_attn.q_proj.weight") for n in (0, 1)]
    assert not torch.equal(*queries)


def test_initial_values_have_the_configured_spread(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope", hidden_size=96, vocab_size=500, initializer_range=0.02, max_offset=200)
    initialize_by_name(model, 0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.05), name


def test_tied_embeddings_stay_tied_when_initialised_by_name(make_model: ModelMaker) -> None:
    tied, untied = (make_model("bipe-rope", tie_word_embeddings=tie) for tie in (True, False))
    for model in (tied, untied):
        initialize_by_name(model, 3)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert torch.equal(tied.model.embed_tokens.weight, untied.model.embed_tokens.weight)


@pytest.mark.parametrize("bad", [-1, 12, 10**9])
def test_ids_outside_the_vocabulary_are_named(make_model: ModelMaker, bad: int) -> None:
    ids = ids_of(1, 6)
    ids[0, 3] = bad
    with pytest.raises(ValueError, match=rf"{bad}.*vocabulary of 12"):
        make_model("bipe-rope")(ids)


def test_embeddings_alone_do_not_tell_positions(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), ids_of(2, 8)
    embedded = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match=r"inputs_embeds.*positions"):
        model(inputs_embeds=embedded)
    logits = model(inputs_embeds=embedded, positions=model.positions(ids)).logits
    assert torch.equal(logits, model(ids).logits)


def test_ids_and_embeddings_together_are_refused(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), ids_of(2, 8)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(ids, inputs_embeds=model.get_input_embeddings()(ids))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("attention_mask", (2, 7)),
        ("attention_mask", (2, 9)),
        ("attention_mask", (2, 1, 8, 8)),
        ("attention_mask", (3, 8)),
        ("document_ids", (2, 7)),
        ("document_ids", (8,)),
        ("position_ids", (2, 7)),
        ("position_ids", (8,)),
        ("labels", (2, 7)),
    ],
)
def test_shapes_that_do_not_fit_the_ids_are_refused(
    make_model: ModelMaker, name: str, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=name):
        make_model("bipe-rope")(ids_of(2, 8), **{name: torch.ones(shape, dtype=torch.int64)})


def test_positions_are_those_of_the_segmenter(make_model: ModelMaker) -> None:
    ids = torch.tensor([[5, 1, 4, 6, 8, 7, 9]])
    positions = make_model("bipe-rope").positions(ids)
    assert positions.segment.tolist() == [[0, 0, 1, 2, 2, 2, 3]]
    assert positions.offset.tolist() == [[0, 1, 0, 0, 1, 2, 0]]
    assert positions.token.tolist() == [[0, 1, 2, 3, 4, 5, 6]]


def test_the_decoder_and_the_language_model_agree_on_positions(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), ids_of(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    documents = documents_of((5, 4)).expand(2, -1)
    for first, second in zip(
        model.positions(ids, mask, documents), model.model.positions(ids, mask, documents), strict=True
    ):
        assert torch.equal(first, second)


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


def test_the_loss_leaves_out_the_starts_of_documents_that_positions_tell_of(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), torch.randint(12, (2, 20))
    documents = (torch.arange(20) > 8).long().expand(2, -1)
    by_documents = model(ids, document_ids=documents, labels=ids)
    by_positions = model(ids, positions=model.positions(ids, document_ids=documents), labels=ids)
    assert torch.equal(by_positions.logits, by_documents.logits)
    assert torch.equal(by_positions.loss, by_documents.loss)
    assert not torch.equal(by_documents.loss, model(ids, labels=ids).loss)


def test_documents_of_each_row_are_its_own(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), torch.randint(12, (3, 20))
    borders = [4, 13, 19]
    documents = torch.stack([(torch.arange(20) >= border).long() for border in borders])
    together = model(ids, document_ids=documents).logits
    for row, border in enumerate(borders):
        for part in (slice(0, border), slice(border, 20)):
            alone = model(ids[row : row + 1, part]).logits[0]
            torch.testing.assert_close(together[row, part], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["documents_ids", "attn_mask", "head_mask"])
def test_an_unknown_argument_is_refused(make_model: ModelMaker, name: str) -> None:
    model, ids = make_model("bipe-rope"), torch.tensor([[1, 2, 3]])
    for called in (model, model.model):
        with pytest.raises(TypeError, match=f"no argument '{name}'"):
            called(ids, **{name: ids})


@pytest.mark.parametrize("name", ["seq_idx", "cu_seq_lens_q", "cu_seq_lens_k"])
def test_borders_that_nothing_reads_are_refused(make_model: ModelMaker, name: str) -> None:
    """Packing collators of transformers give position_ids beside them, which are read."""
    model, ids = make_model("bipe-rope"), torch.tensor([[1, 2, 3, 5, 6]])
    given = {name: torch.tensor([[0, 0, 1, 1, 1]])}
    for called in (model, model.model):
        with pytest.raises(ValueError, match=f"{name} alone is not read"):
            called(ids, **given)
    resets = torch.tensor([[0, 1, 0, 1, 2]])
    assert model(ids, position_ids=resets, **given).logits.equal(model(ids, position_ids=resets).logits)


def test_reading_in_both_directions_is_refused(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), torch.tensor([[1, 2, 3]])
    assert model(ids, is_causal=True).logits.equal(model(ids).logits)
    with pytest.raises(ValueError, match="left to right only"):
        model(ids, is_causal=False)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("scheme", ["bipe-rope", "bipe-alibi", "rope", "bipe3-rope"])
def test_given_positions_tell_no_border_at_padding(make_model: ModelMaker, scheme: str, packed: bool) -> None:
    model, ids, mask = make_model(scheme), ids_of(3, 24), torch.ones(3, 24, dtype=torch.int64)
    mask[0, :4] = mask[1, 9:12] = mask[2, 20:] = 0
    documents = (torch.arange(24) >= 15).long().expand(3, -1) if packed else None
    positions = model.positions(ids, mask, documents)
    expected = model(ids, mask, document_ids=documents, labels=ids)
    found = model(ids, mask, positions=positions, labels=ids)
    assert_close(found.logits[mask.bool()], expected.logits[mask.bool()])
    assert_close(found.loss, expected.loss)


def test_what_tokenizers_return_is_taken(make_model: ModelMaker) -> None:
    ids = torch.tensor([[1, 2, 3]])
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }
    model = make_model("bipe-rope")
    assert torch.equal(model(**given).logits, model(ids).logits)


def test_labels_need_all_logits(make_model: ModelMaker) -> None:
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match="labels or logits_to_keep, not both"):
        make_model("bipe-rope")(ids, labels=ids, logits_to_keep=2)


def test_a_mask_beside_positions_covers_the_cache(make_model: ModelMaker) -> None:
    model, ids, cache = make_model("bipe-rope"), torch.tensor([[1, 2, 3, 5, 6]]), DynamicCache()
    model(ids[:, :3], past_key_values=cache)
    with pytest.raises(ValueError, match=r"attention_mask must have the shape \(1, 5\)"):
        model(
            ids[:, 3:],
            positions=model.positions(ids),
            attention_mask=torch.ones_like(ids[:, 3:]),
            past_key_values=cache,
        )


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


def test_positions_of_another_kind_or_shape_are_refused(make_model: ModelMaker) -> None:
    model, ids = make_model("bipe-rope"), ids_of(2, 9)
    positions = model.positions(ids)
    for wrong in (tuple(positions), positions._replace(segment=positions.segment[:, :5])):
        with pytest.raises(ValueError, match="positions"):
            model(ids, positions=cast("Any", wrong))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
            "original_max_segments",
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, "RoPE's theta must be"),
        ({"segmenter": {"type": "token_set", "end_token_ids": [99]}}, "end token 99 is outside"),
    ],
)
def test_settings_changed_while_loading_are_checked(
    make_model: ModelMaker, tmp_path: Path, changed: dict[str, Any], expected: str
) -> None:
    make_model("bipe-rope").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=expected):
        BipeForCausalLM.from_pretrained(tmp_path, **changed)


@pytest.mark.parametrize("shape", [(5,), (1, 1, 5)])
def test_ids_that_are_no_batch_are_refused(make_model: ModelMaker, shape: tuple[int, ...]) -> None:
    ids = torch.ones(shape, dtype=torch.long)
    for ask in (make_model("bipe-rope"), make_model("bipe-rope").positions):
        with pytest.raises(ValueError, match=r"input_ids must have the shape \(batch, tokens\)"):
            ask(ids)


@pytest.mark.parametrize("scheme", ["xpos", "bipe-xpos"])
def test_given_positions_that_leap_are_refused_where_channels_fade(
    make_model: ModelMaker, scheme: str
) -> None:
    model, ids = make_model(scheme), torch.tensor([[1, 2, 3, 4]])
    positions = model.positions(ids)
    assert torch.equal(model(ids, positions=positions).logits, model(ids).logits)
    leaping = positions._replace(segment=torch.tensor([[0, 1, 5, 6]]))
    with pytest.raises(ValueError, match="may grow by at most 1"):
        model(ids, positions=leaping)
    other = make_model(scheme.replace("xpos", "rope"))
    assert torch.isfinite(other(ids, positions=leaping).logits).all()
