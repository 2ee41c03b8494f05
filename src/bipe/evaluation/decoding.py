"""Greedy decoding of several prompts at once."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from bipe.models.checkpoint import quiet_transformers


@quiet_transformers()  # or each text beyond the trained length would be told of
def greedy(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int, *, eos: int, pad: int
) -> list[list[int]]:
    """What a model writes after each prompt, up to its first eos, which is left in.

    Args:
        model: any causal language model of transformers, in evaluation mode.
        prompts: token ids; shorter ones are padded on the left.
        new_tokens: at most so many are written.
        eos: the id that ends a text.
        pad: the id to pad with.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + [*prompt] for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    written = cast("Any", model).generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        # A checkpoint's own settings of generation may say otherwise.
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=new_tokens,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    rows = written[:, width:].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]
