"""Saved models come back as they were, and what is changed on the way is checked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from bipe import SCHEMES, BipeConfig, BipeForCausalLM, BipeModel

from .batches import ids_of

ModelMaker = Callable[..., BipeForCausalLM]
SCHEME_NAMES = sorted(SCHEMES)


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
