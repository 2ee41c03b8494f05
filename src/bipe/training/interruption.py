"""Ctrl-C at a moment when everything is consistent."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bipe.processes import processes


class Interruption(TrainerCallback):
    """Remembers a request to stop; at the end of the step the trainer then reports, saves and stops.

    In the middle of a step some layers may be updated and others not, which no resumed run could mend.
    Several processes agree every few steps, so that all stop behind the same one; there a launcher hands
    Ctrl-C on a second time, which is no wish to interrupt at once.
    """

    EVERY = 8
    """Steps between agreements of several processes."""

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
            if processes() == 1:
                signal.signal(signal.SIGINT, previous)

        signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if processes() > 1 and not self._agree(args, state.global_step, state.max_steps):
            return
        if self.requested:
            control.should_log = control.should_save = control.should_training_stop = True

    def _agree(self, args: TrainingArguments, step: int, last: int) -> bool:
        """Learn whether any process was asked to stop; whether this step is one behind which all ask."""
        if step % self.EVERY and step != last:
            return False
        asked = torch.tensor(int(self.requested), device=args.device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        self.requested = bool(asked)
        return True
