"""The benchmarks of training steps and positions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from bipe.benchmarks.model import Size, measure_generation, measure_positions, measure_steps
from bipe_cli.main import app, run

SMALL = Size(hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=100)


def test_both_models_have_one_size() -> None:
    llama, rope = SMALL.llama(), SMALL.scheme("rope")
    assert isinstance(llama, LlamaForCausalLM) and llama.config._attn_implementation == "sdpa"
    assert llama.num_parameters() == rope.num_parameters()
    assert SMALL.scheme("bipe-alibi").config._attn_implementation == "segment_local"
    # Random ids have segments of about as many tokens as asked for.
    torch.manual_seed(0)
    positions = SMALL.scheme("bipe-alibi").positions(SMALL.ids(1, 5000, "cpu"))
    assert 20 < 5000 / int(positions.segment.max()) < 31


def test_rows_tell_steps() -> None:
    rows = measure_steps(["rope", "bipe-alibi"], [32, 16], SMALL, rounds=2)
    assert [(row["scheme"], row["length"]) for row in rows] == [
        (scheme, length) for length in (16, 32) for scheme in ("rope", "bipe-alibi")
    ]
    for row in rows:
        assert 0 < row["low"] <= row["median"] <= row["high"] and row["extra_peak_bytes"] > 0
        assert row["scheme"] != "rope" or row["peak_ratio"] == pytest.approx(1, abs=0.1)


def test_positions_are_a_small_share() -> None:
    row = measure_positions("bipe-alibi", 2, 16, SMALL, rounds=2)
    assert (row["rows"], row["length"]) == (2, 16)
    assert 0 < row["low"] <= row["median"] <= row["high"]


def test_rows_tell_generation() -> None:
    rows = measure_generation(["bipe-rope", "bipe-alibi"], [30, 10], SMALL, new_tokens=3, rounds=2)
    assert [(row["scheme"], row["context"], row["new_tokens"]) for row in rows] == [
        (scheme, context, 3) for context in (10, 30) for scheme in ("bipe-rope", "bipe-alibi")
    ]
    assert all(0 < row["low"] <= row["median"] <= row["high"] for row in rows)
    with pytest.raises(ValueError, match="at least one scheme"):
        measure_generation(["rope"], [0], SMALL)


def test_the_command_and_the_script_are_one(capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "--lengths",
        "16",
        "--hidden-size",
        "24",
        "--layers",
        "1",
        "--heads",
        "2",
        "--vocabulary",
        "100",
        "--rounds",
        "1",
    ]
    assert run(app, ["bench", "model", *small, "--json"]) == 0
    (row,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    script = Path(__file__).parents[2] / "benchmarks" / "model.py"
    printed = subprocess.run(
        [sys.executable, script, *small], capture_output=True, text=True, check=True
    ).stdout
    assert printed.startswith("bipe-rope at 16 tokens: ") and "of Llama's step" in printed
    assert row["scheme"] == "bipe-rope"

    assert run(app, ["bench", "generate", *small[2:], "--contexts", "20", "--new-tokens", "2"]) == 0
    assert capsys.readouterr().out.startswith("bipe-rope after 20 tokens: ")
    assert run(app, ["bench", "positions", *small[2:], "--rows", "2", "--length", "16"]) == 0
    assert capsys.readouterr().out.startswith("bilevel_positions on (2, 16): ")
