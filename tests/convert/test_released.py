"""Released checkpoints compute what they did, in whatever files they are stored."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bipe import BipeConfig, convert

from .conftest import GOLDEN, ids_of, loaded, released

KINDS = ["alibi", "bipe_alibi", "bipe_rope", "rope"]


@pytest.mark.parametrize("attention", [None, "eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_released_checkpoints_compute_what_they_did(tmp_path: Path, kind: str, attention: str | None) -> None:
    model = loaded(convert(GOLDEN / kind, tmp_path / "out"), attn_implementation=attention)
    golden = load_file(GOLDEN / kind / "expected.safetensors")
    ids = golden["input_ids"].long()
    output = model(ids, labels=ids)
    logits = output.logits[:, golden["logits_positions"].long()]
    torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(output.loss, golden["loss"][0], rtol=0, atol=1e-4)
    assert model.config.scheme == kind.replace("_", "-") and model.config.pad_token_id is None
    if kind.startswith("bipe"):
        positions = model.positions(ids)
        assert positions.offset.equal(golden["intra"].long())
        assert positions.segment.equal(golden["inter"].long())


def test_the_last_row_of_the_embedding_is_kept(tmp_path: Path) -> None:
    """It was the padding's and is zero; nothing makes it random or another row zero."""
    model = loaded(convert(GOLDEN / "bipe_rope", tmp_path / "out"))
    stored = load_file(GOLDEN / "bipe_rope" / "model.safetensors")
    assert model.model.embed_tokens.weight.equal(stored["model.embed_tokens.weight"])
    assert model.lm_head.weight.equal(stored["lm_head.weight"])


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_every_file_format_is_read(tmp_path: Path, pickled: bool, sharded: bool) -> None:
    source = released(tmp_path / "source", "bipe_alibi")
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(weights)
    parts = [names[::2], names[1::2]] if sharded else [names]
    whole, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    files = [f"{whole}-{index}.{suffix}" for index in range(2)] if sharded else [f"{whole}.{suffix}"]
    for file, part in zip(files, parts, strict=True):
        tensors = {name: weights[name] for name in part}
        (torch.save if pickled else save_file)(tensors, source / file)
    if sharded:
        place = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        (source / f"{whole}.{suffix}.index.json").write_text(json.dumps({"weight_map": place}))
    golden = load_file(GOLDEN / "bipe_alibi" / "expected.safetensors")
    model = loaded(convert(source, tmp_path / "out"))
    logits = model(golden["input_ids"].long()).logits[:, golden["logits_positions"].long()]
    torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["rope", "bipe_rope"])
def test_linear_scaling_divides_the_index(tmp_path: Path, kind: str) -> None:
    """At a factor of 2, a text in which every index doubled is what it was without."""
    scaling = {"rope_scaling": {"type": "linear", "factor": 2.0}}
    model = loaded(convert(released(tmp_path / "source", kind, **scaling), tmp_path / "out"))
    plain = loaded(convert(GOLDEN / kind, tmp_path / "plain"))
    ids = load_file(GOLDEN / kind / "expected.safetensors")["input_ids"].long()[:, :100]
    positions = plain.positions(ids)
    index = {"segment": 2 * positions.segment, "token": positions.token}
    doubled = model(ids, positions=positions._replace(**index)).logits
    torch.testing.assert_close(doubled, plain(ids).logits, rtol=0, atol=1e-5)
    assert (model(ids).logits - plain(ids).logits).abs().max() > 1e-3


def test_released_dynamic_scaling_begins_after_as_many_segments_as_trained_tokens(tmp_path: Path) -> None:
    scaling = {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 1024}
    source = released(tmp_path / "source", "bipe_rope", **scaling)
    config = BipeConfig.from_pretrained(convert(source, tmp_path / "out"))
    assert config.rope_parameters["original_max_segments"] == 1024


def test_long_segments_use_the_last_row(tmp_path: Path) -> None:
    model = loaded(convert(GOLDEN / "bipe_rope", tmp_path / "out"))
    ids = torch.full((1, 1100), 5)
    offsets = model.model.intra(model.positions(ids), torch.float32)
    assert offsets[0, 1023:].equal(model.model.intra.embedding.weight[-1].expand(77, -1))
    assert model(ids).logits.isfinite().all()


def test_released_heads_may_be_grouped(tmp_path: Path) -> None:
    source = released(tmp_path / "source", "bipe_rope", num_attention_heads=8, num_key_value_heads=2)
    weights = load_file(source / "model.safetensors")
    for name in weights:
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            weights[name] = weights[name][:8].clone()  # two heads of 4
    save_file(weights, source / "model.safetensors")
    model = loaded(convert(source, tmp_path / "out"))
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (8, 2)
    # As if each key head were written out for the four queries that share it.
    for name in weights:
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            weights[name] = weights[name].view(2, 1, 4, 32).expand(2, 4, 4, 32).reshape(32, 32)
    save_file(weights, source / "model.safetensors")
    settings = json.loads((source / "config.json").read_text()) | {"num_key_value_heads": 8}
    (source / "config.json").write_text(json.dumps(settings))
    written_out = loaded(convert(source, tmp_path / "written"))
    ids = ids_of(2, 50)
    torch.testing.assert_close(model(ids).logits, written_out(ids).logits, rtol=1e-5, atol=1e-5)
