"""What a comparison trains, measures and writes."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import bipe
from bipe.comparison import Comparison, compare, runs
from bipe.comparison.corpus import load_corpus
from bipe.comparison.description import _notes
from bipe.comparison.pairs import pairs_of
from bipe.comparison.rates import best_rate
from bipe.evaluation.losses import load_curves
from bipe.records import read_records

from .conftest import SCHEMES, SMALL, few_windows, settings


def test_every_scheme_length_and_protocol_has_its_scores(finished):
    out, _ = finished
    rows = read_records(out / "scores.jsonl")
    for protocol in ("same_targets", "blocks"):
        for metric in ("perplexity", "bits_per_byte"):
            found = [
                (row["scheme"], row["length"])
                for row in rows
                if (row["protocol"], row["metric"]) == (protocol, metric)
            ]
            assert sorted(found) == sorted((scheme, length) for scheme in SCHEMES for length in (16, 32, 64))
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
    assert {row["steps"] for row in rows} == {4}


def test_the_scores_are_those_of_the_saved_models(finished, texts):
    out, _ = finished
    model = bipe.BipeForCausalLM.from_pretrained(out / "runs" / "bipe-rope-0").eval()
    test = load_file(out / "corpus.safetensors")["test"].long()
    losses = load_curves(out / "runs" / "bipe-rope-0" / "losses.safetensors")["blocks"][64]
    block = test[:64][None]
    with torch.no_grad():
        loss = model(block, labels=block).loss
    assert losses.nll[0] / losses.tokens[0] == pytest.approx(loss.item(), rel=1e-5)


def test_each_scheme_gets_the_rate_with_the_lowest_validation_perplexity(finished):
    out, _ = finished
    chosen = json.loads((out / "settings.json").read_text())["learning_rates"]
    for scheme in SCHEMES:
        last = {}
        for rate in (0.001, 0.01):
            history = read_records(out / "sweep" / f"{scheme}-{rate:g}" / "history.jsonl")
            last[rate] = history[-1]["validation_perplexity"]
        assert chosen[scheme] == (0.001 if last[0.001] <= 1.02 * last[0.01] else 0.01)


def test_a_tie_of_rates_goes_to_the_lower():
    pick = best_rate
    assert pick({0.002: 201.5, 0.006: 198.7}) == 0.002
    assert pick({0.006: 198.7, 0.002: 203.5}) == 0.006
    assert pick({0.001: 250.0, 0.002: 199.0, 0.006: 198.7, 0.01: 197.0}) == 0.002


def test_auto_is_the_measured_tokens_per_segment(finished):
    out, _ = finished
    config = bipe.BipeConfig.from_pretrained(out / "runs" / "bipe-alibi-auto-0")
    measured = json.loads((out / "settings.json").read_text())["tokens_per_segment"]
    assert config.inter == {"type": "alibi", "scale": measured}
    assert 1 < measured < 16


def test_differences_are_those_of_the_losses(finished):
    out, _ = finished
    rows = read_records(out / "differences.jsonl")
    assert {(row["first"], row["second"]) for row in rows} == {
        ("rope", "bipe-rope"),
        ("rope", "bipe-alibi-auto"),
        ("bipe-rope", "bipe-alibi-auto"),
    }
    one, two = (load_curves(out / "runs" / f"{scheme}-0" / "losses.safetensors") for scheme in SCHEMES[:2])
    growth = next(
        row
        for row in rows
        if (row["second"], row["protocol"], row["length"], row["metric"])
        == ("bipe-rope", "same_targets", 64, "log_perplexity_growth")
    )
    means = {
        (name, length): curve["same_targets"][length].nll.sum() / curve["same_targets"][length].tokens.sum()
        for name, curve in (("one", one), ("two", two))
        for length in (16, 64)
    }
    expected = means["one", 64] - means["one", 16] - (means["two", 64] - means["two", 16])
    assert growth["value"] == pytest.approx(expected, abs=1e-9)


def test_the_report_and_the_environment_lie_in_the_folder(finished):
    out, said = finished
    for name in (
        "report.html",
        "summary.md",
        "length_curve.png",
        "places.png",
        "environment.json",
        "segments.json",
    ):
        assert (out / name).stat().st_size > 0
    assert any("bipe-rope, seed 0" in line for line in said)


@few_windows
def test_workers_find_what_one_process_finds(finished, texts, tmp_path):
    out = tmp_path / "run"
    compare(settings(texts), out, processes=2, say=lambda line: None)
    rows, expected = (read_records(folder / "scores.jsonl") for folder in (out, finished[0]))
    assert [row["scheme"] for row in rows] == [row["scheme"] for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert math.isclose(row["value"], wanted["value"], rel_tol=1e-4)


@few_windows
def test_text_that_is_trained_and_tested_on_is_told_of(texts, tmp_path):
    chosen = settings(texts, schemes=["rope"], learning_rates=[1e-3])
    both = chosen.model_copy(update={"test": [str(texts / "train"), str(texts / "test.txt")]})
    compare(both, tmp_path / "run", say=lambda line: None)
    summary = (tmp_path / "run" / "summary.md").read_text()
    assert "3 of 4 test documents are in the training text too." in summary


@pytest.mark.parametrize(
    ("changes", "pairs"),
    [
        (
            {"schemes": ["bipe-rope", "rope", "bipe-alibi"]},
            [("rope", "bipe-rope"), ("rope", "bipe-alibi"), ("bipe-rope", "bipe-alibi")],
        ),
        (
            {
                "schemes": ["rope", "alibi", "bipe-rope", "bipe-alibi"],
                "arms": {"steep": {"scheme": "bipe-alibi"}, "line": {"scheme": "bipe-rope", "rule": "line"}},
            },
            [
                *(("rope", "bipe-rope"), ("rope", "line")),
                *(("alibi", "bipe-alibi"), ("alibi", "steep")),
                *(("bipe-rope", "line"), ("bipe-alibi", "steep")),
            ],
        ),
    ],
)
def test_what_is_compared_with_what(changes, pairs):
    assert pairs_of(Comparison.model_validate(changes)) == pairs


def test_pairs_that_are_left_out_are_told_of(finished, texts):
    corpus = load_corpus(finished[0])
    assert not any("pairs" in note for note in _notes(settings(texts), corpus))
    many = settings(texts, schemes=["rope", "alibi", "nope", "bipe-rope", "bipe-alibi", "bipe-t5"])
    assert any("those of 2 of 15 pairs" in note for note in _notes(many, corpus))


@few_windows
def test_held_out_documents_are_named_in_the_report(texts, tmp_path):
    held_out = settings(texts, test=None, schemes=["rope"], learning_rates=[1e-3])
    page = compare(held_out, tmp_path / "run", say=lambda line: None)
    corpus = load_corpus(tmp_path / "run")
    assert len(corpus.test_names) == len(corpus.test) == 1
    longest = f"{corpus.test_names[0]} ({len(corpus.test[0]):,} tokens)"
    assert corpus.test_names[0] in {f"{seed}.txt" for seed in range(3)}
    assert longest in page.read_text()
    assert longest in (tmp_path / "run" / "summary.md").read_text()


def test_a_trial_is_the_beginning_of_its_run(texts, tmp_path):
    chosen = settings(texts, training={**SMALL["training"], "steps": 40, "warmup_steps": 20})
    trial, whole = (
        runs.recipe_of(
            runs.Job(tmp_path, "x", "rope", 0, 1e-3, steps, measure=measure, settings=chosen)
        ).training
        for steps, measure in ((2, False), (40, True))
    )
    assert (trial.steps, trial.warmup_steps, trial.schedule_steps) == (2, 8, 40)
    assert (whole.steps, whole.warmup_steps, whole.schedule_steps) == (40, 8, None)


def test_the_rates_of_a_trial_are_the_first_of_its_run(finished):
    out, _ = finished
    chosen = json.loads((out / "settings.json").read_text())["learning_rates"]["rope"]
    trial, whole = (
        [row["learning_rate"] for row in read_records(out / folder / "history.jsonl") if "loss" in row]
        for folder in (f"sweep/rope-{chosen!r}", "runs/rope-0")
    )
    assert len(trial) == 2 and trial == whole[:2]
