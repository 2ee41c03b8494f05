"""Every encoding against its formula in float64, and what all encodings promise."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from packaging.version import Version
from torch import Tensor

from bipe import BilevelPositions, BipeConfig, BipeForCausalLM, MultilevelPositions
from bipe.encodings.inter import INTER_ENCODINGS, InterEncoding, Relation
from bipe.encodings.inter.alibi import alibi_slopes
from bipe.encodings.inter.base import Bias, Content, DecayingBias
from bipe.encodings.inter.rope import rotate
from bipe.encodings.intra import INTRA_ENCODINGS
from bipe.encodings.intra.base import IntraEncoding

SIZES = {"vocab_size": 30, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
HEADS, WIDTH, HEAD_WIDTH, STD = 4, 32, 8, 0.5
FAR = 131_071
TOKEN_SET = {"type": "token_set", "end_token_ids": [3]}


def config_of(**fields: Any) -> BipeConfig:
    return BipeConfig(**{**SIZES, "num_attention_heads": HEADS, "segmenter": TOKEN_SET, **fields})


def inter_of(spec: dict[str, Any], **fields: Any) -> InterEncoding:
    encoding = INTER_ENCODINGS[spec["type"]]
    config = config_of(inter=spec, **fields)
    assert config.inter is not None
    made = encoding(config, **{name: value for name, value in config.inter.items() if name != "type"})
    made.reset_parameters(STD)
    return made.eval()


def intra_of(spec: dict[str, Any], **fields: Any) -> IntraEncoding:
    encoding = INTRA_ENCODINGS[spec["type"]]
    made = encoding(config_of(intra=spec, **fields), **{n: v for n, v in spec.items() if n != "type"})
    torch.manual_seed(0)
    made.reset_parameters(STD)
    return made.eval()


def at_segments(segment: Sequence[Sequence[int]] | Tensor) -> BilevelPositions:
    """Positions whose offset and token have nothing to do with their segment."""
    segments = torch.as_tensor(segment)
    return BilevelPositions(segments, segments % 3, torch.arange(segments.numel()).view_as(segments))


def at_offsets(offsets: Sequence[int]) -> BilevelPositions:
    offset = torch.tensor([offsets])
    return BilevelPositions(offset + 7, offset, offset + 11)


def biased_encodings() -> list[str]:
    positions = at_segments([[0, 1]])
    relations = {
        name: inter_of({"type": name})(positions, positions, torch.float32) for name in INTER_ENCODINGS
    }
    return sorted(name for name, relation in relations.items() if relation.bias is not None)


CLAMPED = [name for name in sorted(INTRA_ENCODINGS) if name not in ("randomized", "zero")]
ADDING = [name for name in sorted(INTRA_ENCODINGS) if name != "zero"]


def growing_segments(rows: int = 2, tokens: int = 20) -> BilevelPositions:
    steps = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(1)) < 0.4
    return at_segments(steps.long().cumsum(1))


def vectors(tokens: int, rows: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, HEADS, tokens, HEAD_WIDTH, generator=generator).to(dtype)


def logits_of(relation: Relation, tokens: int) -> Tensor:
    """What attention adds up from a relation, for fixed queries and keys."""
    query, key = vectors(tokens, seed=0), vectors(tokens, seed=1)
    if relation.query_rotation is not None and relation.key_rotation is not None:
        query, key = rotate(query, relation.query_rotation), rotate(key, relation.key_rotation)
    if relation.damping is not None:
        index = relation.damping.key_index
        left = torch.exp(-(index[:, :, None] - index[:, None])[..., None] * relation.damping.rates)
        return torch.einsum("bhik,bhjk,bijk->bhij", query, key, left).tril()
    whole = slice(0, tokens)
    bias = 0.0 if relation.bias is None else bias_between(relation.bias, query, key, whole, whole)
    return (query @ key.mT + bias).tril()


def bias_between(bias: Bias, query: Tensor, key: Tensor, rows: slice, columns: slice) -> Tensor:
    """A block of a bias for the newest queries among these keys."""
    past = key.shape[2] - query.shape[2]
    seen = torch.arange(past, key.shape[2])[rows, None] >= torch.arange(key.shape[2])[columns]
    content = Content(query[:, :, rows], key[:, :, columns], seen[None, None], 0.7)
    return bias.between(content, rows, columns)


def rotated_by_complex_numbers(states: Tensor, segment: Tensor, theta: float) -> Tensor:
    """RoPE as multiplication by `exp(i s theta^(-2c/K))` of channel `c` paired with `c + K/2`, in float64."""
    half = states.shape[-1] // 2
    frequency = torch.tensor([theta ** (-2 * c / (2 * half)) for c in range(half)], dtype=torch.float64)
    pairs = torch.complex(states[..., :half].double(), states[..., half:].double())
    angle = segment[:, None, :, None].double() * frequency
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=-1)


def sinusoids(offset: Tensor, scale: float) -> Tensor:
    half = WIDTH // 2
    period = torch.tensor([10_000.0 ** (2 * c / WIDTH) for c in range(half)], dtype=torch.float64)
    angle = offset[..., None].double() / period
    return scale * torch.cat((angle.sin(), angle.cos()), dim=-1)


@pytest.mark.parametrize("name", [name for name, made in INTER_ENCODINGS.items() if made.shift_invariant])
def test_the_logits_depend_on_differences_of_segments_only(name: str) -> None:
    encoding, positions = inter_of({"type": name}), growing_segments()
    moved = positions._replace(segment=positions.segment + 40)
    first, second = (encoding(at, at, torch.float32) for at in (positions, moved))
    torch.testing.assert_close(logits_of(first, 20), logits_of(second, 20), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, made in INTER_ENCODINGS.items() if not made.reads_inside])
def test_offset_and_plain_index_do_not_reach_between_segments(name: str) -> None:
    encoding, positions = inter_of({"type": name}), growing_segments()
    other = positions._replace(offset=positions.offset + 5, token=positions.token * 2)
    first, second = (encoding(at, at, torch.float32) for at in (positions, other))
    assert torch.equal(logits_of(first, 20), logits_of(second, 20))


@pytest.mark.parametrize("rows_agree", [True, False])
@pytest.mark.parametrize("name", biased_encodings())
def test_a_block_is_a_slice_of_the_whole_bias(name: str, rows_agree: bool) -> None:
    key = growing_segments()
    if rows_agree:
        key = BilevelPositions(*(field[:1].expand(2, -1) for field in key))
    query = key.last(12)
    bias = inter_of({"type": name})(query, key, torch.float32).bias
    assert bias is not None
    content = vectors(20)[:, :, -12:], vectors(20, seed=1)
    whole = bias_between(bias, *content, slice(0, 12), slice(0, 20)).expand(2, HEADS, 12, 20)
    assert whole.dtype == torch.float32
    for rows, keys in [
        (slice(0, 5), slice(0, 13)),
        (slice(5, 12), slice(3, 20)),
        (slice(11, 12), slice(19, 20)),
    ]:
        block = bias_between(bias, *content, rows, keys).expand(2, HEADS, -1, -1)
        torch.testing.assert_close(block, whole[:, :, rows, keys], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(INTER_ENCODINGS))
def test_newest_queries_relate_to_keys_as_in_one_call(name: str) -> None:
    positions = growing_segments()
    encoding = inter_of({"type": name})
    whole = encoding(positions, positions, torch.float32)
    step = encoding(positions.last(3), positions, torch.float32)
    if whole.bias is not None and step.bias is not None:
        query, key, columns = vectors(20), vectors(20, seed=1), slice(0, 20)
        rows = bias_between(whole.bias, query, key, slice(17, 20), columns)
        found = bias_between(step.bias, query[:, :, 17:], key, slice(0, 3), columns)
        torch.testing.assert_close(found, rows, rtol=1e-5, atol=1e-5)
    for new, old in [
        (step.query_rotation, whole.query_rotation),
        (step.key_rotation, whole.key_rotation),
    ]:
        assert (new is None) == (old is None)
        if new is not None and old is not None:
            assert all(torch.equal(part, table[:, -3:]) for part, table in zip(new, old, strict=True))


@pytest.mark.parametrize("nats", [0.0, 0.3, 2.0, 15.0, 40.5])
@pytest.mark.parametrize("heads", [1, 4, 6, 12])
@pytest.mark.parametrize("name", biased_encodings())
def test_reach_parts_the_distances_that_have_fallen_by_more(name: str, heads: int, nats: float) -> None:
    positions = at_segments([list(range(400))])
    encoding = inter_of({"type": name}, num_attention_heads=heads, hidden_size=8 * heads)
    bias = encoding(positions, positions, torch.float32).bias
    assert isinstance(bias, DecayingBias) == encoding.decays
    if not isinstance(bias, DecayingBias):
        return
    reach = bias.reach(nats)
    assert reach.shape == (heads,)
    assert reach.dtype == torch.float32
    row = bias.block(slice(399, 400), slice(0, 400))[0, :, 0].flip(-1)
    fallen = (row[:, :1] - row) > nats
    assert torch.equal(fallen, torch.arange(400.0) > reach[:, None])


def test_reach_is_the_smallest_such_distance() -> None:
    positions = at_segments([[0, 1]])
    bias = inter_of({"type": "alibi", "scale": 1.0})(positions, positions, torch.float32).bias
    assert isinstance(bias, DecayingBias)
    reach = bias.reach(2.0)
    assert reach.tolist() == [8.0, 32.0, 128.0, 512.0]


@pytest.mark.parametrize("nats", [0.0, 5.0])
def test_reach_has_no_end_where_nothing_falls(nats: float) -> None:
    positions = at_segments([[0, 1]])
    bias = inter_of({"type": "alibi", "scale": 0.0})(positions, positions, torch.float32).bias
    assert isinstance(bias, DecayingBias)
    assert bias.reach(nats).tolist() == [math.inf] * HEADS


def test_reach_takes_a_number_for_each_head() -> None:
    positions = at_segments([[0, 1]])
    bias = inter_of({"type": "alibi", "scale": 1.0})(positions, positions, torch.float32).bias
    assert isinstance(bias, DecayingBias)
    nats = torch.tensor([[0.0, 1.0, 2.0, 40.0], [3.0, 3.0, 3.0, 3.0]])
    assert bias.reach(nats).tolist() == [[0.0, 16.0, 128.0, 10240.0], [12.0, 48.0, 192.0, 768.0]]


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (4, [2, 4, 6, 8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
        (6, [2, 4, 6, 8, 1, 3]),
        (20, [*(0.5 * k for k in range(1, 17)), 0.25, 0.75, 1.25, 1.75]),
        (1, [8]),
    ],
)
def test_slopes_are_those_of_the_released_formula(heads: int, exponents: list[float]) -> None:
    assert alibi_slopes(heads) == pytest.approx([2.0**-exponent for exponent in exponents], rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 96.0, 20.5])
def test_alibi_is_minus_scale_times_slope_times_distance(scale: float) -> None:
    positions = growing_segments()
    bias = inter_of({"type": "alibi", "scale": scale})(positions, positions, torch.float32).bias
    assert bias is not None
    block = bias.block(slice(0, 20), slice(0, 20))
    for row in range(2):
        for head, exponent in enumerate([2, 4, 6, 8]):
            for i in range(20):
                for j in range(20):
                    distance = int(positions.segment[row, i] - positions.segment[row, j])
                    expected = -scale * 2.0**-exponent * distance
                    assert float(block.expand(2, HEADS, 20, 20)[row, head, i, j]) == pytest.approx(expected)


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_rope_is_a_complex_multiplication(theta: float) -> None:
    positions = growing_segments()
    relation = inter_of({"type": "rope", "theta": theta})(positions, positions, torch.float32)
    assert relation.bias is None
    states = vectors(20)
    expected = rotated_by_complex_numbers(states, positions.segment, theta)
    for rotation in (relation.query_rotation, relation.key_rotation):
        assert rotation is not None
        torch.testing.assert_close(rotate(states, rotation).double(), expected, rtol=1e-5, atol=1e-5)


def test_linear_scaling_divides_the_segment_index() -> None:
    positions = at_segments([[0, 4, 8, 400]])
    scaled = inter_of({"type": "rope", "scaling": {"rope_type": "linear", "factor": 4.0}})
    rotation = scaled(positions, positions, torch.float32).query_rotation
    assert rotation is not None
    expected = rotated_by_complex_numbers(vectors(4, rows=1), positions.segment // 4, 10_000.0)
    torch.testing.assert_close(rotate(vectors(4, rows=1), rotation).double(), expected, rtol=1e-4, atol=1e-4)


def test_zero_inside_segments_adds_nothing() -> None:
    assert intra_of({"type": "zero"})(at_offsets([0, 1]), torch.float32) is None


def test_zero_between_segments_relates_nothing() -> None:
    assert inter_of({"type": "zero"})(growing_segments(), growing_segments(), torch.float32) == Relation()


def test_sinusoids_are_those_of_the_formula() -> None:
    offsets = [0, 1, 2, 17, 1000]
    added = intra_of({"type": "sinusoidal"})(at_offsets(offsets), torch.float32)
    assert added is not None
    torch.testing.assert_close(added.double(), sinusoids(torch.tensor([offsets]), STD), rtol=1e-4, atol=1e-4)


def test_an_odd_width_has_one_sine_more() -> None:
    config = config_of(intra={"type": "sinusoidal"}, hidden_size=15, num_attention_heads=3, head_dim=4)
    added = INTRA_ENCODINGS["sinusoidal"](config)(at_offsets([0]), torch.float32)
    assert added is not None
    torch.testing.assert_close(added[0, 0] / config.initializer_range, torch.tensor([0.0] * 8 + [1.0] * 7))


def test_learned_is_a_look_up_in_the_table() -> None:
    encoding = intra_of({"type": "learned", "max_offset": 6})
    table = encoding.get_parameter("embedding.weight")
    added = encoding(at_offsets([3, 0, 5]), torch.float32)
    assert added is not None
    assert torch.equal(added[0], table[[3, 0, 5]])


@pytest.mark.parametrize("trained", [None, 5, 90])
def test_learned_uses_its_last_row_beyond_the_table(trained: int | None) -> None:
    encoding = intra_of({"type": "learned", "max_offset": 6}, max_trained_offset=trained)
    added = encoding(at_offsets([5, 6, 7, FAR]), torch.float32)
    assert added is not None
    assert torch.equal(added[0], encoding.get_parameter("embedding.weight")[[5, 5, 5, 5]])


@pytest.mark.parametrize("name", CLAMPED)
def test_offsets_beyond_training_are_encoded_as_the_longest_trained(name: str) -> None:
    encoding = intra_of({"type": name}, max_trained_offset=3)
    added = encoding(at_offsets([2, 3, 4, 90, 5000]), torch.float32)
    assert added is not None
    assert torch.equal(added[0, 1:], added[0, 1:2].expand(4, -1))
    assert not torch.equal(added[0, 0], added[0, 1])


@pytest.mark.parametrize("name", sorted(INTRA_ENCODINGS))
def test_segment_and_plain_index_do_not_reach_inside_segments(name: str) -> None:
    encoding, positions = intra_of({"type": name}), at_offsets([0, 1, 2, 30])
    other = positions._replace(segment=positions.segment + 5, token=positions.token * 2)
    first, second = encoding(positions, torch.float32), encoding(other, torch.float32)
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ADDING)
def test_what_is_added_has_the_dtype_asked_for_and_the_width_of_the_model(
    name: str, dtype: torch.dtype
) -> None:
    added = intra_of({"type": name}).to(dtype)(at_offsets([0, 1, 9]), dtype)
    assert added is not None
    assert added.dtype == dtype
    assert added.shape == (1, 3, WIDTH)


def test_no_two_offsets_look_alike_in_bfloat16() -> None:
    encoding = intra_of({"type": "sinusoidal"}).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        added = encoding(at_offsets([FAR - 1, FAR]), torch.bfloat16)
    assert added is not None
    expected = sinusoids(torch.tensor([[FAR - 1, FAR]]), STD)
    torch.testing.assert_close(added.double(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_far_rotations_keep_their_angles_in_half_precision(model_dtype: torch.dtype, autocast: bool) -> None:
    model = cast("Any", BipeForCausalLM(config_of(inter={"type": "rope"}))).to(model_dtype)
    positions = at_segments([[0, 1, FAR - 1, FAR]])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        rotation = model.model.inter(positions, positions, torch.float32).query_rotation
    assert rotation is not None
    ones = torch.ones(1, HEADS, 4, HEAD_WIDTH)
    expected = rotated_by_complex_numbers(ones, positions.segment, 10_000.0)
    torch.testing.assert_close(rotate(ones, rotation).double(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rotations_are_the_float32_ones_cast_once(dtype: torch.dtype) -> None:
    encoding, positions = inter_of({"type": "rope"}), at_segments([[0, 5, 999, FAR]])
    exact = encoding(positions, positions, torch.float32).query_rotation
    cast = encoding.to(dtype)(positions, positions, dtype).query_rotation
    assert exact is not None
    assert cast is not None
    assert all(torch.equal(table, original.to(dtype)) for table, original in zip(cast, exact, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_far_neighbours_keep_their_bias_in_half_precision(model_dtype: torch.dtype, autocast: bool) -> None:
    config = config_of(inter={"type": "alibi", "scale": 20.7})
    model = cast("Any", BipeForCausalLM(config)).to(model_dtype)
    positions = at_segments([[0, 1, FAR - 1, FAR]])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        bias = model.model.inter(positions, positions, model_dtype).bias
        assert bias is not None
        block = bias.block(slice(0, 4), slice(0, 4))
    assert block.dtype == torch.float32
    slopes = 20.7 * torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8], dtype=torch.float64)
    distance = (positions.segment[:, None, :, None] - positions.segment[:, None, None, :]).double()
    expected = -slopes[:, None, None] * distance
    torch.testing.assert_close(block.double(), expected, rtol=1e-6, atol=0)


def scaled(rope_type: str, **more: Any) -> dict[str, Any]:
    scaling = {"rope_type": rope_type, "factor": 4.0, "original_max_segments": 8, **more}
    return {"inter": {"type": "rope", "scaling": scaling}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inter": {"type": "rope"}, "head_dim": 7}, "even; got 7"),
        ({"inter": {"type": "rop"}}, r"Unknown inter encoding 'rop'.*alibi.*rope.*zero"),
        ({"intra": {"type": "learnt"}}, r"Unknown intra encoding 'learnt'.*learned.*sinusoidal.*zero"),
        ({"inter": {"scale": 3.0}}, "type"),
        ({"intra": {"max_offset": 3}}, "type"),
        ({"inter": {"type": "alibi", "slope": 3.0}}, "slope.*scale"),
        ({"inter": {"type": "zero", "scale": 3.0}}, "scale"),
        ({"intra": {"type": "learned", "rows": 3}}, "rows.*max_offset"),
        ({"intra": {"type": "zero", "max_offset": 3}}, "max_offset"),
        ({"inter": {"type": "alibi", "scale": -1.0}}, r"scale.*-1\.0"),
        ({"inter": {"type": "alibi", "scale": math.nan}}, "scale.*nan"),
        ({"inter": {"type": "alibi", "scale": math.inf}}, "scale.*inf"),
        ({"inter": {"type": "alibi", "scale": "auto"}}, "scale.*auto"),
        ({"inter": {"type": "alibi", "scale": True}}, "scale.*True"),
        ({"intra": {"type": "learned", "max_offset": 0}}, "max_offset.*0"),
        ({"intra": {"type": "learned", "max_offset": -4}}, "max_offset.*-4"),
        ({"intra": {"type": "learned", "max_offset": 2.5}}, r"max_offset.*2\.5"),
        ({"intra": {"type": "learned", "max_offset": 10**12}}, "max_offset.*1000000000000"),
        ({"inter": {"type": "rope", "theta": 0.0}}, r"theta.*0\.0"),
        ({"inter": {"type": "rope", "theta": -3.0}}, r"theta.*-3\.0"),
        ({"inter": {"type": "rope", "theta": math.nan}}, "theta.*nan"),
        ({"inter": {"type": "rope", "theta": "big"}}, "theta.*big"),
        ({"inter": {"type": "rope", "scaling": {"rope_type": "yarnn", "factor": 2.0}}}, "yarnn.*yarn"),
        ({"inter": {"type": "rope", "scaling": {"rope_type": "linear"}}}, "factor"),
        ({"inter": {"type": "rope", "scaling": {"rope_type": "linear", "factor": -2.0}}}, r"factor.*-2\.0"),
        ({"inter": {"type": "rope", "scaling": 4.0}}, r"scaling.*4\.0"),
        (scaled("llama3"), "low_freq_factor must be .* got None"),
        (
            scaled("llama3", low_freq_factor=2.0, high_freq_factor=2.0),
            r"high_freq_factor .* above 2; got 2\.0",
        ),
        (scaled("longrope"), "short_factor of longrope is a list of 4 numbers"),
        (
            scaled("longrope", short_factor=[1.0] * 4, long_factor=[1.0] * 3),
            "long_factor of longrope is a list",
        ),
        (scaled("longrope", short_factor=[0.0] * 4), "Each short_factor must be a finite number above 0"),
        (scaled("yarn", attention_factor=-1), "attention_factor must be"),
        ({"inter": {"type": "alibi", "scale": 10**400}}, "scale must be a finite number"),
    ],
)
def test_wrong_options_are_named_with_what_is_expected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**fields)


def test_an_odd_head_width_is_fine_without_a_rotation() -> None:
    for name in ("alibi", "zero"):
        assert config_of(inter={"type": name}, head_dim=7).head_dim == 7


def test_theta_and_scaling_are_kept_in_rope_parameters_alone() -> None:
    spec = {"type": "rope", "theta": 5e5, "scaling": {"rope_type": "linear", "factor": 2.0}}
    config = config_of(inter=spec)
    assert config.inter == {"type": "rope"}
    assert config.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}


@pytest.mark.parametrize(
    "elsewhere",
    [{"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}, {"rope_theta": 10_000.0}],
)
def test_two_different_thetas_are_refused(elsewhere: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"500000\.0.*10000\.0|10000\.0.*500000\.0"):
        config_of(inter={"type": "rope", "theta": 5e5}, **elsewhere)


@pytest.mark.parametrize("rope_type", ["yarn", "dynamic", "llama3", "longrope"])
def test_a_threshold_on_segments_must_be_given_in_segments(rope_type: str) -> None:
    scaling: dict[str, Any] = {"rope_type": rope_type, "factor": 4.0}
    if rope_type == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if rope_type == "longrope":
        scaling |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    with pytest.raises(ValueError, match="original_max_segments"):
        config_of(inter={"type": "rope", "scaling": scaling})
    config_of(inter={"type": "rope", "scaling": {**scaling, "original_max_segments": 64}})


@pytest.mark.parametrize("threshold", [0, -3, 2.5, "many", True])
def test_a_threshold_must_be_a_whole_number_of_segments(threshold: Any) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_segments": threshold}
    with pytest.raises(ValueError, match=f"original_max_segments.*{threshold}"):
        config_of(inter={"type": "rope", "scaling": scaling})


def test_a_threshold_in_segments_is_refused_where_the_index_counts_tokens() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_segments": 64}
    with pytest.raises(ValueError, match=r"every_token.*original_max_position_embeddings, in tokens"):
        config_of(inter={"type": "rope", "scaling": scaling}, segmenter={"type": "every_token"})


def test_yarn_on_segments_scales_as_transformers_does_on_as_many_tokens() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0}
    on_segments = inter_of({"type": "rope", "scaling": {**scaling, "original_max_segments": 64}})
    on_tokens = inter_of(
        {"type": "rope", "scaling": {**scaling, "original_max_position_embeddings": 64}},
        segmenter={"type": "every_token"},
    )
    positions = at_segments([[0, 3, 70, 300]])
    first, second = (
        make(positions, positions, torch.float32).query_rotation for make in (on_segments, on_tokens)
    )
    assert first is not None
    assert second is not None
    assert all(torch.equal(*tables) for tables in zip(first, second, strict=True))


@pytest.mark.parametrize("window", [1, 4, 50])
@pytest.mark.parametrize("segmenter", [TOKEN_SET, {"type": "every_token"}])
def test_a_sliding_window_is_rope_with_a_mask(segmenter: dict[str, Any], window: int) -> None:
    torch.manual_seed(0)
    config = {"segmenter": segmenter, "initializer_range": 0.3, "attn_implementation": "eager"}
    sliding = BipeForCausalLM(config_of(inter={"type": "sliding_rope", "window": window}, **config)).eval()
    plain = BipeForCausalLM(config_of(inter={"type": "rope"}, **config)).eval()
    plain.load_state_dict(sliding.state_dict())
    ids = torch.randint(0, 30, (2, 40))
    ids[:, 3::5] = 3
    index = sliding.positions(ids).segment
    near = index[:, None, :, None] - index[:, None, None, :] < window
    weights = plain(ids, output_attentions=True).attentions[0].masked_fill(~near, 0)
    expected = weights / weights.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(sliding(ids, output_attentions=True).attentions[0], expected)


LEVELS = {"type": "levels", "segmenters": [TOKEN_SET, {"type": "fixed_length", "n": 10}, {"type": "never"}]}


def at_levels(rows: int = 2, tokens: int = 20) -> MultilevelPositions:
    inner = growing_segments(rows, tokens)
    outer = torch.stack((inner.token // 7, inner.token // 13), dim=-1)
    return MultilevelPositions(*inner, outer)


def test_levels_of_a_rotation_turn_channels_of_their_own() -> None:
    encoding = inter_of({"type": "rope_levels", "shares": [2, 1, 1]}, segmenter=LEVELS)
    positions, states = at_levels(), vectors(20)
    relation = encoding(positions, positions, torch.float32)
    assert relation.query_rotation is not None
    turned = rotate(states, relation.query_rotation).double()
    indices = [positions.segment, *positions.outer.unbind(-1)]
    for pair, level in enumerate([0, 0, 1, 2]):
        expected = rotated_by_complex_numbers(states, indices[level], 10_000.0)
        for channel in (pair, pair + HEAD_WIDTH // 2):
            torch.testing.assert_close(turned[..., channel], expected[..., channel], rtol=1e-5, atol=1e-5)


def test_levels_of_alibi_add_up() -> None:
    spec = {"type": "alibi_levels", "scale": 3.0, "outer_scales": [5.0, 0.5]}
    positions = at_levels()
    bias = inter_of(spec, segmenter=LEVELS)(positions, positions, torch.float32).bias
    assert bias is not None
    found = bias.block(slice(0, 20), slice(0, 20)).expand(2, HEADS, 20, 20)
    indices = [positions.segment, *positions.outer.unbind(-1)]
    for head, exponent in enumerate([2, 4, 6, 8]):
        expected = sum(
            -scale * 2.0**-exponent * (index[:, :, None] - index[:, None])
            for scale, index in zip([3.0, 5.0, 0.5], indices, strict=True)
        )
        torch.testing.assert_close(found[:, head], cast("Tensor", expected))


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(INTER_ENCODINGS))
def test_a_reset_brings_every_initial_value_back(name: str) -> None:
    learned = {"learned": True} if name.startswith("alibi") else {}
    encoding = inter_of({"type": name, **learned}, segmenter=LEVELS)
    starts = []
    for _ in range(2):
        torch.manual_seed(0)
        encoding.reset_parameters(STD)
        starts.append([part.clone() for part in encoding.parameters()])
        for part in encoding.parameters():
            part.fill_(7.0)
    assert all(torch.equal(*pair) for pair in zip(*starts, strict=True))


@pytest.mark.parametrize(("several", "one"), [("rope_levels", "rope"), ("alibi_levels", "alibi")])
def test_one_level_is_what_it_was(several: str, one: str) -> None:
    torch.manual_seed(0)
    models = [BipeForCausalLM(config_of(inter={"type": kind})).eval() for kind in (several, one)]
    models[1].load_state_dict(models[0].state_dict())
    ids = torch.randint(0, 30, (2, 40))
    assert torch.equal(models[0](ids).logits, models[1](ids).logits)
    assert type(models[0].positions(ids)) is BilevelPositions


@pytest.mark.parametrize("name", ["rope_levels", "alibi_levels"])
def test_positions_of_too_few_levels_are_refused(name: str) -> None:
    model = BipeForCausalLM(config_of(inter={"type": name}, segmenter=LEVELS))
    flat = growing_segments()
    with pytest.raises(ValueError, match="3 levels of segments: give MultilevelPositions with 2 outer"):
        model(torch.zeros(2, 20, dtype=torch.int64), positions=flat)


@pytest.mark.parametrize(
    ("inter", "message"),
    [
        ({"type": "rope_levels", "shares": [1, 1]}, "one for each of 3 levels"),
        ({"type": "rope_levels", "shares": [1, 1, 0]}, "shares must be a whole number of at least 1.*got 0"),
        ({"type": "rope_levels", "shares": [3, 1, 1]}, "need 5 pairs of channels; a head has 4"),
        ({"type": "alibi_levels", "outer_scales": [1.0]}, "one for each of 2 outer levels"),
        ({"type": "alibi_levels", "outer_scales": [1.0, -1.0]}, "outer_scales must be.*got -1.0"),
    ],
)
def test_wrong_options_of_levels_are_named(inter: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(inter=inter, segmenter=LEVELS)


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.10"),
    reason="torch.vmap of torch 2.9 cannot look a tensor up at two batched numbers; its FlexAttention can",
)
@pytest.mark.parametrize("rows_agree", [True, False])
@pytest.mark.parametrize(
    "name", [name for name in biased_encodings() if not INTER_ENCODINGS[name].reads_content]
)
def test_a_score_is_a_number_of_the_block(name: str, rows_agree: bool) -> None:
    key = growing_segments()
    key = key._replace(offset=key.token % 4)
    if rows_agree:
        key = BilevelPositions(*(field[:1].expand(2, -1) for field in key))
    bias = inter_of({"type": name})(key.last(12), key, torch.float32).bias
    assert bias is not None
    block = bias.block(slice(0, 12), slice(0, 20)).expand(2, HEADS, 12, 20)
    scorer = bias.scorer(16, 24)

    def score(*indices: Tensor) -> Tensor:
        return scorer(torch.tensor(0.5), *indices)

    every = torch.vmap(
        torch.vmap(
            torch.vmap(torch.vmap(score, (None, None, None, 0)), (None, None, 0, None)), (None, 0, None, None)
        ),
        (0, None, None, None),
    )
    found = every(torch.arange(2), torch.arange(HEADS), torch.arange(16), torch.arange(24))
    assert found.isfinite().all()
    seen = torch.arange(20) <= torch.arange(8, 20)[:, None]
    torch.testing.assert_close(found[:, :, :12, :20][:, :, seen], block[:, :, seen] + 0.5)


@pytest.mark.parametrize("scheme", ["bipe-alibi-auto", "bipe-alibi2", "bipe3-alibi", "bipe-sliding-rope"])
def test_a_bias_is_float32_whatever_torch_makes_by_default(
    make_model: Callable[..., BipeForCausalLM], scheme: str
) -> None:
    model = make_model(scheme)
    ids = torch.arange(12).repeat(2)[None]
    expected = model(ids).logits
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = model(ids).logits
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
