"""What a training step of a scheme costs, relative to transformers' Llama of the same size.

    python benchmarks/model.py --lengths 1024,4096 --pairs 7

The two models step in turn inside one process, so that the machine's speed cancels out; the figure to quote
is the median of the ratios, with the smallest and the largest.
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bipe.models import SCHEMES, BipeConfig, BipeForCausalLM

SIZE: dict[str, Any] = {
    "vocab_size": 8000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "max_position_embeddings": 4096,
}
SEGMENT_ENDS = range(400)
"""A twentieth of the vocabulary ends a segment, so that segments of random ids have about 20 tokens."""


class Stepper:
    """A model that takes training steps and times them."""

    def __init__(self, model: PreTrainedModel, device: str) -> None:
        self.model = nn.Module.to(model, device).train()
        assert model.config._attn_implementation == "sdpa"
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def seconds(self, ids: torch.Tensor) -> float:
        """Wall time of one step on `ids`, `(B, T)` int64."""
        _wait()
        start = time.perf_counter()
        self.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        _wait()
        return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(scheme: str, length: int, pairs: int) -> dict[str, object]:
    """Ratios of the scheme's step to Llama's at one length."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = BipeConfig.from_scheme(scheme, end_token_ids=SEGMENT_ENDS, tokens_per_segment=20.0, **SIZE)
    llama = Stepper(LlamaForCausalLM(LlamaConfig(**SIZE)), device)
    ours = Stepper(BipeForCausalLM(config), device)
    ids = torch.randint(0, SIZE["vocab_size"], (1, length), device=device)
    for stepper in (llama, ours):
        stepper.seconds(ids)
    ratios = []
    for pair in range(pairs):
        # Who goes first changes, so that neither always finds the caches as the other left them.
        order = (llama, ours) if pair % 2 == 0 else (ours, llama)
        times = {stepper: stepper.seconds(ids) for stepper in order}
        ratios.append(times[ours] / times[llama])
    return {
        "scheme": scheme,
        "length": length,
        "median": round(statistics.median(ratios), 4),
        "low": round(min(ratios), 4),
        "high": round(max(ratios), 4),
        "pairs": pairs,
        "threads": torch.get_num_threads(),
        "device": device,
    }


def main() -> None:
    """Print a line, or with `--json` an object, for each scheme and length."""
    parser = argparse.ArgumentParser(description="Step times relative to Llama.")
    parser.add_argument("--schemes", default="bipe-rope", help=f"of {', '.join(SCHEMES)}")
    parser.add_argument("--lengths", default="1024,4096")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    for scheme in options.schemes.split(","):
        for length in map(int, options.lengths.split(",")):
            row = measure(scheme, length, options.pairs)
            if options.json:
                print(json.dumps(row))
            else:
                spread = f"median of {options.pairs}; {row['low']:.3f} to {row['high']:.3f}"
                machine = f"{row['threads']} threads, {row['device']}"
                print(
                    f"{scheme} at {length} tokens: {row['median']:.3f} of Llama's step ({spread}), {machine}"
                )


if __name__ == "__main__":
    main()
