"""Two processes that evaluate together find what one finds."""

import json
import shutil
from pathlib import Path

import pytest

from bipe.comparison.runs import accelerator_of
from bipe.processes import gather, in_turn, is_first, share
from bipe_cli.main import app, run

from ..test_scrolls import write_task
from .launching import together

TRAIN = """
scheme: bipe-rope
data: {train: [TEXT], vocab_size: 300, train_length: 32}
model: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 64}
training: {steps: 3, batch_size: 4}
"""
ARITHMETIC = """
scheme: rope
data: {arithmetic: {operators: 2, problems: 100, validation_problems: 20}}
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 4, intermediate_size: 64}
training: {steps: 30, batch_size: 16, learning_rate: 1.0e-2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and a text."""
    folder = tmp_path_factory.mktemp("evaluated")
    text = "\n".join(
        f"Line {number} of a text. It says {number * number}, and stops." for number in range(400)
    )
    (folder / "text.txt").write_text(text, encoding="utf-8")
    write_task(folder, "qasper")
    for name, recipe in (("model", TRAIN), ("arithmetic", ARITHMETIC)):
        path = folder / f"{name}.yaml"
        path.write_text(recipe.replace("TEXT", str(folder / "text.txt")), encoding="utf-8")
        assert run(app, ["train", str(path), "--out", str(folder / name)]) == 0
    return folder


CASES = {
    "length-curve": ("model", "--data", "text.txt", "--lengths", "32,64,96", "--max-windows", "21"),
    "length-curve, shared": (
        "model",
        "--data",
        "text.txt",
        "--lengths",
        "32,63,97",
        "--max-windows",
        "9",
        "--sequence-parallel",
    ),
    "passkey": ("model", "--data", "text.txt", "--lengths", "96,128", "--max-windows", "7"),
    "scrolls": ("model", "--data", "qasper.zip", "--lengths", "240", "--out", "answers"),
    "arithmetic": ("arithmetic", "--lengths", "1,2", "--max-windows", "31"),
}
SCRIPT = """
import json, os, sys
from bipe_cli.main import app, run
for task, (model, *more) in json.loads(sys.argv[1]).items():
    if os.environ["RANK"] == "0":
        print(f"# {task}", flush=True)
    assert run(app, ["evaluate", task.partition(",")[0], "--model", model, *more, "--json"]) == 0
"""


def rows(printed: str) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for line in printed.splitlines():
        if line.startswith("# "):
            found.setdefault(line[2:], [])
        elif line.startswith("{"):
            found[list(found)[-1]].append(json.loads(line))
    return found


@pytest.mark.filterwarnings("ignore:Only .* windows:UserWarning")
@pytest.mark.filterwarnings("ignore:.* prompts of qasper exceed:UserWarning")
def test_scores_are_those_of_one_process(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "evaluate.py").write_text(SCRIPT, encoding="utf-8")
    by_two = rows(together(2, "evaluate.py", json.dumps(CASES)).stdout)
    answers = (folder / "answers" / "qasper-validation.json").read_text(encoding="utf-8")
    assert len(json.loads(answers)) == 4 and max(map(len, json.loads(answers).values())) > 10
    shutil.rmtree(folder / "answers")
    capsys.readouterr()
    for task, (model, *more) in CASES.items():
        assert run(app, ["evaluate", task.partition(",")[0], "--model", model, *more, "--json"]) == 0
        alone = rows(f"# {task}\n{capsys.readouterr().out}")[task]
        assert len(alone) == len(by_two[task]) >= (1 if task == "scrolls" else 2)
        for one, two in zip(alone, by_two[task], strict=True):
            assert one.keys() == two.keys()
            for name, value in one.items():
                same = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
                assert two[name] == same, (task, name)
    assert (folder / "answers" / "qasper-validation.json").read_text(encoding="utf-8") == answers


def test_one_process_does_everything() -> None:
    assert is_first() and list(share(range(5))) == list(range(5)) == gather(range(5))
    with in_turn():
        pass


def test_shares_go_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert is_first() == (rank == 0)
        shares.append(list(share(range(7))))
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]


def test_a_comparison_is_not_for_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(app, ["compare", "--data", "stdlib", "--schemes", "rope", "--out", str(tmp_path / "c")]) == 2
    assert "give --workers" in capsys.readouterr().err


def test_workers_take_accelerators_in_turn() -> None:
    assert [accelerator_of(worker, ["2", "5", "7"]) for worker in range(1, 6)] == ["2", "5", "7", "2", "5"]
