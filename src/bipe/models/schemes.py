"""Every method of the paper as a setting of one model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Spec = Mapping[str, Any]


@dataclass(frozen=True)
class Scheme:
    """A named choice of segmenter, encoding inside segments and encoding between them.

    Attributes:
        segmenter: type of the segmenter; a `token_set` gets its ids from the tokenizer.
        intra: the config's `intra`.
        inter: the config's `inter`; a scale `"auto"` is replaced by the measured tokens per segment.
    """

    segmenter: str
    intra: Spec = field(default_factory=lambda: {"type": "zero"})
    inter: Spec = field(default_factory=lambda: {"type": "zero"})


_LEARNED = {"type": "learned"}
_ROPE = {"type": "rope"}

SCHEMES: dict[str, Scheme] = {
    "alibi": Scheme("every_token", inter={"type": "alibi", "scale": 1.0}),
    "bipe-alibi": Scheme("token_set", _LEARNED, {"type": "alibi", "scale": 96.0}),
    "bipe-alibi-auto": Scheme("token_set", _LEARNED, {"type": "alibi", "scale": "auto"}),
    "bipe-rope": Scheme("token_set", _LEARNED, _ROPE),
    "inter-only": Scheme("token_set", inter=_ROPE),
    "intra-only": Scheme("token_set", _LEARNED),
    "learned": Scheme("never", _LEARNED),
    "nope": Scheme("every_token"),
    "rope": Scheme("every_token", inter=_ROPE),
    "sinusoidal": Scheme("never", {"type": "sinusoidal"}),
}
