"""Training steps and generation of a scheme relative to transformers' Llama, and what positions cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bipe.models import BipeConfig, BipeForCausalLM
from bipe.positions import bilevel_positions

from .interleaved import Work, extra_peak_bytes, ratio, seconds_of

LLAMA = "llama"
"""The baseline: `LlamaForCausalLM` with sdpa."""


@dataclass(frozen=True)
class Size:
    """How large the models are, in the terms of `LlamaConfig`."""

    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 4
    num_attention_heads: int = 12
    vocab_size: int = 8000
    tokens_per_segment: int = 25
    """One in so many ids ends a segment, so random ids have segments of about as many tokens."""
    dtype: torch.dtype = torch.float32

    def llama(self) -> LlamaForCausalLM:
        """The baseline."""
        return cast("Any", LlamaForCausalLM(LlamaConfig(**self._fields()))).to(self.dtype)

    def scheme(self, scheme: str) -> BipeForCausalLM:
        """A model of a scheme."""
        ends = range(max(1, self.vocab_size // self.tokens_per_segment))
        config = BipeConfig.from_scheme(
            scheme, end_token_ids=ends, tokens_per_segment=self.tokens_per_segment, **self._fields()
        )
        return cast("Any", BipeForCausalLM(config)).to(self.dtype)

    def _fields(self) -> dict[str, Any]:
        return {
            name: size for name, size in vars(self).items() if name not in ("tokens_per_segment", "dtype")
        }

    def ids(self, rows: int, length: int, device: str) -> Tensor:
        """Random ids `(rows, length)` int64."""
        return torch.randint(0, self.vocab_size, (rows, length), device=device)


def measure_steps(
    schemes: Sequence[str],
    lengths: Sequence[int],
    size: Size | None = None,
    *,
    rounds: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Training steps (forward, backward, AdamW) on one sequence, relative to Llama's.

    Returns:
        For each scheme and length a row with the `median`, `low` and `high` of the ratios, and `peak_ratio`,
        the extra peak memory of a step relative to Llama's.

    Raises:
        ValueError: an unknown scheme, a size that does not divide, a length below 2, or no round.
    """
    size, device = size or Size(), _device()
    if not schemes or not lengths or min(lengths) < 2:
        raise ValueError(f"Give at least one scheme and lengths of 2 or more tokens; got {list(lengths)}.")
    torch.manual_seed(seed)
    models: dict[str, PreTrainedModel] = {scheme: size.scheme(scheme) for scheme in schemes}
    models[LLAMA] = size.llama()
    steps = {name: _Step(model, device) for name, model in models.items()}
    rows = []
    for length in sorted(set(lengths)):
        ids = size.ids(1, length, device)
        works = {name: step.on(ids) for name, step in steps.items()}
        for work in works.values():
            work()  # the first step makes the optimizer's state, which stays
        peaks = {name: extra_peak_bytes(work) for name, work in works.items()}
        times = seconds_of(works, rounds)
        rows += [
            {
                "scheme": scheme,
                "length": length,
                **ratio(times[scheme], times[LLAMA]),
                "extra_peak_bytes": peaks[scheme],
                "peak_ratio": round(peaks[scheme] / peaks[LLAMA], 3),
            }
            for scheme in dict.fromkeys(schemes)
        ]
    return rows


class _Step:
    def __init__(self, model: PreTrainedModel, device: str) -> None:
        self.model = nn.Module.to(model, device).train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def on(self, ids: Tensor) -> Work:
        def work() -> None:
            self.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

        return work


def measure_positions(
    scheme: str, rows: int, length: int, size: Size | None = None, *, rounds: int = 3, seed: int = 0
) -> dict[str, Any]:
    """`bilevel_positions` on `(rows, length)` as a share of a forward on the same ids.

    Raises:
        ValueError: an unknown scheme, an empty batch, or no round.
    """
    size, device = size or Size(), _device()
    if rows < 1 or length < 1:
        raise ValueError(f"The batch must have at least one row and one token; got {(rows, length)}.")
    torch.manual_seed(seed)
    model = size.scheme(scheme)
    nn.Module.to(model, device).eval()
    ids = size.ids(rows, length, device)
    is_end = model.model.segmenter(ids)
    with torch.no_grad():
        times = seconds_of(
            {
                "positions": lambda: bilevel_positions(is_end),
                "forward": lambda: model(ids, use_cache=False),
            },
            rounds,
        )
    return {
        "scheme": scheme,
        "rows": rows,
        "length": length,
        **ratio(times["positions"], times["forward"]),
    }


def measure_generation(
    schemes: Sequence[str],
    contexts: Sequence[int],
    size: Size | None = None,
    *,
    new_tokens: int = 16,
    rounds: int = 7,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Greedy steps of `generate` with a cache that holds the context, relative to Llama's.

    Returns:
        For each scheme and context a row with the `median`, `low` and `high` of the ratios.

    Raises:
        ValueError: an unknown scheme, a size that does not divide, no context or new token, or no round.
    """
    size, device = size or Size(), _device()
    if not schemes or not contexts or min(contexts) < 2 or new_tokens < 1:
        raise ValueError(
            "Give at least one scheme, contexts of 2 or more tokens, and new tokens; got "
            f"{list(contexts)} and {new_tokens}."
        )
    torch.manual_seed(seed)
    models: dict[str, PreTrainedModel] = {scheme: size.scheme(scheme) for scheme in schemes}
    models[LLAMA] = size.llama()
    for model in models.values():
        nn.Module.to(model, device).eval()
    rows = []
    for context in sorted(set(contexts)):
        ids = size.ids(1, context, device)
        times = seconds_of(
            {name: _generation(model, ids, new_tokens) for name, model in models.items()}, rounds
        )
        rows += [
            {
                "scheme": scheme,
                "context": context,
                "new_tokens": new_tokens,
                **ratio(times[scheme], times[LLAMA]),
            }
            for scheme in dict.fromkeys(schemes)
        ]
    return rows


def _generation(model: PreTrainedModel, ids: Tensor, new_tokens: int) -> Work:
    """Write some tokens after a context whose keys are in a cache already, and forget them again."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :-1], past_key_values=cache, logits_to_keep=1)
    mask = torch.ones_like(ids)

    def work() -> None:
        cast("Any", model).generate(
            ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        cache.crop(ids.shape[1] - 1 - cache.get_seq_length())

    return work


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
