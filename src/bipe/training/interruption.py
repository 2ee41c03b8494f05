"""Ctrl-C at a moment when everything is consistent."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Interruption(TrainerCallback):
    """Remembers a request to stop; at the end of the step the trainer then reports, saves and stops.

    In the middle of a step some layers may be updated and others not, which no resumed run could mend.
    """

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        """Stop at the end of the step under way."""
        self.requested = True

    @contextmanager
    def on_ctrl_c(self) -> Iterator[None]:
        """Let the first Ctrl-C request a stop; a second one interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.getsignal(signal.SIGINT)

        def handle(number: int, frame: FrameType | None) -> None:
            self.request()
            signal.signal(signal.SIGINT, previous)

        signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.requested:
            control.should_log = control.should_save = control.should_training_stop = True
