"""Llamas that are given another scheme: they keep their weights, and what is new starts anew."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bipe import BipeConfig, convert
from bipe.models.extension import extend_checkpoint

from .conftest import GOLDEN, SCALINGS, TINY, ids_of, loaded


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
