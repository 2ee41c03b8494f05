"""Perplexity against context length, against a forward and a look-up for every scored token."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from bipe import BipeForCausalLM, Score, length_curve
from bipe.evaluation.base import Run
from bipe.evaluation.intervals import interval
from bipe.evaluation.length_curve import effective_context, paired_differences
from bipe.evaluation.losses import WindowLosses, load_curves, save_curves, window_losses
from bipe.evaluation.windows import PROTOCOLS

ModelMaker = Callable[..., BipeForCausalLM]
LENGTHS = [8, 16, 32]
CUTS = ["blocks", "same_targets"]
TOKEN_BYTES = torch.tensor([0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6])
few_windows_are_fine = pytest.mark.filterwarnings("ignore:Only .* windows:UserWarning")


def document(tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(12, (tokens,), generator=torch.Generator().manual_seed(seed))


DOCUMENTS = [document(71, 1), document(16, 2), document(36, 3)]


def spans_of(protocol: str, lengths: Sequence[int] = LENGTHS, most: int | None = None) -> dict[int, Any]:
    return PROTOCOLS[protocol](DOCUMENTS, lengths, most)


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
def test_the_same_targets_are_scored_at_every_length() -> None:
    targets = [
        [(index, token) for index, _, end in windows.spans for token in range(end - windows.scored, end)]
        for windows in spans_of("same_targets").values()
    ]
    assert targets[0] == targets[1] == targets[2]
    assert len(set(targets[0])) == len(targets[0])


@few_windows_are_fine
def test_the_same_targets_are_the_last_half_of_the_shortest_length_and_leave_nothing_out() -> None:
    windows = spans_of("same_targets")
    assert {given.scored for given in windows.values()} == {4}
    ends = [(index, end) for index, _, end in windows[32].spans]
    assert ends == [(0, end) for end in range(32, 72, 4)] + [(2, 32), (2, 36)]


@few_windows_are_fine
@pytest.mark.parametrize("protocol", CUTS)
def test_windows_have_their_length_and_stay_in_one_document(protocol: str) -> None:
    for length, windows in spans_of(protocol).items():
        for index, first, end in windows.spans:
            assert end - first == length
            assert 0 <= first < end <= len(DOCUMENTS[index])


def test_blocks_are_consecutive_and_score_all_but_their_first_token() -> None:
    windows = spans_of("blocks")[16]
    assert windows.spans == [
        (0, 0, 16),
        (0, 16, 32),
        (0, 32, 48),
        (0, 48, 64),
        (2, 0, 16),  # the second document is shorter than the longest length
        (2, 16, 32),
    ]
    assert windows.scored == 15


@few_windows_are_fine
@pytest.mark.parametrize("most", [1, 2, 5])
def test_at_most_so_many_windows_are_spread_evenly(most: int) -> None:
    text = [document(400)]
    every = PROTOCOLS["same_targets"](text, [8, 32], None)[32].spans
    some = PROTOCOLS["same_targets"](text, [8, 32], most)[32].spans
    assert len(some) == most
    assert set(some) <= set(every)
    if most > 1:
        places = [every.index(span) for span in some]
        assert (places[0], places[-1]) == (0, len(every) - 1)
        gaps = np.diff(places)
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("most", "counts"), [(12, {8: 12, 16: 6, 32: 3}), (None, {8: 56, 16: 28, 32: 14})], ids=["capped", "all"]
)
def test_blocks_of_every_length_cover_the_same_text(most: int | None, counts: dict[int, int]) -> None:
    windows = PROTOCOLS["blocks"]([document(400), document(20), document(90)], [8, 16, 32], most)
    covered = {
        length: {(index, place) for index, first, end in found.spans for place in range(first, end)}
        for length, found in windows.items()
    }
    assert covered[8] == covered[16] == covered[32]
    assert {length: len(found.spans) for length, found in windows.items()} == counts
    assert (windows[32].spans[0], windows[32].spans[-1]) == ((0, 0, 32), (2, 32, 64))


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
def test_perplexity_is_exp_of_the_mean_loss_of_a_token(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope")
    for protocol in CUTS:
        curve = window_losses(model, DOCUMENTS, LENGTHS, protocol)
        rows = of_metric(length_curve(model, DOCUMENTS, LENGTHS, protocol), "perplexity")
        assert [row.length for row in rows] == LENGTHS
        for row in rows:
            losses = curve[row.length]
            assert row.value == pytest.approx(math.exp(losses.nll.sum() / losses.tokens.sum()))
            assert (row.tokens, row.windows) == (losses.tokens.sum(), len(losses.nll))
            assert row.low <= row.value <= row.high


@few_windows_are_fine
def test_bits_per_byte_count_the_bytes_of_the_scored_tokens(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope")
    rows = of_metric(length_curve(model, DOCUMENTS, LENGTHS, token_bytes=TOKEN_BYTES), "bits_per_byte")
    curve = window_losses(model, DOCUMENTS, LENGTHS)
    spans = spans_of("same_targets")[32].spans
    scored_bytes = sum(int(TOKEN_BYTES[DOCUMENTS[index][end - 4 : end]].sum()) for index, _, end in spans)
    assert [row.value for row in rows] == pytest.approx(
        [curve[length].nll.sum() / math.log(2) / scored_bytes for length in LENGTHS]
    )
    assert all(row.low <= row.value <= row.high for row in rows)
    assert of_metric(length_curve(model, DOCUMENTS, LENGTHS), "bits_per_byte") == []


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


def of_metric(rows: list[Score], metric: str) -> list[Score]:
    return [row for row in rows if row.metric == metric]


@few_windows_are_fine
def test_rows_say_which_run_they_measure(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope")
    for row in length_curve(model, DOCUMENTS, LENGTHS, run=Run("mine", seed=3, steps=40)):
        assert (row.scheme, row.seed, row.steps) == ("mine", 3, 40)
        assert (row.task, row.protocol) == ("length-curve", "same_targets")
        assert row.parameters == sum(p.numel() for p in model.parameters())
    assert {row.scheme for row in length_curve(model, DOCUMENTS, LENGTHS)} == {"bipe-rope"}


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


def test_a_length_beyond_the_text_names_the_longest_document(make_model: ModelMaker) -> None:
    for protocol in CUTS:
        with pytest.raises(ValueError, match=r"72.*71 tokens"):
            length_curve(make_model("rope"), DOCUMENTS, [8, 72], protocol)


def test_no_text_at_all_is_an_error(make_model: ModelMaker) -> None:
    with pytest.raises(ValueError, match=r"8.*0 tokens"):
        length_curve(make_model("rope"), [], [8])


@pytest.mark.parametrize("lengths", [[], [1, 8], [0], [-4]])
def test_lengths_too_short_to_score_are_refused(make_model: ModelMaker, lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        length_curve(make_model("rope"), DOCUMENTS, lengths)


@pytest.mark.parametrize("most", [0, -1])
@pytest.mark.parametrize("protocol", CUTS)
def test_no_windows_at_all_are_refused(make_model: ModelMaker, protocol: str, most: int) -> None:
    with pytest.raises(ValueError, match=f"max_windows.*{most}"):
        window_losses(make_model("rope"), DOCUMENTS, LENGTHS, protocol, max_windows=most)


def test_an_unknown_protocol_lists_the_choices(make_model: ModelMaker) -> None:
    with pytest.raises(ValueError, match=r"'same'.*blocks, same_targets"):
        length_curve(make_model("rope"), DOCUMENTS, LENGTHS, "same")


def test_fewer_windows_than_256_are_said_to_be_too_few(make_model: ModelMaker) -> None:
    with pytest.warns(UserWarning, match=r"Only 12 windows.*fewer than 256"):
        length_curve(make_model("rope"), DOCUMENTS, LENGTHS)


def test_fewer_windows_than_there_are_were_asked_for(make_model: ModelMaker) -> None:
    with pytest.warns(UserWarning, match=r"Only 8 windows .* max_windows allows no more"):
        rows = length_curve(make_model("rope"), [document(600)], [4, 8], max_windows=8)
    assert {row.windows for row in rows} == {8}


@few_windows_are_fine
def test_what_a_model_has_no_position_or_id_for_is_told() -> None:
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 12, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(n_positions=64, **sizes))
    with pytest.raises(ValueError, match=r"cannot read 128 tokens.* too few positions"):
        length_curve(model, [document(600)], [32, 128])
    with pytest.raises(ValueError, match=r"cannot read 32 tokens.* does not know"):
        length_curve(model, [document(600) + 12], [32])


def test_enough_windows_are_no_reason_to_warn(make_model: ModelMaker) -> None:
    rows = length_curve(make_model("rope"), [document(600)], [4, 8])
    assert {row.windows for row in rows} == {256}


def curve_of(nll: Sequence[float] | np.ndarray, tokens: int = 4) -> WindowLosses:
    """Losses of windows in which only the losses matter."""
    windows = len(nll)
    counts = np.full(windows, tokens, dtype=np.int64)
    return WindowLosses(np.asarray(nll, dtype=np.float64), counts, counts * 0, math.nan, math.nan)


def noise(windows: int, seed: int, spread: float = 1.0) -> np.ndarray:
    return 20 + spread * np.random.default_rng(seed).standard_normal(windows)


def falling_curve(drops: dict[int, float], windows: int = 256) -> dict[int, WindowLosses]:
    """A curve whose loss falls by so much on arriving at each length, with noise that the windows share."""
    shared, level, curve = noise(windows, 0, spread=5.0), 0.0, {}
    for length, drop in drops.items():
        level -= drop
        curve[length] = curve_of(shared + level + 0.2 * (noise(windows, length) - 20))
    return curve


@pytest.mark.parametrize(
    ("drops", "expected"),
    [
        ({8: 0, 16: 1, 32: 1, 64: 1}, 64),
        ({8: 0, 16: 1, 32: 1, 64: 0}, 32),
        ({8: 0, 16: 1, 32: 0, 64: 0}, 16),
        ({8: 0, 16: 0, 32: 0}, 8),
        ({8: 0, 16: -1, 32: -1}, 8),
        ({8: 0, 16: -1, 32: 1}, 32),
        ({8: 0, 32: 1, 128: 1}, None),
        ({8: 0, 16: 1, 24: 1, 32: 1}, None),
        ({8: 0}, 8),
    ],
)
def test_effective_context_is_the_longest_length_better_than_its_half(
    drops: dict[int, float], expected: int | None
) -> None:
    assert effective_context(falling_curve(drops)) == expected


def test_a_gain_that_may_be_chance_extends_no_context() -> None:
    gain = noise(256, 1, spread=10.0)
    gain += 0.5 - gain.mean()  # with a standard error of 10 / 16
    curve = {8: curve_of(noise(256, 2) + gain), 16: curve_of(noise(256, 2))}
    assert effective_context(curve) == 8


def test_of_a_few_windows_no_effective_context_is_known() -> None:
    assert effective_context(falling_curve({8: 0, 16: 1}, windows=7)) is None
    assert effective_context(falling_curve({8: 0, 16: 1}, windows=8)) == 16


@few_windows_are_fine
def test_effective_context_is_a_row_where_the_same_targets_are_scored(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope")
    (row,) = of_metric(length_curve(model, DOCUMENTS, LENGTHS), "effective_context")
    assert row.value == row.low == row.high == effective_context(window_losses(model, DOCUMENTS, LENGTHS))
    assert of_metric(length_curve(model, DOCUMENTS, LENGTHS, "blocks"), "effective_context") == []


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    return interval(lambda total, count: total / count, values, np.ones_like(values))


@pytest.mark.parametrize("windows", [2, 31, 64, 1000])
def test_an_interval_holds_its_value(windows: int) -> None:
    values = noise(windows, 4)
    value, low, high = mean_interval(values)
    assert value == pytest.approx(values.mean())
    assert low <= value <= high
    assert low < high


def test_what_belongs_to_a_window_is_drawn_together() -> None:
    sizes = np.random.default_rng(0).integers(1, 100, 256).astype(np.float64)
    assert interval(lambda total, size: total / size, 3 * sizes, sizes) == pytest.approx((3.0, 3.0, 3.0))


def test_one_window_has_an_interval_of_no_width() -> None:
    assert mean_interval(np.array([3.0])) == (3.0, 3.0, 3.0)


def test_intervals_shrink_with_the_root_of_the_windows() -> None:
    widths = []
    for windows in (64, 1024):
        ends = [mean_interval(noise(windows, seed))[1:] for seed in range(10)]
        widths.append(np.mean([high - low for low, high in ends]))
    assert widths[0] / widths[1] == pytest.approx(4.0, rel=0.2)
    assert widths[1] == pytest.approx(2 * 1.96 / math.sqrt(1024), rel=0.2)


def test_intervals_hold_the_truth_about_95_times_in_100() -> None:
    ends = [mean_interval(noise(256, seed))[1:] for seed in range(100)]
    assert 88 <= sum(low <= 20 <= high for low, high in ends) <= 99


def test_intervals_of_neighbours_that_agree_are_as_wide_as_those_of_so_many_fewer() -> None:
    single, repeated = noise(32, 5), np.repeat(noise(32, 5), 8)
    assert mean_interval(repeated)[1:] == pytest.approx(mean_interval(single)[1:])


def test_a_curve_does_not_differ_from_itself() -> None:
    curve = falling_curve({8: 0, 16: 1, 32: 1})
    rows = paired_differences(curve, curve, 8)
    assert len(rows) == 5
    for row in rows:
        assert (row["value"], row["low"], row["high"]) == (0, 0, 0)


def test_differences_are_of_log_perplexities_and_their_growth() -> None:
    first, second = falling_curve({8: 0, 16: 1, 32: 1}), falling_curve({8: 2, 16: 3, 32: 1})
    found = {(row["metric"], row["length"]): row for row in paired_differences(first, second, 8)}

    def log_perplexity(curve: dict[int, WindowLosses], length: int) -> float:
        return curve[length].nll.sum() / curve[length].tokens.sum()

    gaps = {length: log_perplexity(first, length) - log_perplexity(second, length) for length in first}
    for length, gap in gaps.items():
        row = found["log_perplexity", length]
        assert row["value"] == pytest.approx(gap)
        assert row["base_length"] == 8
        assert row["windows"] == 256
    for length in (16, 32):
        assert found["log_perplexity_growth", length]["value"] == pytest.approx(gaps[length] - gaps[8])
    assert ("log_perplexity_growth", 8) not in found


def test_pairing_takes_out_what_the_windows_share() -> None:
    hard = 10 * noise(256, 1)
    (row,) = paired_differences({8: curve_of(hard + 0.4)}, {8: curve_of(hard)}, 8)
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.1, 0.1, 0.1))


def test_differences_leave_out_lengths_that_only_one_curve_has() -> None:
    first, second = falling_curve({8: 0, 16: 1}), falling_curve({16: 0, 32: 1})
    assert {row["length"] for row in paired_differences(first, second, 8)} == {16}


def test_differences_of_other_windows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"windows.*256.*100|windows.*100.*256"):
        paired_differences(falling_curve({8: 0}), falling_curve({8: 0}, windows=100), 8)


def test_growth_is_left_out_where_lengths_score_other_tokens(make_model: ModelMaker) -> None:
    curve = window_losses(make_model("rope"), DOCUMENTS, LENGTHS, "blocks")
    assert {row["metric"] for row in paired_differences(curve, curve, 8)} == {"log_perplexity"}


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


@pytest.mark.parametrize(
    "documents", [["text"], [[1, 2, 3]], torch.arange(9), [torch.rand(9)], [torch.ones(1, 9).long()]]
)
def test_documents_that_are_no_token_ids_are_refused(make_model, documents):
    with pytest.raises(ValueError, match="test documents are a list of tensors"):
        length_curve(make_model("rope"), documents, [4])


@pytest.mark.parametrize("lengths", [4, [], [1]])
def test_lengths_that_are_none_are_refused(make_model, lengths):
    with pytest.raises(ValueError, match="Lengths are whole numbers of tokens, at least 2; got"):
        length_curve(make_model("rope"), [torch.arange(9)], lengths)
