"""Text, recipes and folders of others: read, skipped with a word, or refused with the line that is wrong."""

import json
import os
from pathlib import Path

import pytest

from .conftest import Answer

RECIPE = """
scheme: bipe-rope
data: {train: ['TEXT'], vocab_size: 300, train_length: 8}
model: {hidden_size: 16, num_attention_heads: 2, intermediate_size: 16, num_hidden_layers: 1}
training: {steps: 1, batch_size: 1, checkpoint_every: null}
"""
FINE = {
    "nul.txt": b"a\0b. c\0\0d.\n" * 50,
    "crlf.txt": b"One. Two\r\nThree.\r\n" * 50,
    "macro.tex": b"\\x. " * 200,
    "lines.txt": "One.\u2028Two.\u0085Three.\n".encode() * 50,
    "astral.txt": "\U0001f600\U0010ffff. \ufeff\u202e.\n".encode() * 50,
    "one.jsonl": json.dumps({"text": "One. Two.\n" * 50, "more": [1, {"a": None}]}).encode(),
}
REFUSED = {
    "surrogate.txt": (b"abc \xed\xa0\x80 def.\n" * 50, "not UTF-8"),
    "bytes.txt": (b"\xff\xfe\x00ab\x80\n" * 50, "not UTF-8"),
    "empty.txt": (b"", "empty"),
    "unbroken.txt": (b"a" * 5000, "tokens, fewer than one block"),
    "field.jsonl": (b'{"text":"One."}\n{"txt":"x"}\n', "line 2 must be an object"),
    "null.jsonl": (b'{"text":null}\n', "empty"),
    "number.jsonl": (b'{"text":5}\n', "line 1 must be a string; got int"),
    "list.jsonl": (b"[1,2]\n", "line 1 must be an object"),
    "torn.jsonl": (b'{"text":"One."}\n{"tex', "line 2 is not JSON"),
    "deep.jsonl": (b'{"text":' + b"[" * 100_000 + b"\n", "line 1 is not JSON: it is nested too deeply"),
    "surrogate.jsonl": (b'{"text":"a \\ud800 b. c"}\n' * 30, "not UTF-8"),
    "junk.parquet": (b"PAR1junk", "is not a readable .parquet file"),
}
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
RECIPES = {
    "tag": ("scheme: !!python/object/apply:os.system ['touch sprung']\n", "line 1: could not determine"),
    "bomb": (f"{BOMB}scheme: *i\n", "line 2: aliases are not read here"),
    "itself": ("&a [*a]\n", "aliases are not read here"),
    "twice": ("scheme: rope\nscheme: alibi\n", "line 2: 'scheme' stands there twice"),
    "list": ("- a\n", "must hold a mapping"),
    "control": ("\x00\x01", "is no plain YAML"),
    "tab": ("a:\n\t- b", "line 2"),
    "digits": ("training: {steps: 1" + "0" * 5000 + "}\n", "is no plain YAML"),
    "deep": ("[" * 30_000, "nested too deeply"),
    "key": ("? [a]\n: b\n", "unhashable"),
    "date": ("scheme: 2020-01-01\ndata: {train: [x]}\ntraining: {steps: 1}\n", "scheme: Input should be"),
    "infinite": (
        "scheme: rope\ndata: {train: [x]}\ntraining: {steps: 1, learning_rate: .inf}\n",
        "learning_rate",
    ),
    "path": ("scheme: ../../x\ndata: {train: [stdlib]}\ntraining: {steps: 1}\n", "Unknown scheme '../../x'"),
}


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", FINE)
def test_odd_text_is_read(name: str, answer: Answer, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FINE[name])
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("TEXT", name), encoding="utf-8")
    assert answer("segment", name, "--rule", "paper")[0] == 0
    assert answer("train", "recipe.yaml", "--out", "run")[0] == 0
    assert {path.split("/")[0] for path in files_of(tmp_path)} == {name, "recipe.yaml", "run"}


@pytest.mark.parametrize("name", REFUSED)
def test_text_that_cannot_be_used_is_named(name: str, answer: Answer, tmp_path: Path) -> None:
    content, expected = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("TEXT", name), encoding="utf-8")
    before = files_of(tmp_path)
    status, said = answer("train", "recipe.yaml", "--out", "run")
    assert status == 2 and expected in said
    assert len(said) < 2000
    assert files_of(tmp_path) == before


def test_a_long_line_without_separators_is_read(answer: Answer, tmp_path: Path) -> None:
    megabytes = int(os.environ.get("BIPE_LINE", "5"))
    (tmp_path / "line.txt").write_bytes(b"abc " * (megabytes * 10**6 // 4))
    statistics = ("--rule", "paper", "--statistics", "--lengths", "128", "--json")
    status, said = answer("segment", "line.txt", *statistics, seconds=300)
    assert status == 0 and not said


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_recipes_are_plain(name: str, command: str, answer: Answer, tmp_path: Path) -> None:
    text, expected = RECIPES[name]
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = ("recipe.yaml",) if command == "train" else ("--recipe", "recipe.yaml")
    status, said = answer(command, *recipe, "--out", "run")
    assert status == 2
    if command == "train" or "scheme" not in text:
        assert expected in said
    assert files_of(tmp_path) == {"recipe.yaml"}


def test_values_on_the_command_line_are_plain(answer: Answer, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(FINE["crlf.txt"])
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("TEXT", "text.txt"), encoding="utf-8")
    for value in ("{a: &a [*a]}", "[!!python/name:os.system ]", "[" * 30_000, "{"):
        status, said = answer("train", "recipe.yaml", "--out", "run", "--model.inter", value)
        assert status == 2 and len(said) < 100_000
