import importlib.metadata
import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from bipe.models import BipeForCausalLM
from bipe.training import TrainingSettings, checkpoints, history, train_model
from bipe.training.order import SeededOrder
from bipe.training.trainer import BlockTrainer, training_arguments, validation_loss


def settings(**changes):
    defaults = {"steps": 8, "batch_size": 4, "log_every": 1, "evaluate_every": 4, "checkpoint_every": 3}
    return TrainingSettings(**{**defaults, "learning_rate": 5e-3, "warmup_steps": 2, **changes})


def ignore(row):
    pass


def refuse(row):
    raise AssertionError(f"nothing should be trained, but there is {row}")


def interrupt_at(step):
    def on_progress(row):
        if row["step"] == step and "loss" in row:
            raise KeyboardInterrupt

    return on_progress


def crash_at(step):
    def on_progress(row):
        if row["step"] == step and "loss" in row:
            raise OSError("the power went out")

    return on_progress


def assert_same_weights(model, other):
    there = other.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, there[name]), name


@pytest.fixture
def fit(make_config, blocks, validation_blocks, tmp_path):
    """Train in a folder below the test's own, with dropout, so that random states matter."""

    def run(folder="run", config=None, on_progress=ignore, data=None, resume=True, seed=7, **changes):
        return train_model(
            config or make_config(attention_dropout=0.1),
            blocks if data is None else data,
            validation_blocks,
            settings(**changes),
            tmp_path / folder,
            seed=seed,
            resume=resume,
            on_progress=on_progress,
        )

    return run


def test_training_learns_what_a_count_of_tokens_cannot(fit, make_config, blocks):
    counts = torch.bincount(torch.cat([block["input_ids"] for block in blocks]))
    share = counts[counts > 0] / counts.sum()
    unigram_entropy = float(-(share * share.log()).sum())
    trained = fit(config=make_config(), steps=150, batch_size=16, log_every=25, evaluate_every=None)
    *_, validated = trained.history
    assert validated["validation_loss"] < unigram_entropy - 1.0
    assert validated["validation_perplexity"] == pytest.approx(
        torch.tensor(validated["validation_loss"]).exp().item()
    )


def test_tied_weights_stay_tied_and_decay_once(fit, make_config, monkeypatch):
    groups = []
    created = BlockTrainer.create_optimizer

    def create_optimizer(self, *args):
        optimizer = created(self, *args)
        groups.append([len(group["params"]) for group in optimizer.param_groups])
        return optimizer

    monkeypatch.setattr(BlockTrainer, "create_optimizer", create_optimizer)
    untied = fit("untied", config=make_config())
    tied = fit("tied", config=make_config(tie_word_embeddings=True))
    assert tied.model.lm_head.weight is tied.model.model.embed_tokens.weight
    assert tied.history[-1]["validation_loss"] < tied.history[0]["loss"]
    (decayed, others), (decayed_tied, others_tied) = groups
    assert (decayed_tied, others_tied) == (decayed - 1, others)
    assert untied.model.lm_head.weight is not untied.model.model.embed_tokens.weight


def test_the_optimizer_has_its_settings_and_gradients_are_clipped(fit, monkeypatch):
    groups, norms = [], []
    created = BlockTrainer.create_optimizer

    def measure(optimizer, *arguments):
        parts = [part.grad for group in optimizer.param_groups for part in group["params"]]
        norms.append(float(nn.utils.get_total_norm(parts)))

    def create_optimizer(self, *args):
        optimizer = created(self, *args)
        groups.extend(optimizer.param_groups)
        optimizer.register_step_pre_hook(measure)
        return optimizer

    monkeypatch.setattr(BlockTrainer, "create_optimizer", create_optimizer)
    fit(adam_betas=(0.8, 0.95), adam_epsilon=1e-6, weight_decay=0.2, max_grad_norm=0.01)
    assert [(group["betas"], group["eps"]) for group in groups] == [((0.8, 0.95), 1e-6)] * 2
    assert [group["weight_decay"] for group in groups] == [0.2, 0]
    assert norms == pytest.approx([0.01] * 8, rel=1e-3)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(fit):
    first, again, other = fit("first"), fit("again"), fit("other", seed=8)
    assert_same_weights(first.model, again.model)
    assert not torch.equal(first.model.lm_head.weight, other.model.lm_head.weight)


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


def test_every_scheme_sees_the_same_blocks_in_the_same_order(fit, make_config, monkeypatch):
    seen = []
    compute_loss = BlockTrainer.compute_loss

    def watch(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        seen.append(inputs["input_ids"].clone())
        return compute_loss(self, model, inputs, num_items_in_batch=num_items_in_batch)

    monkeypatch.setattr(BlockTrainer, "compute_loss", watch)
    orders = []
    for scheme in ("bipe-rope", "rope", "sinusoidal"):
        fit(scheme, config=make_config(scheme))
        orders.append(torch.cat(seen))
        seen.clear()
    assert torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])


@pytest.mark.parametrize("blocks", [1, 2, 5, 64])
def test_an_order_visits_every_block_once_a_pass(blocks):
    whole, begun = 3 * blocks, blocks // 2
    order = list(SeededOrder(blocks, whole + begun, seed=1))
    for start in range(0, whole, blocks):
        assert sorted(order[start : start + blocks]) == list(range(blocks))
    assert len(set(order[whole:])) == len(order[whole:]) == begun


def test_an_order_depends_on_the_seed_and_differs_from_pass_to_pass():
    order = list(SeededOrder(64, 128, seed=1))
    assert order == list(SeededOrder(64, 128, seed=1))
    assert order != list(SeededOrder(64, 128, seed=2))
    assert order[:64] != order[64:]


def test_what_an_order_draws_is_what_it_yields_and_few_stand_for_many():
    order = SeededOrder(40, 13, seed=3)
    assert order.drawn(100) == sorted(order) and SeededOrder(5, 13, seed=3).drawn(100) == list(range(5))
    few = order.drawn(4)
    assert len(few) == 4 and set(few) < set(order) and few[0] == min(order) and few[-1] == max(order)


def test_a_finished_run_is_loaded_and_not_trained_again(fit):
    trained = fit()
    loaded = fit(on_progress=refuse)
    assert_same_weights(loaded.model, trained.model)
    assert loaded.history == trained.history
    assert not trained.model.training


def test_what_only_concerns_checkpoints_may_change_between_parts(fit):
    fit()
    assert fit(on_progress=refuse, checkpoint_every=5, keep_checkpoints=1).history


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_implementation_of_attention_is_a_setting(fit, make_config, attention):
    seen = []
    forward = BipeForCausalLM.forward

    def watch(model, *arguments, **named):
        seen.append(model.config._attn_implementation)
        return forward(model, *arguments, **named)

    plain = fit("plain", config=make_config("bipe-alibi"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BipeForCausalLM, "forward", watch)
        other = fit("other", config=make_config("bipe-alibi"), attention=attention)
    assert set(seen) == {attention} and plain.model.config._attn_implementation == "segment_local"
    assert other.model.config._attn_implementation == "segment_local"
    losses = [[row["loss"] for row in run.history if "loss" in row] for run in (plain, other)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which the tracing of torch 2.9 reads
def test_a_compiled_model_trains_alike(fit, make_config):
    settings = {"steps": 2, "evaluate_every": None, "checkpoint_every": None, "warmup_steps": 1}
    plain, compiled = (
        fit(name, config=make_config("bipe-rope"), compile=name == "compiled", **settings)
        for name in ("plain", "compiled")
    )
    losses = [[row["loss"] for row in run.history if "loss" in row] for run in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert (compiled.directory / "model.safetensors").is_file()


def test_deterministic_algorithms_are_kept_to_and_let_go(fit, monkeypatch):
    seen = []
    step = BlockTrainer.training_step

    def watch(trainer, *arguments):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return step(trainer, *arguments)

    monkeypatch.setattr(BlockTrainer, "training_step", watch)
    one, two = (fit(name, deterministic=True) for name in ("one", "two"))
    assert all(seen) and not torch.are_deterministic_algorithms_enabled()
    assert_same_weights(one.model, two.model)
    assert_same_weights(one.model, fit("plain").model)


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


def test_the_longest_offset_of_the_blocks_seen_is_recorded(fit, make_config, blocks):
    assert fit("all", config=make_config("learned")).model.config.max_trained_offset == 15
    config = make_config("bipe-rope")
    trained = fit("few", config=config, steps=1, warmup_steps=0, batch_size=2)
    seen = SeededOrder(len(blocks), 2, seed=7).drawn(1000)
    offsets = [trained.model.positions(**without_labels(blocks[index])).offset.max() for index in seen]
    assert trained.model.config.max_trained_offset == max(offsets)
    assert AutoModelForCausalLM.from_pretrained(trained.directory).config.max_trained_offset == max(offsets)
    assert config.max_trained_offset is None


def test_the_segments_of_ninety_nine_blocks_in_a_hundred_are_recorded(fit, make_config, blocks):
    trained = fit("run", config=make_config("bipe-rope"), steps=60, warmup_steps=0, batch_size=2)
    seen = SeededOrder(len(blocks), 120, seed=7).drawn(1000)
    segments = sorted(
        int(trained.model.positions(**without_labels(blocks[index])).segment.max()) + 1 for index in seen
    )
    assert len(segments) == 112
    assert trained.model.config.original_max_segments == segments[110]  # the 111th of 112


def without_labels(block):
    return {name: tensor[None] for name, tensor in block.items() if name != "labels"}


def test_the_model_of_a_run_generates_with_a_cache(fit):
    assert fit().model.config.use_cache is True


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


def test_validation_weights_every_token_alike(make_config, blocks):
    from bipe.models import BipeForCausalLM

    torch.manual_seed(0)
    model = BipeForCausalLM(make_config()).train()
    batch = {name: torch.stack([block[name] for block in blocks]) for name in blocks[0]}
    with torch.no_grad():
        logits = model.eval()(batch["input_ids"], document_ids=batch["document_ids"]).logits
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    model.train()
    for size in (1, 7, 1000):
        assert validation_loss(model, blocks, size) == pytest.approx(expected.item(), rel=1e-6)
    assert model.training


def test_accumulated_batches_train_as_one_large_batch_does(fit, make_config):
    large = fit("large", config=make_config(), batch_size=8)
    parts = fit("parts", config=make_config(), batch_size=2, gradient_accumulation=4)
    for one, other in zip(large.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-5)


def test_gradient_checkpointing_changes_no_weight(fit):
    assert_same_weights(fit("plain").model, fit("checkpointed", gradient_checkpointing=True).model)


def test_bfloat16_trains_on_a_cpu_and_leaves_float32_weights(fit, blocks):
    plain, half = fit("plain"), fit("half", bf16=True)
    assert half.model.dtype == torch.float32
    assert half.history[-1]["validation_loss"] == pytest.approx(
        plain.history[-1]["validation_loss"], rel=0.02
    )
    assert not torch.equal(half.model.lm_head.weight, plain.model.lm_head.weight)
    # And what trains after it in the same process is not in bfloat16 as well.
    assert_same_weights(fit("after").model, plain.model)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_may_reach_beyond_the_run(fit, schedule):
    rates = [
        row["learning_rate"] for row in fit(schedule=schedule, schedule_steps=12).history if "loss" in row
    ]
    assert rates[0] == 0
    assert rates[2] == max(rates) == 5e-3
    # Step 8 uses the rate after 7 updates, 5 of the 10 past the warm-up.
    assert rates[7] / 5e-3 == pytest.approx(0.5)


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


def test_token_ids_outside_the_vocabulary_are_refused(fit, make_config):
    with pytest.raises(ValueError, match="outside the vocabulary of 10"):
        fit(config=make_config(vocab_size=10))


def test_training_is_silent_where_nobody_watches(fit, capfd):
    fit(on_progress=None)
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")


@pytest.mark.parametrize("scheme", ["sinusoidal", "alibi-learned", "kerple", "fire", "cope", "bipe-rope"])
def test_only_linear_layers_and_embeddings_decay(make_config, blocks, tmp_path, scheme):
    """A slope's logarithm that decays makes the slope grow towards one."""
    model = BipeForCausalLM(make_config(scheme))
    given = settings(weight_decay=0.1)
    arguments = training_arguments(given, tmp_path, seed=0, validates=False)
    trainer = BlockTrainer(
        model, arguments, run=tmp_path, settings=given, blocks=blocks, validation_blocks=None, callbacks=[]
    )
    decayed = set(trainer.get_decay_parameter_names(model))
    embeddings = {name for name in dict(model.named_parameters()) if "embed" in name}
    assert embeddings and embeddings <= decayed
    assert not any(".inter." in name or "norm" in name or name.endswith("scale") for name in decayed)
    assert sum("proj.weight" in name for name in decayed) == 7 * model.config.num_hidden_layers
