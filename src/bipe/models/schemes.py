"""Every method of the paper, and those it is compared with, as a setting of one model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Spec = Mapping[str, Any]


@dataclass(frozen=True)
class Scheme:
    """A named choice of segmenter, encoding inside segments and encoding between them.

    Attributes:
        segmenter: type of the segmenter; a `token_set` gets its ids from the tokenizer and a rule, and so do
            `levels`, to which paragraphs are added where the rule has one level.
        intra: the config's `intra`.
        inter: the config's `inter`; a scale `"auto"` is replaced by the measured tokens per segment.
    """

    segmenter: str
    intra: Spec = field(default_factory=lambda: {"type": "zero"})
    inter: Spec = field(default_factory=lambda: {"type": "zero"})

    @property
    def counts_segments(self) -> bool:
        """Whether what ends its segments is found in a tokenizer."""
        return self.segmenter in ("levels", "token_set")


_LEARNED = {"type": "learned"}
_ALIBI = {"type": "alibi", "scale": 1.0}
_ROPE = {"type": "rope"}

_ON_BOTH: dict[str, Spec] = {
    "cope": {"type": "cope"},
    "fire": {"type": "fire"},
    "kerple": {"type": "kerple"},
    "kerple-power": {"type": "kerple", "kernel": "power"},
    "randomized-rope": {"type": "randomized_rope"},
    "rerope": {"type": "rerope"},
    "rope": _ROPE,
    "selfextend": {"type": "selfextend"},
    "sliding-rope": {"type": "sliding_rope"},
    "t5": {"type": "t5"},
    "xpos": {"type": "xpos"},
}
"""Encodings that are alike on tokens and, with `bipe-` before the name, on segments with learned offsets."""

SCHEMES: dict[str, Scheme] = {
    **{name: Scheme("every_token", inter=inter) for name, inter in _ON_BOTH.items()},
    **{f"bipe-{name}": Scheme("token_set", _LEARNED, inter) for name, inter in _ON_BOTH.items()},
    "alibi": Scheme("every_token", inter=_ALIBI),
    "alibi-learned": Scheme("every_token", inter={**_ALIBI, "learned": True}),
    "bipe-alibi": Scheme("token_set", _LEARNED, {"type": "alibi", "scale": 96.0}),
    "bipe-alibi-auto": Scheme("token_set", _LEARNED, {"type": "alibi", "scale": "auto"}),
    "bipe-alibi-learned": Scheme("token_set", _LEARNED, {"type": "alibi", "scale": "auto", "learned": True}),
    "bipe-alibi2": Scheme("token_set", _LEARNED, {"type": "alibi2", "scale": "auto"}),
    "bipe-alibi2-learned": Scheme(
        "token_set", _LEARNED, {"type": "alibi2", "scale": "auto", "learned": True}
    ),
    "bipe3-alibi": Scheme("levels", _LEARNED, {"type": "alibi_levels", "scale": "auto"}),
    "bipe3-rope": Scheme("levels", _LEARNED, {"type": "rope_levels"}),
    "bipe-rope-randomized": Scheme("token_set", {"type": "randomized"}, _ROPE),
    "hirope": Scheme("token_set", inter={"type": "hirope"}),
    "inter-only": Scheme("token_set", inter=_ROPE),
    "intra-only": Scheme("token_set", _LEARNED),
    "learned": Scheme("never", _LEARNED),
    "nope": Scheme("every_token"),
    "offset+alibi": Scheme("token_set", _LEARNED, {**_ALIBI, "index": "token"}),
    "offset+rope": Scheme("token_set", _LEARNED, {**_ROPE, "index": "token"}),
    "sinusoidal": Scheme("never", {"type": "sinusoidal"}),
}
