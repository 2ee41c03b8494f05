"""A model whose weights are shared out over two processes (FSDP2, on gloo) is the model that one process has."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bipe.models import BipeForCausalLM
from bipe.training.plan import plan
from bipe.training.recipe import Recipe
from bipe_cli.main import app, run

from .launching import together

SCRIPT = Path(__file__).with_name("sharded.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    together(2, SCRIPT, folder)
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def test_each_process_holds_half(found: dict[str, Any]) -> None:
    assert found["are_shards"] and found["here"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("when", ["", "_again"])
def test_losses_and_gradients_are_those_of_one_process(found: dict[str, Any], when: str) -> None:
    for here, there in zip(found[f"sharded{when}"], found[f"alone{when}"], strict=True):
        assert here == pytest.approx(there, abs=1e-5)


def test_weights_come_back_whole(found: dict[str, Any], folder: Path) -> None:
    ids = torch.arange(40)[None]
    one, two = (BipeForCausalLM.from_pretrained(folder / name).eval() for name in ("alone", "sharded"))
    with torch.no_grad():
        assert (one(ids).logits - two(ids).logits).abs().max() < 1e-4


def test_memory_is_as_planned(found: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(
        {
            "scheme": "bipe-rope",
            "data": {"train": ["text"], "train_length": 128, "vocab_size": 500},
            "model": {
                "hidden_size": 64,
                "intermediate_size": 192,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
            },
            "training": {"steps": 2, "batch_size": 4},
        }
    )
    sharded = plan(recipe, devices=2).sharded
    assert sharded is not None
    assert sharded.peak == pytest.approx(found["peak"], rel=0.05)


def test_accelerate_shards_on_accelerators_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("scheme: rope\ndata: {train: [stdlib]}\ntraining: {steps: 1}\n", encoding="utf-8")
    assert run(app, ["train", str(recipe), "--out", str(tmp_path / "run")]) == 2
    assert "accelerate's FSDP shards on accelerators only" in capsys.readouterr().err
    monkeypatch.setenv("FSDP_VERSION", "1")
    assert run(app, ["train", str(recipe), "--out", str(tmp_path / "run")]) == 2
    assert "Only FSDP2 is supported" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
