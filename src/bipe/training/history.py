"""The history of a run: what its loss was, how fast it went, and what validation said."""

import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bipe.records import append_record, read_records
from bipe.storage import write_whole

Row = dict[str, Any]
Progress = Callable[[Row], None]
Measure = Callable[[PreTrainedModel], dict[str, float]]
"""What is measured of a model at each validation, beside its loss, by names that start with `validation_`.

A value that is not finite is recorded as null."""
FILE = "history.jsonl"


class HistoryRecorder(TrainerCallback):
    """Appends a row to `history.jsonl` for each report of the trainer, and hands it on.

    Rows are `{"step", "loss", "learning_rate", "tokens_per_second"}` and `{"step", "validation_loss",
    "validation_perplexity"}` with what else was measured. Tokens per second count no time spent in validating
    and saving.

    Args:
        run: the run's folder.
        tokens_per_step: number of tokens that a step trains on.
        on_row: gets each row after it is written.
        on_interrupt: called where `on_row` raises KeyboardInterrupt, so that the step is finished first.
    """

    def __init__(
        self, run: Path, tokens_per_step: int, on_row: Progress, on_interrupt: Callable[[], None]
    ) -> None:
        self.path = run / FILE
        self.tokens_per_step = tokens_per_step
        self.on_row = on_row
        self.on_interrupt = on_interrupt
        self._clock = self._step_ended = time.perf_counter()
        self._reported_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._clock = self._step_ended = time.perf_counter()
        self._reported_step = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step_ended = time.perf_counter()
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._skip_time()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            row = {"step": state.global_step, "loss": logs["loss"], "learning_rate": logs["learning_rate"]}
            self._record({**row, "tokens_per_second": self._rate(state.global_step)})
        elif "validation_loss" in logs:
            measured = {
                name: value if math.isfinite(value) else None
                for name, value in logs.items()
                if name.startswith("validation_")
            }
            self._record({"step": state.global_step, **measured})
            self._skip_time()

    def _rate(self, step: int) -> float:
        now = time.perf_counter()
        rate = (step - self._reported_step) * self.tokens_per_step / max(now - self._clock, 1e-9)
        self._clock = self._step_ended = now
        self._reported_step = step
        return round(rate, 1)

    def _skip_time(self) -> None:
        now = time.perf_counter()
        self._clock += now - self._step_ended
        self._step_ended = now

    def _record(self, row: Row) -> None:
        append_record(self.path, row)
        try:
            self.on_row(row)
        except KeyboardInterrupt:
            self.on_interrupt()


def read_history(run: Path) -> list[Row]:
    """The rows of a run's history; a last line that was cut short is left out.

    Raises:
        ValueError: a row is no record of a step; the message names the file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the line that was cut short
        rows = read_records(run / FILE)
    if any(type(row.get("step")) is not int for row in rows):
        raise ValueError(f"{run / FILE} has a row without a step. Delete the folder or choose another.")
    return rows


def keep_history_until(run: Path, step: int) -> None:
    """Drop the rows beyond `step`, which a resumed run writes again."""
    rows = [row for row in read_history(run) if row["step"] <= step]
    write_whole(run / FILE, "".join(json.dumps(row) + "\n" for row in rows))
