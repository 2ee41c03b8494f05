"""Perplexity against context length, scored so that the curve means what it seems to mean."""

import math
from collections.abc import Collection, Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from bipe.models import BipeForCausalLM

from .base import Run, Score
from .intervals import interval, mean_loss_difference
from .losses import Curve, WindowLosses, window_losses
from .windows import ENOUGH_WINDOWS

TASK = "length-curve"
FEWEST_WINDOWS = 8
"""Below this an interval says nothing, and nothing is called significant or compared."""


def effective_context(curve: Curve) -> int | None:
    """The longest length whose loss is significantly below that of half of it, else the shortest length.

    Significant means that the paired 95 % interval of the difference excludes 0. None where that is not
    known: half of a length was not tested, or there are fewer than `FEWEST_WINDOWS` windows.
    """
    shortest, *longer = sorted(curve)
    if any(length % 2 or length // 2 not in curve for length in longer):
        return None
    if longer and len(curve[shortest].tokens) < FEWEST_WINDOWS:
        return None
    better = [
        length
        for length in longer
        if mean_loss_difference([curve[length // 2].nll, curve[length].nll], [1, -1], curve[length].tokens)[1]
        > 0
    ]
    return max(better, default=shortest)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _perplexity(nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    # exp(700) is about the largest number there is.
    return np.exp(np.minimum(nll / tokens, 700.0))


def scores(curve: Curve, run: Run, protocol: str, parameters: int) -> list[Score]:
    """The rows of one curve: perplexity and bits per byte at each length, and a known effective context."""
    rows = []

    def row(length: int, metric: str, value: tuple[float, float, float]) -> None:
        losses = curve[length]
        rows.append(
            Score(
                scheme=run.scheme,
                seed=run.seed,
                task=TASK,
                protocol=protocol,
                length=length,
                metric=metric,
                value=value[0],
                low=value[1],
                high=value[2],
                tokens=int(losses.tokens.sum()),
                windows=len(losses.tokens),
                tokens_per_segment=_known(losses.tokens_per_segment),
                offsets_beyond_trained=_known(losses.offsets_beyond_trained),
                steps=run.steps,
                parameters=parameters,
            )
        )

    for length, losses in curve.items():
        row(length, "perplexity", interval(_perplexity, losses.nll, losses.tokens))
        if losses.bytes.sum():
            row(
                length,
                "bits_per_byte",
                interval(lambda nll, size: nll / size / math.log(2), losses.nll, losses.bytes),
            )
    if protocol == "same_targets" and (found := effective_context(curve)) is not None:
        context = float(found)
        row(max(curve), "effective_context", (context, context, context))
    return rows


def scheme_name(model: PreTrainedModel) -> str:
    """What to call a model in the rows: the scheme of one of ours, else its `model_type`."""
    named = model.config.scheme if isinstance(model, BipeForCausalLM) else None
    return named or type(model.config).model_type


def length_curve(
    model: PreTrainedModel,
    documents: Sequence[Tensor],
    lengths: Sequence[int],
    protocol: str = "same_targets",
    token_bytes: Tensor | None = None,
    *,
    run: Run | None = None,
    max_windows: int | None = ENOUGH_WINDOWS,
    separators: Collection[int] = (),
    sequence_parallel: bool = False,
) -> list[Score]:
    """Perplexity at each context length, with 95 % intervals.

    `"same_targets"`: windows end at the same places for every length, inside one document, and the last
    `min(lengths) // 2` tokens of each are scored, so that lengths differ in context alone. `"blocks"` (the
    paper's): consecutive blocks with every token scored, where a longer length also scores tokens with more
    context. `"without_separators"`: as `"same_targets"`, of the text without the tokens that end segments,
    as from a source that lost its line breaks and full stops. Perplexity is exp of the token-weighted mean
    loss; intervals are a bootstrap over blocks of neighbouring windows.

    Args:
        model: any causal language model of transformers.
        documents: texts, each `(n,)` int64; those shorter than the longest length are not used by
            `"same_targets"`.
        lengths: context lengths in tokens.
        protocol: a key of `PROTOCOLS`.
        token_bytes: `(V,)` int64, UTF-8 bytes of each token; with it, bits per byte are returned as well.
        run: what to call the model in the rows; by default its config's scheme.
        max_windows: at most so many windows, spread evenly; None for all. `"blocks"` takes the same
            text at every length, and so fewer windows at the longer ones.
        separators: ids that `"without_separators"` leaves out.
        sequence_parallel: as `window_losses`.

    Raises:
        ValueError: as `window_losses`.
    """
    curve = window_losses(
        model,
        documents,
        lengths,
        protocol,
        token_bytes=token_bytes,
        max_windows=max_windows,
        separators=separators,
        sequence_parallel=sequence_parallel,
    )
    run = run or Run(scheme_name(model))
    return scores(curve, run, protocol, model.num_parameters())


def paired_differences(first: Curve, second: Curve, base_length: int) -> list[dict[str, float | int | str]]:
    """How two models differ on the same windows, at each length they share.

    Returns:
        Rows with `length`, `base_length`, `metric`, `value`, `low`, `high` and `windows`. `log_perplexity`
        is that of the first minus that of the second; `log_perplexity_growth` is the first's growth from
        `base_length` minus the second's, and is given where both lengths score the same windows.
    """
    rows: list[dict[str, float | int | str]] = []
    for length in sorted(set(first) & set(second)):
        one, two, tokens = first[length], second[length], first[length].tokens
        if len(tokens) < FEWEST_WINDOWS:
            continue
        if len(two.tokens) != len(tokens):
            raise ValueError(
                f"Only the same windows can be compared; at {length} tokens there are {len(tokens)} and "
                f"{len(two.tokens)}."
            )
        found = {"log_perplexity": mean_loss_difference([one.nll, two.nll], [1, -1], tokens)}
        bases = first.get(base_length), second.get(base_length)
        if length != base_length and all(base and np.array_equal(base.tokens, tokens) for base in bases):
            found["log_perplexity_growth"] = mean_loss_difference(
                [one.nll, first[base_length].nll, two.nll, second[base_length].nll], [1, -1, -1, 1], tokens
            )
        for metric, (value, low, high) in found.items():
            rows.append(
                {
                    "length": length,
                    "base_length": base_length,
                    "metric": metric,
                    "value": value,
                    "low": low,
                    "high": high,
                    "windows": len(tokens),
                }
            )
    return rows


def difference_scores(first: Curve, second: Curve, run: Run, protocol: str, parameters: int) -> list[Score]:
    """The rows of `paired_differences` from the shortest length on, as scores of the first model.

    Metrics are `log_perplexity_difference` and `log_perplexity_growth_difference`, first minus second.
    """
    return [
        Score(
            scheme=run.scheme,
            seed=run.seed,
            task=TASK,
            protocol=protocol,
            length=int(row["length"]),
            metric=f"{row['metric']}_difference",
            value=float(row["value"]),
            low=float(row["low"]),
            high=float(row["high"]),
            tokens=int(first[int(row["length"])].tokens.sum()),
            windows=int(row["windows"]),
            tokens_per_segment=None,
            offsets_beyond_trained=None,
            steps=run.steps,
            parameters=parameters,
        )
        for row in paired_differences(first, second, min(first))
    ]


def perplexity_by_place(losses: WindowLosses) -> list[tuple[int, float]]:
    """Perplexity of the tokens that have about so much text before them, of windows scored from the start.

    >>> losses = WindowLosses(*[np.zeros(1)] * 3, 1.0, 0.0, by_place=np.log([8.0, 4.0, 4.0, 2.0, 2.0, 2.0]))
    >>> [(place, round(value, 6)) for place, value in perplexity_by_place(losses)]
    [(1, 8.0), (2, 4.0), (4, 2.828427), (5, 2.0), (6, 2.0)]

    Args:
        losses: of protocol `"blocks"`, whose first scored token has one before it.

    Returns:
        Two bins an octave, each with the most tokens before one of its own; empty where places were not kept.
    """
    places = np.arange(1, len(losses.by_place) + 1)
    bins = np.ceil(2 * np.log2(places)).astype(int)
    return [
        (int(places[bins == one][-1]), float(np.exp(losses.by_place[bins == one].mean())))
        for one in np.unique(bins)
    ]
