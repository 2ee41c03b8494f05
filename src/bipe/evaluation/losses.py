"""What a model loses on each window of test text, at each context length."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bipe.models import BipeForCausalLM
from bipe.models.modes import evaluating
from bipe.models.sequence_parallel import hidden_states_of_stretch
from bipe.processes import gather, share
from bipe.registry import choose
from bipe.storage import read_tensors, write_tensors

from .segments import SegmentCount
from .windows import PROTOCOLS, Windows, checked_lengths, without

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens of a batch; on a CPU its activations should stay in the cache."""

HEAD_ROWS = 1024
"""Rows of logits in memory at once."""


class NotFinite(RuntimeError):
    """What a model loses is infinite or no number at all."""


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
    hidden, start = hidden_states_of_stretch(model, batch)
    assert head is not None, "models of this package have one"
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
        raise NotFinite(f"The model's losses are not finite numbers at {length} tokens of context.")
    return WindowLosses(
        nll=found,
        tokens=np.full(len(windows.spans), windows.scored, dtype=np.int64),
        bytes=np.array(collect(sizes), dtype=np.int64),
        tokens_per_segment=counted.tokens_per_segment or math.nan,
        offsets_beyond_trained=math.nan if (beyond := counted.offsets_beyond_trained) is None else beyond,
        by_place=(by_place / len(windows.spans)).numpy(),
    )


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
            document, one that cannot be read together, or, on a CPU, positions or ids that the model has none
            of.
        NotFinite: a loss is not a finite number.
    """
    cut = choose("protocol", PROTOCOLS, protocol)
    if protocol == "without_separators":
        documents = without(documents, separators)
    if max_windows is not None and max_windows < 1:
        raise ValueError(f"max_windows must be at least 1, or None for all windows; got {max_windows}.")
    lengths = checked_lengths(documents, lengths)
    with evaluating(model):
        windows = cut(documents, lengths, max_windows)
        with _told_of(lengths[0]):
            head = _head_of(model, next(windows[lengths[0]].batches(1)).to(model.device))
        curve: Curve = {}
        for length in lengths:
            with _told_of(length):
                curve[length] = _measure(model, head, windows[length], length, token_bytes, sequence_parallel)
        return curve


@contextmanager
def _told_of(length: int) -> Iterator[None]:
    """Say what a model that has a table of positions, or of other tokens, means by an index out of range."""
    try:
        yield
    except IndexError as error:
        raise ValueError(
            f"The model cannot read {length} tokens of this text: it has too few positions, or the text has "
            f"token ids that it does not know ({error})."
        ) from error


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
