"""Runs that kill themselves, each a line of standard input: `[SAID, KIND, FOLDER, EVENT, MILLISECONDS, BYTES]`.

A run is a process of its own, forked from this one, which has imported all that takes long. What it says goes
to the file SAID, and its exit status is printed. KIND is train or compare. At the EVENT-th time that something
below FOLDER is opened, made, renamed or deleted, and MILLISECONDS later, the process gets SIGKILL; 0 is never.
Files may become BYTES long, as on a full disk; null is any length. At its end a run writes to FOLDER.events how
many such events there were.
"""

import json
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from bipe.comparison import Comparison
from bipe.comparison import compare as run_comparison
from bipe.data import pack
from bipe.models import BipeConfig
from bipe.training import TrainingSettings, train_model

WATCHED = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "shutil.rmtree"}


class Killer:
    """An audit hook that counts events below a folder and kills the process at one of them."""

    def __init__(self, folder: str, when: int, seconds: float) -> None:
        self.folder, self.when, self.seconds = str(Path(folder).resolve()), when, seconds
        self.events = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in WATCHED or not any(self._is_below(part) for part in arguments):
            return
        self.events += 1
        if self.events == self.when:
            if self.seconds == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def _is_below(self, part: Any) -> bool:
        text = os.fspath(part) if isinstance(part, os.PathLike) else part
        return isinstance(text, str) and self.folder in text


def train(folder: str) -> None:
    documents = [torch.arange(400).remainder(23 + n).clamp(max=39) for n in range(6)]
    blocks = pack(documents, 16, eos_token_id=0)
    config = BipeConfig.from_scheme(
        "bipe-rope",
        end_token_ids=[3],
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        attention_dropout=0.1,
        max_offset=16,
    )
    settings = TrainingSettings(
        steps=24, batch_size=4, learning_rate=5e-3, log_every=1, evaluate_every=8, checkpoint_every=4
    )

    def note(row: dict[str, Any]) -> None:
        if "loss" in row:
            with open(Path(folder).with_suffix(".steps"), "a", encoding="utf-8") as file:
                file.write(f"{row['step']}\n")

    train_model(config, blocks, blocks, settings, folder, seed=7, on_progress=note)


def compare(folder: str) -> None:
    text = Path(folder).with_name("text.txt")
    if not text.exists():
        lines = (f"Line {number} says {number * number % 97}. It stops.\n" for number in range(600))
        text.write_text("".join(lines), encoding="utf-8")
    settings = Comparison.model_validate(
        {
            "schemes": ["rope", "bipe-alibi"],
            "data": {"train": [str(text)], "vocab_size": 300, "train_length": 16},
            "model": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
            },
            "training": {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "evaluate_every": 2},
            "learning_rates": [0.001, 0.01],
            "sweep_steps": 2,
            "evaluation": {"lengths": [16, 32], "max_windows": 16},
        }
    )
    run_comparison(settings, Path(folder), say=lambda line: None)


def be_victim(kind: str, folder: str, when: int, milliseconds: int, limit: int | None) -> None:
    signal.alarm(300)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    killer = Killer(folder, when, milliseconds / 1000)
    sys.addaudithook(killer)
    {"train": train, "compare": compare}[kind](folder)
    Path(f"{folder}.events").write_text(str(killer.events), encoding="utf-8")


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        said, *arguments = json.loads(line)
        victim = os.fork()
        if victim == 0:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
            be_victim(*arguments)
            return  # to the end of an interpreter, as any process
        status = os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1])
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
