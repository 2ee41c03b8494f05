"""How a stream of tokens is cut into segments."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from bipe.registry import choose, split_spec
from bipe.segmentation.base import Segmenter, levels_of
from bipe.segmentation.every_token import EveryToken
from bipe.segmentation.fixed_length import FixedLength
from bipe.segmentation.levels import Levels
from bipe.segmentation.never import Never
from bipe.segmentation.newline_run import NewlineRun
from bipe.segmentation.rules import RULES, file_ends
from bipe.segmentation.token_set import TokenSet

__all__ = [
    "RULES",
    "RULE_SEGMENTERS",
    "SEGMENTERS",
    "EveryToken",
    "FixedLength",
    "Levels",
    "Never",
    "NewlineRun",
    "Segmenter",
    "TokenSet",
    "build_segmenter",
    "check_rule",
    "levels_of",
    "segmenter_of",
    "with_outer_level",
]

SEGMENTERS: dict[str, type[Segmenter]] = {
    "every_token": EveryToken,
    "fixed_length": FixedLength,
    "levels": Levels,
    "never": Never,
    "newline_run": NewlineRun,
    "token_set": TokenSet,
}

RULE_SEGMENTERS: dict[str, Callable[[PreTrainedTokenizerBase], Segmenter]] = {
    **{rule: partial(TokenSet.from_tokenizer, rule=rule) for rule in RULES},
    "block": NewlineRun.from_tokenizer,
    "file": lambda tokenizer: TokenSet(file_ends(tokenizer)),
    "paragraph": NewlineRun.from_tokenizer,
    "section": partial(NewlineRun.from_tokenizer, count=3),
}
"""What makes a segmenter of a tokenizer: those of `RULES`, a blank line (`paragraph` of prose, `block` of
code), two of them (`section`), and the eos or another token between files (`file`)."""


_RANKS = {"block": 1, "paragraph": 1, "section": 2, "file": 3}
"""How long the segments of a rule are; those not named are the shortest."""


def build_segmenter(spec: Mapping[str, Any]) -> Segmenter:
    """Rebuild a segmenter from what its `to_spec` returned.

    >>> build_segmenter({"type": "fixed_length", "n": 4})
    FixedLength(n=4)

    Raises:
        ValueError: the type, an option or an option's value is wrong; the message says which.
    """
    segmenter, options = split_spec("segmenter", SEGMENTERS, spec)
    if "segmenters" in options:
        if not isinstance(options["segmenters"], list | tuple):
            raise ValueError(f"segmenters is a list of segmenters; got {options['segmenters']!r}.")
        options["segmenters"] = [build_segmenter(level) for level in options["segmenters"]]
    return segmenter(**options)


def check_rule(rule: str) -> list[str]:
    """The names in a rule such as `paper` or, of several levels, `sentence/paragraph`.

    Raises:
        ValueError: a name is unknown, the message lists the choices, or an outer level is no longer than an
            inner one.
    """
    names = str(rule).split("/")
    for name in names:
        choose("rule", RULE_SEGMENTERS, name)
    ranks = [_RANKS.get(name, 0) for name in names]
    if any(inner >= outer for inner, outer in pairwise(ranks)):
        raise ValueError(
            f"The levels of {rule!r} must get longer, as in sentence/paragraph/section or line/block/file."
        )
    return names


def with_outer_level(rule: str) -> str:
    """A rule of several levels: one of a single level gets the next longer one.

    >>> with_outer_level("sentence"), with_outer_level("line/file")
    ('sentence/paragraph', 'line/file')

    Raises:
        ValueError: as `check_rule`, or there is no longer level.
    """
    names = check_rule(rule)
    longer = {0: "paragraph", 1: "section", 2: "file"}
    if len(names) > 1:
        return rule
    if (rank := _RANKS.get(rule, 0)) not in longer:
        raise ValueError(f"Nothing is longer than {rule!r}: name the levels, as in line/block/file.")
    return f"{rule}/{longer[rank]}"


def segmenter_of(tokenizer: PreTrainedTokenizerBase, rule: str = "paper") -> Segmenter:
    """The segmenter of a rule.

    Args:
        tokenizer: any fast tokenizer of transformers; its vocabulary is read once.
        rule: a key of `RULE_SEGMENTERS`, or several with `/` between them, the innermost level first.

    Raises:
        ValueError: a name is unknown, no token fits it, or the tokenizer is not a fast one.
    """
    found = [RULE_SEGMENTERS[name](tokenizer) for name in check_rule(rule)]
    return found[0] if len(found) == 1 else Levels(found)
