"""The folder of a run: whose it is, and what a run leaves in it."""

import importlib.metadata
import json
from types import SimpleNamespace

import pytest
import torch

from bipe.training import history
from bipe.training.trainer import BlockTrainer

from .conftest import assert_same_weights, crash_at, interrupt_at, refuse


def test_a_finished_run_is_loaded_and_not_trained_again(fit):
    trained = fit()
    loaded = fit(on_progress=refuse)
    assert_same_weights(loaded.model, trained.model)
    assert loaded.history == trained.history
    assert not trained.model.training


def test_what_only_concerns_checkpoints_may_change_between_parts(fit):
    fit()
    assert fit(on_progress=refuse, checkpoint_every=5, keep_checkpoints=1).history


def test_a_run_from_before_a_setting_was_there_is_the_same_run(fit, tmp_path):
    run = fit().directory
    marker = json.loads((run / "training.json").read_text())
    del marker["identity"]["settings"]["tf32"]
    (run / "training.json").write_text(json.dumps(marker))
    assert fit(on_progress=refuse).history


def test_a_folder_of_another_run_is_refused_and_the_difference_named(fit, make_config, validation_blocks):
    fit()
    with pytest.raises(ValueError, match=r"another run: settings.learning_rate is 0.005 there and 0.1 here"):
        fit(learning_rate=0.1)
    with pytest.raises(ValueError, match=r"another run: config.attention_dropout is 0.1 there and 0.0 here"):
        fit(config=make_config())
    with pytest.raises(ValueError, match=r"another run: seed is 7 there and 9 here"):
        fit(seed=9)
    with pytest.raises(ValueError, match=r"another run: data.blocks is"):
        fit(data=validation_blocks)
    with pytest.raises(ValueError, match=r"already holds this run. Resume it"):
        fit(resume=False)


def test_an_interrupted_run_is_not_replaced_by_another(fit):
    with pytest.raises(KeyboardInterrupt):
        fit(on_progress=interrupt_at(2))
    with pytest.raises(ValueError, match="another run: seed"):
        fit(seed=9)


def test_a_folder_where_nothing_was_saved_begins_anew(fit):
    with pytest.raises(OSError, match="the power went out"):
        fit(on_progress=crash_at(2))
    assert [row["step"] for row in fit(seed=9, resume=False).history] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]


def test_drafts_of_others_are_left_alone(fit, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "chapter.12.draft").write_text("mine")
    with pytest.raises(ValueError, match=r"holds a chapter\.12\.draft but no training\.json"):
        fit()
    assert (run / "chapter.12.draft").read_text() == "mine"
    (run / "chapter.12.draft").rename(run / "training.json.12.draft")
    assert fit().history
    assert not list(run.glob("*.draft"))


def test_a_model_that_no_run_made_is_not_overwritten(fit, make_config, tmp_path):
    make_config().save_pretrained(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a config.json but no training.json"):
        fit()


def test_a_history_says_how_each_interval_went(fit, tmp_path):
    trained = fit(log_every=3, gradient_accumulation=2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert rows == trained.history
    assert [row["step"] for row in rows if "loss" in row] == [3, 6, 8]
    assert [row["step"] for row in rows if "validation_loss" in row] == [4, 8]
    for row in rows:
        assert set(row) in (
            {"step", "loss", "learning_rate", "tokens_per_second"},
            {"step", "validation_loss", "validation_perplexity"},
        )
        assert all(value > 0 for value in row.values())


@pytest.mark.parametrize("passes", [1, 3])
def test_the_speed_is_of_the_tokens_since_the_last_row(fit, monkeypatch, passes):
    """By a clock on which a pass takes a second, and nothing else any time."""
    seconds = []
    step = BlockTrainer.training_step

    def tick(self, *arguments):
        seconds.append(1)
        return step(self, *arguments)

    monkeypatch.setattr(BlockTrainer, "training_step", tick)
    monkeypatch.setattr(history, "time", SimpleNamespace(perf_counter=lambda: len(seconds)))
    options = {"log_every": 3, "gradient_accumulation": passes}
    with pytest.raises(KeyboardInterrupt):
        fit(on_progress=interrupt_at(3), **options)
    rows = [row for row in fit(**options).history if "loss" in row]
    assert [row["step"] for row in rows] == [3, 4, 6, 8]
    assert [row["tokens_per_second"] for row in rows] == [4 * 16] * 4


def test_a_run_leaves_what_it_ran_on(fit, tmp_path):
    fit()
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    expected = {"bipe", "python", "torch", "transformers", "platform", "cpu_count", "commit", "command"}
    assert expected <= set(environment)
    assert environment["torch"] == torch.__version__
    assert environment["bipe"] == importlib.metadata.version("bipe")


def test_tensorboard_events_stand_beside_the_weights(fit, tmp_path):
    pytest.importorskip("tensorboard")
    fit(tensorboard=True)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
