"""A run that kills itself: `victim.py KIND FOLDER EVENT MILLISECONDS [BYTES]`.

KIND is train or compare. At the EVENT-th time that something below FOLDER is opened, made, renamed or deleted,
and MILLISECONDS later, the process gets SIGKILL; 0 is never. Files may become BYTES long, as on a full disk.
At its end it writes to FOLDER.events how many such events there were.
"""

import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

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
    import torch

    from bipe.data import pack
    from bipe.models import BipeConfig
    from bipe.training import TrainingSettings, train_model

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
    from bipe.comparison import Comparison
    from bipe.comparison import compare as run

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
    run(settings, Path(folder), say=lambda line: None)


def main(kind: str, folder: str, when: str, milliseconds: str, limit: str | None = None) -> None:
    import torch

    torch.set_num_threads(1)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    killer = Killer(folder, int(when), float(milliseconds) / 1000)
    sys.addaudithook(killer)
    {"train": train, "compare": compare}[kind](folder)
    Path(f"{folder}.events").write_text(str(killer.events), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
