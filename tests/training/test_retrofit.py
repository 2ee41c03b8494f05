"""Training that goes on from a model: in full, with adapters, and with a rotation that moves."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from bipe import BipeConfig, BipeForCausalLM, convert
from bipe.encodings.inter.rope import Rope
from bipe.models.extension import extend_checkpoint
from bipe.training import Recipe, train_recipe
from bipe.training.adapters import add_adapters
from bipe.training.gradual import GradualRotation
from bipe.training.recipe import LoraSettings

SENTENCE = "The cat sat on the mat. The dog saw it there, and lay down beside it.\n"


def ignore(row):
    pass


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A trained model of scheme rope, and its text."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "text.txt").write_text("One.\n" + SENTENCE * 150)
    recipe = Recipe.model_validate(
        {
            "scheme": "rope",
            "data": {"train": str(folder / "text.txt"), "vocab_size": 280, "train_length": 32},
            "model": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 48,
            },
            "training": {"steps": 4, "batch_size": 4},
        }
    )
    train_recipe(recipe, folder / "rope", on_progress=ignore)
    convert(folder / "rope", folder / "bipe-rope", "bipe-rope", max_offset=32)
    return folder


def recipe_from(base, start="bipe-rope", **training):
    return Recipe.model_validate(
        {
            "start": str(base / start),
            "data": {"train": str(base / "text.txt"), "train_length": 32},
            "training": {"steps": 3, "batch_size": 4, "learning_rate": 1e-2, **training},
        }
    )


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_training_goes_on_from_the_weights_of_the_start(base, tmp_path):
    tiny_step = {"learning_rate": 1e-9, "weight_decay": 0.0}
    trained = train_recipe(recipe_from(base, **tiny_step), tmp_path / "run", on_progress=ignore)
    before, after = weights(base / "bipe-rope"), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    for name, part in before.items():
        torch.testing.assert_close(after[name], part, rtol=0, atol=1e-6)
    assert trained.model.config.scheme == "bipe-rope"
    assert 5 < trained.model.config.max_trained_offset < 32
    moved = weights(train_recipe(recipe_from(base), tmp_path / "more", on_progress=ignore).directory)
    assert all((moved[name] - part).abs().max() > 1e-5 for name, part in before.items())


def test_a_start_in_half_precision_is_trained_in_single(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base / "bipe-rope").bfloat16()
    shutil.copytree(base / "bipe-rope", tmp_path / "half")
    model.save_pretrained(tmp_path / "half")
    recipe = recipe_from(base).model_copy(update={"start": str(tmp_path / "half")})
    assert train_recipe(recipe, tmp_path / "run", on_progress=ignore).model.dtype == torch.float32


def test_adapters_leave_everything_else_and_are_merged(base, tmp_path):
    pytest.importorskip("peft")
    lora = {"rank": 2, "targets": ["q_proj", "down_proj"]}
    trained = train_recipe(recipe_from(base, lora=lora), tmp_path / "run", on_progress=ignore)
    before, after = weights(base / "bipe-rope"), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    for name, part in before.items():
        changed = (after[name] - part).abs().max() > 1e-6
        assert bool(changed) == any(kind in name for kind in ("q_proj", "down_proj", "model.intra.")), name
    moved = after["model.layers.0.self_attn.q_proj.weight"] - before["model.layers.0.self_attn.q_proj.weight"]
    assert torch.linalg.matrix_rank(moved, rtol=1e-3) == 2
    assert all(parameter.requires_grad for parameter in trained.model.parameters())


def test_what_an_encoding_between_segments_learns_is_trained_beside_adapters(base):
    pytest.importorskip("peft")
    config = BipeConfig.from_scheme(
        "bipe-t5",
        end_token_ids=[5],
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = BipeForCausalLM(config)
    add_adapters(model, LoraSettings(rank=2), seed=0)
    trained = {name for name, part in model.named_parameters() if part.requires_grad and "lora" not in name}
    assert trained == {"model.intra.embedding.weight", "model.inter.table"}


def test_a_text_model_is_not_trained_on_arithmetic(base, tmp_path):
    recipe = Recipe.model_validate(
        {"start": str(base / "bipe-rope"), "data": {"arithmetic": {"operators": 2}}, "training": {"steps": 1}}
    )
    with pytest.raises(ValueError, match="Arithmetic has a vocabulary of 21 symbols, and the model"):
        train_recipe(recipe, tmp_path / "run", on_progress=ignore)


def test_what_adapters_add_is_in_proportion_to_alpha(base, tmp_path):
    """After one step of Adam, which is as large for a small gradient as for a large one."""
    pytest.importorskip("peft")
    name, added = "model.layers.0.self_attn.q_proj.weight", []
    for alpha in (8.0, 32.0):
        lora = {"rank": 2, "alpha": alpha, "targets": ["q_proj"]}
        recipe = recipe_from(base, lora=lora, steps=1)
        train_recipe(recipe, tmp_path / f"{alpha:g}", on_progress=ignore)
        added.append(weights(tmp_path / f"{alpha:g}")[name] - weights(base / "bipe-rope")[name])
    assert float(added[1].norm() / added[0].norm()) == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_retrofit_that_was_broken_off_ends_where_it_would_have(base, tmp_path, lora):
    if lora:
        pytest.importorskip("peft")
    recipe = recipe_from(base, lora=lora, gradual_steps=3, steps=4, checkpoint_every=1)
    train_recipe(recipe, tmp_path / "whole", on_progress=ignore)

    def stop_at_two(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, tmp_path / "broken", on_progress=stop_at_two)
    assert (tmp_path / "broken" / "checkpoints" / "step-2").is_dir()
    train_recipe(recipe, tmp_path / "broken", on_progress=ignore)
    whole, mended = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert whole.keys() == mended.keys()
    assert all(part.equal(mended[name]) for name, part in whole.items())


def test_the_rotation_moves_from_tokens_to_segments(base, tmp_path, monkeypatch):
    seen = []
    begin = GradualRotation.on_step_begin

    def watch(self, args, state, control, **kwargs):
        begin(self, args, state, control, **kwargs)
        seen.append(self.inter.blend)

    monkeypatch.setattr(GradualRotation, "on_step_begin", watch)
    recipe = recipe_from(base, gradual_steps=4, steps=6)
    trained = train_recipe(recipe, tmp_path / "run", on_progress=ignore)
    assert seen == [0, 0.25, 0.5, 0.75, 1, 1]
    assert trained.model.model.inter.blend == 1

    # At 0 a retrofitted model, whose offset vectors are zero, is the model that it was made from.
    model = AutoModelForCausalLM.from_pretrained(base / "bipe-rope")
    before = AutoModelForCausalLM.from_pretrained(base / "rope")
    ids = torch.randint(0, 280, (2, 30))
    inter = model.model.inter
    assert isinstance(inter, Rope)
    assert not model(ids).logits.equal(before(ids).logits)
    inter.blend = 0.0
    assert model(ids).logits.equal(before(ids).logits)
    # Half way, a token's rotation is by the mean of its two indices.
    inter.blend = 0.5
    positions = model.positions(ids)
    halves = inter(positions, positions, torch.float32).query_rotation
    mean = (positions.segment + positions.token).float() / 2
    expected = inter.rotary(torch.empty(0), mean)
    assert halves is not None and halves[0].equal(expected[0]) and halves[1].equal(expected[1])


def test_offsets_that_the_start_was_trained_on_stay_in_use(base, tmp_path):
    convert(base / "bipe-rope", tmp_path / "start", "bipe-rope", max_offset=32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    torch.nn.init.normal_(model.model.intra.embedding.weight, std=0.02)
    for trained in (None, 30, 3):
        model.config.max_trained_offset = trained
        model.save_pretrained(tmp_path / "start")
        recipe = recipe_from(base).model_copy(update={"start": str(tmp_path / "start")})
        config = train_recipe(recipe, tmp_path / f"run-{trained}", on_progress=ignore).model.config
        if trained == 3:
            assert 5 < config.max_trained_offset < 30  # the longest of the new text
        else:
            assert config.max_trained_offset == trained


def test_a_finished_run_needs_its_start_no_more_but_not_another(base, tmp_path):
    shutil.copytree(base / "bipe-rope", tmp_path / "start")
    recipe = recipe_from(base).model_copy(update={"start": str(tmp_path / "start")})
    train_recipe(recipe, tmp_path / "run", on_progress=ignore)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    with torch.no_grad():
        model.model.norm.weight.mul_(3)
    model.save_pretrained(tmp_path / "start")
    with pytest.raises(ValueError, match="went on from other weights"):
        train_recipe(recipe, tmp_path / "run", on_progress=ignore)
    shutil.rmtree(tmp_path / "start")
    assert train_recipe(recipe, tmp_path / "run", on_progress=ignore).directory == tmp_path / "run"


def test_a_config_of_another_model_is_refused(base, tmp_path):
    from bipe import BipeConfig
    from bipe.training import train_model

    config = BipeConfig.from_pretrained(base / "bipe-rope")
    config.hidden_size = 64
    blocks = [{"input_ids": torch.arange(32), "labels": torch.arange(32)}]
    with pytest.raises(ValueError, match="hidden_size is 64 there and 32 here"):
        train_model(
            config,
            blocks,
            None,
            recipe_from(base).training,
            tmp_path / "run",
            seed=0,
            start=base / "bipe-rope",
        )


def test_adapters_of_tied_weights_are_refused(base, tmp_path):
    pytest.importorskip("peft")
    shutil.copytree(base / "bipe-rope", tmp_path / "tied")
    model = AutoModelForCausalLM.from_pretrained(base / "bipe-rope")
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "tied")
    recipe = recipe_from(base, lora={"targets": ["lm_head"]}).model_copy(
        update={"start": str(tmp_path / "tied")}
    )
    with pytest.raises(ValueError, match="leave embed_tokens and lm_head out"):
        train_recipe(recipe, tmp_path / "run", on_progress=ignore)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": {"train": "x", "tokenizer": "other"}}, "the tokenizer is that of start"),
        ({"rule": "line"}, "the rule is that of start"),
        ({"training": {"steps": 3, "gradual_steps": 3}}, "gradual_steps must be below steps, 3"),
        ({"start": "nowhere"}, "nowhere is no folder of a model"),
        ({"scheme": "bipe-alibi"}, "has scheme 'bipe-rope', and the recipe says 'bipe-alibi'"),
        ({"model": {"hidden_size": 64}}, "the model settings are those of start"),
        ({"start": None}, "give a scheme, or start"),
        ({"start": None, "scheme": "rope", "training": {"steps": 1, "lora": {}}}, "give its folder as start"),
        (
            {"training": {"steps": 1, "lora": {"targets": ["queries"]}}},
            "No layer of the model is called 'queries'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(base, tmp_path, changes, reason):
    if "queries" in reason:
        pytest.importorskip("peft")
    values = {**recipe_from(base).model_dump(), **changes}
    with pytest.raises(ValueError, match=reason):
        train_recipe(Recipe.model_validate(values), tmp_path / "run", on_progress=ignore)


def test_a_rotation_that_is_not_there_cannot_move(base, tmp_path):
    convert(base / "rope", tmp_path / "alibi", "bipe-alibi")
    recipe = recipe_from(base, gradual_steps=2).model_copy(update={"start": str(tmp_path / "alibi")})
    with pytest.raises(ValueError, match="gradual_steps moves a rotation"):
        train_recipe(recipe, tmp_path / "run", on_progress=ignore)


def test_another_start_is_another_run(base, tmp_path):
    train_recipe(recipe_from(base), tmp_path / "run", on_progress=ignore)
    with pytest.raises(ValueError, match="another run: start is"):
        train_recipe(recipe_from(base, start="rope"), tmp_path / "run", on_progress=ignore)


def test_a_llama_must_be_converted_first(base, tmp_path):
    from bipe.models.convert import convert_to_llama

    convert_to_llama(base / "rope", tmp_path / "llama")
    recipe = recipe_from(base).model_copy(update={"start": str(tmp_path / "llama")})
    with pytest.raises(ValueError, match="make it one of ours with bipe convert"):
        train_recipe(recipe, tmp_path / "run", on_progress=ignore)


def test_longer_blocks_are_the_new_trained_length(base, tmp_path):
    values = recipe_from(base, start="rope").model_dump()
    values["data"]["train_length"] = 64
    longer = train_recipe(Recipe.model_validate(values), tmp_path / "longer", on_progress=ignore)
    assert longer.model.config.max_position_embeddings == 64
    values["data"]["train_length"] = 16
    shorter = train_recipe(Recipe.model_validate(values), tmp_path / "shorter", on_progress=ignore)
    assert shorter.model.config.max_position_embeddings == 32
    again = train_recipe(Recipe.model_validate(values), tmp_path / "shorter", on_progress=ignore)
    assert again.history == shorter.history, "the finished run is known"


def test_a_scaled_rotation_keeps_the_length_that_it_is_computed_from(base, tmp_path):
    extend_checkpoint(base / "rope", tmp_path / "dynamic", "dynamic", 2.0)
    values = recipe_from(base).model_dump()
    values["start"], values["data"]["train_length"] = str(tmp_path / "dynamic"), 64
    trained = train_recipe(Recipe.model_validate(values), tmp_path / "run", on_progress=ignore)
    assert trained.model.config.max_position_embeddings == 32
