"""Runs that are killed at random moments, or meet a full disk, end as if nothing had happened.

Five kills here; `make test-faults` makes fifty. BIPE_KILLS and BIPE_FAULTS_SEED choose.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

VICTIM = Path(__file__).with_name("victim.py")
KILLS = int(os.environ.get("BIPE_KILLS", "5"))
SEED = int(os.environ.get("BIPE_FAULTS_SEED", "0"))
TIMES = {"tokens_per_second", "seconds"}


@dataclass(frozen=True)
class Done:
    """What became of a victim."""

    returncode: int
    stderr: str


Victim = Callable[..., Done]
Undisturbed = Callable[[str], tuple[Path, int]]


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """Do a run in a process of its own."""
    said = tmp_path_factory.mktemp("said") / "stderr"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(VICTIM)], env=environment, **pipes) as process:
        assert process.stdin and process.stdout
        asked, told = process.stdin, process.stdout

        def run(
            kind: str, folder: Path, event: int = 0, milliseconds: int = 0, limit: int | None = None
        ) -> Done:
            said.write_bytes(b"")
            asked.write(json.dumps([str(said), kind, str(folder), event, milliseconds, limit]) + "\n")
            asked.flush()
            return Done(int(told.readline()), said.read_text(encoding="utf-8"))

        yield run
        asked.close()


def rows(path: Path) -> list[dict[str, Any]]:
    found = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [{name: value for name, value in row.items() if name not in TIMES} for row in found]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def same_run(there: Path, here: Path) -> None:
    """Bit for bit, and nothing lies around."""
    assert rows(there / "history.jsonl") == rows(here / "history.jsonl")
    one, two = (load_file(folder / "model.safetensors") for folder in (there, here))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert files(there) == files(here)


def same_comparison(there: Path, here: Path) -> None:
    assert rows(there / "scores.jsonl") == rows(here / "scores.jsonl")
    for run in sorted((there / "runs").iterdir()):
        same_run(run, here / "runs" / run.name)
    assert files(there) == files(here)


SAME: dict[str, Callable[[Path, Path], None]] = {"train": same_run, "compare": same_comparison}


@pytest.fixture(scope="module")
def undisturbed(victim: Victim, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """By kind, a run that nobody disturbs and how many events it has."""
    found: dict[str, tuple[Path, int]] = {}

    def get(kind: str) -> tuple[Path, int]:
        if kind not in found:
            folder = tmp_path_factory.mktemp(kind) / "run"
            done = victim(kind, folder)
            assert done.returncode == 0, done.stderr
            found[kind] = folder, int(Path(f"{folder}.events").read_text(encoding="utf-8"))
        return found[kind]

    return get


@pytest.mark.parametrize(("kind", "share"), [("train", 0.6), ("compare", 0.4)])
def test_killed_runs_go_on_as_if_nothing_had_happened(
    kind: str, share: float, victim: Victim, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    draw, wanted = random.Random(f"{kind} {SEED}"), round(share * KILLS)
    whole, events = undisturbed(kind)
    assert events > 50
    killed, number = 0, 0
    while killed < wanted:
        number, before = number + 1, killed
        folder = tmp_path / str(number) / "run"
        folder.parent.mkdir()
        if kind == "compare":
            (folder.parent / "text.txt").write_bytes((whole.parent / "text.txt").read_bytes())
        # The same run is killed again and again, three times at most, and then left to end.
        for _ in range(min(3, wanted - killed)):
            event, milliseconds = draw.randint(1, events), draw.choice((0, 0, 1, 5, 20))
            done = victim(kind, folder, event, milliseconds)
            if done.returncode == 0:
                break
            assert done.returncode == -9, done.stderr
            killed += 1
            _report({"kind": kind, "run": number, "event": event, "milliseconds": milliseconds})
        done = victim(kind, folder)
        assert done.returncode == 0, done.stderr
        SAME[kind](whole, folder)
        if kind == "train":
            # A kill costs no more than the steps since a checkpoint, of which there is one every four.
            done_steps = folder.with_suffix(".steps").read_text(encoding="utf-8").split()
            assert len(done_steps) <= 24 + 4 * (killed - before)


def _report(row: dict[str, Any]) -> None:
    if path := os.environ.get("BIPE_FAULTS_REPORT"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    victim: Victim, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    whole, _ = undisturbed("train")
    folder = tmp_path / "run"
    done = victim("train", folder, limit=30_000)  # room for a history, not for weights
    assert done.returncode == 1
    assert "Error" in done.stderr.splitlines()[-1]
    done = victim("train", folder)
    assert done.returncode == 0, done.stderr
    same_run(whole, folder)


HARMS = {
    "truncated": ("model.safetensors", lambda content: content[: len(content) // 2]),
    "flipped": ("model.safetensors", lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]),
    "no optimizer": ("optimizer.pt", None),
    "no generator": ("rng_state.pth", None),
    "no manifest": ("manifest.json", None),
}


@pytest.fixture(scope="module")
def broken_off(victim: Victim, undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed late, so that there are two checkpoints."""
    folder = tmp_path_factory.mktemp("broken") / "run"
    assert victim("train", folder, undisturbed("train")[1] * 3 // 4).returncode == -9
    return folder


@pytest.mark.parametrize("harm", HARMS)
def test_the_newest_whole_checkpoint_is_gone_on_from(
    harm: str, victim: Victim, undisturbed: Undisturbed, broken_off: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(broken_off, folder)
    older, newest = sorted((folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    name, change = HARMS[harm]
    if change is None:
        (newest / name).unlink()
    else:
        (newest / name).write_bytes(change((newest / name).read_bytes()))
    done = victim("train", folder)
    assert done.returncode == 0 and f"{newest.name} is damaged" in done.stderr, done.stderr
    assert older.name not in done.stderr
    same_run(undisturbed("train")[0], folder)


def test_a_kill_behind_the_last_step_costs_nothing(
    victim: Victim, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """When checkpoints are deleted, the record says already that the run is finished."""
    whole, events = undisturbed("train")
    folder = tmp_path / "run"
    seen = set()
    for event in range(events, events - 40, -3):
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".steps").unlink(missing_ok=True)
        if victim("train", folder, event).returncode == 0:
            continue
        finished = json.loads((folder / "training.json").read_text(encoding="utf-8"))["finished"]
        if not (folder / "checkpoints").exists() or not any((folder / "checkpoints").glob("step-*")):
            assert finished
        seen.add(finished)
        if seen == {True, False}:
            break
    assert seen == {True, False}
    assert victim("train", folder).returncode == 0
    same_run(whole, folder)
