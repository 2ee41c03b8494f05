"""Training: what it learns, and which settings change the weights it ends in."""

import pytest
import torch
from torch import nn

from bipe.models import BipeForCausalLM
from bipe.training.trainer import BlockTrainer, training_arguments, validation_loss

from .conftest import assert_same_weights, settings


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


def test_the_model_of_a_run_generates_with_a_cache(fit):
    assert fit().model.config.use_cache is True


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
