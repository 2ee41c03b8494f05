"""What is concluded from losses: perplexity at each length, effective context, differences of two models."""

import math
from collections.abc import Callable

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from bipe import BipeForCausalLM, Score, length_curve
from bipe.evaluation.base import Run
from bipe.evaluation.length_curve import effective_context, paired_differences
from bipe.evaluation.losses import WindowLosses, window_losses

from .curves import curve_of, falling_curve, noise
from .texts import CUTS, DOCUMENTS, LENGTHS, document, few_windows_are_fine, spans_of

ModelMaker = Callable[..., BipeForCausalLM]
TOKEN_BYTES = torch.tensor([0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6])


def of_metric(rows: list[Score], metric: str) -> list[Score]:
    return [row for row in rows if row.metric == metric]


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
def test_rows_say_which_run_they_measure(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope")
    for row in length_curve(model, DOCUMENTS, LENGTHS, run=Run("mine", seed=3, steps=40)):
        assert (row.scheme, row.seed, row.steps) == ("mine", 3, 40)
        assert (row.task, row.protocol) == ("length-curve", "same_targets")
        assert row.parameters == sum(p.numel() for p in model.parameters())
    assert {row.scheme for row in length_curve(model, DOCUMENTS, LENGTHS)} == {"bipe-rope"}


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
