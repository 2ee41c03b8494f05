"""The recipes at the paper's size: the whole model is built without memory, and fewer layers of it train from a stream."""

import json
from pathlib import Path

import pytest
import torch

from bipe.models import BipeConfig, BipeForCausalLM
from bipe.training import load_recipe, train_recipe
from bipe.training.initial_model import _sizes

RECIPES = Path(__file__).parents[2] / "recipes" / "language_modelling"
PARAMETERS = {"bipe-rope-151m": 163_203_840, "bipe-rope-1.6b": 1_571_932_160}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_the_whole_model_has_the_size_it_is_named_after(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    sizes = {**_sizes(recipe), "end_token_ids": [13], "max_offset": recipe.model.max_offset}
    with torch.device("meta"):
        model = BipeForCausalLM(BipeConfig.from_scheme(recipe.scheme or "", vocab_size=32_000, **sizes))
    assert model.num_parameters() == PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_a_thinner_one_takes_two_steps_from_a_stream(name: str, tmp_path: Path, monkeypatch) -> None:
    """The stand-in is a folder of JSON lines with the splits and the column of the data set of the recipe."""
    data = tmp_path / "pile"
    data.mkdir()
    for split, texts in {"train": 40, "validation": 10}.items():
        text = "The first sentence of a document. And the second, which is longer.\n" * 20
        lines = [json.dumps({"text": f"{number}. {text}", "meta": {}}) for number in range(texts)]
        (data / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    settings = {
        "model.hidden_size": 64,
        "model.num_hidden_layers": 1,
        "model.num_attention_heads": 4,
        "model.intermediate_size": 64,
        "data.tokenizer": "null",
        "data.vocab_size": 400,
        "data.train": f"['hf:{data}:train']",
        "data.validation": f"['hf:{data}:validation']",
        "data.max_documents": 30,
        "training.steps": 2,
        "training.batch_size": 2,
        "training.warmup_steps": 1,
        "training.log_every": 1,
        "training.tensorboard": "false",
    }
    recipe = load_recipe(RECIPES / f"{name}.yaml", {key: str(value) for key, value in settings.items()})
    trained = train_recipe(recipe, tmp_path / "run")
    losses = [row["loss"] for row in trained.history if "loss" in row]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
    assert trained.model.config.max_position_embeddings == 1024
    recorded = json.loads((tmp_path / "run" / "training.json").read_text(encoding="utf-8"))
    assert (
        recorded["identity"]["settings"]["gradient_checkpointing"] == recipe.training.gradient_checkpointing
    )
