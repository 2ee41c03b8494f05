"""One way to meet broken input: through the command line, where it is answered in one line or used."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bipe.data.tokens import train_tokenizer
from bipe.models import BipeConfig, BipeForCausalLM
from bipe_cli.main import app, run

LONGEST_ANSWER = 20.0
"""Seconds that anything here may take; all of it usually takes tenths of one."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "model"
    tokenizer = train_tokenizer(["Some text. Another sentence.\n" * 30], 300)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BipeForCausalLM(BipeConfig.from_scheme("bipe-rope", tokenizer, max_offset=16, **sizes)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


Answer = Callable[..., tuple[int, str]]


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    """Run a command: its status and what it says on standard error, which has to be one line if it fails."""

    def ask(*arguments: object, seconds: float = LONGEST_ANSWER) -> tuple[int, str]:
        capsys.readouterr()
        begun = time.monotonic()
        status = run(app, [str(argument) for argument in arguments])
        taken, said = time.monotonic() - begun, capsys.readouterr().err.strip()
        assert taken < seconds
        assert status in (0, 1, 2)
        if status:
            assert said.splitlines()[-1].startswith("bipe: "), said
            assert "Traceback" not in said
            assert sum(line.startswith("bipe: ") for line in said.splitlines()) == 1
        return status, said

    return ask


@pytest.fixture
def harmed(checkpoint: Path, tmp_path: Path) -> Callable[[], Path]:
    """A fresh copy of the checkpoint to do harm to, alone in its folder, whose surroundings have to stay empty."""

    def copy() -> Path:
        folder = tmp_path / "harmed" / "model"
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(checkpoint, folder)
        return folder

    return copy
