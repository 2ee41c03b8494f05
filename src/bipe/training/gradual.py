"""A rotation that moves from the token's index to the segment's while a retrofitted model trains."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bipe.encodings.inter.rope import Rope
from bipe.models.modeling import BipeForCausalLM


class GradualRotation(TrainerCallback):
    """Sets how far the rotation has moved before each step; from `steps` on it is the segment's index alone.

    Args:
        model: rotates by the segment index.
        steps: optimizer steps of the way.

    Raises:
        ValueError: the model has no rotation.
    """

    def __init__(self, model: BipeForCausalLM, steps: int) -> None:
        inter = model.model.inter
        if not isinstance(inter, Rope):
            raise ValueError(
                "gradual_steps moves a rotation from tokens to segments, and the inter encoding "
                f"{model.config.inter} has none."
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
