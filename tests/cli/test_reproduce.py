"""Every experiment's commands are ones that exist, and the machinery runs, goes on, and writes the page."""

import json
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from bipe.comparison import Comparison
from bipe.data.scrolls import SCROLLS
from bipe.models import SCHEMES
from bipe.training import load_recipe, parse_overrides, read_settings
from bipe_cli import experiments
from bipe_cli.experiments import EXPERIMENTS
from bipe_cli.main import app, run
from bipe_cli.paper_size import PAPER_SIZE, TASKS
from bipe_cli.steps import Experiment, Setup, Step

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
ROOT = Path(__file__).parents[2]


def setup(out: Path, **more) -> Setup:
    fields = {"data": ["some"], "test": ["other"], "workers": 2, "seeds": 2, **more}
    return Setup(out, ROOT / "recipes", **fields)


def options(arguments, name: str) -> list[str]:
    return [arguments[place + 1] for place, part in enumerate(arguments) if part == name]


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_every_step_is_a_command_with_settings_that_exist(name: str, tmp_path: Path) -> None:
    lanes = EXPERIMENTS[name].lanes(setup(tmp_path))
    assert lanes and all(lanes)
    steps = [step for lane in lanes for step in lane]
    for step in steps:
        command, *arguments = step.arguments
        if command == "compare":
            known = ("--recipe", "--out", "--workers", "--seeds", "--data", "--test")
            rest = [
                part
                for place, part in enumerate(arguments)
                if part not in known and (place == 0 or arguments[place - 1] not in known)
            ]
            settings = read_settings(
                Comparison, Path(options(arguments, "--recipe")[0]), parse_overrides(rest), {}
            )
            settings.check()
        elif command == "train":
            recipe, *rest = arguments
            place = rest.index("--out")
            load_recipe(recipe, parse_overrides(rest[:place] + rest[place + 2 :]))
        COMMANDS[command].make_context(command, list(arguments))
    made = [
        path for step in steps for path in (step.rows, step.makes, *options(step.arguments, "--out")) if path
    ]
    folders = [str(path) for path in made if not str(path).endswith(".jsonl")]
    rows = [path for path in made if str(path).endswith(".jsonl")]
    assert len(set(rows)) == len(rows) and len(set(folders)) >= len(folders) - sum(
        s.makes is not None for s in steps
    )


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_the_paper_size_names_what_exists(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = (
        PAPER_SIZE["extrapolation"] if "`bipe reproduce extrapolation" in EXPERIMENTS[name].hardware else ()
    )
    made = {folder for command in earlier for folder in options(shlex.split(command), "--out")}
    assert run(app, ["reproduce", name, "--paper-size"]) == 0
    hardware, *commands = capsys.readouterr().out.splitlines()
    assert hardware.startswith(f"# {EXPERIMENTS[name].title}: ") and commands
    for command in commands:
        if command.startswith("# LLAMA stands for"):
            continue
        parts = shlex.split(command)
        recipes = [part for part in parts if part.endswith(".yaml")]
        assert all((ROOT / recipe).is_file() for recipe in recipes), command
        program = parts[parts.index("bipe_cli") + 1] if "bipe_cli" in parts else parts[1]
        assert program in ("train", "evaluate", "extend", "segment", "theory"), command
        place = parts.index(program)
        COMMANDS[program].make_context(program, parts[place + 1 :])
        if program == "train":
            recipe, *rest = parts[place + 1 :]
            at = rest.index("--out")
            load_recipe(ROOT / recipe, parse_overrides(rest[:at] + rest[at + 2 :]))
        assert all(scheme in SCHEMES for scheme in options(parts, "--scheme"))
        made |= set(options(parts, "--out")) if program in ("train", "extend") else set()
        begun = options(parts, "--model") + options(parts, "--start")
        assert all(model in made for model in begun), command
    trained = [options(shlex.split(command), "--out")[0] for command in commands if " train " in command]
    assert len(trained) == len(set(trained))
    if name not in ("segments", "theory"):
        measured = [options(shlex.split(c), "--model")[0] for c in commands if " evaluate " in c]
        assert set(trained) <= set(measured), "each model is measured"


def test_the_paper_size_of_scrolls_has_all_its_tasks() -> None:
    assert set(TASKS) == set(SCROLLS)


def test_without_a_name_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["reproduce"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(EXPERIMENTS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "Unknown experiment 'nonsense'. Choose one of: ablations"),
        (["extension"], "name test text with --test"),
        (["segments", "--tasks", "qasper"], "segments does not read --tasks"),
        (["segments", "--seeds", "5"], "segments does not read --seeds"),
        (["segments", "--steps", "4"], "segments does not read --steps"),
        (["arithmetic", "--data", "nowhere"], "arithmetic does not read --data"),
        (["tasks", "--test", "nowhere"], "tasks does not read --test"),
        (["scrolls", "--tasks", "nosuch"], "Unknown task of SCROLLS 'nosuch'"),
        (["scrolls", "--tasks", "nowhere/qasper.zip"], "There is no file or folder 'nowhere/qasper.zip'"),
        (["extension", "--test", "nowhere"], "No file or folder matches 'nowhere'"),
        (["segments", "--data", "nowhere"], "No file or folder matches 'nowhere'"),
        (["segments", "--paper-size", "--bogus", "1"], "reads no settings; got --bogus"),
    ],
)
def test_wrong_use_is_refused(arguments, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["reproduce", *arguments]) != 0
    assert said in capsys.readouterr().err


def test_test_text_that_is_missing_is_found_before_training(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert run(app, ["reproduce", "extension", "--test", str(tmp_path), "--out", str(out)]) != 0
    assert f"No document was found in '{tmp_path}'; folders are searched" in capsys.readouterr().err
    assert not out.exists()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    sentences = "The cat sat.\nThe dog ran. It ran far.\n" * 500  # fewer than 8,192 tokens
    path.write_text(sentences, encoding="utf-8")
    return path


def test_segments_are_counted_from_one_command(text: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["reproduce", "segments", "--data", "text.txt", "--out", "out"]
    assert run(app, command) == 0
    page = (tmp_path / "out" / "page.md").read_text(encoding="utf-8")
    rows = tmp_path / "out" / "text.txt-line.jsonl"
    row = json.loads(rows.read_text(encoding="utf-8").splitlines()[0])
    assert f"| text.txt, line | 256 | {row['segments']:,} |" in page
    assert "![Tokens per segment, text.txt, paper](text.txt_paper.png)" in page
    assert (tmp_path / "out" / "text.txt_paper.png").read_bytes().startswith(b"\x89PNG")
    assert "# Tokens per segment (Figure 1)" in page and "bounded support" in page
    assert "bipe segment text.txt --rule sentence --statistics" in page
    capfd.readouterr()
    rows.unlink()
    seconds = float((tmp_path / "out" / "cpu_seconds").read_text())
    assert seconds > 1 and f"{seconds / 60:.1f} CPU-minutes" in page
    assert run(app, command) == 0
    assert float((tmp_path / "out" / "cpu_seconds").read_text()) > 1.1 * seconds, "the sum of both"
    (tmp_path / "out" / "cpu_seconds").write_text("")  # as a kill may leave it
    assert run(app, command) == 0
    assert "CPU-" not in (tmp_path / "out" / "page.md").read_text(encoding="utf-8"), "not known any more"
    given = [line for line in capfd.readouterr().err.splitlines() if line.startswith("$ ")]
    assert [options(shlex.split(line), "--rule") for line in given] == [["line"]], (
        "only what is missing is done"
    )
    record = rows.with_name(f"{rows.name}.command")
    record.write_text("bipe segment text.txt --rule line --lengths 7", encoding="utf-8")
    assert run(app, command) != 0
    assert "text.txt-line.jsonl is of another command" in capfd.readouterr().err


def test_texts_of_one_name_have_rows_of_their_own(tmp_path: Path) -> None:
    lanes = EXPERIMENTS["segments"].lanes(setup(tmp_path, data=["a/text.txt", "b/text.txt"], test=[]))
    assert len({step.rows for lane in lanes for step in lane}) == 6


def test_every_seed_of_an_extended_model_has_its_row(tmp_path: Path) -> None:
    lanes = EXPERIMENTS["extension"].lanes(setup(tmp_path))
    named = [step.named for lane in lanes for step in lane if step.rows]
    assert {"scheme": "rope yarn", "seed": 1} in named and {"scheme": "rope yarn", "seed": 0} in named


def test_a_comparison_is_run_and_told_of(text: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    recipe = {
        "schemes": ["rope"],
        "data": {"vocab_size": 300, "train_length": 16},
        "model": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        },
        "learning_rates": [0.001],
        "training": {"steps": 9},
        "evaluation": {"lengths": [16, 32], "max_windows": 8, "protocols": ["blocks"]},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    tiny = Experiment(
        "Tiny",
        "Nothing.",
        lambda it: [[it.compare(str(tmp_path / "tiny.yaml"), "both")]],
        "None.",
    )
    monkeypatch.setitem(EXPERIMENTS, "tiny", tiny)
    command = ["reproduce", "tiny", "--data", str(text), "--seeds", "2", "--training.steps", "2"]
    assert run(app, [*command, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "page.md")
    page = (tmp_path / "out" / "page.md").read_text(encoding="utf-8")
    assert "### Perplexity, length-curve, blocks" in page and "| rope | 2 |" in page
    assert "[All rows](both/summary.md)" in page and (tmp_path / "out" / "both" / "report.html").is_file()
    marker = json.loads((tmp_path / "out" / "both" / "comparison.json").read_text(encoding="utf-8"))
    assert marker["training"]["steps"] == 2


def test_a_step_that_fails_ends_the_experiment(tmp_path: Path, monkeypatch, capfd) -> None:
    lanes = [[Step("segment", f"{name}.txt"), Step("segment", "later.txt")] for name in ("nowhere", "other")]
    failing = Experiment("Failing", "Nothing.", lambda _: lanes, "None.")
    monkeypatch.setitem(experiments.EXPERIMENTS, "failing", failing)
    assert run(app, ["reproduce", "failing", "--out", str(tmp_path / "out")]) == 1
    said = capfd.readouterr().err
    assert "This command failed with status 2: bipe segment nowhere.txt" in said and "later.txt" not in said
    assert not (tmp_path / "out" / "page.md").exists()


def test_a_step_that_suffices_spares_those_after_it(text: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    """As widths grow until a model has learned: a run that goes on, too, knows what it need not do."""

    def lanes(setup: Setup) -> list[list[Step]]:
        def step(length: int) -> Step:
            command = ("segment", str(text), "--rule", "line", "--statistics", "--lengths", str(length))
            return Step(
                *command,
                rows=setup.out / f"{length}.jsonl",
                arm="text",
                suffices=lambda rows: rows[0]["length"] == 64,
            )

        return [[step(length) for length in (32, 64, 128)]]

    monkeypatch.setitem(EXPERIMENTS, "growing", Experiment("Growing", "Nothing.", lanes, (), "None."))
    command = ["reproduce", "growing", "--out", str(tmp_path / "out")]
    for given in (["32", "64"], []):
        assert run(app, command) == 0
        said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("$ ")]
        assert [options(shlex.split(line), "--lengths") for line in said] == [[length] for length in given]
        page = (tmp_path / "out" / "page.md").read_text(encoding="utf-8")
        assert "--lengths 64" in page and "--lengths 128" not in page
