"""Two commands that write one folder: the second is refused, or waits, and harms nothing."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from bipe.data import pack, train_tokenizer
from bipe.data.store import TokenStore
from bipe.models import BipeConfig
from bipe.storage import LOCK, sole_writer
from bipe.training import TrainingSettings, train, train_model
from bipe_cli.main import app, run

HOLDER = "import filelock, sys, time; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); time.sleep(60)"
RECIPE = """
scheme: bipe-rope
data: {train: ['TEXT'], vocab_size: 300, train_length: 8}
model: {hidden_size: 16, num_attention_heads: 2, intermediate_size: 16, num_hidden_layers: 1}
training: {steps: 2, batch_size: 1, checkpoint_every: 1}
"""
COMPARE = (
    *("--schemes", "rope", "--train-length", "8", "--lengths", "8,16", "--steps", "2"),
    *("--data.vocab_size", "300", "--model.hidden_size", "16", "--model.num_attention_heads", "2"),
    *("--model.num_hidden_layers", "1", "--training.batch_size", "1", "--learning_rates", "[0.001]"),
)

PARENT = """
import os, signal, sys, time
from bipe.comparison.runs import _prepare
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), _prepare, (1, ()))
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 100)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@contextmanager
def writer(folder: Path) -> Iterator[Callable[[], None]]:
    """Another process that writes into a folder, and how to kill it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / LOCK)], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline()

        def kill() -> None:
            other.kill()
            other.wait()

        yield kill
        kill()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_has_one_writer_and_is_free_when_that_is_killed(tmp_path: Path) -> None:
    with writer(tmp_path) as kill:
        with pytest.raises(ValueError, match="Another process is writing into"), sole_writer(tmp_path):
            pass
        kill()
        with sole_writer(tmp_path), sole_writer(tmp_path):  # the same process may ask again
            pass


def test_a_run_is_refused_while_another_process_trains_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("Some text. Another sentence.\n" * 60, encoding="utf-8")
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE.replace("TEXT", str(tmp_path / "text.txt")), encoding="utf-8")
    command = ["train", str(recipe), "--out", str(folder)]
    folder.mkdir()
    marker = '{"steps_done": 0, "finished": false, "identity": {}}'  # of one that has just begun
    (folder / "training.json").write_text(marker, encoding="utf-8")
    (folder / "recipe.yaml").write_text("of the other", encoding="utf-8")
    with writer(folder) as kill:
        (folder / "history.jsonl.1.draft").write_text("of the other", encoding="utf-8")
        before = contents(folder)
        assert run(app, [*command, "--seed", "3"]) == 2
        assert "Another process is writing into" in capsys.readouterr().err
        assert contents(folder) == before
        kill()
        assert run(app, command) == 0
    assert not any(folder.glob("*.draft"))


def test_a_comparison_is_refused_while_another_process_works_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "comparison"
    lines = (f"Line {number} says {number * number % 97}. It stops.\n" for number in range(1500))
    text.write_text("".join(lines), encoding="utf-8")
    command = ["compare", "--data", str(text), "--out", str(out), *COMPARE]
    assert run(app, command) == 0
    before = contents(out)
    with writer(out):
        assert run(app, [*command, "--seeds", "2"]) == 2
        assert "Another process is writing into" in capsys.readouterr().err
        assert contents(out) == before
    assert run(app, [*command, "--seeds", "2"]) == 0


def test_a_store_that_another_process_fills_is_waited_for(tmp_path: Path) -> None:
    text, folder = tmp_path / "text.txt", tmp_path / "store"
    text.write_text("Some text. Another sentence.\n" * 60, encoding="utf-8")
    tokenizer = train_tokenizer(["Some text."], 257)
    folder.mkdir()
    with writer(folder) as kill:
        store = TokenStore(folder, [str(text)], tokenizer)
        ends = threading.Timer(0.5, kill)
        ends.start()
        with pytest.warns(UserWarning, match="Another process is writing into .* Waiting for it"):
            store.fill()
        ends.join(10)
        assert not ends.is_alive()
    assert store.is_finished and len(store.blocks(16)) > 20


def test_a_second_run_leaves_the_record_of_the_first_alone(tmp_path: Path) -> None:
    """Before anything is saved, the folder is already the first one's."""
    blocks = pack([torch.arange(200) % 30], 8, eos_token_id=0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BipeConfig.from_scheme("rope", vocab_size=30, **sizes)
    settings, folder = TrainingSettings(steps=2, batch_size=2), tmp_path / "run"
    folder.mkdir()
    (folder / "training.json").write_text(
        '{"steps_done": 0, "finished": false, "identity": {"seed": 0}}', encoding="utf-8"
    )
    with writer(folder) as kill:
        before = contents(folder)
        with pytest.raises(ValueError, match="Another process is writing into"):
            train_model(config, blocks, None, settings, folder, seed=1)
        assert contents(folder) == before
        kill()
    assert train_model(config, blocks, None, settings, folder, seed=1).history


def test_a_recipe_does_not_touch_what_another_command_finished_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, recipe, folder = tmp_path / "text.txt", tmp_path / "recipe.yaml", tmp_path / "run"
    text.write_text("Some text. Another sentence.\n" * 60, encoding="utf-8")
    recipe.write_text(RECIPE.replace("TEXT", str(text)), encoding="utf-8")
    command, read = ["train", str(recipe), "--out", str(folder)], train.read_material

    def slowly(*arguments: Any) -> Any:
        """As the other command trains from beginning to end while this one reads its text."""
        monkeypatch.setattr(train, "read_material", read)
        assert run(app, command) == 0
        before.update(contents(folder))
        return read(*arguments)

    before: dict[str, bytes] = {}
    monkeypatch.setattr(train, "read_material", slowly)
    assert run(app, [*command, "--data.vocab_size", "290"]) == 2
    assert "holds another run: data.vocab_size" in capsys.readouterr().err
    assert before and contents(folder) == before


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_told_of_and_written_to(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", failing)
    if number == errno.EIO:  # says nothing of locks
        with pytest.raises(OSError, match=os.strerror(number)), sole_writer(tmp_path):
            pass
        return
    with pytest.warns(UserWarning, match=f"cannot be locked .*{os.strerror(number)}"), sole_writer(tmp_path):
        (tmp_path / "file").write_text("written", encoding="utf-8")


def test_a_worker_ends_with_the_process_that_it_works_for(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == -9
    worker = psutil.Process(int(done.stdout)) if psutil.pid_exists(int(done.stdout)) else None
    assert worker is None or worker.wait(20) is None or not worker.is_running()
