"""What the authors' released code computed from tiny models (see `data/golden/README.md`)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bipe import BipeConfig, BipeForCausalLM, TokenSet, bilevel_positions

GOLDEN = Path(__file__).parent / "data" / "golden"
SEPARATORS = [869, 13]
SIZES: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
}
SCHEME_OF = {"bipe_rope": "bipe-rope", "bipe_alibi": "bipe-alibi", "rope": "rope", "alibi": "alibi"}


def expected(kind: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / kind / "expected.safetensors")


def released_weights(kind: str) -> dict[str, Tensor]:
    """The released names as ours: the offset table is `intra`, and ALiBi's stored bias is not a weight."""
    names = {"model.embeds.0.weight": "model.intra.embedding.weight"}
    weights = load_file(GOLDEN / kind / "model.safetensors")
    return {names.get(name, name): weight for name, weight in weights.items() if not name.endswith(".alibi")}


def released_model(kind: str, attention: str) -> BipeForCausalLM:
    config = BipeConfig.from_scheme(
        SCHEME_OF[kind], end_token_ids=SEPARATORS, attn_implementation=attention, **SIZES
    )
    model = BipeForCausalLM(config).eval()
    model.load_state_dict(released_weights(kind))
    return model


@pytest.mark.parametrize("kind", ["bipe_rope", "bipe_alibi"])
def test_positions_equal_those_of_the_released_code(kind: str) -> None:
    golden = expected(kind)
    positions = bilevel_positions(TokenSet(SEPARATORS)(golden["input_ids"].long()))
    torch.testing.assert_close(positions.offset, golden["intra"].long(), rtol=0, atol=0)
    torch.testing.assert_close(positions.segment, golden["inter"].long(), rtol=0, atol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", sorted(SCHEME_OF))
def test_logits_and_loss_equal_those_of_the_released_code(kind: str, attention: str) -> None:
    golden = expected(kind)
    input_ids = golden["input_ids"].long()
    with torch.no_grad():
        output = released_model(kind, attention)(input_ids, labels=input_ids)
    logits = output.logits[:, golden["logits_positions"].long()]
    torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(output.loss, golden["loss"][0], rtol=0, atol=1e-4)
