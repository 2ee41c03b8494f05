import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import bipe
from bipe.comparison import Comparison, compare, runs
from bipe.comparison.compare import _best_rate
from bipe.comparison.corpus import load_corpus
from bipe.comparison.description import _notes
from bipe.comparison.pairs import pairs_of
from bipe.data import load_tokenizer
from bipe.evaluation.losses import load_curves
from bipe.report import read_records, write_report
from bipe.training import read_settings

from .conftest import SMALL, settings

few_windows = pytest.mark.filterwarnings("ignore:Only .* windows:UserWarning")
SCHEMES = SMALL["schemes"]


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
    pick = _best_rate
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
def test_runs_of_another_release_are_told_of(finished, texts, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / "runs" / "rope-0" / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"torch": "1.0"}))
    compare(settings(texts), tmp_path / "run", say=lambda line: None)
    summary = (tmp_path / "run" / "summary.md").read_text()
    assert "Some runs were made with another torch: 1.0." in summary and "another device" not in summary


@few_windows
def test_a_finished_comparison_is_not_trained_again_and_more_may_follow(
    finished, texts, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    trained = []
    real = runs.train_model

    def count(config, blocks, validation, training, folder, **options):
        if not (Path(folder) / "model.safetensors").exists():
            trained.append(Path(folder).name)
        return real(config, blocks, validation, training, folder, **options)

    monkeypatch.setattr(runs, "train_model", count)
    before = (out / "scores.jsonl").read_bytes()
    compare(settings(texts), out, say=lambda line: None)
    assert trained == []
    assert (out / "scores.jsonl").read_bytes() == before
    compare(settings(texts, seeds=2), out, say=lambda line: None)
    assert trained == [f"{scheme}-1" for scheme in SCHEMES]
    assert (out / "scores.jsonl").read_bytes().startswith(before)
    trained.clear()
    compare(settings(texts, schemes=["t5"]), out, say=lambda line: None)
    assert trained[-2:] == ["t5-0", "t5-1"]
    assert (out / "scores.jsonl").read_bytes().startswith(before)
    described = json.loads((out / "settings.json").read_text())
    assert described["schemes"] == [*SCHEMES, "t5"]
    assert described["seeds"] == [0, 1]
    assert {row["scheme"] for row in read_records(out / "scores.jsonl")} == {*SCHEMES, "t5"}
    marker = (out / "comparison.json").read_bytes()
    monkeypatch.setattr(sys.modules["bipe.comparison.compare"], "segmenter_of", refuse)
    with pytest.raises(ValueError, match="no newline"):
        compare(settings(texts, schemes=["fire"]), out, say=lambda line: None)
    assert (out / "comparison.json").read_bytes() == marker


def refuse(tokenizer, rule):
    raise ValueError("no newline")


@few_windows
def test_a_broken_off_comparison_ends_with_the_same_losses(finished, texts, tmp_path, monkeypatch):
    out = tmp_path / "run"
    real, calls = runs.window_losses, []

    def break_off(*arguments, **options):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(runs, "window_losses", break_off)
    with pytest.raises(KeyboardInterrupt):
        compare(settings(texts), out, say=lambda line: None)
    assert len({row["scheme"] for row in read_records(out / "scores.jsonl")}) == 1
    with open(out / "scores.jsonl", "a") as file:
        file.write('{"scheme": "bipe-ro')
    with pytest.warns(UserWarning, match="broken off"):
        compare(settings(texts), out, say=lambda line: None)
    for scheme in SCHEMES:
        again, once = (
            load_curves(folder / "runs" / f"{scheme}-0" / "losses.safetensors")
            for folder in (out, finished[0])
        )
        for length in (16, 32, 64):
            np.testing.assert_array_equal(again["same_targets"][length].nll, once["same_targets"][length].nll)
    assert read_records(out / "scores.jsonl") == read_records(finished[0] / "scores.jsonl")


@few_windows
def test_workers_find_what_one_process_finds(finished, texts, tmp_path):
    out = tmp_path / "run"
    compare(settings(texts), out, processes=2, say=lambda line: None)
    rows, expected = (read_records(folder / "scores.jsonl") for folder in (out, finished[0]))
    assert [row["scheme"] for row in rows] == [row["scheme"] for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert math.isclose(row["value"], wanted["value"], rel_tol=1e-4)


def test_another_comparison_in_the_folder_is_refused(finished, texts):
    with pytest.raises(ValueError, match=r"holds another comparison: training\.steps is 4 there and 5 here"):
        compare(settings(texts, training={**SMALL["training"], "steps": 5}), finished[0])


def test_a_folder_with_other_files_is_refused(texts, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="no folder of a comparison"):
        compare(settings(texts), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_lengths_beyond_the_test_text_are_refused_before_training(texts, tmp_path):
    with pytest.raises(
        ValueError, match=r"longest length, 100000 tokens, does not fit .* longest document has \d+"
    ):
        compare(
            settings(texts, evaluation={"lengths": [16, 100000]}), tmp_path / "run", say=lambda line: None
        )
    assert not (tmp_path / "run" / "sweep").exists()


def test_lengths_beyond_the_text_without_separators_are_refused_before_training(finished, texts, tmp_path):
    tokenizer = load_tokenizer(str(finished[0] / "tokenizer"))
    longest = len(tokenizer((texts / "test.txt").read_text(), add_special_tokens=False)["input_ids"])
    asked = {"lengths": [16, longest], "protocols": ["same_targets", "without_separators"]}
    with pytest.raises(
        ValueError, match=rf"length, {longest} tokens, does not fit .* longest document has \d+"
    ):
        compare(settings(texts, evaluation=asked), tmp_path / "run", say=lambda line: None)
    assert not (tmp_path / "run" / "sweep").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schemes": ["rop"]}, "Unknown scheme 'rop'. Choose one of: alibi, "),
        ({"schemes": ["rope", "rope"]}, "once; got rope, rope"),
        ({"rule": "chapter"}, "Unknown rule 'chapter'. Choose one of: block, equals, file, line, paper"),
        ({"evaluation": {"protocols": ["blocs"]}}, "Unknown protocol 'blocs'. Choose one of: blocks, same"),
    ],
)
def test_unknown_names_are_refused_with_the_choices(texts, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        compare(settings(texts, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_defaults_and_values_from_a_command_line_go_together():
    chosen = read_settings(
        Comparison, None, {"learning_rates": "[0.001]"}, {"data.train_length": 64, "seeds": 2, "test": []}
    )
    assert chosen.data.train == ["stdlib"]
    assert (chosen.lengths, chosen.seeds, chosen.learning_rates) == ([64, 128, 256, 512, 1024], 2, [0.001])
    with pytest.raises(ValueError, match=r"training\.steps: .*greater than or equal to 1, got -3"):
        read_settings(Comparison, None, {}, {"training.steps": -3})


def test_the_published_comparisons_can_be_read():
    recipes = Path(__file__).parents[2] / "recipes"
    for recipe in [*recipes.glob("comparisons/*.yaml"), recipes / "arithmetic" / "cpu.yaml"]:
        read_settings(Comparison, recipe).check()


@few_windows
def test_a_rate_that_diverges_is_out_of_the_race(texts, tmp_path, monkeypatch):
    """However good it was when it was validated before."""
    real = runs.train_model

    def diverge(config, blocks, validation, training, folder, **options):
        if training.learning_rate >= 1e-2:
            Path(folder).mkdir(parents=True)
            (Path(folder) / "history.jsonl").write_text('{"step": 1, "validation_perplexity": 1.0}\n')
            raise runs.TrainingDiverged("Training diverged")
        return real(config, blocks, validation, training, folder, **options)

    monkeypatch.setattr(runs, "train_model", diverge)
    said = []
    compare(settings(texts, schemes=["rope"]), tmp_path / "run", say=said.append)
    assert any(line.endswith("rope at 0.01: diverged") for line in said)
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["learning_rates"] == {"rope": 1e-3}
    with pytest.raises(RuntimeError, match="rope diverged at every learning rate"):
        compare(settings(texts, schemes=["rope"], learning_rates=[1e-2, 2e-2]), tmp_path / "other")


@few_windows
def test_a_run_that_diverges_holds_up_no_other(texts, tmp_path, monkeypatch):
    """Whether in training or when it is measured."""
    train, measure = runs.train_model, runs.window_losses

    def diverge(config, blocks, validation, training, folder, **options):
        if config.scheme == "rope" and options["seed"] == 0:
            raise runs.TrainingDiverged("Training diverged at step 3.")
        return train(config, blocks, validation, training, folder, **options)

    def explode(model, *arguments, **options):
        if model.config.scheme == "bipe-alibi-auto":
            raise runs.NotFinite("The losses are not finite.")
        return measure(model, *arguments, **options)

    monkeypatch.setattr(runs, "train_model", diverge)
    monkeypatch.setattr(runs, "window_losses", explode)
    said: list[str] = []
    chosen = settings(texts, learning_rates=[1e-3], seeds=2)
    for _ in range(2):  # it is told again, and nothing else is done again
        with pytest.raises(RuntimeError) as failure:
            compare(chosen, tmp_path / "run", say=said.append)
        assert str(failure.value) == (
            "3 of 6 runs have no result. rope, seed 0: Training diverged at step 3. "
            "bipe-alibi-auto, seed 0: The losses are not finite. "
            "bipe-alibi-auto, seed 1: The losses are not finite."
        )
    assert "[1/6] rope, seed 0: Training diverged at step 3." in said
    measured = {(row["scheme"], row["seed"]) for row in read_records(tmp_path / "run" / "scores.jsonl")}
    assert measured == {("rope", 1), ("bipe-rope", 0), ("bipe-rope", 1)}
    compared = {
        (row["first"], row["second"], row["seed"])
        for row in read_records(tmp_path / "run" / "differences.jsonl")
    }
    assert compared == {("rope", "bipe-rope", 1)}
    summary = (tmp_path / "run" / "summary.md").read_text()
    assert "3 of 6 runs are complete" in summary
    assert "## Over the seeds, perplexity, blocks" in summary and "| bipe-rope | 2 |" in summary


@few_windows
def test_a_report_that_cannot_be_written_yet_holds_up_no_run(texts, tmp_path, monkeypatch):
    calls = []

    def write(out):
        calls.append(out)
        if len(calls) == 1:
            raise ValueError("nothing to draw")
        return write_report(out)

    monkeypatch.setattr(sys.modules[compare.__module__], "write_report", write)
    said: list[str] = []
    chosen = settings(texts, schemes=["rope", "bipe-rope"], learning_rates=[1e-3])
    assert compare(chosen, tmp_path / "run", say=said.append).exists()
    assert "No report yet: nothing to draw" in said
    assert {row["scheme"] for row in read_records(tmp_path / "run" / "scores.jsonl")} == {"rope", "bipe-rope"}


def test_a_rate_that_would_be_overridden_is_refused(texts, tmp_path):
    chosen = read_settings(Comparison, None, {"learning_rate": "0.05"}, {})
    with pytest.raises(ValueError, match=r"give learning_rates \[0.05\] in place of training.learning_rate"):
        compare(chosen, tmp_path / "run")


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


def test_a_folder_from_before_names_were_kept_is_reported_without(finished, texts, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "test_documents.json").unlink()
    corpus = load_corpus(tmp_path / "run")
    assert corpus.test_names == [] and len(corpus.test) == 1


@few_windows
def test_a_folder_refused_for_its_text_can_be_used_by_the_mended_command(texts, tmp_path):
    with pytest.raises(ValueError, match="does not fit"):
        compare(settings(texts, evaluation={"lengths": [16, 99999]}), tmp_path / "run", say=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_a_warm_up_longer_than_the_run_is_shortened():
    chosen = read_settings(Comparison, None, {}, {"training.steps": 3})
    assert (chosen.training.steps, chosen.training.warmup_steps) == (3, 20)
    job = runs.Job(Path("out"), "runs/rope-0", "rope", 0, 1e-3, 3, measure=True, settings=chosen)
    assert runs.recipe_of(job).training.warmup_steps == 0


def test_a_trial_that_fails_has_not_diverged(texts, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no space left")

    monkeypatch.setattr(runs, "train_model", fail)
    with pytest.raises(RuntimeError, match="no space left"):
        compare(settings(texts), tmp_path / "run", say=lambda line: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": {"train": ["TRAIN"], "vocab_size": 300, "train_length": 4000}},
            "training text has .* of 4000",
        ),
        (
            {"data": {"train": ["TRAIN"], "vocab_size": 300, "train_length": 400}},
            "validation text has .* of 400",
        ),
        (
            {"arms": {"odd": {"scheme": "alibi", "model": {"inter": {"type": "alibi", "scale": "x"}}}}},
            "scale must be a finite",
        ),
        ({"evaluation": {"lengths": [16, 99999]}}, "99999 tokens, does not fit"),
        ({"schemes": ["rope"], "rule": "released"}, "made for LLaMA's vocabulary"),
    ],
)
def test_what_cannot_be_trained_leaves_the_folder_to_the_mended_command(texts, tmp_path, changes, message):
    if "data" in changes:
        changes["data"]["train"] = [str(texts / "train")]
    with pytest.raises(ValueError, match=message):
        compare(settings(texts, **changes), tmp_path / "run", say=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_each_protocol_is_measured_once(texts, tmp_path):
    twice = {**SMALL["evaluation"], "protocols": ["blocks", "blocks"]}
    with pytest.raises(ValueError, match="protocol is measured once; got blocks, blocks"):
        compare(settings(texts, evaluation=twice), tmp_path / "run")


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
