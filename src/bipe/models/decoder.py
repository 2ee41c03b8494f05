"""The decoder: transformers' Llama parts, with bilevel positions.

Shape letters: B batch, T tokens of this call, S tokens attended to, D model width, H heads, K head width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel, LlamaRMSNorm
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from bipe.attention import ATTENTIONS, Visible
from bipe.encodings.inter import INTER_ENCODINGS
from bipe.encodings.inter.base import InterEncoding
from bipe.encodings.intra import INTRA_ENCODINGS
from bipe.encodings.intra.base import IntraEncoding
from bipe.positions import Positions, document_starts
from bipe.registry import split_spec
from bipe.segmentation import build_segmenter

from .bounded_cache import BoundedCache
from .cache import TokenState, append_state, has_state, past_length, read_state, read_tokens
from .configuration import BipeConfig
from .inputs import (
    check_ids,
    check_rank,
    check_shape,
    check_steps,
    key_columns,
    packed_documents,
    pad_columns,
    refuse_unread,
    several,
)
from .layers import BipeAttention, BipeDecoderLayer


class BipePreTrainedModel(LlamaPreTrainedModel):
    """What transformers needs to know of the model."""

    config: BipeConfig  # pyright: ignore[reportIncompatibleVariableOverride] - a narrower one
    config_class = BipeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BipeDecoderLayer"]
    _can_compile_fullgraph = False  # a static cache is read with whole numbers in each step
    _supports_flash_attn = False
    _supports_flex_attn = False
    _can_record_outputs = {"hidden_states": BipeDecoderLayer, "attentions": BipeAttention}

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, IntraEncoding | InterEncoding):
            module.reset_parameters(self.config.initializer_range)
        else:
            super()._init_weights(module)

    def get_correct_attn_implementation(
        self, requested_attention: str | None, is_init_check: bool = False
    ) -> str:
        """The implementation asked for; by default `segment_local` where the bias decays, else `sdpa`.

        Raises:
            ValueError: it is not one of this project's, the only ones that honour a relation, or it cannot
                honour this model's.
        """
        inter, _ = split_spec("inter encoding", INTER_ENCODINGS, self.config.inter)
        requested = requested_attention or ("segment_local" if inter.decays else "sdpa")
        name = (self.config.inter or {})["type"]
        unfit: dict[str, str] = {}
        if not inter.decays:
            unfit["segment_local"] = (
                "segment_local leaves out keys that a decaying bias has pushed far down, and the inter "
                f"encoding {name!r} has none."
            )
        if inter.reads_content:
            unfit["flex"] = (
                "FlexAttention's score function sees no queries and keys, which the inter encoding "
                f"{name!r} reads."
            )
        fit = [known for known in ATTENTIONS if known not in unfit]
        if requested not in fit:
            reason = unfit.get(requested, f"Unknown attention implementation {requested!r}.")
            raise ValueError(f"{reason} Choose one of: {', '.join(sorted(fit))}.")
        return requested


class BipeModel(BipePreTrainedModel):
    """The decoder without its head."""

    def __init__(self, config: BipeConfig) -> None:
        config.check()
        super().__init__(config)
        self.segmenter = build_segmenter(config.segmenter or {})
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        intra, intra_options = split_spec("intra encoding", INTRA_ENCODINGS, config.intra)
        inter, inter_options = split_spec("inter encoding", INTER_ENCODINGS, config.inter)
        self.intra = intra(config, **intra_options)
        self.inter = inter(config, **inter_options)
        self.layers = nn.ModuleList(
            BipeDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def positions(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, document_ids: Tensor | None = None
    ) -> Positions:
        """Segment, offset and plain index of each token.

        Args:
            input_ids: `(B, T)` int64.
            attention_mask: `(B, T)` bool or integers, 0 on padding.
            document_ids: `(B, T)` int64; positions restart where it changes.
        """
        return self.token_state(input_ids, attention_mask, document_ids).positions

    def token_state(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        borders: Tensor | None = None,
        past: TokenState | None = None,
    ) -> TokenState:
        """The state of this call's tokens; `attention_mask` covers them, or the cached ones too.

        Where there are no `document_ids`, `borders` counts this call's documents on from the last before it.
        """
        check_rank(input_ids)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if document_ids is None:
            document_ids = torch.zeros_like(input_ids) if borders is None else borders
            if past is not None:
                document_ids = document_ids + past.last_real().document_ids
        return read_tokens(
            self.segmenter, input_ids, real[:, -input_ids.shape[1] :].bool(), document_ids, past
        )

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        document_ids: Tensor | None = None,
        positions: Positions | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: `(B, T)` int64.
            attention_mask: `(B, S)`, 0 on padding, over the cached tokens and this call's; `(B, T)` will do
                where the cache remembers its padding, which counts whatever this says of cached tokens.
            position_ids: `(B, T)` plain token positions. Only their breaks are read: where there are neither
                `document_ids` nor `positions`, any step other than +1 between real tokens starts a document,
                as packing collators mean it, and so does a 0 behind cached tokens.
            past_key_values: cache; it gets one layer more, which remembers segments, padding and documents.
            inputs_embeds: `(B, T, D)` in place of the embedded ids; needs `positions`.
            use_cache: whether to make a cache if there is none.
            document_ids: `(B, T)` int64, `(B, S)` where `positions` are given; attention and positions do
                not cross a border.
            positions: `(B, S)` positions of the cached tokens and this call's, in place of those found from
                the ids.
            kwargs: what transformers hands to every model; anything else is refused.

        Raises:
            ValueError: ids outside the vocabulary, missing positions or, of xpos, given ones that grow by
                more than 1 a token, a mask of a wrong length, or a cache where the encoding allows none.
        """
        told_positions = positions is not None
        told_apart = any(given is not None for given in (position_ids, document_ids, positions))
        refuse_unread(kwargs, told_apart)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if kwargs.get("output_attentions") and self.config._attn_implementation != "eager":
            raise ValueError(
                "Only the eager implementation returns attention weights: load with "
                "attn_implementation='eager'."
            )
        if input_ids is not None:
            check_ids(input_ids, self.config.vocab_size)
        embeds: Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        past_key_values = self._usable_cache(past_key_values, use_cache)
        past, (batch, tokens) = past_length(past_key_values), embeds.shape[:2]
        columns = (past + tokens,) if positions is not None else (past + tokens, tokens)
        check_shape("attention_mask", attention_mask, batch, columns)
        check_shape("document_ids", document_ids, batch, (tokens if positions is None else past + tokens,))
        if positions is None:
            borders = packed_documents(position_ids, attention_mask, (batch, tokens), past)
            state = self._advance(input_ids, attention_mask, document_ids, borders, past_key_values)
            positions = state.positions
            if past:
                attention_mask = state.real
            if past or borders is not None:
                document_ids = state.document_ids
        else:
            if not isinstance(positions, Positions):
                raise ValueError(
                    f"positions are BilevelPositions or MultilevelPositions; got {type(positions).__name__}."
                )
            for index in positions[:3]:
                check_shape("positions", index, batch, (past + tokens,))
            if document_ids is None:
                document_ids = positions.documents(attention_mask)
        visible = self._visible(tokens, attention_mask, document_ids, past_key_values, embeds.device)
        query = positions.last(tokens)
        offsets = self.intra(query, embeds.dtype)
        hidden_states = embeds if offsets is None else embeds + offsets
        key = positions.last(visible.past + tokens).pad_to(visible.sources)
        relation = self.inter(query, key, hidden_states.dtype)
        if told_positions and relation.damping is not None:
            check_steps(relation.damping.key_index)
        if relation.bias is not None:
            relation.bias.differentiable = tuple(self.inter.parameters())

        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=visible,
                past_key_values=past_key_values,
                use_cache=use_cache,
                relation=relation,
                **kwargs,
            )
        if isinstance(past_key_values, BoundedCache):
            past_key_values.drop(key, visible)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values
        )

    @property
    def cacheable(self) -> bool:
        """Whether a key holds for later calls too."""
        return self.intra.cacheable and self.inter.cacheable

    def _usable_cache(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        if cache is not None and not self.cacheable:
            raise ValueError(
                "Here a key holds for this call alone, so cached keys would be wrong: a rope_type such as "
                "dynamic depends on how long the text is, and randomized encodings draw in training. "
                "Pass use_cache=False, or choose a rope_type with fixed frequencies, such as yarn."
            )
        if cache is None and use_cache and self.cacheable:
            return DynamicCache(config=self.config)
        return cache

    def _advance(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        document_ids: Tensor | None,
        borders: Tensor | None,
        cache: Cache | None,
    ) -> TokenState:
        """The state of all tokens; that of this call's is appended to the cache."""
        if input_ids is None:
            raise ValueError(
                "Segments are found from token ids: with inputs_embeds, pass positions covering all keys."
            )
        layer, past = self.config.num_hidden_layers, past_length(cache)
        if past and not has_state(cache, layer):
            raise ValueError(
                f"The cache holds {past} tokens but not their segments, so the new tokens' positions are "
                "unknown: pass positions covering all keys, or a cache that this model has filled from "
                "token ids."
            )
        held = past - key_columns(cache, 0)[1]
        known = read_state(cache, layer, held) if cache is not None and past else None
        new = self.token_state(input_ids, attention_mask, document_ids, borders, known)
        if cache is None:
            return new
        append_state(cache, layer, new)
        return new if known is None else read_state(cache, layer, held + input_ids.shape[1])

    def _visible(
        self,
        tokens: int,
        attention_mask: Tensor | None,
        document_ids: Tensor | None,
        cache: Cache | None,
        device: torch.device,
    ) -> Visible:
        """Which keys this call's tokens see; what hides nothing is left out, where that can be known."""
        sources, dropped = key_columns(cache, tokens)
        past = past_length(cache) - dropped
        if dropped:
            attention_mask, document_ids = (
                None if given is None else given[:, -past - tokens :]
                for given in (attention_mask, document_ids)
            )
        real = None if attention_mask is None else attention_mask.bool()
        documents = None
        if document_ids is not None and several(document_ids):
            there = torch.ones_like(document_ids, dtype=torch.bool) if real is None else real
            # Counted, since a document's name may come again further on.
            documents = document_starts(there, document_ids).long().cumsum(dim=-1)
            # Slots that are not filled yet stand after the last document, so that documents ascend.
            missing = max(0, sources - documents.shape[1])
            documents = torch.cat((documents, documents[:, -1:].expand(-1, missing)), dim=1)
        if real is not None:
            real = pad_columns(real, sources) if torch.compiler.is_compiling() or not real.all() else None
        return Visible(tokens, sources, past, documents, real, device)
