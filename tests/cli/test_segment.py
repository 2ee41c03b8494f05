"""`bipe segment` on a small file."""

import json
from pathlib import Path

import pytest
import typer
from transformers import LlamaConfig

import bipe
from bipe.data.tokens import train_tokenizer
from bipe_cli.main import run
from bipe_cli.segment import segment

TEXT = "It rains. It pours.\nThe old man snores.\n" * 20


@pytest.fixture
def program() -> typer.Typer:
    app = typer.Typer(name="bipe", pretty_exceptions_enable=False)
    app.command()(segment)
    return app


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "rain.txt"
    path.write_text(TEXT, "utf-8")
    return str(path)


def test_segments_are_printed(program: typer.Typer, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(program, [file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(") ")[2] for line in lines[:4]] == [
        "It rains.",
        " It pours.",
        "⏎",
        "The old man snores.",
    ]
    assert [line.partition(",")[0] for line in lines[:4]] == ["(0", "(1", "(2", "(3"]


def test_json_rows_hold_the_text(program: typer.Typer, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(program, [file, "--json", "--rule", "line"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "".join(row["text"] for row in rows) == TEXT
    assert list(rows[0]) == ["document", "segment", "start", "end", "tokens", "text"]
    assert rows[0]["text"] == "It rains. It pours.\n"


def test_statistics_by_length(program: typer.Typer, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(program, [file, "--statistics", "--lengths", "16,64", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["length"] for row in rows] == [16, 64]
    assert run(program, [file, "--statistics"]) == 0
    assert "Tokens per segment" in capsys.readouterr().out


def test_a_tokenizer_folder_and_a_page(
    program: typer.Typer, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tokenizer([TEXT], 300).save_pretrained(tmp_path / "tokenizer")
    page = tmp_path / "page.html"
    assert (
        run(program, [file, "--tokenizer", str(tmp_path / "tokenizer"), "--html", str(page), "--statistics"])
        == 0
    )
    capsys.readouterr()
    assert "rain.txt" in page.read_text("utf-8")
    assert "<table>" in page.read_text("utf-8")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder with a model whose segments are sentences, and its tokenizer."""
    tokenizer = train_tokenizer([TEXT], 300)
    config = bipe.BipeConfig.from_scheme(
        "bipe-rope",
        tokenizer,
        rule="sentence",
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    tokenizer.save_pretrained(tmp_path / "model")
    config.save_pretrained(tmp_path / "model")  # weights are not read
    return str(tmp_path / "model")


def test_a_model_cuts_by_its_own_rule(
    program: typer.Typer, file: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert run(program, [file, "--model", model, "--json", "--html", str(page)]) == 0
    own = capsys.readouterr().out
    assert run(program, [file, "--tokenizer", model, "--rule", "sentence", "--json"]) == 0
    assert own == capsys.readouterr().out
    assert run(program, [file, "--tokenizer", model, "--rule", "line", "--json"]) == 0
    assert own != capsys.readouterr().out
    assert f"Segments of {model}" in page.read_text("utf-8")


def test_what_is_no_model_with_segments_is_refused(
    program: typer.Typer, file: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LlamaConfig().save_pretrained(tmp_path / "llama")
    for name in ("broken", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "broken" / "config.json").write_text("{")
    for arguments, message in (
        (["--model", str(tmp_path)], "no folder of a model: it has no config.json"),
        (["--model", "nobody/model"], "has to be downloaded first"),
        (["--model", str(tmp_path / "adapter")], "holds an adapter of peft; merge it"),
        (["--model", str(tmp_path / "llama")], "without segments, of type 'llama'"),
        (["--model", str(tmp_path / "broken")], "could not be read as a model"),
        (["--model", model, "--rule", "line"], "leave out --tokenizer and --rule"),
    ):
        assert run(program, [file, *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--rule", "punkt"],
            "Unknown rule 'punkt'. Choose one of: block, equals, file, line, paper, paragraph, released, section, sentence.",
        ),
        (["--rule", "released"], "The rule 'released' is made for LLaMA's vocabulary"),
        (["--lengths", "16"], "give --statistics too"),
        (["--statistics", "--lengths", "16,x"], "--lengths takes whole numbers with commas between"),
        (["--statistics", "--lengths", "100000"], "No document has 100000 tokens"),
    ],
)
def test_wrong_use_is_one_line(
    program: typer.Typer, file: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(program, [file, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
