"""Plans against built models and against torch's own tracker of memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from bipe.models import BipeConfig, BipeForCausalLM
from bipe.training import load_recipe
from bipe.training.plan import layer_bytes, plan
from bipe.training.recipe import Recipe
from bipe_cli.main import app, run

RECIPES = Path(__file__).parents[2] / "recipes" / "language_modelling"
ANGLES = 2 * 512 * 8
"""Of 512 tokens and 8 frequencies, a product that torch counts before 2.10 alone."""


def recipe_of(scheme: str = "bipe-rope", **changes: Any) -> Recipe:
    model = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
    training = {"steps": 10, "batch_size": 4}
    for name, value in changes.items():
        (model if name in model or name.startswith(("num_", "tie_")) else training)[name] = value
    return Recipe.model_validate(
        {
            "scheme": scheme,
            "data": {"train": ["text"], "train_length": 128, "vocab_size": changes.pop("vocab_size", 1000)},
            "model": model,
            "training": {name: value for name, value in training.items() if name != "vocab_size"},
        }
    )


def built(recipe: Recipe) -> BipeForCausalLM:
    sizes = recipe.model.model_dump(exclude={"segmenter", "intra", "inter", "max_offset"})
    return BipeForCausalLM(
        BipeConfig.from_scheme(
            recipe.scheme or "",
            end_token_ids=[0],
            max_offset=128,
            tokens_per_segment=6.0,
            vocab_size=recipe.data.vocab_size,
            **sizes,
        )
    )


def measured_peak(recipe: Recipe) -> int:
    """Of two training steps, by MemTracker."""
    torch.manual_seed(0)
    model = built(recipe).train()
    if recipe.training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, recipe.data.vocab_size, (recipe.training.batch_size, 128))
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        for _ in range(2):
            for _ in range(recipe.training.gradient_accumulation):
                tracker.reset_mod_stats()  # it refuses a module's second pass otherwise
                with torch.autocast("cpu", torch.bfloat16, enabled=recipe.training.bf16):
                    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "recipe",
    [
        recipe_of(),
        recipe_of(bf16=True),
        recipe_of("bipe-alibi-auto", bf16=True),
        recipe_of("rope", num_hidden_layers=6),
        recipe_of("sinusoidal", intermediate_size=512, bf16=True),
        recipe_of(num_key_value_heads=1, bf16=True),
        recipe_of(vocab_size=8000, batch_size=1),
        recipe_of(vocab_size=8000, batch_size=1, tie_word_embeddings=True),
        recipe_of(hidden_size=256, intermediate_size=1024, batch_size=1),
        recipe_of(gradient_accumulation=2),
        recipe_of(gradient_checkpointing=True, num_hidden_layers=8),
        recipe_of(gradient_checkpointing=True, num_hidden_layers=8, bf16=True),
        recipe_of(gradient_checkpointing=True, hidden_size=128, intermediate_size=512, bf16=True),
        recipe_of(gradient_checkpointing=True, vocab_size=300, batch_size=16, num_hidden_layers=2),
        recipe_of(
            gradient_checkpointing=True, vocab_size=300, batch_size=16, intermediate_size=512, bf16=True
        ),
    ],
    ids=lambda recipe: recipe.scheme,
)
def test_memory_is_what_torch_measures(recipe: Recipe) -> None:
    planned = plan(recipe).replicated.peak
    assert planned == pytest.approx(measured_peak(recipe), rel=0.1)


def test_layers_keep_what_autograd_keeps() -> None:
    for bf16, kv in ((False, None), (True, None), (True, 2), (False, 1)):
        recipe = recipe_of(bf16=bf16, num_key_value_heads=kv)
        one, three = (_kept(recipe, layers) for layers in (1, 3))
        assert (three - one) / 2 == layer_bytes(built(recipe).config, bf16) * 512


def _kept(recipe: Recipe, layers: int) -> int:
    """Bytes that autograd keeps for a backward pass of 512 tokens, without parameters and copies of them."""
    changed = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"num_hidden_layers": layers})}
    )
    model = built(changed).train()
    matrices = {tuple(weight.shape) for weight in model.parameters()}
    matrices |= {shape[::-1] for shape in matrices}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in matrices and not isinstance(tensor, torch.nn.Parameter):
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage())
        return tensor

    ids = torch.randint(0, recipe.data.vocab_size, (4, 128))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=recipe.training.bf16),
    ):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_arithmetic_is_what_torch_counts(checkpointing: bool) -> None:
    recipe = recipe_of(gradient_checkpointing=checkpointing, steps=1)
    model = built(recipe).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.set_attn_implementation("eager")  # torch does not count what its kernels for CPUs do
    ids = torch.randint(0, 1000, (4, 128))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    # Eager attention makes all pairs, of which a causal kernel makes half.
    passes, tokens, width = 4 if checkpointing else 3, 512, 64
    other_half = passes * 2 * recipe.model.num_hidden_layers * width * 127 * tokens
    counted = counter.get_total_flops()
    if Version(torch.__version__) < Version("2.10"):
        counted -= ANGLES
    assert plan(recipe).flops + other_half == pytest.approx(counted, rel=1e-6)


def test_parts_add_up_to_the_built_model() -> None:
    for changes in ({}, {"tie_word_embeddings": True}, {"num_key_value_heads": 2}):
        recipe = recipe_of(**changes)
        planned = plan(recipe)
        assert planned.parameters == built(recipe).num_parameters() == sum(planned.parts.values())
    assert planned.tokens_per_step == 4 * 128 and planned.tokens == 10 * 4 * 128


def test_a_step_takes_all_its_passes() -> None:
    one, four = plan(recipe_of()), plan(recipe_of(gradient_accumulation=4))
    assert four.tokens_per_step == 4 * one.tokens_per_step
    assert (four.tokens, four.flops) == (4 * one.tokens, 4 * one.flops)


def test_devices_share_what_is_sharded_and_nothing_else() -> None:
    one, eight = plan(recipe_of()), plan(recipe_of(), devices=8)
    assert one.sharded is None and eight.sharded is not None
    assert eight.tokens_per_step == 8 * one.tokens_per_step
    for name in ("weights", "gradients", "moments"):
        whole, part = getattr(one.replicated, name), getattr(eight.sharded, name)
        assert whole / 8 <= part <= whole / 8 + 8
    assert eight.replicated.gradients == 2 * one.replicated.gradients
    assert eight.sharded.activations == eight.replicated.activations == one.replicated.activations
    assert eight.sharded.peak < eight.replicated.peak


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("bipe-rope-151m", 163_203_840), ("bipe-rope-1.6b", 1_571_932_160), ("bipe-rope-7b", 6_742_609_920)],
)
def test_recipes_at_the_papers_size_are_planned(
    name: str, parameters: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", str(RECIPES / f"{name}.yaml"), "--devices", "8", "--vocab-size", "32000"]
    assert run(app, [*command, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["parameters"] == parameters
    assert row["sharded"]["peak"] < row["replicated"]["peak"]
    assert run(app, command) == 0
    text = capsys.readouterr().out
    assert f"{parameters:,} parameters" in text and "FSDP" in text and "GiB" in text


def test_the_page_on_scaling_says_what_the_plan_says() -> None:
    page = (RECIPES.parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in page.splitlines()
        if "| bipe-rope-" in line
    ]
    assert len(rows) == 3
    for name, parameters, step, tokens, layout, days, replicated, sharded in rows:
        devices, blocks = map(int, layout.split(" x "))
        recipe = load_recipe(RECIPES / f"{name}.yaml")
        planned = plan(recipe, devices, 32000)
        assert planned.sharded is not None and blocks == recipe.training.batch_size
        found = [planned.parameters, planned.tokens_per_step, planned.tokens]
        assert [parameters, step, tokens] == [f"{number:,}" for number in found]
        assert float(days) == round(planned.flops / 86400 / devices / 1e14, 1)
        memory = [planned.replicated.peak, planned.sharded.peak]
        assert [replicated, sharded] == [f"{peak / 2**30:.2f}" for peak in memory]


def test_what_cannot_be_planned_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = str(RECIPES / "bipe-rope-151m.yaml")
    for arguments, said in (
        ([recipe], "'huggyllama/llama-7b' is not known without loading it: give --vocab-size"),
        ([recipe, "--devices", "0"], "--devices"),
        ([recipe, "--training.batch_sise", "3"], "batch_sise"),
        (["nothing.yaml"], "nothing.yaml"),
        ([str(RECIPES.parent / "arithmetic" / "paper.yaml")], "train on text from scratch"),
    ):
        assert run(app, ["plan", *arguments]) == 2
        assert said in capsys.readouterr().err
