"""Llamas there and back, by the library and by the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from bipe import BipeForCausalLM, convert
from bipe.models.convert import convert_to_llama
from bipe_cli.main import app, run

from .conftest import GOLDEN, SCALINGS, TINY, ids_of, loaded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", SCALINGS, ids=lambda found: "-".join(found) or "plain")
def test_a_llama_stays_what_it_was_there_and_back(
    tmp_path: Path, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TINY, **changes)).to(dtype).save_pretrained(tmp_path / "llama")
    before, ids = loaded(tmp_path / "llama"), ids_of(2, 300)
    ours = loaded(convert(tmp_path / "llama", tmp_path / "ours"))
    assert isinstance(ours, BipeForCausalLM) and ours.dtype == dtype and ours.config.scheme == "rope"
    assert ours(ids).logits.equal(before(ids).logits)
    back = loaded(convert_to_llama(tmp_path / "ours", tmp_path / "back"))
    assert type(back) is LlamaForCausalLM and back.dtype == dtype
    assert back(ids).logits.equal(before(ids).logits)


def test_a_mistral_without_a_window_is_a_llama(tmp_path: Path) -> None:
    torch.manual_seed(0)
    MistralForCausalLM(MistralConfig(**TINY, sliding_window=None)).save_pretrained(tmp_path / "one")
    ids = ids_of(2, 60)
    ours = loaded(convert(tmp_path / "one", tmp_path / "ours"))
    assert ours(ids).logits.equal(loaded(tmp_path / "one")(ids).logits)
    MistralForCausalLM(MistralConfig(**TINY, sliding_window=16)).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="sliding window of 16 tokens"):
        convert(tmp_path / "other", tmp_path / "no")


def test_an_output_layer_that_differs_is_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    model.save_pretrained(tmp_path / "llama")
    settings = json.loads((tmp_path / "llama" / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "llama" / "config.json").write_text(json.dumps(settings))
    ids = ids_of(1, 20)
    assert loaded(convert(tmp_path / "llama", tmp_path / "out"))(ids).logits.equal(model(ids).logits)


def test_tensors_that_share_memory_in_a_pickle_are_both_written(tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    model.save_pretrained(tmp_path / "llama")
    (tmp_path / "llama" / "model.safetensors").unlink()
    weights = model.state_dict()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    torch.save(weights, tmp_path / "llama" / "pytorch_model.bin")
    found = loaded(convert(tmp_path / "llama", tmp_path / "out"))
    assert found.lm_head.weight.equal(weights["model.embed_tokens.weight"])


def test_code_beside_a_model_is_not_promised_where_it_is_not_written(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "one", standalone=True)
    assert "auto_map" in json.loads((tmp_path / "one" / "config.json").read_text())
    convert(tmp_path / "one", tmp_path / "two")
    assert "auto_map" not in json.loads((tmp_path / "two" / "config.json").read_text())


def test_settings_that_llama_has_not_decide_nothing(llama: Path, tmp_path: Path) -> None:
    strange = {"scheme": "nope", "segmenter": {"type": "never"}, "self": 1}
    settings = json.loads((llama / "config.json").read_text()) | strange
    before = loaded(llama)
    (llama / "config.json").write_text(json.dumps(settings))
    model, ids = loaded(convert(llama, tmp_path / "out")), ids_of(1, 30)
    assert model.config.scheme == "rope"
    assert model(ids).logits.equal(before(ids).logits)


@pytest.mark.parametrize("kind", ["bipe_rope", "alibi"])
def test_only_rope_on_tokens_is_a_llama(tmp_path: Path, kind: str) -> None:
    convert(GOLDEN / kind, tmp_path / "ours")
    with pytest.raises(ValueError, match="Only a model of scheme 'rope' is a Llama"):
        convert_to_llama(tmp_path / "ours", tmp_path / "back")


def test_the_command_converts_and_the_model_writes(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert run(app, ["convert", str(llama), str(ours), "--scheme", "bipe-rope"]) == 0
    assert capsys.readouterr().out == f"{ours}\n"
    assert run(app, ["generate", "--model", str(ours), "--prompt", "one", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("one")
    assert run(app, ["convert", str(llama), str(tmp_path / "rope")]) == 0
    assert run(app, ["convert", str(tmp_path / "rope"), str(back), "--to-llama"]) == 0
    assert type(loaded(back)) is LlamaForCausalLM
    capsys.readouterr()
    for arguments, reason in (
        ([str(llama), str(ours)], "is in use"),
        ([str(llama), str(tmp_path / "x"), "--scheme", "bipe-rop"], "Unknown scheme 'bipe-rop'"),
        ([str(llama), str(tmp_path / "x"), "--scheme", "rope", "--to-llama"], "--to-llama alone"),
        ([str(ours), str(tmp_path / "x"), "--to-llama"], "is a Llama"),
        ([str(llama)], "Missing argument"),
        ([str(llama), str(tmp_path / "x"), "--rule", "line"], "--rule is for a retrofit"),
    ):
        assert run(app, ["convert", *arguments]) == 2
        found = capsys.readouterr()
        assert found.out == "" and found.err.count("\n") == 1 and reason in found.err
