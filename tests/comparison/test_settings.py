"""Settings of a comparison: which are read, and which are refused before anything is trained."""

from pathlib import Path

import pytest

from bipe.comparison import Comparison, compare, runs
from bipe.data import load_tokenizer
from bipe.training import read_settings

from .conftest import SMALL, few_windows, settings


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


def test_a_rate_that_would_be_overridden_is_refused(texts, tmp_path):
    chosen = read_settings(Comparison, None, {"learning_rate": "0.05"}, {})
    with pytest.raises(ValueError, match=r"give learning_rates \[0.05\] in place of training.learning_rate"):
        compare(chosen, tmp_path / "run")


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
