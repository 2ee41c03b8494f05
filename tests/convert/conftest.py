"""Checkpoints of others to convert: released ones, and tiny Llamas."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from bipe import convert
from bipe.data.tokens import train_tokenizer

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TINY: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}

SCALINGS: list[dict[str, Any]] = [
    {},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e4}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "rope_theta": 5e5,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    {"tie_word_embeddings": True},
    {"attention_bias": True, "mlp_bias": True},
    {"head_dim": 12},
]


def loaded(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def ids_of(rows: int, tokens: int) -> Tensor:
    return torch.randint(0, 300, (rows, tokens), generator=torch.Generator().manual_seed(3))


def released(folder: Path, kind: str, **changes: Any) -> Path:
    """A copy of a released checkpoint with other settings."""
    shutil.copytree(GOLDEN / kind, folder)
    settings = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder with a Llama and a tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path / "llama"
    LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(folder)
    train_tokenizer(["one two. three four.\n five. " * 9], 300).save_pretrained(folder)
    return folder


def refused(source: Path, folder: Path, reason: str) -> None:
    """It is refused in one line, and nothing is left where the model would be."""
    with pytest.raises(ValueError, match=reason) as found:
        convert(source, folder / "out")
    assert "\n" not in str(found.value)
    assert not (folder / "out").exists() and not list(folder.glob(".out*"))
