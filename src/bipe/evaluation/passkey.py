"""Finding a key that was told somewhere in a long text.

The task of Mohtashami and Jaggi 2023 (arXiv:2305.16300), in running text instead of a repeated filler; with
several keys, as in Hsieh et al. 2024 (RULER, arXiv:2404.06654), one of them is asked for.
"""

import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bipe.data.tokens import plain_ids
from bipe.models.modes import evaluating
from bipe.processes import gather, share

from .base import Run, Score
from .shares import Questions
from .windows import ends_of, spread

CHOICES = 10
"""Keys that a model chooses from."""
CHANCE = {"choice_accuracy": 1 / CHOICES}
"""What guessing gets, by metric, where it gets anything."""
DIGITS = 5
NAMES = ("lamp", "boat", "garden", "letter", "mountain", "window", "horse", "bridge")
"""What keys belong to, where there are several."""


@dataclass(frozen=True)
class Trial:
    """A text that tells keys, a question, and what may be answered.

    Attributes:
        prompt: `(n,)` int64, the text with the question at its end.
        choices: ids of the keys to choose from, the right one first, of equal or different lengths.
    """

    prompt: Tensor
    choices: list[list[int]]


def make_trial(text: Tensor, tokenizer: PreTrainedTokenizerBase, keys: int, draw: random.Random) -> Trial:
    """Tell keys at random places of a text and ask for one of them.

    The text keeps its length: its beginning makes room.

    Args:
        text: `(n,)` int64, ids of running text.
        tokenizer: what cut it.
        keys: how many are told.
        draw: where chance comes from.

    Raises:
        ValueError: the text is shorter than what is to be told.
    """
    numbers = draw.sample(range(10 ** (DIGITS - 1), 10**DIGITS), max(keys, CHOICES))
    names = draw.sample(NAMES, keys)
    of = [f" of the {name}" if keys > 1 else "" for name in names]
    told = [
        _ids(tokenizer, f"\nThe pass key{whose} is {number}.\n")
        for whose, number in zip(of, numbers, strict=False)
    ]
    asked = f"\nThe pass key{of[0]} is"
    question = _ids(tokenizer, asked)
    room = len(text) - sum(map(len, told)) - len(question)
    if room < 1:
        what = "a key" if keys == 1 else f"{keys} keys"
        raise ValueError(
            f"Telling and asking for {what} takes {len(text) - room} tokens, and texts need more; got "
            f"{len(text)}."
        )
    rest = text[len(text) - room :].tolist()
    places = [draw.randrange(room) for _ in told]
    for place, sentence in sorted(zip(places, told, strict=True), reverse=True):
        rest[place:place] = sentence
    # After the question, since a tokenizer may mark the beginning of what it is given.
    choices = [_ids(tokenizer, f"{asked} {number}")[len(question) :] for number in numbers[:CHOICES]]
    return Trial(torch.tensor(rest + question), choices)


def draw_of(keys: int, number: int) -> random.Random:
    """Where chance comes from in the trial of this number, the same at every length."""
    return random.Random(f"{keys} {number}")


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return plain_ids(tokenizer, [text])[0]


@torch.inference_mode()
def answer(model: PreTrainedModel, trial: Trial) -> tuple[bool, bool]:
    """Whether the model would write the right key greedily, and whether it finds it the likeliest.

    The prompt is read once, and each key goes on from a copy of its cache, the largest thing in memory; of a
    model without one the prompt is read with each.

    Args:
        model: any causal language model of transformers, in evaluation mode.
        trial: the question and its choices.
    """
    device, longest = model.device, max(map(len, trial.choices))
    keys = torch.tensor(
        [choice + [choice[-1]] * (longest - len(choice)) for choice in trial.choices], device=device
    )
    real = torch.tensor(
        [[n < len(choice) for n in range(longest)] for choice in trial.choices], device=device
    )
    prompt = trial.prompt[None].to(device)
    read = cast("Any", model)(input_ids=prompt, use_cache=True, logits_to_keep=1)
    logits = read.logits[:, -1:].float().expand(len(keys), -1, -1)
    if longest > 1 and read.past_key_values is None:  # a rotation that depends on the length has no cache
        whole = (torch.cat((prompt, key[None, :-1]), dim=1) for key in keys)
        rows = [cast("Any", model)(input_ids=ids, use_cache=False, logits_to_keep=longest) for ids in whole]
        logits = torch.cat([row.logits.float() for row in rows])
    elif longest > 1:
        more = [
            cast("Any", model)(
                input_ids=key[None, :-1], past_key_values=deepcopy(read.past_key_values)
            ).logits
            for key in keys
        ]
        logits = torch.cat((logits, torch.cat(more).float()), dim=1)
    likelihood = (
        logits.log_softmax(dim=-1).gather(-1, keys[..., None])[..., 0].masked_fill(~real, 0).sum(dim=1)
    )
    written = logits[0].argmax(dim=-1) == keys[0]
    return bool(written[real[0]].all()), bool((likelihood[0] > likelihood[1:]).all())


def score_passkey(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Tensor],
    lengths: Sequence[int],
    *,
    keys: int,
    trials: int,
    run: Run,
) -> list[Score]:
    """How often a model finds a key, at growing lengths.

    The texts of all lengths end at the same places, evenly spread, and a trial has the same keys at every
    length. `accuracy` is that of greedy writing; `choice_accuracy` that of telling the right key from nine
    others, where guessing gets a tenth. Intervals are Wilson's.

    Args:
        model: any causal language model of transformers.
        tokenizer: its own.
        documents: test texts, each `(n,)` int64.
        lengths: tokens of a prompt.
        keys: how many are told, of which one is asked for.
        trials: questions at each length.
        run: where the model comes from.

    Raises:
        ValueError: no text is as long as the longest length, or a length has no room for the keys.
    """
    lengths = sorted(set(lengths))
    ends = ends_of(documents, lengths[-1], max(1, lengths[0] // 2))
    if not ends:
        raise ValueError(
            f"The longest length, {lengths[-1]}, does not fit in any test document; give longer ones."
        )
    chosen = spread(ends, trials)
    rows: list[Score] = []
    with evaluating(model):
        for length in lengths:
            made = [
                make_trial(documents[index][end - length : end], tokenizer, keys, draw_of(keys, number))
                for number, (index, end) in enumerate(chosen)
            ]
            asked = Questions(
                "passkey" if keys == 1 else "multikey",
                f"1 of {keys}",
                length,
                [trial.prompt for trial in made],
                model,
                run,
            )
            written, chosen_right = zip(*gather([answer(model, trial) for trial in share(made)]), strict=True)
            rows += [asked.score("accuracy", sum(written)), asked.score("choice_accuracy", sum(chosen_right))]
    return rows
