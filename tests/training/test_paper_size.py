"""The recipes at the paper's size: the whole model is built without memory, and fewer layers of it train from a stream."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from bipe.data.tokens import train_tokenizer
from bipe.models import BipeConfig, BipeForCausalLM
from bipe.training import load_recipe, train_recipe
from bipe.training.initial_model import _sizes

from ..distributed.launching import together

RECIPES = Path(__file__).parents[2] / "recipes" / "language_modelling"
PARAMETERS = {"bipe-rope-151m": 163_203_840, "bipe-rope-1.6b": 1_571_932_160}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_the_whole_model_has_the_size_it_is_named_after(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    sizes = {**_sizes(recipe), "end_token_ids": [13], "max_offset": recipe.model.max_offset}
    with torch.device("meta"):
        model = BipeForCausalLM(BipeConfig.from_scheme(recipe.scheme or "", vocab_size=32_000, **sizes))
    assert model.num_parameters() == PARAMETERS[name]


THIN = {
    "model.hidden_size": 64,
    "model.num_hidden_layers": 1,
    "model.num_attention_heads": 4,
    "model.intermediate_size": 64,
    "training.steps": 2,
    "training.batch_size": 2,
    "training.warmup_steps": 1,
    "training.log_every": 1,
    "training.tensorboard": "false",
}


@pytest.fixture
def pile(tmp_path: Path) -> Path:
    """A stand-in: a folder of JSON lines with the splits and the column of the data set of the recipes."""
    data = tmp_path / "pile"
    data.mkdir()
    for split, texts in {"train": 40, "validation": 10}.items():
        text = "The first sentence of a document. And the second, which is longer.\n" * 20
        lines = [json.dumps({"text": f"{number}. {text}", "meta": {}}) for number in range(texts)]
        (data / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return data


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_a_thinner_one_takes_two_steps_from_a_stream(
    name: str, pile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = THIN | {
        "data.tokenizer": "null",
        "data.vocab_size": 400,
        "data.train": f"['hf:{pile}:train']",
        "data.validation": f"['hf:{pile}:validation']",
        "data.max_documents": 30,
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


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_the_line_of_a_recipe_trains(name: str, pile: Path, tmp_path: Path) -> None:
    """The very line that its comment gives, on one process, a thinner model and the stand-in."""
    comment = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").partition("#   torchrun ")[2]
    line = re.sub(r"\\\n#", " ", comment).partition("\n")[0]
    launch, program, *rest = line.partition("-m bipe_cli train ")
    assert "--nproc-per-node 8" in launch and program
    tokenizer = train_tokenizer([path.read_text() for path in pile.iterdir()], 400)
    tokenizer.save_pretrained(tmp_path / "llama")
    arguments = shlex.split("".join(rest).replace("PATH_TO_LLAMA_TOKENIZER", str(tmp_path / "llama")))
    place = arguments.index("--out") + 1
    assert arguments[place] == f"runs/{name}"
    arguments[place], arguments[0] = str(tmp_path / "run"), str(RECIPES.parents[1] / arguments[0])
    arguments[arguments.index("--data.store") + 1] = str(tmp_path / "store")
    for key, value in THIN.items():
        arguments += [f"--{key}", str(value)]
    arguments += ["--data.train", f"['hf:{pile}:train']", "--data.validation", f"['hf:{pile}:validation']"]
    together(1, "-m", "bipe_cli", "train", *arguments)
    history = [json.loads(row) for row in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert len([row for row in history if "loss" in row]) == 2
