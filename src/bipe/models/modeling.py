"""The language model: the decoder, a head, and what transformers' `generate` needs.

Shape letters: B batch, T tokens of this call, S tokens attended to, D model width, H heads, K head width.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from bipe.positions import Positions

from .cache import has_state, past_length
from .configuration import BipeConfig
from .decoder import BipeModel, BipePreTrainedModel
from .inputs import asked_for, check_shape, counted_for_scored, packed_documents, shape_of, targets_of
from .reach import Reach, reach_bound, reach_on_text

# Trainer shifts labels for the names in here alone, where it smooths them.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[BipeConfig.model_type] = "BipeForCausalLM"


class BipeForCausalLM(BipePreTrainedModel, GenerationMixin):
    """A language model over `BipeModel`.

    >>> config = BipeConfig.from_scheme("bipe-rope", end_token_ids=[3], vocab_size=10, hidden_size=16,
    ...     intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    >>> model = BipeForCausalLM(config)
    >>> model.positions(torch.tensor([[5, 6, 3, 7, 8]])).segment.tolist()
    [[0, 0, 0, 1, 1]]
    >>> model(torch.tensor([[5, 6, 3, 7, 8]])).logits.shape
    torch.Size([1, 5, 10])
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: BipeConfig) -> None:
        super().__init__(config)
        self.model = BipeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def positions(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, document_ids: Tensor | None = None
    ) -> Positions:
        """Segment, offset and plain index of each token; see `BipeModel.positions`."""
        return self.model.positions(input_ids, attention_mask, document_ids)

    @property
    def longest_offset(self) -> int | None:
        """The longest offset with a vector of its own, which longer ones share; None for no limit."""
        return self.model.intra.longest_offset

    def reach(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        *,
        share: float = 0.99,
    ) -> Reach:
        """How far back each head looks: by its weights alone, and with ids also on that text.

        BiPE-ALiBi is local: with scale 96, most heads cannot read beyond a few segments. This tells which.

        Args:
            input_ids: `(B, T)` int64, or None for the bound from the weights alone. All pairs of its tokens
                are looked at, a block at a time.
            attention_mask: `(B, T)`, 0 on padding.
            document_ids: `(B, T)` int64; attention and positions do not cross a border.
            share: of the attention weights, that `mass` holds.

        Raises:
            ValueError: the share is not between 0 and 1.
        """
        bound = reach_bound(self)
        if input_ids is None:
            return Reach(bound)
        return Reach(bound, *reach_on_text(self, input_ids, attention_mask, document_ids, share))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        document_ids: Tensor | None = None,
        positions: Positions | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the next token; the arguments beside these are those of `BipeModel.forward`.

        Args:
            labels: `(B, T)` int64, shifted inside: position `i` predicts label `i + 1`; -100 is not scored,
                nor is the first token of a document, which nothing precedes.
            logits_to_keep: make logits of the last so many positions only, or of the positions given; 0 for
                all.

        Raises:
            ValueError: as `BipeModel.forward`, and attention weights asked of an implementation that has
                none.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            document_ids=document_ids,
            positions=positions,
            **kwargs,
        )
        logits = self.lm_head(asked_for(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            if logits.shape[1] != outputs.last_hidden_state.shape[1]:
                raise ValueError("The loss needs all logits: give labels or logits_to_keep, not both.")
            check_shape("labels", labels, len(logits), (logits.shape[1],))
            if document_ids is None and positions is not None:
                document_ids = positions.documents(attention_mask)
            elif document_ids is None:
                shape = shape_of(input_ids, inputs_embeds)
                document_ids = packed_documents(position_ids, attention_mask, shape, 0)
            targets = targets_of(labels, attention_mask, document_ids)
            loss = self.loss_function(
                logits=logits, labels=targets, vocab_size=self.config.vocab_size, **kwargs
            )
            if kwargs.get("num_items_in_batch") is not None and kwargs.get("shift_labels") is None:
                loss = loss * counted_for_scored(labels, targets)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `generate`, without a cache where the encoding allows none.

        Raises:
            ValueError: also `document_ids` of another shape than the prompt's.
        """
        ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        if ids is not None and past_length(kwargs.get("past_key_values")) == 0:
            check_shape("document_ids", kwargs.get("document_ids"), ids.shape[0], (ids.shape[1],))
        if not self.model.cacheable:
            kwargs.setdefault("use_cache", False)
        return cast("Any", super()).generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The inputs that transformers prepares, with positions where the cache does not remember them."""
        if kwargs.get("positions") is not None:
            raise ValueError(
                "generate cannot take positions, since it would need those of tokens not written yet: give "
                "document_ids, or nothing, and they are found from the ids."
            )
        inputs = cast("Any", super()).prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if inputs.get("input_ids") is None:
            return inputs
        cache, new = inputs.get("past_key_values"), inputs["input_ids"].shape[1]
        past, documents = past_length(cache), inputs.get("document_ids")
        has_all_ids = input_ids.shape[1] == past + new
        if documents is not None:
            if not has_all_ids and kwargs.get("is_first_iteration") and documents.shape[1] < past + new:
                raise ValueError(
                    f"document_ids must cover the {past} cached tokens too, {past + new} in all; got "
                    f"{documents.shape[1]}."
                )
            # The tokens after the prompt go on in its last document.
            later = documents[:, -1:].expand(-1, max(0, past + new - documents.shape[1]))
            documents = torch.cat((documents, later), dim=1)[:, : past + new]
            inputs["document_ids"] = documents[:, past:]
        if past and not has_state(cache, self.config.num_hidden_layers) and has_all_ids:
            inputs["positions"] = self.positions(input_ids, inputs.get("attention_mask"), documents)
            inputs["document_ids"] = documents
        return inputs

    @staticmethod
    def create_masks_for_generate(
        config: BipeConfig, attention_mask: Tensor | None, **kwargs: Any
    ) -> Tensor | None:
        """The two-dimensional mask, from which forward finds positions; a static cache would get a 4D one."""
        return attention_mask
