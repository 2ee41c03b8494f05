from pathlib import Path

import pytest

from bipe import BipeConfig, BipeForCausalLM
from bipe.data.tokens import train_tokenizer

SENTENCES = [
    "The cat sat on the mat. It saw a dog, and ran.\n",
    "A red house stood there. Nobody lived in it.\n",
]


@pytest.fixture(scope="session", params=["bipe-rope", "bipe-alibi"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with its tokenizer."""
    out = tmp_path_factory.mktemp("model") / request.param
    tokenizer = train_tokenizer([text * 20 for text in SENTENCES], 320)
    tokenizer.pad_token = tokenizer.eos_token
    config = BipeConfig.from_scheme(
        request.param,
        tokenizer,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_offset=32,
        initializer_range=0.2,
    )
    BipeForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out
