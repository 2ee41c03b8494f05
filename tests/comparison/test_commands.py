"""The command that compares, and what all commands say of wrong use."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from bipe.comparison.corpus import load_corpus
from bipe.records import read_records
from bipe.training.checkpoints import newest_whole, step_of
from bipe_cli.main import app, run

from .conftest import few_windows, settings


@few_windows
def test_compare_prints_the_scores_as_json_and_its_progress_apart(finished, texts, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(settings(texts).model_dump_json())
    assert run(app, ["compare", "--recipe", str(recipe), "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == read_records(out / "scores.jsonl")
    assert "bipe-rope, seed 0: perplexity" in printed.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            ["evaluate", "perplexty", "--model", "x", "--data", "y"],
            "Unknown task 'perplexty'. Choose one of: arithmetic, harness, length",
        ),
        (
            ["evaluate", "length-curve", "--model", "nowhere", "--data", "y"],
            "nowhere is no folder of a model",
        ),
        (["generate", "--model", "MODEL", "--prompt", ""], "prompt is empty"),
        (["generate", "--model", "MODEL", "--prompt", "a", "--bounded-cache"], "use the default cache"),
        (["generate", "--model", "MODEL", "--prompt", "a", "--max-new-tokens", "0"], "at least 1; got 0"),
        (["evaluate", "length-curve", "--model", "MODEL", "--data", "TEST", "--lengths", "16,x"], "'16,x'"),
        (
            ["evaluate", "length-curve", "--model", "MODEL", "--data", "TEST", "--lengths", "99999"],
            "99999, does not",
        ),
        (["evaluate", "length-curve", "--model", "MODEL", "--data", "nowhere.txt"], "'nowhere.txt'"),
        (
            ["evaluate", "passkey", "--model", "MODEL", "--data", "TEST", "--protocol", "blocks"],
            "--protocol is an option of length-curve, and passkey does not read it",
        ),
        (
            ["evaluate", "arithmetic", "--model", "MODEL", "--data", "TEST"],
            "--data is an option of length-curve, passkey, multikey, scrolls, and arithmetic does not",
        ),
        (
            ["evaluate", "harness", "--model", "MODEL", "--tasks", "x", "--split", "test"],
            "--split is an option of scrolls",
        ),
        (["compare", "--schemes", "rop", "--out", "OUT"], "Unknown scheme 'rop'. Choose one of: alibi,"),
        (["compare", "--steps", "-3", "--out", "OUT"], "training.steps"),
        (["compare", "--nonsense", "3", "--out", "OUT"], "Unknown setting 'nonsense'"),
        (["compare", "--data", "nowhere.txt", "--out", "OUT"], "'nowhere.txt'"),
        (["compare", "--recipe", "nowhere.yaml", "--out", "OUT"], "nowhere.yaml"),
        (
            ["compare", "--model.hidden_size", "30", "--data", "TEST", "--out", "OUT"],
            "hidden_size must be a multiple",
        ),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_wrong_use_exits_with_2_and_one_line(trained, texts, tmp_path, capsys, arguments, reason):
    places = {"MODEL": str(trained), "TEST": str(texts / "test.txt"), "OUT": str(tmp_path / "out")}
    assert run(app, [places.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_ctrl_c_stops_all_workers_and_leaves_resumable_runs(texts, tmp_path):
    endless = {"steps": 10**6, "batch_size": 2, "log_every": 1, "evaluate_every": None}
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(settings(texts, training=endless, learning_rates=[1e-3]).model_dump_json())
    command = [sys.executable, "-m", "bipe_cli", "compare", "--recipe", str(recipe), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--workers", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        started = out / "runs"
        deadline = time.monotonic() + 300
        while len(list(started.glob("*/history.jsonl"))) < 2:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert errors.startswith("bipe: Interrupted.") and errors.count("\n") == 1
    folders = sorted(path.name for path in started.iterdir())
    assert folders == ["bipe-rope-0", "rope-0"]
    for folder in folders:
        (checkpoint,) = (started / folder / "checkpoints").glob("step-*")
        assert newest_whole(started / folder) == checkpoint
        assert read_records(started / folder / "history.jsonl")[-1]["step"] == step_of(checkpoint)


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        ("comparison.json", "[]", "comparison.json holds list, not a JSON object"),
        ("comparison.json", '{"a": ', "comparison.json is no JSON object"),
        ("corpus.safetensors", "x", "corpus.safetensors cannot be read"),
        ("runs/rope-0/losses.safetensors", "x", "losses.safetensors cannot be read"),
        ("runs/rope-0/model.safetensors", "x", "rope-0 could not be read as a model"),
        ("runs/rope-0/training.json", "{}", "training.json is not the record of a run"),
        ("runs/rope-0/history.jsonl", "", "history.jsonl is missing or empty"),
        ("runs/rope-0/history.jsonl", "{\n", "history.jsonl, line 1 is no JSON record"),
    ],
)
def test_a_damaged_comparison_is_told_in_one_line(finished, texts, tmp_path, capsys, path, content, reason):
    out, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    shutil.copytree(finished[0], out)
    (out / path).write_text(content)
    recipe.write_text(settings(texts).model_dump_json())
    load_corpus.cache_clear()
    assert run(app, ["compare", "--recipe", str(recipe), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["segment", ""], "empty name"),
        (["compare", "--schemes", "", "--out", "OUT"], "Unknown scheme ''"),
        (["compare", "--lengths", "", "--out", "OUT"], "--lengths takes whole numbers"),
        (
            ["generate", "--model", "MODEL", "--prompt", "a", "--temperature", "nan"],
            "finite number, at least 0; got nan",
        ),
        (["generate", "--model", "MODEL", "--prompt", "a", "--seed", "-1"], "--seed"),
        (["generate", "--model", "MODEL", "--prompt", "\udcff"], "surrogates not allowed"),
    ],
)
def test_nothing_is_taken_for_something(trained, tmp_path, capsys, arguments, reason):
    places = {"MODEL": str(trained), "OUT": str(tmp_path / "out")}
    assert run(app, [places.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
