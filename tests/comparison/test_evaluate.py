"""The command that evaluates, with the models of a comparison."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import bipe
from bipe.data import train_tokenizer
from bipe.models.checkpoint import load_checkpoint
from bipe.records import read_records
from bipe.segmentation import segmenter_of
from bipe_cli.main import app, run

from .conftest import few_windows


@few_windows
def test_evaluate_prints_the_scores_of_the_library(trained, texts, capsys):
    command = ["evaluate", "length-curve", "--model", str(trained), "--data", str(texts / "test.txt")]
    assert run(app, [*command, "--lengths", "16,64", "--max-windows", "20", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(row["scheme"], row["seed"], row["steps"]) for row in rows} == {("bipe-rope", 0, 4)}
    found = {row["length"]: row["value"] for row in rows if row["metric"] == "perplexity"}
    checkpoint = load_checkpoint(trained)
    ids = checkpoint.tokenizer((texts / "test.txt").read_text(), return_tensors="pt").input_ids
    expected = bipe.length_curve(checkpoint.model, [ids[0]], [16, 64], max_windows=20)
    assert found == {row.length: row.value for row in expected if row.metric == "perplexity"}


@few_windows
@pytest.mark.parametrize("protocol", ["same_targets", "blocks"])
def test_evaluate_compares_on_the_same_windows(finished, texts, capsys, protocol):
    """As the comparison that the models come from."""
    one, two = (str(finished[0] / "runs" / f"{name}-0") for name in ("rope", "bipe-rope"))
    command = ["evaluate", "length-curve", "--model", one, "--data", str(texts / "test.txt"), "--json"]
    options = ["--protocol", protocol, "--lengths", "16,32,64", "--max-windows", "40"]
    assert run(app, [*command, *options]) == 0
    alone = capsys.readouterr().out
    assert run(app, [*command, *options, "--against", two]) == 0
    both = capsys.readouterr().out
    assert both.startswith(alone)
    keys = ("length", "value", "low", "high", "windows")
    found = [json.loads(line) for line in both.removeprefix(alone).splitlines()]
    expected = [
        {"metric": f"{row['metric']}_difference"} | {key: row[key] for key in keys}
        for row in read_records(finished[0] / "differences.jsonl")
        if (row["first"], row["second"], row["protocol"]) == ("rope", "bipe-rope", protocol)
    ]
    assert expected and [{key: row[key] for key in ("metric", *keys)} for row in found] == expected
    assert {(row["scheme"], row["seed"], row["steps"], row["protocol"]) for row in found} == {
        ("rope", 0, 4, protocol)
    }


def test_evaluate_compares_no_other_tokens(trained, texts, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "other")
    train_tokenizer(["Other words."], 280).save_pretrained(tmp_path / "other")
    command = ["evaluate", "length-curve", "--model", str(trained), "--data", str(texts / "test.txt")]
    assert run(app, [*command, "--against", str(tmp_path / "other")]) == 2
    assert "has another tokenizer than" in capsys.readouterr().err


@few_windows
def test_evaluate_leaves_out_what_ends_segments(trained, texts, capsys):
    checkpoint = load_checkpoint(trained)
    ids = checkpoint.tokenizer((texts / "test.txt").read_text(), return_tensors="pt").input_ids[0]
    ends = segmenter_of(checkpoint.tokenizer, "paper").end_token_ids
    kept = ids[~torch.isin(ids, torch.tensor(sorted(ends)))]
    assert len(kept) < len(ids)
    command = ["evaluate", "length-curve", "--model", str(trained), "--data", str(texts / "test.txt")]
    options = ["--protocol", "without_separators", "--lengths", "16,32", "--max-windows", "20", "--json"]
    assert run(app, [*command, *options]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = bipe.length_curve(checkpoint.model, [kept], [16, 32], max_windows=20)
    assert {row["protocol"] for row in rows} == {"without_separators"}
    assert {row["length"]: row["value"] for row in rows if row["metric"] == "perplexity"} == {
        row.length: row.value for row in expected if row.metric == "perplexity"
    }


@few_windows
def test_evaluate_takes_up_to_sixteen_times_the_trained_length_by_itself(trained, texts, capsys):
    command = ["evaluate", "length-curve", "--model", str(trained), "--data", str(texts / "test.txt")]
    assert run(app, [*command, "--max-windows", "4"]) == 0
    lengths = {int(line.split()[0]) for line in capsys.readouterr().out.splitlines()}
    assert lengths == {16, 32, 64, 128, 256}


@few_windows
def test_losses_that_are_no_numbers_are_a_failure(trained, texts, tmp_path, capsys):
    for path in trained.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"].fill_(3e38)  # finite itself, but no product of it is
    weights["lm_head.weight"] *= 1e3
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    command = ["evaluate", "length-curve", "--model", str(tmp_path), "--data", str(texts / "test.txt")]
    assert run(app, [*command, "--lengths", "16", "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and "losses are not finite numbers at 16 tokens" in printed.err


@few_windows
def test_an_immense_perplexity_is_still_a_number(trained, texts, tmp_path, capsys):
    for path in trained.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] *= 1e6
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    command = ["evaluate", "length-curve", "--model", str(tmp_path), "--data", str(texts / "test.txt")]
    assert run(app, [*command, "--lengths", "16", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert 1e100 < rows[0]["value"] < math.inf
