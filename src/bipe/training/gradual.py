"""A rotation that moves from the token's index to the segment's while a retrofitted model trains."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bipe.encodings.inter.rope import Rope, counts_tokens
from bipe.models.modeling import BipeForCausalLM


class GradualRotation(TrainerCallback):
    """Sets how far the rotation has moved before each step; from `steps` on it is the segment's index alone.

    Args:
        model: rotates by the segment index.
        steps: optimizer steps of the way.

    Raises:
        ValueError: the model has no rotation of its own kind, or one that counts tokens.
    """

    def __init__(self, model: BipeForCausalLM, steps: int) -> None:
        inter = model.model.inter
        if type(inter) is not Rope or counts_tokens(model.config, model.config.inter or {}):
            raise ValueError(
                "gradual_steps moves a rotation from tokens to segments, and the inter encoding "
                f"{model.config.inter} with the segmenter {(model.config.segmenter or {})['type']!r} has no "
                "such one."
            )
        self.inter, self.steps = inter, steps

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.inter.blend = min(1.0, state.global_step / self.steps)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.inter.blend = 1.0
