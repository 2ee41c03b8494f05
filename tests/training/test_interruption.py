"""Runs that are broken off: they go on from a checkpoint, and end as if nothing had happened."""

import json
import os
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM

from bipe.training import checkpoints, train_model
from bipe.training.trainer import BlockTrainer

from .conftest import assert_same_weights, crash_at, interrupt_at, refuse, settings


@pytest.mark.parametrize("stopped_at", [1, 3, 5, 7])
def test_a_run_resumed_after_an_interruption_ends_in_the_same_weights(fit, stopped_at):
    options = {"batch_size": 2, "gradient_accumulation": 2}
    whole = fit("whole", **options)
    with pytest.raises(KeyboardInterrupt, match=rf"step {stopped_at + 1}; .*can be resumed"):
        fit("broken", on_progress=interrupt_at(stopped_at), **options)
    resumed = fit("broken", **options)
    assert_same_weights(resumed.model, whole.model)


def test_ctrl_c_finishes_the_step_and_leaves_a_resumable_run(fit, tmp_path):
    def press(row):
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    whole = fit("whole", checkpoint_every=None)
    with pytest.raises(KeyboardInterrupt, match="Stopped at step 3"):
        fit("broken", on_progress=press, checkpoint_every=None)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in (tmp_path / "broken" / "checkpoints").glob("step-*")] == ["step-3"]
    assert_same_weights(fit("broken", checkpoint_every=None).model, whole.model)


def test_a_second_ctrl_c_does_not_wait_for_the_step(fit, monkeypatch):
    steps = []

    def press_twice(self, model, inputs, num_items_in_batch=None):
        steps.append(self.state.global_step)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second should have stopped the step")

    monkeypatch.setattr(BlockTrainer, "training_step", press_twice)
    with pytest.raises(KeyboardInterrupt):
        fit()
    assert steps == [0]


def test_an_interruption_in_the_last_step_keeps_the_finished_run(fit):
    with pytest.raises(KeyboardInterrupt):
        fit(on_progress=interrupt_at(8))
    assert len(fit(on_progress=refuse).history) == 10


def test_a_crashed_run_goes_on_from_its_last_checkpoint_and_repeats_no_row(fit):
    whole = fit("whole")
    with pytest.raises(OSError, match="the power went out"):
        fit("broken", on_progress=crash_at(8))
    resumed = fit("broken")
    assert_same_weights(resumed.model, whole.model)

    def untimed(rows):
        return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows]

    assert untimed(resumed.history) == untimed(whole.history)


@pytest.mark.parametrize("harm", ["flip", "remove", "no manifest"])
def test_a_damaged_checkpoint_is_left_out_for_an_older_one(fit, tmp_path, harm):
    whole = fit("whole")
    with pytest.raises(OSError, match="the power went out"):
        fit("broken", on_progress=crash_at(8))
    newest = tmp_path / "broken" / "checkpoints" / "step-6"
    victim = newest / ("manifest.json" if harm == "no manifest" else "optimizer.pt")
    if harm == "flip":
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    else:
        victim.unlink()
    with pytest.warns(UserWarning, match=r"step-6 is damaged \(.*\) and left out"):
        resumed = fit("broken")
    assert_same_weights(resumed.model, whole.model)


def test_a_checkpoint_that_was_being_written_is_not_there(fit, tmp_path, monkeypatch):
    def fail(self, output_dir):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(BlockTrainer, "_save_rng_state", fail)
        with pytest.raises(OSError, match="the disk is full"):
            fit()
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert fit().history[-1]["step"] == 8


def test_only_the_newest_checkpoints_are_kept_and_none_of_a_finished_run(fit, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    seen, newest = [], []

    def look(row):
        seen.append(sorted(path.name for path in folder.glob("step-*")))
        newest.append(checkpoints.newest_whole(tmp_path / "run"))

    fit(on_progress=look, steps=12, checkpoint_every=2, keep_checkpoints=2)
    assert seen[-2:] == [["step-10", "step-8"]] * 2
    assert newest[-1] == folder / "step-10"
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_training_stops_before_a_value_that_is_not_finite_reaches_the_weights(
    fit, tmp_path, monkeypatch, kind
):
    compute_loss = BlockTrainer.compute_loss

    def diverge(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = compute_loss(self, model, inputs, num_items_in_batch=num_items_in_batch)
        assert isinstance(loss, torch.Tensor)
        if self.state.global_step < 4:
            return loss
        # The root of zero is zero, and its slope infinite.
        return loss * float("nan") if kind == "loss" else loss + (model.lm_head.weight * 0).sqrt().sum()

    monkeypatch.setattr(BlockTrainer, "compute_loss", diverge)
    expected = (
        r"not finite at step 5, learning rate 0\.00\d+\..*last good checkpoint is kept in .*checkpoints"
    )
    with pytest.raises(RuntimeError, match=expected):
        fit(checkpoint_every=2)
    run = tmp_path / "run"
    assert not (run / "model.safetensors").exists()
    kept = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "step-4")
    assert all(parameter.isfinite().all() for parameter in kept.parameters())
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) == 4


def test_a_line_of_the_history_that_was_cut_short_is_written_again(fit, tmp_path):
    with pytest.raises(OSError, match="the power went out"):
        fit(on_progress=crash_at(5))
    path = tmp_path / "run" / "history.jsonl"
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"step": 6, "lo')
    history = fit().history
    assert [row["step"] for row in history if "loss" in row] == list(range(1, 9))
    assert [json.loads(line) for line in path.read_text().splitlines()] == history


def test_a_bad_step_is_told_by_number_where_validation_comes_before_the_next_report(
    fit, tmp_path, monkeypatch
):
    def remember(self, value):  # as on a GPU, which is not waited for
        if self.state.global_step >= 4:
            self._bad_step = torch.where(self._bad_step < 0, 5, self._bad_step)

    monkeypatch.setattr(BlockTrainer, "_watch", remember)
    with pytest.raises(RuntimeError, match=r"not finite at step 5, .*kept in .*step-4"):
        fit(log_every=8, evaluate_every=6, checkpoint_every=2)


def test_what_is_measured_and_not_finite_is_recorded_as_nothing(
    make_config, blocks, validation_blocks, tmp_path
):
    values = iter([float("nan"), 0.5])
    trained = train_model(
        make_config(),
        blocks,
        validation_blocks,
        settings(evaluate_every=4),
        tmp_path / "run",
        seed=0,
        measure=lambda _: {"validation_share": next(values)},
    )
    found = [row["validation_share"] for row in trained.history if "validation_share" in row]
    assert found == [None, 0.5]


def test_a_validation_loss_that_is_not_finite_ends_the_run(fit, tmp_path, monkeypatch):
    losses = iter([5.0, float("inf")])
    monkeypatch.setattr("bipe.training.trainer.validation_loss", lambda *_: next(losses))
    with pytest.raises(RuntimeError, match=r"validation loss is not finite after step 4, .*kept in .*step-2"):
        fit(evaluate_every=2, checkpoint_every=2)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-2"]
