"""Perplexity against context length, scored so that the curve means what it seems to mean."""

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bipe.models import BipeForCausalLM
from bipe.models.sequence_parallel import hidden_states_of_stretch
from bipe.processes import gather, share
from bipe.registry import choose
from bipe.storage import read_tensors, write_tensors

from .base import Run, Score
from .intervals import interval, mean_loss_difference
from .segments import SegmentCount

TASK = "length-curve"
ENOUGH_WINDOWS = 256
FEWEST_WINDOWS = 8
"""Below this an interval says nothing, and nothing is called significant or compared."""

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens of a batch; on a CPU its activations should stay in the cache."""

HEAD_ROWS = 1024
"""Rows of logits in memory at once."""


@dataclass(frozen=True)
class Windows:
    """The windows of one length.

    Attributes:
        documents: the texts, each `(n,)` int64.
        spans: `(document, first token, end)` of each window, in the order of the text.
        scored: number of tokens scored at the end of each window.
    """

    documents: Sequence[Tensor]
    spans: list[tuple[int, int, int]]
    scored: int

    def batches(self, size: int) -> Iterator[Tensor]:
        """The windows as `(B, L)` int64, B at most `size`."""
        for start in range(0, len(self.spans), size):
            spans = self.spans[start : start + size]
            yield torch.stack([self.documents[index][first:end].long() for index, first, end in spans])


@dataclass(frozen=True)
class WindowLosses:
    """Losses of every window at one length.

    Attributes:
        nll: `(windows,)` float64, negative log likelihood summed over the window's scored tokens, in nats.
        tokens: `(windows,)` int64, number of scored tokens.
        bytes: `(windows,)` int64, UTF-8 bytes of the scored tokens; zeros where unknown.
        tokens_per_segment: mean tokens in a segment, over the windows.
        offsets_beyond_trained: share of tokens whose offset is longer than any in training.
        by_place: `(scored,)` float64, mean negative log likelihood at each scored place of a window, the
            last of which is the window's end.
    """

    nll: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    tokens_per_segment: float
    offsets_beyond_trained: float
    by_place: np.ndarray = field(default_factory=lambda: np.zeros(0))


Curve = dict[int, WindowLosses]
"""Losses by length."""


def _same_targets(
    documents: Sequence[Tensor], lengths: Sequence[int], most: int | None
) -> dict[int, Windows]:
    """Windows that end at the same places for every length and score the same tokens."""
    longest, scored = lengths[-1], max(1, lengths[0] // 2)
    ends = [
        (index, end)
        for index, document in enumerate(documents)
        for end in range(longest, len(document) + 1, scored)
    ]
    if most is not None and len(ends) > most:
        ends = [ends[position] for position in np.linspace(0, len(ends) - 1, most).round().astype(int)]
    if len(ends) < ENOUGH_WINDOWS:
        warnings.warn(
            f"Only {len(ends)} windows of {longest} tokens fit in the test text; fewer than "
            f"{ENOUGH_WINDOWS} are too few for narrow intervals.",
            stacklevel=3,
        )
    return {
        length: Windows(documents, [(index, end - length, end) for index, end in ends], scored)
        for length in lengths
    }


def _blocks(documents: Sequence[Tensor], lengths: Sequence[int], most: int | None) -> dict[int, Windows]:
    """Consecutive blocks; every token but a block's first, which nothing precedes, is scored.

    With a cap, the blocks of every length are cut from the same stretches of text, each as long as the
    longest length and spread evenly, so that lengths differ in their cuts and not in their text.
    """
    stretches = [(index, 0, len(document)) for index, document in enumerate(documents)]
    if most is not None and sum(end // lengths[0] for _, _, end in stretches) > most:
        stretches = _cut(stretches, lengths[-1])
        count = max(1, most * lengths[0] // lengths[-1])
        if len(stretches) > count:
            chosen = np.linspace(0, len(stretches) - 1, count).round().astype(int)
            stretches = [stretches[position] for position in chosen]
    return {length: Windows(documents, _cut(stretches, length), length - 1) for length in lengths}


def without(documents: Sequence[Tensor], separators: Collection[int]) -> list[Tensor]:
    """The documents without some tokens.

    Args:
        documents: each `(n,)` int64.
        separators: the ids to leave out.

    Raises:
        ValueError: there is none.
    """
    if not separators:
        raise ValueError("The protocol 'without_separators' needs the ids that end segments; none are given.")
    left_out = torch.tensor(sorted(separators))
    return [document[~torch.isin(document, left_out)] for document in documents]


def _cut(stretches: Sequence[tuple[int, int, int]], length: int) -> list[tuple[int, int, int]]:
    """Cut stretches, `(document, first, end)`, into pieces of `length`; their rests are left out."""
    return [
        (index, first, first + length)
        for index, start, end in stretches
        for first in range(start, end - length + 1, length)
    ]


PROTOCOLS = {"same_targets": _same_targets, "blocks": _blocks, "without_separators": _same_targets}


Head = Callable[[Tensor], Tensor]
"""From hidden states `(n, D)` to logits `(n, V)`."""


@torch.inference_mode()
def _head_of(model: PreTrainedModel, batch: Tensor) -> Head | None:
    """The model's output layer, or None where its logits are more than that, such as capped or scaled."""
    head = cast("nn.Module | None", model.get_output_embeddings())
    if head is None or isinstance(model, BipeForCausalLM):
        return head
    few = batch[:1, :8]
    hidden = model.base_model(input_ids=few, use_cache=False).last_hidden_state
    return head if torch.equal(head(hidden), model(input_ids=few, use_cache=False).logits) else None


@torch.inference_mode()
def _score(model: PreTrainedModel, head: Head | None, batch: Tensor, scored: int) -> Tensor:
    """Losses `(B, scored)` float32 of the last tokens of each window."""
    if head is None:
        logits = model(input_ids=batch, use_cache=False).logits[:, -scored - 1 : -1]
        return _losses(lambda some: some, logits, batch[:, -scored:])
    hidden = model.base_model(input_ids=batch, use_cache=False).last_hidden_state[:, -scored - 1 : -1]
    return _losses(head, hidden, batch[:, -scored:])


@torch.inference_mode()
def _score_together(model: PreTrainedModel, head: Head | None, batch: Tensor, scored: int) -> Tensor:
    """As `_score`, each window read by all processes together."""
    assert head is not None, "models of this package have one"
    hidden, start = hidden_states_of_stretch(model, batch)
    first = max(batch.shape[1] - scored - 1, start)
    last = max(first, min(batch.shape[1] - 1, start + hidden.shape[1]))
    found = _losses(head, hidden[:, first - start : last - start], batch[:, first + 1 : last + 1])
    return torch.cat([part.to(batch.device) for part in gather([found.cpu()])], dim=1)


def _losses(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    """Losses `(B, n)` float32; the head runs on a slice of all places at a time."""
    places = targets.reshape(-1)
    losses = [
        torch.nn.functional.cross_entropy(head(some).float(), wanted, reduction="none")
        for some, wanted in zip(
            hidden.reshape(len(places), hidden.shape[-1]).split(HEAD_ROWS),
            places.split(HEAD_ROWS),
            strict=True,
        )
    ]
    return torch.cat(losses).view(targets.shape)


def _measure(
    model: PreTrainedModel,
    head: Head | None,
    windows: Windows,
    length: int,
    token_bytes: Tensor | None,
    sequence_parallel: bool,
) -> WindowLosses:
    if sequence_parallel:
        mine, score, collect = windows, _score_together, list
    else:
        mine, score, collect = replace(windows, spans=list(share(windows.spans))), _score, gather
    nll, sizes, counted = [], [], SegmentCount(model)
    by_place = torch.zeros(windows.scored, dtype=torch.float64)
    for batch in mine.batches(max(1, BATCH_TOKENS.get(model.device.type, 4096) // length)):
        batch = batch.to(model.device)
        losses = score(model, head, batch, windows.scored).double()
        nll += losses.sum(dim=1).tolist()
        by_place += losses.sum(dim=0).cpu()
        targets = batch[:, -windows.scored :].cpu()
        sizes += [0] * len(batch) if token_bytes is None else token_bytes[targets].sum(dim=1).tolist()
        counted.add(batch)
    if not sequence_parallel:
        counted.add_up()
    by_place = sum(collect([by_place]), torch.zeros_like(by_place))
    if not np.isfinite(found := np.array(collect(nll))).all():
        raise RuntimeError(f"The model's losses are not finite numbers at {length} tokens of context.")
    return WindowLosses(
        nll=found,
        tokens=np.full(len(windows.spans), windows.scored, dtype=np.int64),
        bytes=np.array(collect(sizes), dtype=np.int64),
        tokens_per_segment=counted.tokens_per_segment or math.nan,
        offsets_beyond_trained=math.nan if (beyond := counted.offsets_beyond_trained) is None else beyond,
        by_place=(by_place / len(windows.spans)).numpy(),
    )


def _checked_lengths(documents: Sequence[Tensor], lengths: Sequence[int]) -> list[int]:
    lengths = sorted(set(lengths))
    if not lengths or lengths[0] < 2:
        raise ValueError(f"Lengths are whole numbers of tokens, at least 2; got {lengths}.")
    longest = max((len(document) for document in documents), default=0)
    if longest < lengths[-1]:
        raise ValueError(
            f"The longest length, {lengths[-1]}, does not fit in any test document; the longest has "
            f"{longest} tokens. Test on longer documents or ask for shorter lengths."
        )
    return lengths


def window_losses(
    model: PreTrainedModel,
    documents: Sequence[Tensor],
    lengths: Sequence[int],
    protocol: str = "same_targets",
    *,
    token_bytes: Tensor | None = None,
    max_windows: int | None = None,
    separators: Collection[int] = (),
    sequence_parallel: bool = False,
) -> Curve:
    """Losses of every window at every length, which `length_curve` condenses.

    Args:
        model: any causal language model of transformers; in eval mode meanwhile. Where its logits are more
            than its output layer, such as capped, those of a whole batch are in memory at once.
        documents: texts, each `(n,)` int64. A window never spans two.
        lengths: context lengths in tokens.
        protocol: a key of `PROTOCOLS`; see `length_curve`.
        token_bytes: `(V,)` int64, UTF-8 bytes of each token, for bits per byte.
        max_windows: at most so many windows (of the shortest length, for `"blocks"`), spread evenly; None
            for all.
        separators: ids that `"without_separators"` leaves out.
        sequence_parallel: whether the processes of torchrun read each window together, where it is too long
            for one; else each reads its share of the windows.

    Raises:
        ValueError: an unknown protocol, no separators to leave out, a length that does not fit in any
            document, or one that cannot be read together.
        RuntimeError: a loss is not a finite number.
    """
    cut = choose("protocol", PROTOCOLS, protocol)
    if protocol == "without_separators":
        documents = without(documents, separators)
    if max_windows is not None and max_windows < 1:
        raise ValueError(f"max_windows must be at least 1, or None for all windows; got {max_windows}.")
    lengths = _checked_lengths(documents, lengths)
    training = model.training
    model.eval()
    try:
        windows = cut(documents, lengths, max_windows)
        head = _head_of(model, next(windows[lengths[0]].batches(1)).to(model.device))
        return {
            length: _measure(model, head, windows[length], length, token_bytes, sequence_parallel)
            for length in lengths
        }
    finally:
        model.train(training)


def effective_context(curve: Curve) -> int:
    """The longest length whose loss is significantly below that of half of it, else the shortest length.

    Significant means that the paired 95 % interval of the difference excludes 0. Lengths whose half was not
    tested do not count.
    """
    better = [
        length
        for length, losses in curve.items()
        if length % 2 == 0
        and len(losses.tokens) >= FEWEST_WINDOWS
        and (half := curve.get(length // 2)) is not None
        and mean_loss_difference([half.nll, losses.nll], [1, -1], losses.tokens)[1] > 0
    ]
    return max(better, default=min(curve))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _perplexity(nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    # exp(700) is about the largest number there is.
    return np.exp(np.minimum(nll / tokens, 700.0))


def scores(curve: Curve, run: Run, protocol: str, parameters: int) -> list[Score]:
    """The rows of one curve: perplexity and bits per byte at each length, and the effective context."""
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
    if protocol == "same_targets":
        context = float(effective_context(curve))
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


def save_curves(path: str | Path, curves: Mapping[str, Curve]) -> None:
    """Write losses by protocol and length as safetensors."""
    tensors = {}
    for protocol, curve in curves.items():
        for length, losses in curve.items():
            name = f"{protocol}/{length}"
            tensors[f"{name}/nll"] = torch.from_numpy(losses.nll)
            tensors[f"{name}/tokens"] = torch.from_numpy(losses.tokens)
            tensors[f"{name}/bytes"] = torch.from_numpy(losses.bytes)
            tensors[f"{name}/by_place"] = torch.from_numpy(losses.by_place)
            tensors[f"{name}/segments"] = torch.tensor(
                [losses.tokens_per_segment, losses.offsets_beyond_trained], dtype=torch.float64
            )
    write_tensors(path, tensors)


def load_curves(path: str | Path) -> dict[str, Curve]:
    """Read what `save_curves` wrote."""
    tensors = read_tensors(path)
    curves: dict[str, Curve] = {}
    for key in sorted(tensors):
        protocol, length, part = key.split("/")
        if part != "nll":
            continue
        name = f"{protocol}/{length}"
        per_segment, beyond = tensors[f"{name}/segments"].tolist()
        curves.setdefault(protocol, {})[int(length)] = WindowLosses(
            tensors[f"{name}/nll"].numpy(),
            tensors[f"{name}/tokens"].numpy(),
            tensors[f"{name}/bytes"].numpy(),
            per_segment,
            beyond,
            tensors[f"{name}/by_place"].numpy() if f"{name}/by_place" in tensors else np.zeros(0),
        )
    return {protocol: dict(sorted(curve.items())) for protocol, curve in curves.items()}
