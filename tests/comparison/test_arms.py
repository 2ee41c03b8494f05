"""Comparisons of arms, and on arithmetic."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import bipe
from bipe.comparison import Comparison, compare
from bipe.comparison.corpus import Corpus
from bipe.evaluation.tasks import TASKS, TaskOptions
from bipe.models.checkpoint import load_checkpoint
from bipe.records import read_records
from bipe.training import ArithmeticSettings, read_settings
from bipe.training.material import Arithmetic
from bipe_cli.main import app, run

from .conftest import SMALL, few_windows, settings

ARITHMETIC: dict[str, Any] = {
    "schemes": ["rope"],
    "arms": {
        "bipe-rope-wide": {"scheme": "bipe-rope", "model": {"hidden_size": 24, "intermediate_size": 32}},
        "bipe-alibi-20": {"scheme": "bipe-alibi", "model": {"inter": {"type": "alibi", "scale": 20.0}}},
    },
    "rule": "equals",
    "data": {"arithmetic": {"operators": 3, "problems": 50, "validation_problems": 6}},
    "model": {**SMALL["model"], "max_offset": 32},
    "training": SMALL["training"],
    "learning_rates": [1e-3],
    "evaluation": {"lengths": [3, 5], "problems": 12, "validation_blocks": 4},
}


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("arithmetic") / "run"
    compare(Comparison.model_validate(ARITHMETIC), out, say=lambda line: None)
    return out


def test_every_name_is_scored_at_every_number_of_operations(solved: Path) -> None:
    rows = read_records(solved / "scores.jsonl")
    names = ["rope", "bipe-rope-wide", "bipe-alibi-20"]
    assert [(row["scheme"], row["length"]) for row in rows] == [(name, n) for name in names for n in (3, 5)]
    assert {(row["task"], row["metric"], row["windows"], row["steps"]) for row in rows} == {
        ("arithmetic", "accuracy", 12, 4)
    }
    for name in names:
        checkpoint = load_checkpoint(solved / "runs" / f"{name}-0")
        measured = TASKS["arithmetic"](checkpoint, TaskOptions(lengths=[3, 5], max_windows=12))
        assert [score.value for score in measured] == [row["value"] for row in rows if row["scheme"] == name]


def test_an_arm_differs_from_the_others_in_what_it_says(solved: Path) -> None:
    configs = {
        path.name: bipe.BipeConfig.from_pretrained(path) for path in sorted((solved / "runs").iterdir())
    }
    assert {name: config.hidden_size for name, config in configs.items()} == {
        "rope-0": 16,
        "bipe-rope-wide-0": 24,
        "bipe-alibi-20-0": 16,
    }
    assert configs["bipe-alibi-20-0"].inter == {"type": "alibi", "scale": 20.0}
    assert configs["bipe-rope-wide-0"].intra == {"type": "learned", "max_offset": 32}
    assert {config.max_position_embeddings for config in configs.values()} == {26}
    # Offsets were trained on real tokens alone: a segment of 3 operations has up to 10 tokens with its `=`.
    assert 5 <= (configs["bipe-rope-wide-0"].max_trained_offset or 0) <= 11
    assert configs["bipe-rope-wide-0"].original_max_segments == 4


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    chosen = Comparison.model_validate({**ARITHMETIC, "arms": {}, "seeds": 2})
    compare(chosen, tmp_path / "run", say=lambda line: None)
    first, second = (
        [
            row["loss"]
            for row in read_records(tmp_path / "run" / "runs" / name / "history.jsonl")
            if "loss" in row
        ]
        for name in ("rope-0", "rope-1")
    )
    assert len(first) == len(second) and all(one != other for one, other in zip(first, second, strict=True))


def test_a_few_validation_blocks_are_spread_evenly() -> None:
    problems = Arithmetic(ArithmeticSettings(operators=2, problems=5, validation_problems=10))
    corpus, every = Corpus(problems, [], torch.zeros(0)), problems.validation_blocks()
    for most, places in ((4, [0, 2, 5, 7]), (99, range(10))):
        chosen = corpus.validation_blocks(14, most)
        assert len(chosen) == len(places)
        for place, block in zip(places, chosen, strict=True):
            assert block["input_ids"].equal(every[place]["input_ids"])


def test_training_tells_of_the_accuracy(solved: Path) -> None:
    history = read_records(solved / "runs" / "rope-0" / "history.jsonl")
    found = [row for row in history if "validation_loss" in row]
    assert [row["step"] for row in found] == [2, 4]
    assert all(0 <= row["validation_accuracy"] <= 1 for row in found)


def test_the_report_shows_shares(solved: Path) -> None:
    page = (solved / "report.html").read_text(encoding="utf-8")
    summary = (solved / "summary.md").read_text(encoding="utf-8")
    for text in (page, summary):
        assert "Accuracy in arithmetic" in text
        assert "bipe-alibi-20" in text
        assert "accuracy at 5" in text
    assert "trained on 3 operations in a problem, tested on up to 5" in page
    assert "Perplexity beyond" not in page
    assert "Effective context" not in page
    assert (solved / "arithmetic_accuracy.png").stat().st_size > 1000
    described = json.loads((solved / "settings.json").read_text())
    assert described["data"] == {"arithmetic": ARITHMETIC["data"]["arithmetic"]}
    assert described["arms"] == ARITHMETIC["arms"]


def test_the_command_goes_on_with_more_arms(solved: Path, tmp_path: Path, capsys: Any) -> None:
    before = (solved / "scores.jsonl").read_text()
    recipe = tmp_path / "recipe.yaml"
    more = {"bipe-rope-tall": {"scheme": "bipe-rope", "model": {"num_hidden_layers": 2}}}
    recipe.write_text(json.dumps({**ARITHMETIC, "arms": more}))
    assert run(app, ["compare", "--recipe", str(recipe), "--out", str(solved)]) == 0
    after = (solved / "scores.jsonl").read_text()
    assert after.startswith(before)
    assert after.count("bipe-rope-tall") == 2
    assert "accuracy" in capsys.readouterr().out


def test_an_arm_added_to_a_folder_is_tried_with_its_own_settings(tmp_path: Path) -> None:
    """It has a scheme's name and more than one rate: the trials must be of the arm all the same."""
    first = {**ARITHMETIC, "arms": {}, "learning_rates": [1e-3, 2e-3], "sweep_steps": 2}
    compare(Comparison.model_validate(first), tmp_path / "run", say=lambda line: None)
    arm = {"scheme": "bipe-rope", "model": {"hidden_size": 24}}
    compare(
        Comparison.model_validate({**first, "arms": {"alibi": arm}}), tmp_path / "run", say=lambda line: None
    )
    for folder in ("sweep/alibi-0.001", "sweep/alibi-0.002", "runs/alibi-0"):
        config = bipe.BipeConfig.from_pretrained(tmp_path / "run" / folder)
        assert (config.hidden_size, config.inter) == (24, {"type": "rope"})
    before = (tmp_path / "run" / "comparison.json").read_text()
    other = {"alibi": {**arm, "model": {"hidden_size": 32}}}
    with pytest.raises(ValueError, match="holds another arm 'alibi'"):
        compare(Comparison.model_validate({**first, "arms": other}), tmp_path / "run")
    assert (tmp_path / "run" / "comparison.json").read_text() == before


def test_a_folder_made_anew_in_one_process_has_its_own_problems(tmp_path: Path) -> None:
    for operators in (2, 3):
        data = {"arithmetic": {**ARITHMETIC["data"]["arithmetic"], "operators": operators}}
        chosen = Comparison.model_validate({**ARITHMETIC, "arms": {}, "data": data})
        compare(chosen, tmp_path / "run", say=lambda line: None)
        identity = json.loads((tmp_path / "run" / "runs" / "rope-0" / "training.json").read_text())[
            "identity"
        ]
        assert identity["data"]["length"] == {2: 14, 3: 26}[operators]
        shutil.rmtree(tmp_path / "run")


def test_arms_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    given = {"arms": "{wide: {scheme: rope, model: {hidden_size: 24}}}", "data.arithmetic": "{operators: 2}"}
    chosen = read_settings(Comparison, None, given)
    assert chosen.model_of("wide").hidden_size == 24
    assert (chosen.data.arithmetic, chosen.data.train, chosen.rule) == (
        ArithmeticSettings(operators=2),
        None,
        "equals",
    )
    with pytest.raises(
        ValueError, match=r"unknown setting 'arms.wide.modle', choose one of: scheme, rule, model"
    ):
        read_settings(Comparison, None, {"arms": "{wide: {scheme: rope, modle: {}}}"})


def test_evaluate_asks_arithmetic_of_the_trained_size(solved: Path, capsys: Any) -> None:
    command = ["evaluate", "arithmetic", "--model", str(solved / "runs" / "rope-0"), "--max-windows", "5"]
    assert run(app, [*command, "--json"]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (row["length"], row["windows"], row["scheme"]) == (3, 5, "rope")
    assert run(app, ["evaluate", "length-curve", *command[2:]]) == 2
    assert "needs test text: give --data" in capsys.readouterr().err


@few_windows
def test_arms_on_text_have_segments_of_their_own(texts: Path, tmp_path: Path) -> None:
    arms = {
        "line": {"scheme": "bipe-rope", "rule": "line"},
        "four": {"scheme": "bipe-rope", "model": {"segmenter": {"type": "fixed_length", "n": 4}}},
    }
    chosen = settings(texts, schemes=[], arms=arms, learning_rates=[1e-3])
    compare(chosen, tmp_path / "run", say=lambda line: None)
    rows = read_records(tmp_path / "run" / "scores.jsonl")
    per_segment = {
        row["scheme"]: row["tokens_per_segment"]
        for row in rows
        if (row["metric"], row["protocol"], row["length"]) == ("perplexity", "blocks", 64)
    }
    assert per_segment["four"] == 4
    assert per_segment["line"] > 6
    compared = {(row["first"], row["second"]) for row in read_records(tmp_path / "run" / "differences.jsonl")}
    assert compared == {("line", "four")}


@few_windows
def test_texts_too_short_for_keys_are_refused_before_training(texts: Path, tmp_path: Path) -> None:
    chosen = settings(texts, evaluation={**SMALL["evaluation"], "tasks": ["length-curve", "passkey"]})
    with pytest.raises(ValueError, match=r"Telling and asking for a key takes .* got 16"):
        compare(chosen, tmp_path / "run", say=lambda line: None)
    assert not (tmp_path / "run").exists()


@few_windows
def test_a_short_test_document_does_not_stand_in_the_way_of_keys(texts: Path, tmp_path: Path) -> None:
    """Keys are told in documents as long as the longest length; the first here is not."""
    (tmp_path / "a.txt").write_text("Short.", encoding="utf-8")
    (tmp_path / "b.txt").write_text((texts / "test.txt").read_text(encoding="utf-8"), encoding="utf-8")
    evaluation = {
        "lengths": [200, 400],
        "max_windows": 4,
        "tasks": ["length-curve", "passkey"],
        "problems": 2,
    }
    both = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    chosen = settings(texts, schemes=["rope"], learning_rates=[1e-3], evaluation=evaluation)
    chosen = chosen.model_copy(update={"data": chosen.data.model_copy(update={"test": both})})
    compare(chosen, tmp_path / "run", say=lambda line: None)
    rows = read_records(tmp_path / "run" / "scores.jsonl")
    assert {row["length"] for row in rows if row["task"] == "passkey"} == {200, 400}


@few_windows
def test_keys_are_asked_for_in_a_comparison_on_text(texts: Path, tmp_path: Path) -> None:
    evaluation = {"lengths": [200, 400], "max_windows": 10, "tasks": ["length-curve", "multikey", "passkey"]}
    chosen = settings(
        texts, schemes=["bipe-rope"], learning_rates=[1e-3], evaluation={**evaluation, "problems": 3}
    )
    compare(chosen, tmp_path / "run", say=lambda line: None)
    rows = read_records(tmp_path / "run" / "scores.jsonl")
    keys = {(row["task"], row["metric"], row["length"]) for row in rows if row["task"] != "length-curve"}
    assert keys == {
        (task, metric, length)
        for task in ("multikey", "passkey")
        for metric in ("accuracy", "choice_accuracy")
        for length in (200, 400)
    }
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Choice_accuracy in passkey" not in page
    assert "Choice accuracy in passkey" in page
    assert "Perplexity beyond the trained length" in page
    assert "Guessing gets 10% choice accuracy." in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schemes": [], "arms": {}}, "nothing to compare"),
        ({"arms": {"a b": {"scheme": "rope"}}}, "name of an arm .*got 'a b'"),
        ({"arms": {"../x": {"scheme": "rope"}}}, "name of an arm"),
        ({"arms": {"x": {"scheme": "rop"}}}, "Unknown scheme 'rop'"),
        ({"arms": {"x": {"scheme": "rope", "rule": "word"}}}, "Unknown rule 'word'"),
        ({"arms": {"x": {"scheme": "rope", "model": {"width": 3}}}}, r"arms\.x\.model\.width: Extra"),
        ({"arms": {"rope": {"scheme": "rope"}}}, "Each scheme is compared once"),
        ({"evaluation": {"tasks": ["arithmetic", "arithmetic"]}}, "Each task is measured once"),
        ({"test": ["a.txt"]}, "makes its own test problems"),
        ({"data": {"scrolls": {"task": "qasper"}}, "rule": "paper"}, "SCROLLS is for bipe train"),
        ({"evaluation": {"tasks": ["length-curve"]}}, "measures arithmetic; got length-curve"),
        (
            {"evaluation": {"tasks": ["chess"]}},
            "Unknown task 'chess'. Choose one of: arithmetic, harness, length",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        compare(Comparison.model_validate({**ARITHMETIC, **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_text_is_not_asked_for_arithmetic(texts: Path) -> None:
    chosen = settings(texts, evaluation={"tasks": ["length-curve", "arithmetic"]})
    with pytest.raises(ValueError, match="measures length-curve"):
        chosen.check()


@pytest.mark.parametrize("setting", ["inter", "intra", "segmenter"])
def test_what_a_scheme_is_is_not_set_for_all_of_them(setting: str) -> None:
    chosen = Comparison.model_validate({"model": {setting: {"type": "rope"}}})
    with pytest.raises(ValueError, match=rf"model\.{setting} would replace that of every scheme.*arms"):
        chosen.check()


def test_arithmetic_is_measured_at_other_lengths(solved: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "run", []
    shutil.copytree(solved, out)
    other = {**ARITHMETIC, "arms": {}, "evaluation": ARITHMETIC["evaluation"] | {"lengths": [2, 3]}}
    compare(Comparison.model_validate(other), out, say=said.append)
    assert any("evaluation.lengths is [3, 5] there and [2, 3] here" in line for line in said)
    before, after = (
        {(row["scheme"], row["length"]): row["value"] for row in read_records(folder / "scores.jsonl")}
        for folder in (solved, out)
    )
    assert {length for _, length in after} == {2, 3}
    assert {key: after[key] for key in before if key[1] == 3} == {
        key: value for key, value in before.items() if key[1] == 3
    }
