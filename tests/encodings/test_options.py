"""Options of encodings: wrong ones are named, and RoPE's theta and scaling have one place and a unit."""

import math
from typing import Any

import pytest
import torch

from .bare_encodings import at_segments, config_of, inter_of


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


def test_an_option_of_the_config_is_refused_where_the_config_exists():
    config = config_of(inter={"type": "rope"})
    config.inter = {"type": "rope", "theta": 5000.0}
    with pytest.raises(ValueError, match="'theta' of `inter` is read where a config is made"):
        config.check()
