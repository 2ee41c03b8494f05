"""What is said of checkpoints that are damaged or of another kind, and which folders are left alone."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from bipe import convert

from .conftest import GOLDEN, TINY, refused, released


def test_folders_of_others_beside_the_target_are_left_alone(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out.draft").mkdir()
    (tmp_path / "out.draft" / "thesis.txt").write_text("mine")
    convert(llama, tmp_path / "out")
    assert (tmp_path / "out.draft" / "thesis.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama", "out", "out.draft"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    convert(llama, tmp_path / "link")
    assert (tmp_path / "empty" / "config.json").is_file()
    with pytest.raises(ValueError, match="lies inside"):
        convert(llama, llama / "inner")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_causal": False}, "attends to later tokens"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layers of other kinds"),
        ({"quantization_config": {"quant_method": "awq"}}, "is quantized"),
        ({"rope_scaling": "linear"}, "cannot be read as a model"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4}},
            "low_freq_factor|llama3",
        ),
        ({"pad_token_id": 999}, "cannot be read as a model"),
        ({"id2label": 5}, "cannot be read as a model|id2label"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_a_llama_with_strange_settings_is_refused(
    llama: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    settings = json.loads((llama / "config.json").read_text()) | changes
    (llama / "config.json").write_text(json.dumps(settings))
    refused(llama, tmp_path, reason)


def test_whole_numbers_are_no_weights(llama: Path, tmp_path: Path) -> None:
    weights = load_file(llama / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(32, dtype=torch.int8)
    save_file(weights, llama / "model.safetensors")
    refused(llama, tmp_path, "model.norm.weight holds torch.int8")


def test_a_truncated_gguf_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\x00\x00")
    with pytest.raises(ValueError, match=r"model\.gguf"):
        convert(tmp_path / "model.gguf", tmp_path / "out")


def removed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    del weights["model.norm.weight"]
    return weights


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**weights, "model.layers.0.self_attn.extra": torch.zeros(2)}


def reshaped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**weights, "model.norm.weight": torch.zeros(31)}


def without_table(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    del weights["model.embeds.0.weight"]
    return weights


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (removed, "1 missing, such as model.norm.weight"),
        (renamed, "1 unknown, such as model.layers.0.self_attn.extra"),
        (reshaped, r"model.norm.weight has the shape \(31,\), not \(32,\)"),
        (without_table, "lacks the table of offsets"),
    ],
)
def test_weights_of_another_model_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], reason: str
) -> None:
    source = released(tmp_path / "source", "bipe_rope")
    save_file(change(load_file(source / "model.safetensors")), source / "model.safetensors")
    refused(source, tmp_path, reason)


class Program:
    """What a pickle could run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("this must not run",)


@pytest.mark.parametrize("protocol", ["zip", "pickle"])
def test_a_pickle_with_a_program_in_it_is_refused(
    tmp_path: Path, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = released(tmp_path / "source", "rope")
    (source / "model.safetensors").unlink()
    if protocol == "zip":
        torch.save({"model.norm.weight": torch.zeros(32), "more": Program()}, source / "pytorch_model.bin")
    else:
        (source / "pytorch_model.bin").write_bytes(pickle.dumps(Program()))
    refused(source, tmp_path, "holds more than tensors")
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("kept", [0, 7, 3000])
@pytest.mark.parametrize("pickled", [False, True])
def test_truncated_files_are_refused(tmp_path: Path, pickled: bool, kept: int) -> None:
    source = released(tmp_path / "source", "rope")
    path = source / "model.safetensors"
    if pickled:
        weights = load_file(path)
        path.unlink()
        path = source / "pytorch_model.bin"
        torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:kept])
    refused(source, tmp_path, "model")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rpe_type": "xpos"}, "Unknown rpe_type 'xpos'"),
        ({"log_scale": True}, "logarithm of the length"),
        ({"rope_scaling": {"type": "cubic", "factor": 2.0}}, "Unknown rope_type 'cubic'"),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads"),
        ({"rpe_type": "rope"}, "has a table of offsets"),
    ],
)
def test_settings_that_are_not_supported_are_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    refused(released(tmp_path / "source", "bipe_rope", **changes), tmp_path, reason)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", tmp_path, "no such folder is here")
    refused(tmp_path / "nowhere.gguf", tmp_path, "is no file")
    source = released(tmp_path / "source", "rope")
    (source / "config.json").write_text("{")
    refused(source, tmp_path, "config.json cannot be read")
    (source / "config.json").write_text("[1]")
    refused(source, tmp_path, "no settings by name")
    Qwen2ForCausalLM(Qwen2Config(**TINY)).save_pretrained(tmp_path / "qwen")
    refused(tmp_path / "qwen", tmp_path, "type 'qwen2'. Those that can be converted: llama")
    (tmp_path / "empty").mkdir()
    shutil.copy(GOLDEN / "rope" / "config.json", tmp_path / "empty")
    refused(tmp_path / "empty", tmp_path, "has no weights")


def test_a_shard_that_is_not_there_or_outside_is_refused(tmp_path: Path) -> None:
    source = released(tmp_path / "source", "rope")
    (source / "model.safetensors").rename(source / "model-1.safetensors")
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    refused(source, tmp_path, "model-2.safetensors cannot be read")
    index.write_text(json.dumps({"weight_map": {"a": "../model-1.safetensors"}}))
    refused(source, tmp_path, "outside its folder")
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    refused(source, tmp_path, "names 1 tensors that its shards lack, such as a")
    index.write_text("{}")
    refused(source, tmp_path, "not the index")


def test_a_target_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert(GOLDEN / "rope", tmp_path / "out")  # empty, so nobody's
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match="is in use"):
        convert(GOLDEN / "alibi", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
