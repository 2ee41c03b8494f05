"""Files that are whole or not there."""

from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from safetensors.torch import save_file

from bipe.plain import read_json, read_yaml
from bipe.storage import discard_drafts, is_draft, write_whole


def test_a_text_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "training.json"
    write_whole(path, "old")
    write_whole(path, "new")
    assert path.read_text(encoding="utf-8") == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["training.json"]


def test_drafts_of_killed_processes_are_discarded_and_nothing_else(tmp_path: Path) -> None:
    assert is_draft(Path("a.json.1.draft"), "a.json") and not is_draft(Path("a.json.1.draft"), "b.json")
    drafts = ["history.jsonl.4711.draft", ".tmp1V0RAM"]
    others = [
        "history.jsonl",
        "thesis.draft",
        "chapter.one.draft",
        "4711.draft",
        ".tmp",
        ".tmpdir",
        ".tmp1V0RAM.txt",
    ]
    names = [*drafts, *others]
    for name in names:
        (tmp_path / name).write_text("x", encoding="utf-8")
    assert [name for name in names if is_draft(Path(name))] == drafts
    assert not is_draft(Path(".tmp1V0RAM"), "model.safetensors")
    discard_drafts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(others)
    discard_drafts(tmp_path / "none")


def test_safetensors_calls_its_drafts_as_we_think(tmp_path: Path) -> None:
    found: set[str] = set()
    tensors, written = {"a": torch.zeros(3_000_000)}, Event()

    def write() -> None:
        for _ in range(20):
            save_file(tensors, str(tmp_path / "model.safetensors"))
        written.set()

    writer = Thread(target=write)
    writer.start()
    while not written.is_set():
        found |= {path.name for path in tmp_path.iterdir()}
    writer.join()
    assert {path for path in found if not is_draft(Path(path))} == {"model.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("text", ["{", "[" * 200_000, ""])
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"too deeply|Expecting"):
        read_json(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "line 1"),
        ("a: &x 1\nb: *x", "line 2: aliases are not read here"),
        ("a: 1\na: 2", "line 2: 'a' stands there twice"),
        ("a: {b: 1, b: 2}", "'b' stands there twice"),
        ("a: !x 1", "tag '!x'"),
        ("[" * 30_000, "too deeply"),
        ("a: !!bool foo", "not of its tag's kind"),
        ("a: !!timestamp foo", "not of its tag's kind"),
        ("a: !!int ''", "not of its tag's kind"),
        ("a: !!map [a]", "expected a mapping"),
        ("a: !!set [x]", "expected a mapping"),
    ],
)
def test_yaml_is_plain(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_yaml(text)


def test_anchors_alone_do_no_harm() -> None:
    assert read_yaml("a: &x 1\nb: {c: 1, d: {c: 1}}") == {"a": 1, "b": {"c": 1, "d": {"c": 1}}}
