"""Whether RULER's texts fit: the harness looks forever for some that do not, and makes others empty."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

DRAWS = 50
MARGIN = 10
"""Tokens by which a text may be longer than the longest of so many draws."""
EXAMPLE = 500
"""Tokens that `ruler_vt` allows the example before its texts, with its answer."""
GROUPS = ("ruler", "longcxt")
"""The harness's names for all of RULER."""


def refuse_too_short(tasks: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    """Tell where a task of RULER has no way out of looking for a text that fits.

    Args:
        tasks: names of the harness's tasks; those of RULER are looked at, named one by one or as a group.
        tokenizer: whose tokens count.
        length: tokens of context.

    Raises:
        ValueError: a task's shortest text is too long, or a package is missing that it needs.
    """

    def count(text: str) -> int:
        return len(tokenizer(text).input_ids)

    for task, need in NEEDS.items():
        if not {task, *GROUPS} & set(tasks):
            continue
        try:
            needed = need(count, length)
        except ImportError as error:  # of what the task needs beside the harness
            raise ValueError(str(error)) from error
        if needed > length:
            raise ValueError(
                f"The shortest text of {task} has up to {needed:,} tokens of this tokenizer, with its "
                f"answer, and does not fit into {length:,}: give greater --lengths."
            )


Count = Callable[[str], int]


def _variables(count: Count, _: int) -> int:
    """The example that comes first, ten lines of noise with the variables, and the answer."""
    from lm_eval.tasks.ruler import vt_utils

    def draws(lines: int, **more: Any) -> Iterator[int]:
        while True:
            try:
                text, answer = vt_utils.generate_input_output(lines, 1, 4, **more)
            except IndexError:  # two names fell together
                continue
            yield count(f"{text} {answer}")

    room = vt_utils.CONFIG["variable_tracking"]["tokens_to_generate"]
    shown = max(islice(draws(5, is_icl=True), DRAWS))
    if shown + room > EXAMPLE:
        raise ValueError(
            f"The example that ruler_vt begins with has up to {shown} tokens of this tokenizer, and RULER "
            f"allows {EXAMPLE - room}: this tokenizer's tokens are too short for it at any length."
        )
    lines = 5
    while min(islice(draws(lines + 5, is_icl=True), DRAWS)) + room <= EXAMPLE:
        lines += 5  # as long as RULER allows
        shown = max(islice(draws(lines, is_icl=True), DRAWS))
    return shown + max(islice(draws(10), DRAWS)) + room + MARGIN


def _common_words(count: Count, length: int) -> int:
    """An example, ten words over and over, and the answer; with less room there would be no words."""
    from lm_eval.tasks.ruler import cwe_utils

    longest = 0
    for _ in range(DRAWS):
        example, text, words = cwe_utils.generate_input_output(10, length)
        answer = " ".join(f"{n}. {word}" for n, word in enumerate(words, start=1))
        longest = max(longest, count(f"{example}\n{text} {answer}"))
    return longest + cwe_utils.CONFIG["tokens_to_generate"] + MARGIN


def _frequent_words(count: Count, _: int) -> int:
    """The question without a text, and the answer."""
    from lm_eval.tasks.ruler import fwe_utils

    return count(fwe_utils.TEMPLATE.format(context="", query="")) + fwe_utils.CONFIG["tokens_to_generate"]


NEEDS: dict[str, Callable[[Count, int], int]] = {
    "ruler_vt": _variables,
    "ruler_cwe": _common_words,
    "ruler_fwe": _frequent_words,
}
"""Tokens that the shortest text of a task has, by its name."""
