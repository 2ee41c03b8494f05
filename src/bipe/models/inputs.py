"""What a call of the model is given: checked, completed, and turned into masks and targets."""

import torch
from torch import Tensor, nn
from transformers import Cache

from bipe.positions import document_ids_from_position_ids, document_starts


def packed_documents(
    position_ids: Tensor | None, attention_mask: Tensor | None, shape: tuple[int, int]
) -> Tensor | None:
    """`(B, T)` documents of a batch that tells its borders by breaks in `position_ids`, or None."""
    if position_ids is None:
        return None
    if (
        position_ids.dim() != 2
        or position_ids.shape[0] not in (1, shape[0])
        or position_ids.shape[1] != shape[1]
    ):
        raise ValueError(f"position_ids must have the shape {shape}; got {tuple(position_ids.shape)}.")
    real = None if attention_mask is None else attention_mask.bool()
    return document_ids_from_position_ids(position_ids.expand(shape[0], -1), real)


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


def check_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Refuse ids outside the vocabulary, where looking at them costs no waiting."""
    # On an accelerator the comparison would wait for the device; there torch's own assertion fires.
    if input_ids.device.type != "cpu" or torch.compiler.is_compiling() or input_ids.numel() == 0:
        return
    low, high = int(input_ids.min()), int(input_ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"Token id {low if low < 0 else high} is outside the vocabulary of {vocab_size}.")


def check_shape(name: str, tensor: Tensor | None, rows: int, columns: set[int]) -> None:
    """Refuse what does not stand beside the ids; a cache adds columns for the tokens it holds."""
    if tensor is not None and (
        tensor.dim() != 2 or tensor.shape[0] != rows or tensor.shape[1] not in columns
    ):
        raise ValueError(f"{name} must have the shape {(rows, max(columns))}; got {tuple(tensor.shape)}.")


def shape_of(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[int, int]:
    """Rows and columns of this call; none of each where neither is given, which the decoder refuses."""
    given = input_ids if inputs_embeds is None else inputs_embeds
    return (0, 0) if given is None else (given.shape[0], given.shape[1])


def key_length(cache: Cache | None, tokens: int) -> int:
    """Number of key columns that attention will see, those not filled yet included."""
    return tokens if cache is None else cache.get_mask_sizes(tokens, 0)[0]


def pad_columns(tensor: Tensor, columns: int) -> Tensor:
    """`(B, n)` with zeros appended up to `columns`, for cache slots that are not filled yet."""
    return nn.functional.pad(tensor, (0, max(0, columns - tensor.shape[1])))


def several(document_ids: Tensor) -> bool:
    """Whether any row holds more than one document; true while compiling, where values are unknown."""
    return torch.compiler.is_compiling() or bool((document_ids != document_ids[:, :1]).any())
