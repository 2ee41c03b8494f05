"""Training on two processes is training on one: same losses, same files, and a run can go from one to the other."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bipe.storage import sole_writer
from bipe_cli.main import app, run

from .launching import TORCHRUN, python, together
from .validating import NUMBERS, found

RECIPE = """
scheme: bipe-rope
data: {train: [TEXT], vocab_size: 300, train_length: 32}
model: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 64}
training: {steps: 6, batch_size: 8, learning_rate: 1.0e-3, log_every: 1, evaluate_every: 3, checkpoint_every: 2}
"""
# With --cpu, accelerate starts several processes through MPI alone; the launcher of --multi_gpu is torchrun's.
LAUNCHERS = {
    "torchrun": (*TORCHRUN, "2"),
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    text = "\n".join(
        f"Line {number} of a text. It says {number * number}, and stops." for number in range(400)
    )
    (folder / "text.txt").write_text(text, encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("TEXT", str(folder / "text.txt")), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(recipe: Path) -> Path:
    """The run of one process."""
    out = recipe.parent / "alone"
    assert run(app, ["train", str(recipe), "--out", str(out)]) == 0
    return out


def launch(launcher: str, *arguments: str) -> str:
    return python("-m", "bipe_cli", *arguments, through=LAUNCHERS[launcher]).stdout


def losses(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "history.jsonl").read_text(encoding="utf-8").splitlines())
    return [row.get("loss", row.get("validation_loss")) for row in rows]


@pytest.fixture(scope="module")
def by_two(recipe: Path) -> Callable[[str], tuple[Path, str]]:
    """By launcher, the run of two processes and what they printed."""

    @cache
    def get(launcher: str) -> tuple[Path, str]:
        out = recipe.parent / launcher
        half = ("--training.batch_size", "4")
        return out, launch(launcher, "train", str(recipe), "--out", str(out), *half)

    return get


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_lose_what_one_loses(
    launcher: str, recipe: Path, alone: Path, by_two: Callable[[str], tuple[Path, str]]
) -> None:
    out, printed = by_two(launcher)
    assert printed.count("validation perplexity") == 1
    assert losses(out) == pytest.approx(losses(alone), abs=1e-5) and len(losses(out)) == 8
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in alone.iterdir())
    one, two = (load_file(folder / "model.safetensors") for folder in (alone, out))
    for name, weights in one.items():
        assert (weights - two[name]).abs().max() < 1e-4, name
    # The finished run is the same whoever asks for it, and another one where the batch is another.
    assert run(app, ["train", str(recipe), "--out", str(out)]) == 0
    assert run(app, ["train", str(recipe), "--out", str(out), "--training.batch_size", "4"]) == 2


def interrupt(recipe: Path, out: Path, step: int, *more: str) -> None:
    """Let a run go on until its next checkpoint, that of a step, and no further."""
    script = (
        "import os, sys\n"
        "from bipe.training import checkpoints\n"
        "import bipe.training.trainer as trainer\n"
        "publish = checkpoints.publish\n"
        "def last(*arguments):\n"
        "    publish(*arguments)\n"
        "    os._exit(7)\n"
        "trainer.checkpoints.publish = last\n"
        "from bipe_cli.main import main\n"
        "main()\n"
    )
    path = out.parent / "interrupted.py"
    path.write_text(script, encoding="utf-8")
    launcher = LAUNCHERS["torchrun"] if more else ()
    done = python(path, "train", recipe, "--out", out, *more, through=launcher, status=None)
    assert (out / "checkpoints" / f"step-{step}").is_dir(), done.stderr


def test_a_run_goes_on_with_another_number_of_processes(recipe: Path, alone: Path) -> None:
    out, half = recipe.parent / "begun-together", ("--training.batch_size", "4")
    interrupt(recipe, out, 2, *half)
    interrupt(recipe, out, 4)
    assert run(app, ["train", str(recipe), "--out", str(out), *half]) == 2
    launch("torchrun", "train", str(recipe), "--out", str(out), *half)
    assert losses(out) == pytest.approx(losses(alone), abs=1e-5)


def test_an_older_record_that_tells_no_processes_is_of_as_many_as_now(
    recipe: Path, by_two: Callable[[str], tuple[Path, str]]
) -> None:
    out, half = recipe.parent / "older", ("--training.batch_size", "4")
    shutil.copytree(by_two("torchrun")[0], out)
    marker = json.loads((out / "training.json").read_text(encoding="utf-8"))
    assert marker["identity"].pop("processes") == 2
    (out / "training.json").write_text(json.dumps(marker), encoding="utf-8")
    launch("torchrun", "train", str(recipe), "--out", str(out), *half)


def test_ctrl_c_at_one_process_stops_all_behind_the_same_step(recipe: Path, alone: Path) -> None:
    out = recipe.parent / "interrupted"
    script = recipe.parent / "interrupting.py"
    script.write_text(
        "import os, signal\n"
        "from bipe.processes import rank\n"
        "from bipe.training.trainer import BlockTrainer\n"
        "step = BlockTrainer.training_step\n"
        "def at_three(trainer, *arguments):\n"
        "    if trainer.state.global_step == 3 and rank() == 1:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return step(trainer, *arguments)\n"
        "BlockTrainer.training_step = at_three\n"
        "from bipe_cli.main import main\n"
        "main()\n",
        encoding="utf-8",
    )
    half = ("--training.batch_size", "4", "--training.steps", "12", "--training.schedule_steps", "12")
    done = together(2, script, "train", recipe, "--out", out, *half, status=None)
    assert "Interrupted. What was finished is kept" in done.stderr, done.stderr
    assert (out / "checkpoints" / "step-8").is_dir() and len(losses(out)) == 8 + 2


def test_a_folder_that_another_command_writes_is_refused_by_all(recipe: Path) -> None:
    out = recipe.parent / "taken"
    out.mkdir()
    with sole_writer(out):
        done = together(2, "-m", "bipe_cli", "train", recipe, "--out", out, status=None)
    assert done.stderr.count("Another process is writing into") == 2


def test_a_wrong_recipe_is_told_and_nobody_waits(recipe: Path) -> None:
    out = recipe.parent / "wrong"
    wrong = ("train", recipe, "--out", out, "--scheme", "rpoe")
    assert "Unknown scheme 'rpoe'" in together(2, "-m", "bipe_cli", *wrong, status=None).stderr


def test_processes_share_the_validation_in_equal_passes(tmp_path: Path) -> None:
    together(2, "-m", "tests.distributed.validating", tmp_path)
    alone = {number: found(number) for number in NUMBERS}
    assert [passes for _, passes in alone.values()] == [2, 3, 4]
    for rank in range(2):
        process = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        for number, (loss, passes) in alone.items():
            assert process[str(number)] == [loss, -(-passes // 2)]
