import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import bipe
from bipe.comparison.corpus import load_corpus
from bipe.data import train_tokenizer
from bipe.models.checkpoint import load_checkpoint
from bipe.report import read_records
from bipe.segmentation import segmenter_of
from bipe.training.checkpoints import newest_whole, step_of
from bipe_cli.main import app, run

from .conftest import settings

few_windows = pytest.mark.filterwarnings("ignore:Only .* windows:UserWarning")


@pytest.fixture(scope="module")
def trained(finished):
    return finished[0] / "runs" / "bipe-rope-0"


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
def test_compare_prints_the_scores_as_json_and_its_progress_apart(finished, texts, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(settings(texts).model_dump_json())
    assert run(app, ["compare", "--recipe", str(recipe), "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == read_records(out / "scores.jsonl")
    assert "bipe-rope, seed 0: perplexity" in printed.err


def test_generate_continues_the_prompt_greedily(trained, capsys):
    assert (
        run(app, ["generate", "--model", str(trained), "--prompt", "the cat", "--max-new-tokens", "6"]) == 0
    )
    written = capsys.readouterr().out.rstrip("\n")
    checkpoint = load_checkpoint(trained)
    ids = checkpoint.tokenizer("the cat", return_tensors="pt").input_ids
    for _ in range(6):
        with torch.no_grad():
            ids = torch.cat((ids, checkpoint.model(ids).logits[:, -1:].argmax(-1)), dim=1)
    assert written == checkpoint.tokenizer.decode(ids[0], skip_special_tokens=True).rstrip("\n")


def test_generate_samples_the_same_text_for_the_same_seed(trained, capsys):
    command = ["generate", "--model", str(trained), "--prompt", "a red", "--temperature", "1.5", "--json"]
    texts = []
    for seed in ("1", "1", "2"):
        assert run(app, [*command, "--seed", seed]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1] != texts[2]


def test_a_text_is_shown_as_it_is_written(trained):
    from bipe.models.checkpoint import complete

    checkpoint, pieces = load_checkpoint(trained), []
    text = complete(checkpoint, "the cat", max_new_tokens=12, on_piece=pieces.append)
    assert "".join(pieces) == text and pieces[0] == "the cat" and len(pieces) > 6


def test_a_bounded_cache_writes_the_same_text(finished, capsys):
    model = finished[0] / "runs" / "bipe-alibi-auto-0"
    command = ["generate", "--model", str(model), "--prompt", "the cat saw. it ran", "--max-new-tokens", "40"]
    texts = []
    for more in ([], ["--bounded-cache"]):
        assert run(app, [*command, *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("the cat saw. it ran")


def test_a_prompt_starts_as_training_documents_do(trained, monkeypatch):
    from tokenizers.processors import TemplateProcessing

    from bipe.data import Document, encode
    from bipe.models.checkpoint import complete

    checkpoint = load_checkpoint(trained)
    the = checkpoint.tokenizer.convert_tokens_to_ids("t")
    checkpoint.tokenizer.bos_token = "t"  # any token will do, the vocabulary has no spare one
    checkpoint.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="t $A <|endoftext|>", special_tokens=[("t", the), ("<|endoftext|>", 0)]
    )
    given = []
    monkeypatch.setattr(checkpoint.model, "generate", lambda ids, **_: given.append(ids) or ids)
    complete(checkpoint, "a cat")
    assert given[0][0].tolist() == encode([Document("a", "a cat")], checkpoint.tokenizer)[0].tolist()
    assert given[0][0, 0] == the and given[0][0, -1] != 0


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


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_broken_file_of_a_model_is_named_or_its_folder(trained, tmp_path, capsys, broken):
    for path in trained.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes()[: 40 if path.name == broken else None])
    assert run(app, ["generate", "--model", str(tmp_path), "--prompt", "a"]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_weights_of_another_config_are_refused(trained, tmp_path, capsys):
    for path in trained.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    assert run(app, ["generate", "--model", str(tmp_path), "--prompt", "a"]) == 2
    assert "not those of its config.json" in capsys.readouterr().err


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
        ("comparison.json", "[]", "comparison.json is no JSON object"),
        ("comparison.json", '{"a": ', "comparison.json is no JSON object"),
        ("corpus.safetensors", "x", "corpus.safetensors cannot be read"),
        ("runs/rope-0/losses.safetensors", "x", "losses.safetensors cannot be read"),
        ("runs/rope-0/model.safetensors", "x", "rope-0 could not be read as a model"),
        ("runs/rope-0/training.json", "{}", "training.json is not the record of a run"),
        ("runs/rope-0/history.jsonl", "", "history.jsonl is missing or empty"),
        ("runs/rope-0/history.jsonl", "{\n", "history.jsonl is damaged"),
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


def test_extend_writes_a_model_and_says_what_becomes_of_its_channels(finished, tmp_path, capsys):
    model = finished[0] / "runs/bipe-rope-0"
    arguments = ["--model", model, "--method", "yarn", "--factor", "4"]
    assert run(app, [str(part) for part in ["extend", *arguments, "--out", tmp_path / "long"]]) == 0
    assert "nearly position interpolation" in capsys.readouterr().out
    assert (
        run(app, [str(part) for part in ["extend", *arguments, "--out", tmp_path / "other", "--json"]]) == 0
    )
    described = json.loads(capsys.readouterr().out)
    before = json.loads((model / "config.json").read_text())
    assert described["unit"] == "segments"
    assert described["original"] == before["original_max_segments"] >= 1
    assert described["kept"] + described["between"] + described["interpolated"] == len(described["pairs"])
    assert (
        run(
            app,
            [
                str(part)
                for part in [
                    "generate",
                    "--model",
                    tmp_path / "long",
                    "--prompt",
                    "A",
                    "--max-new-tokens",
                    "3",
                ]
            ],
        )
        == 0
    )


def test_extend_trains_on_longer_text_and_goes_on_where_it_stopped(finished, texts, tmp_path, capsys):
    model, out = finished[0] / "runs/rope-0", tmp_path / "long"
    arguments = ["extend", "--model", model, "--method", "linear", "--factor", "2", "--out", out]
    training = ["--data", texts / "train", "--steps", "2", "--batch-size", "2"]
    assert run(app, [str(part) for part in [*arguments, *training]]) == 0
    assert "after 2 steps" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["extension"]["method"] == "linear"
    before = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    assert config["max_position_embeddings"] == 2 * before
    assert yaml.safe_load((out / "recipe.yaml").read_text())["data"]["train_length"] == 2 * before
    assert run(app, [str(part) for part in [*arguments, *training]]) == 0  # it is finished, and only loaded


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--method", "yarnn", "--factor", "4"], "Unknown method 'yarnn'"),
        (["--method", "yarn", "--factor", "0.5"], "at least 1.01"),
        (["--method", "yarn", "--factor", "4", "--steps", "3"], "both --data and --steps"),
        (["--method", "yarn", "--factor", "4", "--batch-size", "3"], "--batch_size is a setting of training"),
        (["--method", "yarn", "--factor", "4", "--parameters", "3"], "--parameters takes names and values"),
        (["--method", "yarn", "--factor", "4", "--parameters", "{a: 3}"], "Unknown parameter 'a'"),
        (["--method", "yarn", "--factor", "4", "--parameters", "["], "--parameters takes names and values"),
        (["--method", "yarn", "--factor", "4", "--data", "nowhere", "--steps", "3"], "nowhere"),
    ],
)
def test_extend_says_what_is_wrong_and_leaves_nothing(finished, tmp_path, capsys, options, reason):
    arguments = ["extend", "--model", finished[0] / "runs/rope-0", "--out", tmp_path / "long", *options]
    assert run(app, [str(part) for part in arguments]) == 2
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_extend_refuses_a_folder_of_another_extension(finished, texts, tmp_path, capsys):
    model, out = finished[0] / "runs/rope-0", tmp_path / "long"

    def extend(*changes, base=model):
        training = ["--data", texts / "train", "--steps", "2", "--batch-size", "2", "--train-length", "32"]
        return run(
            app, [str(part) for part in ["extend", "--model", base, "--out", out, *training, *changes]]
        )

    assert extend("--method", "linear", "--factor", "2") == 0
    for changes, difference in [
        (["--method", "yarn", "--factor", "2"], "method is 'linear' there and 'yarn' here"),
        (["--method", "linear", "--factor", "4"], "factor is 2.0 there and 4.0 here"),
    ]:
        assert extend(*changes) == 2
        assert difference in capsys.readouterr().err
    assert extend("--method", "linear", "--factor", "2", base=finished[0] / "runs/bipe-rope-0") == 2
    assert "another extension" in capsys.readouterr().err
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    arguments = ["--model", model, "--method", "linear", "--factor", "2", "--out", foreign]
    training = ["--data", texts / "train", "--steps", "2"]
    assert run(app, [str(part) for part in ["extend", *arguments, *training]]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "long", "long.start"]
