"""FlexAttention against the oracle, in a process of its own: uncompiled it can end the interpreter on a CPU."""

import subprocess
import sys

import pytest
import torch

from bipe import BipeForCausalLM

FORWARD = """
import torch
from bipe import BipeConfig, BipeForCausalLM

fields = dict(vocab_size=12, hidden_size=64, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.3, end_token_ids=[1, 4, 7], max_offset=16)
draw = torch.Generator().manual_seed(0)
ids = torch.randint(12, (2, 150), generator=draw)
padding = torch.ones_like(ids)
padding[0, :20] = 0
documents = (torch.arange(150) > 90).long().expand(2, -1)
batches = {"bipe-alibi": {"attention_mask": padding, "document_ids": documents}, "bipe-rope": {}, "bipe-t5": {},
    "bipe-fire": {}}
for scheme, batch in batches.items():
    models = []
    for attention in ("flex", "eager"):
        torch.manual_seed(1)
        config = BipeConfig.from_scheme(scheme, attn_implementation=attention, **fields)
        models.append(BipeForCausalLM(config).eval())
    real = batch.get("attention_mask", torch.ones_like(ids)).bool()
    with torch.inference_mode():
        fast, slow = (model(ids, **batch).logits[real] for model in models)
    print(scheme, float((fast - slow).abs().max()))
"""


@pytest.mark.slow
def test_flex_matches_eager() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORWARD], capture_output=True, text=True, check=False
    )
    if "BackendCompilerFailed" in done.stderr or "InductorError" in done.stderr or done.returncode < 0:
        pytest.skip(f"FlexAttention does not run here: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert float(line.split()[-1]) < 1e-4, line


def test_flex_on_a_cpu_has_no_backward(make_model) -> None:
    model: BipeForCausalLM = make_model("bipe-alibi", attn_implementation="flex")
    with pytest.raises(ValueError, match="no backward pass on a CPU"):
        model(torch.tensor([[1, 2, 3]]))


def test_flex_has_no_dropout(make_model) -> None:
    model = make_model("bipe-rope", attn_implementation="flex", attention_dropout=0.1).train()
    with pytest.raises(ValueError, match="no dropout"):
        model(torch.tensor([[1, 2, 3]]))
