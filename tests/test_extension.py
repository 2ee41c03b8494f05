"""Context extension against transformers' Llama, and in the unit of the index."""

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bipe import BilevelPositions, BipeConfig, BipeForCausalLM
from bipe.encodings.inter.selfextend import SelfExtend
from bipe.models.extension import METHODS, extend_checkpoint, extension_of

TRAINED = 48
SIZES = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "max_position_embeddings": TRAINED,
}


def rope() -> BipeConfig:
    return BipeConfig.from_scheme("rope", **SIZES)


def bipe(scheme: str = "bipe-rope", **fields: Any) -> BipeConfig:
    sizes = {**SIZES, "original_max_segments": 12, "tokens_per_segment": 5.0, **fields}
    return BipeConfig.from_scheme(scheme, end_token_ids=[3, 4], **sizes)


def logits(model: Any, length: int) -> torch.Tensor:
    ids = torch.randint(0, 40, (2, length), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


LLAMA: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "ntk": {"rope_type": "default", "rope_theta": 10_000.0 * 4.0 ** (16 / 14)},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": TRAINED,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0 ** (pair / 7) for pair in range(8)],
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "original_max_position_embeddings": TRAINED,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}
"""What a user of transformers would write for each method."""


@pytest.mark.parametrize("length", [20, TRAINED, 100, 192])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_an_extended_rope_is_transformers_llama_bit_for_bit(method: str, length: int) -> None:
    longer = TRAINED if method == "dynamic" else 4 * TRAINED  # dynamic reads the trained length there
    theta = {"rope_theta": 10_000.0, **LLAMA[method]}
    llama = LlamaForCausalLM(
        LlamaConfig(**{**SIZES, "max_position_embeddings": longer}, rope_parameters=theta)
    ).eval()
    ours = BipeForCausalLM(extension_of(rope(), method, 4.0).config).eval()
    ours.load_state_dict(llama.state_dict())
    assert torch.equal(logits(ours, length), logits(llama, length))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_on_segments_the_tables_are_those_of_as_many_tokens(method: str) -> None:
    index = torch.tensor([[0, 3, 11, 12, 40, 47]])
    positions = BilevelPositions(index, index % 3, index * 5)
    on_tokens = extension_of(rope(), method, 4.0, original=12).config
    for config in (extension_of(bipe(), method, 4.0).config, on_tokens):
        assert config.extension is not None
        assert config.extension["original"] == 12
    tables = [
        model.model.inter(positions, positions, torch.float32).query_rotation
        for model in (BipeForCausalLM(extension_of(bipe(), method, 4.0).config), BipeForCausalLM(on_tokens))
    ]
    if method != "dynamic":  # compared below: on tokens it goes by the index, here five a segment
        assert tables[0] is not None and tables[1] is not None
        of_tokens = BilevelPositions(index, index, index)
        inter = BipeForCausalLM(on_tokens).model.inter
        expected = inter(of_tokens, of_tokens, torch.float32).query_rotation
        assert expected is not None
        assert all(torch.equal(*pair) for pair in zip(tables[0], expected, strict=True))


def test_dynamic_switches_at_the_trained_number_of_segments() -> None:
    inter = BipeForCausalLM(extension_of(bipe(), "dynamic", 4.0).config).model.inter
    plain = BipeForCausalLM(bipe()).model.inter
    for last, same in [(11, True), (12, False), (40, False), (10, True)]:
        index = torch.tensor([[0, 1, last]])
        positions = BilevelPositions(index, index, 50 * index)
        made, before = (one(positions, positions, torch.float32).query_rotation for one in (inter, plain))
        assert made is not None
        assert before is not None
        assert torch.equal(made[0], before[0]) == same


def test_a_pair_is_said_to_be_slowed_by_what_its_angle_is_divided_by() -> None:
    extension = extension_of(rope(), "linear", 4.0)
    assert [pair.slowed for pair in extension.pairs] == pytest.approx([4.0] * 8)
    assert extension.count() == (0, 0, 8)
    first = extension.pairs[0]
    assert first.wavelength == pytest.approx(2 * math.pi)
    assert first.turns == pytest.approx(TRAINED / (2 * math.pi))
    yarn = extension_of(BipeConfig(**{**SIZES, "max_position_embeddings": 4096}), "yarn", 4.0)
    kept, between, full = yarn.count()
    assert kept > 0
    assert between > 0
    assert full > 0
    assert kept + between + full == 8
    turned = torch.arange(0, 16, 2) / 16
    for pair, exponent in zip(yarn.pairs, turned.tolist(), strict=True):
        turns = 4096 * 10_000.0**-exponent / (2 * math.pi)
        assert turns == pytest.approx(pair.turns)
        if turns > 32:  # beta_fast
            assert pair.slowed == pytest.approx(1, rel=0.1)
        if turns < 1:  # beta_slow
            assert pair.slowed == pytest.approx(4.0)


def test_with_few_segments_yarn_is_called_nearly_linear() -> None:
    assert "nearly position interpolation" in str(extension_of(bipe(), "yarn", 4.0))
    long = BipeConfig(**{**SIZES, "max_position_embeddings": 4096})
    assert "nearly" not in str(extension_of(long, "yarn", 4.0))
    assert "nearly" not in str(extension_of(bipe(), "linear", 4.0))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("scheme", ["bipe-alibi-auto", "bipe-alibi2", "bipe3-alibi", "alibi"])
def test_alibi_fades_by_a_factor_more_slowly(scheme: str, learned: bool) -> None:
    kind = {
        "bipe-alibi-auto": {"type": "alibi", "scale": 5.0},
        "bipe-alibi2": {"type": "alibi2", "scale": 5.0},
        "bipe3-alibi": {"type": "alibi_levels", "scale": 5.0},
        "alibi": {"type": "alibi", "scale": 1.0},
    }[scheme]
    levels = [{"type": "token_set", "end_token_ids": [3, 4]}, {"type": "fixed_length", "n": 20}]
    segmenter = {"segmenter": {"type": "levels", "segmenters": levels}} if scheme == "bipe3-alibi" else {}
    config = bipe(scheme, inter={**kind, "learned": learned}, **segmenter)
    longer = extension_of(config, "linear", 4.0).config
    models = [BipeForCausalLM(each).eval() for each in (config, longer)]
    ids = torch.randint(0, 40, (1, 60), generator=torch.Generator().manual_seed(0))
    positions = models[0].positions(ids)
    if scheme == "bipe3-alibi":
        assert positions.outer.max() == 2
    before, after = (
        model.model.inter(positions, positions, torch.float32).bias.block(slice(0, 60), slice(0, 60))
        for model in models
    )
    if scheme == "bipe-alibi2":  # inside a segment nothing gets longer
        same = (positions.segment[:, :, None] == positions.segment[:, None])[:, None].expand_as(before)
        torch.testing.assert_close(after[same], before[same])
        crossing = positions.segment[0].diff().nonzero().flatten() + 1
        first = [(int(column), int(column) - 1) for column in crossing]  # offset 0: inside there is nothing
        after, before = (torch.stack([bias[0, :, i, j] for i, j in first]) for bias in (after, before))
    torch.testing.assert_close(4 * after, before)


@pytest.mark.parametrize("method", ["dynamic", "longrope"])
def test_a_model_whose_keys_cannot_be_kept_writes_without_a_cache(method: str, tmp_path: Any) -> None:
    BipeForCausalLM(bipe()).save_pretrained(tmp_path / "trained")
    extend_checkpoint(tmp_path / "trained", tmp_path / "long", method, 4.0)
    loaded = BipeForCausalLM.from_pretrained(tmp_path / "long")
    ids = torch.randint(5, 40, (1, 30), generator=torch.Generator().manual_seed(0))
    written = loaded.generate(ids, min_new_tokens=4, max_new_tokens=4, do_sample=False)
    assert written.shape == (1, 34)


def test_what_was_done_is_recorded_and_kept_with_the_weights(tmp_path) -> None:
    model = BipeForCausalLM(bipe())
    model.save_pretrained(tmp_path / "trained")
    extend_checkpoint(tmp_path / "trained", tmp_path / "long", "yarn", 4.0, parameters={"beta_fast": 16.0})
    loaded = BipeForCausalLM.from_pretrained(tmp_path / "long")
    assert loaded.config.extension == {
        "method": "yarn",
        "factor": 4.0,
        "unit": "segments",
        "original": 12,
        "parameters": {"beta_fast": 16.0},
        "source": "trained",
        "weights": loaded.config.extension["weights"],
    }
    wanted = {"rope_type": "yarn", "factor": 4.0, "original_max_segments": 12, "beta_fast": 16.0}
    assert wanted.items() <= dict(loaded.config.rope_parameters or {}).items()
    assert loaded.config.max_position_embeddings == 4 * TRAINED
    assert all(torch.equal(part, loaded.state_dict()[name]) for name, part in model.state_dict().items())
    with pytest.raises(ValueError, match=r"extended already \(yarn by 4.0\)"):
        extension_of(loaded.config, "linear", 2.0)


def test_a_record_tells_other_weights_apart(tmp_path) -> None:
    records = []
    for name in ("one", "other"):
        BipeForCausalLM(bipe()).save_pretrained(tmp_path / name / "trained")
        for target in ("long", "again"):
            extension = extend_checkpoint(tmp_path / name / "trained", tmp_path / name / target, "yarn", 4.0)
            records.append(extension.config.extension)
    assert records[0] == records[1] and records[2] == records[3]
    assert records[0]["source"] == records[2]["source"]
    assert records[0]["weights"] != records[2]["weights"]


@pytest.mark.parametrize(
    ("config", "method", "options", "reason"),
    [
        (rope, "yarnn", {}, "Unknown method 'yarnn'. Choose one of: dynamic, linear"),
        (bipe, "yarn", {"parameters": {"factor": 8.0}}, "Unknown parameter 'factor' of yarn"),
        (bipe, "linear", {"parameters": {"beta_fast": 8.0}}, "of linear. Its parameters: none"),
        (bipe, "yarn", {"parameters": {"beta_fast": "x"}}, "beta_fast must be a finite number.*'x'"),
        (bipe, "longrope", {"parameters": {"long_factor": [1, 2]}}, "a number for each of 8 pairs"),
        (bipe, "longrope", {"parameters": {"long_factor": [0] * 8}}, "Each of long_factor must be"),
        (bipe, "longrope", {"original": 1}, "trained length in segments must be.*at least 2.*got 1"),
        (bipe, "yarn", {"original": 10**30}, "trained length in segments must be"),
        (rope, "yarn", {"factor": 1.0}, "at least 1.01.*got 1.0"),
        (rope, "yarn", {"factor": math.nan}, "at least 1.01.*got nan"),
        (rope, "yarn", {"factor": True}, "at least 1.01.*got True"),
        (lambda: bipe(original_max_segments=None), "yarn", {}, "trained length in segments is not recorded"),
        (bipe, "yarn", {"original": 0}, "trained length in segments must be.*got 0"),
        (bipe, "yarn", {"parameters": {"beta": 3}}, "Unknown parameter 'beta'.*beta_fast"),
        (lambda: bipe("bipe-t5"), "linear", {}, "'t5' has no context extension; rope and alibi have"),
        (lambda: bipe("hirope"), "linear", {}, "'hirope' has no context extension"),
        (
            lambda: bipe("alibi", inter={"type": "alibi", "factor": 2.0}),
            "linear",
            {},
            "slopes are divided by 2 already",
        ),
        (lambda: bipe("bipe-alibi-auto"), "yarn", {}, "dividing its slopes.*got 'yarn'"),
        (
            lambda: bipe(inter={"type": "rope", "scaling": {"rope_type": "linear", "factor": 2.0}}),
            "yarn",
            {},
            "scaled already, rope_type 'linear'",
        ),
        (
            lambda: bipe(inter={"type": "rope", "scaling": {"rope_type": "linear", "factor": 2.0}}),
            "sliding_rope",
            {},
            "scaled already, rope_type 'linear'",
        ),
    ],
)
def test_what_cannot_be_extended_is_refused(
    config: Any, method: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        extension_of(config(), method, options.pop("factor", 4.0), **options)


@pytest.mark.parametrize("method", ["rerope", "selfextend", "sliding_rope"])
@pytest.mark.parametrize("config", [rope, bipe])
def test_a_substitute_is_its_encoding_with_a_window_in_the_trained_length(config: Any, method: str) -> None:
    original = 48 if config is rope else 12
    slides = method == "sliding_rope"
    bound, window = ("at most", original) if slides else ("below", original // 2)
    extension = extension_of(config(), method, 3.5)
    group = {"group": 6} if method == "selfextend" else {}
    assert extension.config.inter == {"type": method, "window": window, **group}
    assert f"distances below {window} are kept" in str(extension)
    assert ("others not seen" in str(extension)) == slides
    assert extension.count() == (0, 0, 0)
    near = torch.randint(5, 40, (1, window), generator=torch.Generator().manual_seed(0))
    models = [BipeForCausalLM(each).eval() for each in (config(), extension.config)]
    models[1].load_state_dict(models[0].state_dict())
    with torch.no_grad():
        torch.testing.assert_close(models[1](near).logits, models[0](near).logits, rtol=1e-4, atol=1e-4)
    assert extension_of(config(), method, 4.0, parameters={"window": 3}).config.inter["window"] == 3
    with pytest.raises(ValueError, match="Unknown parameter 'beta_fast'"):
        extension_of(config(), method, 4.0, parameters={"beta_fast": 3})
    with pytest.raises(ValueError, match=f"window must be {bound} the trained length, {original} .*got"):
        extension_of(config(), method, 4.0, parameters={"window": original + slides})


@pytest.mark.parametrize("factor", [1.01, 2.0, 3.7, 8.0, 100.0])
@pytest.mark.parametrize("window", [1, 7, 24, 47])
def test_selfextend_takes_the_smallest_group_that_stays_in_the_trained_range(
    factor: float, window: int
) -> None:
    extended = extension_of(rope(), "selfextend", factor, parameters={"window": window}).config
    inter = SelfExtend(extended, **{name: (extended.inter or {})[name] for name in ("window", "group")})
    for group, stays in ((inter.group, True), (inter.group - 1, False)):
        if group:
            inter.group = group
            query, key = inter.far(torch.arange(round(factor * TRAINED)))
            assert bool((query - key[0] < TRAINED).all()) == stays
