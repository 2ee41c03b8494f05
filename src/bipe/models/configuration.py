"""The configuration: Llama's, with a segmenter and two encodings."""

import inspect
import math
import re
from collections.abc import Iterable, Mapping
from functools import wraps
from typing import Any, ClassVar, TypeVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from bipe.encodings.inter import INTER_ENCODINGS
from bipe.encodings.inter.rope import Rope
from bipe.encodings.intra import INTRA_ENCODINGS
from bipe.registry import check_number, choose, split_spec
from bipe.segmentation import (
    Levels,
    Never,
    NewlineRun,
    Segmenter,
    TokenSet,
    build_segmenter,
    check_rule,
    segmenter_of,
    with_outer_level,
)
from bipe.vocabulary import vocabulary_size

from .schemes import SCHEMES

C = TypeVar("C", bound=LlamaConfig)

SIZE_LIMITS = {
    "vocab_size": 2**24,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**14,
    "max_position_embeddings": 2**40,
}


def _with_plain_errors(config: type[C]) -> type[C]:
    """Let a value of a wrong type be a ValueError of one line, as every other wrong value is."""
    initialise = config.__init__

    @wraps(initialise)
    def checked(self: C, *args: Any, **kwargs: Any) -> None:
        try:
            initialise(self, *args, **kwargs)
        except StrictDataclassError as error:
            field = re.search(r"field '(\w+)'", str(error))
            reason = re.sub(r"^\w*Error: ", "", str(error).strip().splitlines()[-1].strip())
            raise ValueError(f"{field.group(1)}: {reason}" if field else reason) from error

    config.__init__ = checked
    return config


@_with_plain_errors
@strict
class BipeConfig(LlamaConfig):
    """Configuration of a Llama decoder with bilevel positions; every field of `LlamaConfig` is a field here.

    >>> config = BipeConfig(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=8,
    ...     segmenter={"type": "token_set", "end_token_ids": [13, 29]},
    ...     inter={"type": "alibi", "scale": 96.0})
    >>> config.intra
    {'type': 'zero'}

    Raises:
        ValueError: a size is out of range or does not divide, or a dictionary names an unknown type or
            option.
    """

    model_type = "bipe"
    auto_map: ClassVar[dict[str, str]] = {}  # TRL reads it of every config

    segmenter: dict | None = None
    """What ends a segment, a key of `SEGMENTERS` with its options: `{"type": "token_set", "end_token_ids":
    [...]}`, `every_token` (the default), `never`, `{"type": "fixed_length", "n": 32}`, `newline_run`,
    `levels`."""
    intra: dict | None = None
    """Encoding inside segments, added to the embedding, a key of `INTRA_ENCODINGS` with its options:
    `{"type": "learned", "max_offset": 1024}`, `randomized`, `sinusoidal`, `zero` (the default)."""
    inter: dict | None = None
    """Encoding between segments, inside attention, a key of `INTER_ENCODINGS` with its options: `rope` (the
    default, its theta and scaling kept in `rope_parameters`), `{"type": "alibi", "scale": 96.0}`, ..."""
    max_trained_offset: int | None = None
    """The longest offset that training has seen; longer ones are encoded as this one. None for no limit."""
    original_max_segments: int | None = None
    """How many segments training blocks have: 99 % of them no more. Set by training, in whose blocks it is
    the longest that the index between segments was trained for."""
    extension: dict | None = None
    """How the context was extended: method, factor, from what; it decides nothing."""
    scheme: str | None = None
    """The name of the scheme that the three dictionaries came from, for reports; it decides nothing."""

    def __post_init__(self, **kwargs: Any) -> None:
        self._validate_sizes()
        self.segmenter = {"type": "every_token"} if self.segmenter is None else dict(self.segmenter)
        self.intra = {"type": "zero"} if self.intra is None else dict(self.intra)
        self.inter = {"type": "rope"} if self.inter is None else dict(self.inter)
        self._fold_legacy_rope_fields(kwargs)
        inter, options = split_spec("inter encoding", INTER_ENCODINGS, self.inter)
        self.inter = {"type": self.inter["type"], **inter.adopt(self, options)}
        super().__post_init__(**kwargs)
        self.validate_encodings()

    def _fold_legacy_rope_fields(self, fields: dict[str, Any]) -> None:
        """Put `rope_scaling` and `rope_theta` of older configs where `inter` is compared with them."""
        given = {**(fields.pop("rope_scaling", None) or {}), **(self.rope_parameters or {})}
        if fields.get("rope_theta") is not None:
            given.setdefault("rope_theta", fields["rope_theta"])
        self.rope_parameters = given or None

    def _validate_sizes(self) -> None:
        for name, limit in SIZE_LIMITS.items():
            if (size := getattr(self, name)) is not None:
                check_number(name, size, 1, limit, whole=True)
        heads, groups = self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads
        if self.hidden_size % heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads; got {self.hidden_size} and {heads}."
            )
        if heads % groups:
            raise ValueError(
                f"num_attention_heads must be a multiple of num_key_value_heads; got {heads} and {groups}."
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(
                f"Unknown hidden_act {self.hidden_act!r}. Choose one of: {', '.join(sorted(ACT2FN))}."
            )
        if not 0 <= (self.attention_dropout or 0) < 1:
            raise ValueError(
                f"attention_dropout must be at least 0 and below 1; got {self.attention_dropout!r}."
            )
        for name, least in (("original_max_segments", 1), ("max_trained_offset", 0)):
            if (value := getattr(self, name)) is not None:
                check_number(f"{name}, where it is not None,", value, least, whole=True)

    def check(self) -> None:
        """Check all values anew: transformers changes a config's attributes after it was made.

        Raises:
            ValueError: as the class.
        """
        self._validate_sizes()
        self.validate_encodings()

    def validate_encodings(self) -> None:
        """Check the contents of `segmenter`, `intra` and `inter`.

        Raises:
            ValueError: naming the dictionary, the value and the choices.
        """
        assert self.segmenter is not None, "set in __post_init__"
        largest = _largest_id(build_segmenter(self.segmenter))
        if largest >= self.vocab_size:
            raise ValueError(
                f"The segmenter's end token {largest} is outside the vocabulary of {self.vocab_size}."
            )
        intra, options = split_spec("intra encoding", INTRA_ENCODINGS, self.intra)
        intra.validate(self, **options)
        inter, options = split_spec("inter encoding", INTER_ENCODINGS, self.inter)
        if moved := [name for name in options if name in inter.config_options]:
            raise ValueError(
                f"{moved[0]!r} of `inter` is read where a config is made; later set `rope_parameters`."
            )
        inter.validate(self, **options)

    def validate_rope(self) -> None:
        """Check `rope_parameters` where they are used: an odd head_dim is fine without rotation."""
        inter = INTER_ENCODINGS.get((self.inter or {}).get("type", "rope"))
        if inter is not None and issubclass(inter, Rope):
            self.ignore_keys_at_rope_validation = {"original_max_segments"}
            super().validate_rope()

    @classmethod
    def from_scheme(
        cls,
        scheme: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        rule: str = "paper",
        end_token_ids: Iterable[int] | None = None,
        max_offset: int | None = None,
        tokens_per_segment: float | None = None,
        **fields: Any,
    ) -> "BipeConfig":
        """The configuration of a named scheme.

        >>> BipeConfig.from_scheme("bipe-rope", end_token_ids=[13], hidden_size=64).intra
        {'type': 'learned'}

        Args:
            scheme: a key of `SCHEMES`.
            tokenizer: sets `vocab_size` and the special token ids, and finds the ids that end segments.
            rule: how what ends segments is found; see `segmenter_of`.
            end_token_ids: these ids, instead of a tokenizer and a rule; a scheme of several levels then has
                one outer segment a document.
            max_offset: rows of a learned table where `intra` does not say; 1,024 if neither does. Other
                encodings have none.
            tokens_per_segment: mean tokens in a segment of the training text, for a scheme with scale
                `"auto"`.
            fields: any field of `LlamaConfig` or of this class; `segmenter`, `intra` and `inter` replace the
                scheme's.

        Raises:
            ValueError: the scheme is unknown, or what it needs is missing.
        """
        chosen = choose("scheme", SCHEMES, scheme)
        check_rule(rule)
        fields = {**_tokenizer_fields(tokenizer), **fields}
        if fields.get("segmenter") is None:
            fields["segmenter"] = _segmenter_spec(chosen.segmenter, tokenizer, rule, end_token_ids)
        fields["intra"] = fields.get("intra") or dict(chosen.intra)
        fields["inter"] = _measured(fields.get("inter") or chosen.inter, tokens_per_segment)
        intra, _ = split_spec("intra encoding", INTRA_ENCODINGS, fields["intra"])
        if max_offset is not None and "max_offset" in inspect.signature(intra).parameters:
            fields["intra"] = {"max_offset": max_offset, **fields["intra"]}
        return cls(scheme=scheme, **fields)


def _tokenizer_fields(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {
        "vocab_size": vocabulary_size(tokenizer),
        **{name: getattr(tokenizer, name, None) for name in names},
    }


def _segmenter_spec(
    kind: str, tokenizer: PreTrainedTokenizerBase | None, rule: str, end_token_ids: Iterable[int] | None
) -> dict[str, Any]:
    if kind not in ("levels", "token_set"):
        return {"type": kind}
    if end_token_ids is not None:
        inner = TokenSet(end_token_ids)
        return dict(inner.to_spec() if kind == "token_set" else Levels([inner, Never()]).to_spec())
    if tokenizer is None:
        raise ValueError(
            "This scheme cuts text at separators: give a tokenizer (and a rule), or end_token_ids."
        )
    return dict(segmenter_of(tokenizer, with_outer_level(rule) if kind == "levels" else rule).to_spec())


def _largest_id(segmenter: Segmenter) -> int:
    """The largest token id that a segmenter names, -1 where it names none."""
    if isinstance(segmenter, Levels):
        return max(map(_largest_id, segmenter.segmenters))
    if isinstance(segmenter, NewlineRun):
        return max(token[0] for token in segmenter.tokens)
    return max(segmenter.end_token_ids) if isinstance(segmenter, TokenSet) else -1


def _measured(inter: Mapping[str, Any], tokens_per_segment: float | None) -> dict[str, Any]:
    if inter.get("scale") != "auto":
        return dict(inter)
    if tokens_per_segment is None or not 0 < tokens_per_segment < math.inf:
        raise ValueError(
            "This scheme's ALiBi scale is the mean number of tokens in a segment of the training text: give "
            f"tokens_per_segment, a positive number; got {tokens_per_segment!r}."
        )
    return {**inter, "scale": float(tokens_per_segment)}
