"""Checkpoints of others: what they compute, and what is said of damaged ones."""

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
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from bipe import BipeConfig, BipeForCausalLM, convert
from bipe.data.tokens import train_tokenizer
from bipe.models.convert import convert_to_llama
from bipe.models.extension import extend_checkpoint
from bipe_cli.main import app, run

GOLDEN = Path(__file__).parent / "data" / "golden"
KINDS = ["alibi", "bipe_alibi", "bipe_rope", "rope"]
TINY: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


def loaded(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def ids_of(rows: int, tokens: int) -> Tensor:
    return torch.randint(0, 300, (rows, tokens), generator=torch.Generator().manual_seed(3))


def released(folder: Path, kind: str, **changes: Any) -> Path:
    """A copy of a released checkpoint with other settings."""
    shutil.copytree(GOLDEN / kind, folder)
    settings = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder with a Llama and a tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path / "llama"
    LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(folder)
    train_tokenizer(["one two. three four.\n five. " * 9], 300).save_pretrained(folder)
    return folder


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


SCALINGS: list[dict[str, Any]] = [
    {},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e4}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "rope_theta": 5e5,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    {"tie_word_embeddings": True},
    {"attention_bias": True, "mlp_bias": True},
    {"head_dim": 12},
]


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


@pytest.mark.parametrize("scheme", ["bipe-rope", "bipe-alibi", "sinusoidal", "nope", "rope"])
def test_a_retrofit_keeps_the_weights_and_starts_offsets_at_zero(
    llama: Path, tmp_path: Path, scheme: str
) -> None:
    source = loaded(llama)
    model = loaded(convert(llama, tmp_path / "out", scheme, max_offset=20))
    assert model.config.scheme == scheme
    stored = source.state_dict()
    for name, part in model.state_dict().items():
        if name.startswith("model.intra."):
            assert not part.any()
        else:
            assert part.equal(stored.pop(name)), name
    assert not stored
    if scheme == "bipe-rope":
        assert model.model.intra.embedding.weight.shape == (20, 32)
        assert model.config.segmenter["type"] == "token_set"
        # In a text of one-token segments every offset is 0 and every segment a token.
        ends = torch.tensor(model.config.segmenter["end_token_ids"])
        ids = ends[torch.randint(0, len(ends), (2, 40))]
        torch.testing.assert_close(model(ids).logits, source(ids).logits, rtol=0, atol=1e-6)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()


def test_a_retrofit_counts_segments_without_the_scaling_of_tokens(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**TINY, **SCALINGS[1])).save_pretrained(tmp_path / "llama")
    with pytest.warns(UserWarning, match=r"are scaled \(\w+\), which a retrofit does not keep"):
        made = convert(tmp_path / "llama", tmp_path / "out", "bipe-rope", end_token_ids=[3])
    assert loaded(made).config.rope_parameters == {"rope_type": "default", "rope_theta": 5e4}


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


@pytest.mark.parametrize("scheme", ["bipe-t5", "bipe-fire", "bipe-kerple", "cope", "bipe-alibi2-learned"])
def test_what_an_encoding_learns_starts_anew_in_a_retrofit(llama: Path, tmp_path: Path, scheme: str) -> None:
    model = loaded(convert(llama, tmp_path / "out", scheme, tokens_per_segment=5.0))
    expected = {name: part.clone() for name, part in model.model.inter.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.model.inter.reset_parameters(model.config.initializer_range)
    assert expected
    assert all(part.equal(expected[name]) for name, part in model.model.inter.named_parameters())


def test_a_retrofit_counts_in_its_own_unit(llama: Path, tmp_path: Path) -> None:
    config = BipeConfig.from_pretrained(convert(llama, tmp_path / "rope", "rope"))
    config.original_max_segments = 64  # tokens
    config.save_pretrained(tmp_path / "rope")
    model = loaded(convert(tmp_path / "rope", tmp_path / "out", "bipe-rope"))
    assert model.config.original_max_segments is None
    extend_checkpoint(tmp_path / "rope", tmp_path / "long", "ntk", 2.0)
    with pytest.raises(ValueError, match="retrofit the model that it was made of"):
        convert(tmp_path / "long", tmp_path / "other", "bipe-rope")


@pytest.mark.parametrize("trained", [None, 7])
def test_a_retrofit_of_a_table_that_is_trained_keeps_it(tmp_path: Path, trained: int | None) -> None:
    config = BipeConfig.from_pretrained(convert(GOLDEN / "bipe_rope", tmp_path / "one"))
    config.max_trained_offset = trained
    config.save_pretrained(tmp_path / "one")
    convert(tmp_path / "one", tmp_path / "two", "bipe-alibi", end_token_ids=[13, 869])
    one, two = loaded(tmp_path / "one"), loaded(tmp_path / "two")
    assert two.model.intra.embedding.weight.equal(one.model.intra.embedding.weight)
    assert two.config.max_trained_offset == trained
    convert(tmp_path / "one", tmp_path / "three", "bipe-alibi", end_token_ids=[13, 869], max_offset=8)
    assert not loaded(tmp_path / "three").model.intra.embedding.weight.any()
    assert loaded(tmp_path / "three").config.max_trained_offset is None


def test_a_retrofit_learns_every_offset_in_anybodys_loop(llama: Path, tmp_path: Path) -> None:
    """A limit on trained offsets would give all tokens of a segment the vector of the first."""
    model = loaded(convert(llama, tmp_path / "out", "bipe-rope", max_offset=20)).train()
    ids = ids_of(4, 60)
    model(ids, labels=ids).loss.backward()
    seen = model.positions(ids).offset.clamp(max=19).unique()
    learning = model.model.intra.embedding.weight.grad.abs().sum(dim=-1).nonzero()[:, 0]
    assert len(seen) > 5 and set(learning.tolist()) <= set(seen.tolist())
    assert len(learning) > 5


def test_the_automatic_scale_needs_its_number(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give tokens_per_segment"):
        convert(llama, tmp_path / "out", "bipe-alibi-auto")
    model = loaded(convert(llama, tmp_path / "out", "bipe-alibi-auto", tokens_per_segment=12.5))
    assert model.config.inter == {"type": "alibi", "scale": 12.5}


def test_code_beside_a_model_is_not_promised_where_it_is_not_written(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "one", standalone=True)
    assert "auto_map" in json.loads((tmp_path / "one" / "config.json").read_text())
    convert(tmp_path / "one", tmp_path / "two")
    assert "auto_map" not in json.loads((tmp_path / "two" / "config.json").read_text())


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


def test_settings_that_llama_has_not_decide_nothing(llama: Path, tmp_path: Path) -> None:
    strange = {"scheme": "nope", "segmenter": {"type": "never"}, "self": 1}
    settings = json.loads((llama / "config.json").read_text()) | strange
    before = loaded(llama)
    (llama / "config.json").write_text(json.dumps(settings))
    model, ids = loaded(convert(llama, tmp_path / "out")), ids_of(1, 30)
    assert model.config.scheme == "rope"
    assert model(ids).logits.equal(before(ids).logits)


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


def refused(source: Path, folder: Path, reason: str) -> None:
    """It is refused in one line, and nothing is left where the model would be."""
    with pytest.raises(ValueError, match=reason) as found:
        convert(source, folder / "out")
    assert "\n" not in str(found.value)
    assert not (folder / "out").exists() and not list(folder.glob(".out*"))


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
