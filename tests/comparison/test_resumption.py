"""Comparisons that are broken off, finished or enlarged: what is there is not made again."""

import json
import shutil
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from bipe.comparison import Comparison, compare, runs
from bipe.comparison.corpus import load_corpus
from bipe.comparison.folder import agreed
from bipe.evaluation.losses import NotFinite, load_curves, save_curves
from bipe.records import read_records
from bipe.report.folder import missing_runs, read_run

from .conftest import SCHEMES, SMALL, few_windows, settings


@pytest.fixture
def undrawn(monkeypatch):
    """Reports take longer to draw than such comparisons to make."""
    monkeypatch.setattr(sys.modules["bipe.comparison.compare"], "write_report", lambda out: None)


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
    finished, texts, tmp_path, monkeypatch, undrawn
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


FEW = {"schemes": ["rope", "bipe-rope"], "learning_rates": [1e-3]}
SHORT = SMALL["evaluation"] | {
    "lengths": [64, 128],
    "protocols": ["same_targets", "blocks"],
    "tasks": ["length-curve"],
    "problems": 3,
}
LONG = SHORT | {
    "lengths": [64, 128, 256],
    "protocols": ["same_targets", "without_separators", "blocks"],
    "tasks": ["length-curve", "passkey"],
}


@few_windows
def test_a_finished_comparison_is_measured_otherwise_without_training(texts, tmp_path, monkeypatch, undrawn):
    out, once = tmp_path / "run", tmp_path / "once"
    said: list[str] = []
    compare(settings(texts, **FEW, evaluation=SHORT), out, say=said.append)
    short = read_records(out / "scores.jsonl")
    assert not any("anew" in line for line in said)
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["bipe.training.train"], "_run", None)  # nothing trains
        compare(settings(texts, **FEW, evaluation=LONG), out, say=said.append)
        assert any("evaluation.lengths is [64, 128] there and [64, 128, 256] here" in line for line in said)
        grown = (out / "scores.jsonl").read_bytes()
        patched.setattr(runs, "window_losses", None)  # nothing is measured
        patched.setattr(runs, "TASKS", {})
        said.clear()
        unnamed = {"max_windows": 40, "validation_blocks": 3, "problems": 3}
        compare(settings(texts, **FEW, evaluation=unnamed), out, say=said.append)
        assert not any("anew" in line for line in said)
        assert (out / "scores.jsonl").read_bytes() == grown
        without_schemes = settings(texts, **FEW, evaluation=unnamed).model_dump(
            exclude={"schemes"}, exclude_unset=True
        )
        assert agreed(Comparison.model_validate(without_schemes), out).names == FEW["schemes"]
        with pytest.raises(ValueError, match=r"evaluation\.max_windows is 40 there and 9 here"):
            compare(settings(texts, **FEW, evaluation=unnamed | {"max_windows": 9}), out)
    compare(settings(texts, **FEW, evaluation=LONG), once, say=said.append)
    for name in ("scores.jsonl", "differences.jsonl"):
        assert (out / name).read_bytes() == (once / name).read_bytes()
    found = read_records(out / "scores.jsonl")
    assert {(row["task"], row["length"]) for row in found} == set(product(LONG["tasks"], LONG["lengths"]))
    compared = [row["protocol"] for row in read_records(out / "differences.jsonl")]
    assert list(dict.fromkeys(compared)) == LONG["protocols"]
    compare(settings(texts, **FEW, evaluation=SHORT), out, say=said.append)
    assert read_records(out / "scores.jsonl") == short
    compare(settings(texts, **FEW, evaluation=SHORT | {"protocols": ["blocks"]}), out, say=said.append)
    monkeypatch.setattr(runs, "window_losses", None)  # both are there, at these lengths
    compare(settings(texts, **FEW, evaluation=SHORT), out, say=said.append)
    assert read_records(out / "scores.jsonl") == short


@few_windows
def test_what_a_stopped_process_left_undone_is_done(finished, texts, tmp_path, monkeypatch, undrawn):
    """At each of three instants: before a run's scores, before the folder's, and between them and the record."""
    before, out = (finished[0] / "scores.jsonl").read_bytes(), tmp_path / "run"
    monkeypatch.setattr(runs, "window_losses", None)  # nothing has to be measured
    for lost in ("runs/rope-0/scores.jsonl", "scores.jsonl", "settings.json"):
        shutil.copytree(finished[0], out)
        (out / lost).unlink()
        (out / "differences.jsonl").unlink()
        compare(settings(texts), out, say=lambda line: None)
        assert (out / "scores.jsonl").read_bytes() == before
        assert (out / "differences.jsonl").read_bytes() == (finished[0] / "differences.jsonl").read_bytes()
        shutil.rmtree(out)


@few_windows
def test_a_run_that_was_measured_anew_replaces_its_rows(finished, texts, tmp_path, undrawn):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    before = read_records(out / "scores.jsonl")
    path = out / "runs" / "rope-0" / "losses.safetensors"
    curves = load_curves(path)
    curves["blocks"][64].nll[:] *= 2
    save_curves(path, curves)
    compare(settings(texts), out, say=lambda line: None)
    after = read_records(out / "scores.jsonl")
    assert len(after) == len(before)
    changed = [row for row in after if row not in before]
    assert {(row["scheme"], row["protocol"]) for row in changed} == {("rope", "blocks")}


def test_a_claim_that_another_call_made_is_not_given_up(texts, tmp_path):
    """Nothing is trained yet, and the command that follows asks for too much."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "comparison.json").write_text(settings(texts).model_dump_json())
    (out / "settings.json").write_text("{}")
    longer = settings(texts, evaluation=SMALL["evaluation"] | {"lengths": [99999]})
    with pytest.raises(ValueError, match="does not fit"):
        compare(longer, out, say=lambda line: None)
    assert agreed(settings(texts), out).names == SCHEMES


@few_windows
def test_measuring_anew_may_be_broken_off_and_taken_back(texts, tmp_path, monkeypatch, undrawn):
    out = tmp_path / "run"
    compare(settings(texts, **FEW, evaluation=SHORT), out, say=lambda line: None)
    short = read_records(out / "scores.jsonl")
    real = runs.window_losses

    def break_off(model, documents, lengths, *arguments, **options):
        if model.config.scheme == "bipe-rope" and 256 in lengths:
            raise RuntimeError("out of memory")
        return real(model, documents, lengths, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(runs, "window_losses", break_off)
        with pytest.raises(RuntimeError, match="out of memory"):
            compare(settings(texts, **FEW, evaluation=LONG), out, say=lambda line: None)
        assert {row["scheme"] for row in read_records(out / "scores.jsonl")} == {"rope"}
        assert not (out / "differences.jsonl").exists()
        run = read_run(out)
        assert [line.split(":")[0] for line in missing_runs(run)] == ["bipe-rope, seed 0"]
        assert run.places.keys() == {("rope", 0)}
        compare(settings(texts, **FEW, evaluation=SHORT), out, say=lambda line: None)
        assert read_records(out / "scores.jsonl") == short
    compare(settings(texts, **FEW, evaluation=LONG), out, say=lambda line: None)
    found = {(row["scheme"], row["length"]) for row in read_records(out / "scores.jsonl")}
    assert found == set(product(FEW["schemes"], LONG["lengths"]))


@few_windows
def test_a_run_that_fails_in_one_protocol_keeps_the_others(texts, tmp_path, monkeypatch, undrawn):
    out, keys = tmp_path / "run", {"tasks": ["length-curve", "passkey"]}
    compare(settings(texts, **FEW, evaluation=SHORT | keys), out, say=lambda line: None)
    real, exploding = runs.window_losses, {"rope"}

    def explode(model, documents, lengths, protocol, **options):
        if model.config.scheme in exploding and (protocol == "without_separators" or 256 in lengths):
            raise NotFinite("no numbers")
        return real(model, documents, lengths, protocol, **options)

    monkeypatch.setattr(runs, "window_losses", explode)
    more = SHORT | {"protocols": ["same_targets", "without_separators", "blocks"]} | keys
    with pytest.raises(RuntimeError, match="rope, seed 0: no numbers"):
        compare(settings(texts, **FEW, evaluation=more), out, say=lambda line: None)
    found = {(row["scheme"], row["protocol"]) for row in read_records(out / "scores.jsonl")}
    assert found == {
        *product(["bipe-rope"], [*more["protocols"], "1 of 1"]),
        ("rope", "same_targets"),
        ("rope", "blocks"),
        ("rope", "1 of 1"),
    }
    with pytest.raises(RuntimeError, match="rope, seed 0: no numbers"):
        compare(settings(texts, **FEW, evaluation=LONG), out, say=lambda line: None)
    curves = [row for row in read_records(out / "scores.jsonl") if row["task"] == "length-curve"]
    assert {row["scheme"] for row in curves} == {"bipe-rope"}  # none of rope's old numbers beside others
    assert (out / "differences.jsonl").read_text() == ""
    exploding.add("bipe-rope")
    longest, drawn = LONG | {"lengths": [128, 256]}, []
    monkeypatch.setattr(sys.modules["bipe.comparison.compare"], "write_report", drawn.append)
    with pytest.raises(RuntimeError, match="2 of 2 runs are not measured in full"):
        compare(settings(texts, **FEW, evaluation=longest), out, say=lambda line: None)
    assert drawn == [out]  # a report of what there is


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


def test_another_comparison_in_the_folder_is_refused(finished, texts):
    with pytest.raises(ValueError, match=r"holds another comparison: training\.steps is 4 there and 5 here"):
        compare(settings(texts, training={**SMALL["training"], "steps": 5}), finished[0])


def test_a_folder_from_before_names_were_kept_is_reported_without(finished, texts, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "test_documents.json").unlink()
    corpus = load_corpus(tmp_path / "run")
    assert corpus.test_names == [] and len(corpus.test) == 1
