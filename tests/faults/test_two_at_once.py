"""Two commands that write one folder: the second is refused, or waits, and harms nothing."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bipe.data import train_tokenizer
from bipe.data.store import TokenStore
from bipe.storage import LOCK, sole_writer
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
        assert not ends.is_alive()
    assert store.is_finished and len(store.blocks(16)) > 20
