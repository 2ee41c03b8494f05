"""The configuration: what it refuses, what it keeps, and what each scheme means."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError

from bipe import SCHEMES, BipeConfig

TINY: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SIZES = [*TINY, "num_key_value_heads", "head_dim", "max_position_embeddings"]
SEPARATORS = [3, 7]


def config_of(scheme: str, **fields: Any) -> BipeConfig:
    given = {**TINY, "end_token_ids": SEPARATORS, "tokens_per_segment": 12.5, **fields}
    return BipeConfig.from_scheme(scheme, **given)


def test_nothing_given_is_the_encoding_of_the_scheme() -> None:
    given = {"segmenter": None, "intra": None, "inter": None}
    config = BipeConfig.from_scheme("bipe-rope", end_token_ids=[3], max_offset=64, **given)
    assert config.intra == {"type": "learned", "max_offset": 64}
    assert config.inter == BipeConfig.from_scheme("bipe-rope", end_token_ids=[3]).inter


@pytest.mark.parametrize("value", [0, -2, 10**15])
@pytest.mark.parametrize("name", SIZES)
def test_absurd_sizes_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        BipeConfig(**{**TINY, name: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 30}, "hidden_size.*num_attention_heads.*30.*4"),
        ({"num_key_value_heads": 3}, "num_attention_heads.*num_key_value_heads.*4.*3"),
        ({"num_key_value_heads": 8}, "num_attention_heads.*num_key_value_heads.*4.*8"),
        ({"max_trained_offset": -1}, "max_trained_offset.*-1"),
        ({"segmenter": {"type": "tokens"}}, "'tokens'.*every_token.*fixed_length.*never.*token_set"),
        ({"segmenter": {"type": "token_set"}}, "end_token_ids"),
        ({"segmenter": {"type": "token_set", "end_token_ids": []}}, "end_token_ids|at least one"),
        ({"segmenter": {"type": "token_set", "end_token_ids": [-1]}}, "-1"),
        ({"segmenter": {"type": "token_set", "end_token_ids": ["."]}}, r"'\.'"),
        ({"segmenter": {"type": "token_set", "end_token_ids": 7}}, "7"),
        ({"segmenter": {"type": "token_set", "end_token_ids": [50]}}, "50.*vocabulary of 50"),
        ({"segmenter": {"type": "fixed_length"}}, "'n'"),
        ({"segmenter": {"type": "fixed_length", "n": 0}}, "0"),
        ({"segmenter": {"type": "fixed_length", "n": 2.5}}, r"2\.5"),
        ({"segmenter": {"type": "never", "n": 4}}, "'n'"),
        ({"segmenter": {"end_token_ids": [3]}}, "type"),
        ({"segmenter": {"type": ["never"]}}, r"\['never'\].*never"),
        ({"segmenter": {}}, "type"),
        ({"intra": {}}, "type"),
        ({"inter": {}}, "type"),
    ],
)
def test_wrong_contents_are_named_with_what_is_expected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BipeConfig(**{**TINY, **fields})


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_size", 2.5), ("num_attention_heads", True), ("max_trained_offset", 2.5), ("inter", "rope")],
)
def test_values_of_a_wrong_type_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        BipeConfig(**{**TINY, name: value})


def test_wrong_contents_given_later_are_found_on_saving(tmp_path: Path) -> None:
    config = config_of("bipe-alibi")
    config.inter = {"type": "alibi", "scale": -3.0}
    with pytest.raises(StrictDataclassError, match=r"-3\.0"):
        config.save_pretrained(tmp_path)


def test_defaults_are_llama() -> None:
    config = BipeConfig(**TINY)
    assert (config.segmenter, config.intra, config.inter) == (
        {"type": "every_token"},
        {"type": "zero"},
        {"type": "rope"},
    )


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_config_survives_dictionaries_and_files(tmp_path: Path, scheme: str) -> None:
    config = config_of(scheme, max_trained_offset=9, max_offset=64)
    again = BipeConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert (
        BipeConfig.from_dict(json.loads(config.to_json_string(use_diff=False))).to_dict() == config.to_dict()
    )
    assert BipeConfig(**json.loads(config.to_json_string())).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    loaded = BipeConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize("rope_type", ["linear", "yarn"])
def test_scaled_rope_survives_files(tmp_path: Path, rope_type: str) -> None:
    scaling = {"rope_type": rope_type, "factor": 4.0, "original_max_segments": 32}
    config = config_of("bipe-rope", inter={"type": "rope", "theta": 5e5, "scaling": scaling})
    config.save_pretrained(tmp_path)
    assert BipeConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


def test_configs_share_no_dictionary() -> None:
    first, second = config_of("bipe-alibi"), config_of("bipe-alibi")
    assert first.inter is not None
    first.inter["scale"] = 1.0
    assert second.inter == {"type": "alibi", "scale": 96.0}
    assert SCHEMES["bipe-alibi"].inter == {"type": "alibi", "scale": 96.0}


SEPARATED = {"type": "token_set", "end_token_ids": sorted(SEPARATORS)}
MEANINGS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "bipe-rope": (SEPARATED, "learned", {"type": "rope"}),
    "bipe-alibi": (SEPARATED, "learned", {"type": "alibi", "scale": 96.0}),
    "bipe-alibi-auto": (SEPARATED, "learned", {"type": "alibi", "scale": 12.5}),
    "rope": ({"type": "every_token"}, "zero", {"type": "rope"}),
    "alibi": ({"type": "every_token"}, "zero", {"type": "alibi", "scale": 1.0}),
    "nope": ({"type": "every_token"}, "zero", {"type": "zero"}),
    "learned": ({"type": "never"}, "learned", {"type": "zero"}),
    "sinusoidal": ({"type": "never"}, "sinusoidal", {"type": "zero"}),
    "intra-only": (SEPARATED, "learned", {"type": "zero"}),
    "inter-only": (SEPARATED, "zero", {"type": "rope"}),
}


@pytest.mark.parametrize("scheme", sorted(MEANINGS))
def test_a_scheme_is_what_the_design_says(scheme: str) -> None:
    config = config_of(scheme)
    assert config.intra is not None
    assert (config.segmenter, config.intra["type"], config.inter) == MEANINGS[scheme]
    assert config.scheme == scheme


def test_an_unknown_scheme_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"Unknown scheme 'bipe'.*bipe-alibi.*rope"):
        config_of("bipe")


def test_a_scheme_that_cuts_needs_to_know_where() -> None:
    with pytest.raises(ValueError, match=r"tokenizer.*end_token_ids"):
        BipeConfig.from_scheme("bipe-rope", **TINY)


@pytest.mark.parametrize("measured", [None, 0, -2.0, float("nan"), float("inf")])
def test_the_automatic_scale_needs_a_measured_number(measured: float | None) -> None:
    with pytest.raises(ValueError, match=rf"tokens_per_segment.*{measured}"):
        config_of("bipe-alibi-auto", tokens_per_segment=measured)


def test_rows_of_the_learned_table_are_set_where_there_is_one() -> None:
    assert config_of("bipe-rope", max_offset=64).intra == {"type": "learned", "max_offset": 64}
    assert config_of("rope", max_offset=64).intra == {"type": "zero"}
