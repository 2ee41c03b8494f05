"""Runs that diverge and reports that cannot be written: they hold up no other."""

import json
import sys
from pathlib import Path

import pytest

from bipe.comparison import compare, runs
from bipe.records import read_records
from bipe.report.html import write_report

from .conftest import few_windows, settings


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
            "3 of 6 runs are not measured in full. rope, seed 0: Training diverged at step 3. "
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


def test_a_trial_that_fails_has_not_diverged(texts, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no space left")

    monkeypatch.setattr(runs, "train_model", fail)
    with pytest.raises(RuntimeError, match="no space left"):
        compare(settings(texts), tmp_path / "run", say=lambda line: None)
