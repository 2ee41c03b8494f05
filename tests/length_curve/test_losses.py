"""Losses of windows against a forward and a look-up for every scored token."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bipe import BipeForCausalLM, length_curve
from bipe.evaluation.losses import load_curves, save_curves, window_losses

from .curves import curve_of, falling_curve, noise
from .texts import CUTS, DOCUMENTS, LENGTHS, document, few_windows_are_fine, spans_of

ModelMaker = Callable[..., BipeForCausalLM]


@torch.no_grad()
def naive_losses(model: PreTrainedModel, window: Tensor, scored: int) -> list[float]:
    """Minus the log probability of each of the last tokens, each from a forward over what precedes it."""
    losses = []
    for target in range(len(window) - scored, len(window)):
        probabilities = model(window[None, :target], use_cache=False).logits[0, -1].double().log_softmax(-1)
        losses.append(-float(probabilities[window[target]]))
    return losses


@few_windows_are_fine
@pytest.mark.parametrize("scheme", ["rope", "bipe-rope", "bipe-alibi", "sinusoidal"])
@pytest.mark.parametrize("protocol", CUTS)
def test_losses_are_those_of_each_token_after_what_precedes_it(
    make_model: ModelMaker, protocol: str, scheme: str
) -> None:
    model = make_model(scheme)
    curve = window_losses(model, DOCUMENTS, LENGTHS, protocol, max_windows=7)
    for length, windows in spans_of(protocol, most=7).items():
        expected = [
            naive_losses(model, DOCUMENTS[index][first:end], windows.scored)
            for index, first, end in windows.spans
        ]
        np.testing.assert_allclose(curve[length].nll, [sum(losses) for losses in expected], rtol=1e-4)
        assert curve[length].tokens.tolist() == [len(losses) for losses in expected]


@few_windows_are_fine
def test_any_model_of_transformers_can_be_measured(make_model: ModelMaker) -> None:
    ours = make_model("rope")
    fields = {name: value for name, value in ours.config.to_dict().items() if name != "model_type"}
    llama = LlamaForCausalLM(LlamaConfig.from_dict(fields)).eval()
    llama.load_state_dict(ours.state_dict())
    for protocol in CUTS:
        first, second = (window_losses(model, DOCUMENTS, LENGTHS, protocol) for model in (ours, llama))
        for length in LENGTHS:
            np.testing.assert_array_equal(first[length].nll, second[length].nll)
    scores = length_curve(llama, DOCUMENTS, LENGTHS)
    assert {score.scheme for score in scores} == {"llama"}


@few_windows_are_fine
def test_logits_that_are_more_than_the_output_layer_are_scored_as_they_are() -> None:
    sizes = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 1000}
    config = Gemma2Config(**sizes, **heads, final_logit_softcapping=2.0, initializer_range=1.0)
    model = Gemma2ForCausalLM(config).eval()
    for protocol in CUTS:
        curve = window_losses(model, DOCUMENTS[:1], [64], protocol)[64]
        first = DOCUMENTS[0][:64]
        with torch.no_grad():
            logits = model(first[None]).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1], first[1:], reduction="none")
        scored = 63 if protocol == "blocks" else 32
        assert curve.nll[0] == pytest.approx(float(losses[-scored:].sum()), rel=1e-4)


@few_windows_are_fine
def test_segments_and_offsets_beyond_training_are_counted_in_the_windows(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope", max_trained_offset=3)
    curve = window_losses(model, DOCUMENTS, LENGTHS)
    for length, windows in spans_of("same_targets").items():
        segments = beyond = 0
        for index, first, end in windows.spans:
            offset = 0
            for token in DOCUMENTS[index][first:end].tolist():
                segments += offset == 0
                beyond += offset > 3
                offset = 0 if token in (1, 4, 7) else offset + 1
        tokens = length * len(windows.spans)
        assert curve[length].tokens_per_segment == pytest.approx(tokens / segments)
        assert curve[length].offsets_beyond_trained == pytest.approx(beyond / tokens)


class RowCounter(nn.Module):
    """The head, and how many rows of logits it made at a time."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.rows: list[int] = []

    def forward(self, hidden: Tensor) -> Tensor:
        self.rows.append(hidden.numel() // hidden.shape[-1])
        return self.head(hidden)


@few_windows_are_fine
@pytest.mark.parametrize("protocol", CUTS)
def test_the_head_sees_at_most_1024_tokens_at_once(make_model: ModelMaker, protocol: str) -> None:
    model = make_model("rope")
    counter = RowCounter(model.lm_head)
    model.set_output_embeddings(counter)
    text = [document(3000)]
    curve = window_losses(model, text, [512, 1024], protocol)
    assert max(counter.rows) <= 1024
    assert sum(counter.rows) == sum(losses.tokens.sum() for losses in curve.values())
    assert sum(counter.rows) > 2000


@few_windows_are_fine
def test_measuring_leaves_the_mode_of_the_model(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope", attention_dropout=0.5)
    expected = window_losses(model, DOCUMENTS, LENGTHS)
    measured = window_losses(model.train(), DOCUMENTS, LENGTHS)
    assert model.training
    for length in LENGTHS:
        np.testing.assert_array_equal(measured[length].nll, expected[length].nll)


@few_windows_are_fine
def test_lengths_may_come_unsorted_and_twice(make_model: ModelMaker) -> None:
    model = make_model("rope")
    jumbled, plain = (window_losses(model, DOCUMENTS, lengths) for lengths in ([32, 8, 16, 8], LENGTHS))
    assert list(jumbled) == LENGTHS
    for length in LENGTHS:
        np.testing.assert_array_equal(jumbled[length].nll, plain[length].nll)


@pytest.mark.parametrize("most", [0, -1])
@pytest.mark.parametrize("protocol", CUTS)
def test_no_windows_at_all_are_refused(make_model: ModelMaker, protocol: str, most: int) -> None:
    with pytest.raises(ValueError, match=f"max_windows.*{most}"):
        window_losses(make_model("rope"), DOCUMENTS, LENGTHS, protocol, max_windows=most)


def test_saved_curves_come_back(tmp_path: Path) -> None:
    by_place = {8: replace(curve_of(noise(9, 0)), by_place=noise(7, 1))}
    curves = {"same_targets": falling_curve({8: 0, 16: 1}), "blocks": by_place}
    save_curves(tmp_path / "losses.safetensors", curves)
    loaded = load_curves(tmp_path / "losses.safetensors")
    assert {protocol: list(curve) for protocol, curve in loaded.items()} == {
        "same_targets": [8, 16],
        "blocks": [8],
    }
    for protocol, curve in curves.items():
        for length, losses in curve.items():
            again = loaded[protocol][length]
            for name, value in vars(losses).items():
                np.testing.assert_array_equal(getattr(again, name), value)


@few_windows_are_fine
def test_without_separators_is_the_curve_of_the_text_without_them(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope")
    kept = [text[(text != 4) & (text != 7)] for text in DOCUMENTS]
    expected = window_losses(model, kept, LENGTHS)
    found = window_losses(model, DOCUMENTS, LENGTHS, "without_separators", separators={7, 4})
    for length in LENGTHS:
        assert found[length].nll.tolist() == expected[length].nll.tolist()
        assert found[length].tokens_per_segment == expected[length].tokens_per_segment
    with pytest.raises(ValueError, match="needs the ids that end segments"):
        window_losses(model, DOCUMENTS, LENGTHS, "without_separators")


@few_windows_are_fine
@pytest.mark.parametrize("protocol", CUTS)
def test_losses_by_place_add_up_to_those_of_the_windows(make_model: ModelMaker, protocol: str) -> None:
    model = make_model("bipe-alibi")
    curve = window_losses(model, DOCUMENTS, LENGTHS, protocol)
    for length, losses in curve.items():
        assert losses.by_place.sum() * len(losses.nll) == pytest.approx(losses.nll.sum())
        scored = int(losses.tokens[0])
        windows = spans_of(protocol)[length].spans
        texts = [DOCUMENTS[index][first:end] for index, first, end in windows]
        last = sum(naive_losses(model, text, scored)[-1] for text in texts) / len(texts)
        assert losses.by_place[-1] == pytest.approx(last, rel=1e-4)
