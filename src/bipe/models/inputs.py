"""What a call of the model is given: checked, completed, and turned into targets."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.utils.generic import TransformersKwargs

from bipe.positions import document_ids_from_position_ids, document_starts

KNOWN = {*TransformersKwargs.__annotations__, "return_dict", "cache_position", "token_type_ids"}
"""Further arguments of a call: transformers' own, and what its tokenizers return for any model."""


BORDERS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")
"""Arguments by which packing collators tell documents apart; they give `position_ids` too, which is read."""


def refuse_unread(arguments: Mapping[str, Any], told_apart: bool) -> None:
    """Refuse arguments that nothing here would read: a misspelt `document_ids` must not pass in silence.

    Args:
        arguments: of the call, beside those that it reads.
        told_apart: whether something that is read tells where documents begin.
    """
    if unknown := sorted(set(arguments) - KNOWN):
        raise TypeError(f"The model takes no argument {unknown[0]!r}.")
    if arguments.get("is_causal") is False:
        raise ValueError("The model reads from left to right only; got is_causal=False.")
    packed = [name for name in BORDERS if arguments.get(name) is not None]
    if packed and not told_apart:
        raise ValueError(f"{packed[0]} alone is not read: give position_ids or document_ids beside it.")


def check_steps(index: Tensor) -> None:
    """Refuse given positions that a fading encoding would get wrong, which counts on steps of at most 1.

    Args:
        index: `(B, S)` int64, what the encoding counts.

    Raises:
        ValueError: the index grows by more than 1 from a token to the next.
    """
    if not torch.compiler.is_compiling() and bool((index.diff(dim=-1) > 1).any()):
        raise ValueError(
            "The channels of this encoding fade with distance (xpos), and positions given to it may grow by "
            "at most 1 from a token to the next."
        )


def packed_documents(
    position_ids: Tensor | None, attention_mask: Tensor | None, shape: tuple[int, int], past: int
) -> Tensor | None:
    """`(B, T)` documents of a batch that tells its borders by breaks in `position_ids`, or None.

    They are counted from 0, or from 1 where the first token starts a document behind `past` cached ones.
    """
    if position_ids is None:
        return None
    rows, tokens = shape
    if position_ids.dim() != 2 or position_ids.shape[0] not in (1, rows) or position_ids.shape[1] != tokens:
        raise ValueError(f"position_ids must have the shape {shape}; got {tuple(position_ids.shape)}.")
    real = None if attention_mask is None else attention_mask[:, -tokens:].bool()
    position_ids = position_ids.expand(rows, -1)
    documents = document_ids_from_position_ids(position_ids, real)
    if not past:
        return documents
    starts = position_ids == 0
    if real is None:
        return documents + starts[:, :1].long()
    first = real.long().argmax(dim=1, keepdim=True)  # padding may have any position
    return documents + (starts & real).gather(1, first).long()


def asked_for(states: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Of hidden states `(B, T, D)` those whose logits are asked for, as in transformers from 5.21 on.

    >>> states = torch.arange(6.0).view(1, 3, 2)
    >>> asked_for(states, 1), asked_for(states, torch.tensor([[True, False, False]]))
    (tensor([[[4., 5.]]]), tensor([[0., 1.]]))

    Args:
        states: of the text.
        logits_to_keep: the last so many, 0 for all; or places int64, `(n,)` or `(B, n)`, for `(B, n, D)`; or
            `(B, T)` bool, for `(places, D)`.
    """
    if isinstance(logits_to_keep, int):
        return states[:, -logits_to_keep:]
    if logits_to_keep.dim() == 1:
        return states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return states[logits_to_keep]
    return states.take_along_dim(logits_to_keep[..., None], dim=1)


def targets_of(labels: Tensor, attention_mask: Tensor | None, document_ids: Tensor | None) -> Tensor:
    """The labels without the first token of each document, which nothing precedes."""
    if attention_mask is None and document_ids is None:
        return labels
    tokens = labels.shape[1]
    # A cache adds columns; the first label of a call is no target in any case, since labels are shifted.
    real = torch.ones_like(labels) if attention_mask is None else attention_mask[:, -tokens:]
    real = real.bool()
    document_ids = None if document_ids is None else document_ids[:, -tokens:]
    return labels.masked_fill(document_starts(real, document_ids), -100)


def counted_for_scored(labels: Tensor, targets: Tensor) -> Tensor:
    """How many labels there are for each that is scored; 1 where none is.

    transformers' Trainer divides by its own count of the labels, in which the first token of each document
    is one more.
    """
    counted, scored = ((ids[:, 1:] != -100).sum() for ids in (labels, targets))
    return torch.where(scored > 0, counted / scored.clamp(min=1), 1.0)


def check_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Refuse ids that are no batch, or outside the vocabulary where looking at them costs no waiting."""
    check_rank(input_ids)
    # On an accelerator the comparison would wait for the device; there torch's own assertion fires.
    if input_ids.device.type != "cpu" or torch.compiler.is_compiling() or input_ids.numel() == 0:
        return
    low, high = int(input_ids.min()), int(input_ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"Token id {low if low < 0 else high} is outside the vocabulary of {vocab_size}.")


def check_rank(input_ids: Tensor) -> None:
    """Refuse ids that are no batch of texts."""
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids must have the shape (batch, tokens); got {tuple(input_ids.shape)}.")


def check_shape(name: str, tensor: Tensor | None, rows: int, columns: tuple[int, ...]) -> None:
    """Refuse what does not stand beside the ids; a cache adds columns for the tokens it holds."""
    if tensor is not None and (
        tensor.dim() != 2 or tensor.shape[0] != rows or tensor.shape[1] not in columns
    ):
        raise ValueError(f"{name} must have the shape {(rows, max(columns))}; got {tuple(tensor.shape)}.")


def shape_of(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[int, int]:
    """Rows and columns of this call; none of each where neither is given, which the decoder refuses."""
    given = input_ids if inputs_embeds is None else inputs_embeds
    return (0, 0) if given is None else (given.shape[0], given.shape[1])


def key_columns(cache: Cache | None, tokens: int) -> tuple[int, int]:
    """Number of key columns that attention will see, those not filled yet included, and of those dropped."""
    return (tokens, 0) if cache is None else cache.get_mask_sizes(tokens, 0)


def pad_columns(tensor: Tensor, columns: int) -> Tensor:
    """`(B, n)` with zeros appended up to `columns`, for cache slots that are not filled yet."""
    return nn.functional.pad(tensor, (0, max(0, columns - tensor.shape[1])))


def several(document_ids: Tensor) -> bool:
    """Whether any row holds more than one document; true while compiling, where values are unknown."""
    return torch.compiler.is_compiling() or bool((document_ids != document_ids[:, :1]).any())
