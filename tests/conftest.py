"""What every test runs under: no model hub, no screen, and property tests with no time limit."""

import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from bipe import BipeForCausalLM

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

# A shell starts background jobs with Ctrl-C ignored, which a process and its children keep.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("bipe", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("bipe")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Make what a test draws without a seed the same whatever ran before it, in this process or in another."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def make_model() -> "Callable[..., BipeForCausalLM]":
    """Make a tiny model of a scheme, with weights large enough that positions matter to its logits."""
    import torch

    from bipe import BipeConfig, BipeForCausalLM

    def make(scheme: str, *, seed: int = 2, **fields: Any) -> BipeForCausalLM:
        tiny: dict[str, Any] = {
            "vocab_size": 12,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.3,
            "end_token_ids": [1, 4, 7],
            "tokens_per_segment": 3.0,
            "max_offset": 16,
        }
        if scheme.startswith("bipe3"):
            newlines = [[4, 0, 0, 1, 0], [7, 1, 0, 1, 1], [8, 0, 0, 0, 1]]  # ".\n", "\n" and " "
            inner = {"type": "token_set", "end_token_ids": tiny["end_token_ids"]}
            outer = {"type": "newline_run", "count": 2, "tokens": newlines}
            tiny["segmenter"] = {"type": "levels", "segmenters": [inner, outer]}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return BipeForCausalLM(BipeConfig.from_scheme(scheme, **{**tiny, **fields})).eval()

    return make
