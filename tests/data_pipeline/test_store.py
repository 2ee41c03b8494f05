"""Text kept as tokens on a disk, against the same text in memory."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers

from bipe.data import encode, load_documents, pack, train_tokenizer
from bipe.data import store as module
from bipe.data.store import RECORD, STARTS, TOKENS, TokenStore
from bipe_cli.main import app, run

TOKENIZER = train_tokenizer(["Some text. Another sentence.\n" * 30], 300)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Sixty documents, of which one is blank and one not UTF-8."""
    folder = tmp_path / "text"
    folder.mkdir()
    texts = [f"Document {number} begins. " + "It goes on. " * (number % 7) for number in range(58)]
    texts.insert(20, "  \n")
    lines = [json.dumps({"text": text}) for text in texts] + ['{"text": "a \\ud800"}']
    (folder / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "b.txt").write_text("The last one. Another sentence.", encoding="utf-8")
    return str(folder)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_CHARACTERS", 300)


def same(store: TokenStore, source: str, length: int = 16) -> None:
    with pytest.warns(UserWarning, match="Skipped 2"):
        documents = load_documents(source)
    expected = pack(encode(documents, TOKENIZER), length, TOKENIZER.eos_token_id)
    blocks = store.blocks(length)
    assert len(blocks) == len(expected) > 20
    for index in range(len(blocks)):
        for name, tensor in expected[index].items():
            assert torch.equal(blocks[index][name], tensor), (index, name)


@pytest.mark.filterwarnings("ignore:2 documents are empty")
def test_blocks_are_those_of_text_in_memory(source: str, tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "store", [source], TOKENIZER)
    assert not store.is_finished
    store.fill()
    assert store.is_finished
    same(store, source)
    with pytest.warns(UserWarning, match="Skipped 2"):
        texts = encode(load_documents(source), TOKENIZER)
    assert all(torch.equal(*pair) for pair in zip(store.documents(1000), texts, strict=True))
    assert [len(text) for text in store.documents(3)] == [len(text) for text in texts[:3]]


@pytest.mark.filterwarnings("ignore:2 documents are empty")
@pytest.mark.parametrize("chunk", range(0, 8, 2))
def test_a_store_that_was_broken_off_goes_on(
    chunk: int, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def break_off(documents: Any, tokenizer: Any) -> Any:
        calls.append(len(documents))
        if len(calls) == chunk + 1:
            raise OSError("the power went out")
        return encode(documents, tokenizer)

    store = TokenStore(tmp_path / "store", [source], TOKENIZER)
    with monkeypatch.context() as patch:
        patch.setattr(module, "encode", break_off)
        with pytest.raises(OSError, match="power"):
            store.fill()
    for name, unit in ((TOKENS, 4), (STARTS, 8)):  # as if the last write had got no further than half
        with open(tmp_path / "store" / name, "ab") as file:
            file.write(b"\1" * (unit - 1))
    before = sum(calls)
    with monkeypatch.context() as patch:
        patch.setattr(
            module,
            "encode",
            lambda documents, tokenizer: calls.extend([len(documents)]) or encode(documents, tokenizer),
        )
        TokenStore(tmp_path / "store", [source], TOKENIZER).fill()
    assert sum(calls) - before == 59 - (before - calls[chunk])  # what was whole is not read again
    same(store, source)


@pytest.mark.filterwarnings("ignore:2 documents are empty")
def test_a_full_store_outlives_its_text(source: str, tmp_path: Path) -> None:
    TokenStore(tmp_path / "store", [source], TOKENIZER).fill()
    shutil.rmtree(source)
    store = TokenStore(tmp_path / "store", [source], TOKENIZER)
    assert store.is_finished and len(store.blocks(16)) > 20


def test_text_that_comes_later_is_read_then(tmp_path: Path) -> None:
    later = tmp_path / "later.txt"
    with pytest.raises(ValueError, match="No file or folder matches"):
        TokenStore(tmp_path / "store", [str(later)], TOKENIZER).fill()
    later.write_text("Some text. Another sentence.", encoding="utf-8")
    TokenStore(tmp_path / "store", [str(later)], TOKENIZER).fill()


@pytest.mark.filterwarnings("ignore:2 documents are empty")
def test_what_is_not_this_text_is_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    TokenStore(folder, [source], TOKENIZER).fill()
    with pytest.raises(ValueError, match="holds other text: limit is None there and 3 here"):
        TokenStore(folder, [source], TOKENIZER, limit=3)
    other = train_tokenizer(["Other text."], 260)
    with pytest.raises(ValueError, match="holds other text: tokenizer is"):
        TokenStore(folder, [source], other)
    lower = copy.deepcopy(TOKENIZER)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match="holds other text: tokenizer is"):
        TokenStore(folder, [source], lower)
    with open(Path(source) / "b.txt", "a", encoding="utf-8") as file:
        file.write(" And one more.")
    with pytest.raises(ValueError, match="holds other text: files is"):
        TokenStore(folder, [source], TOKENIZER)
    (Path(source) / "b.txt").write_text("The last one. Another sentence.", encoding="utf-8")
    with pytest.raises(ValueError, match="has ids up to 277, and the model a vocabulary of 100"):
        TokenStore(folder, [source], TOKENIZER).blocks(16, vocab_size=100)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    (folder / RECORD).write_text(json.dumps({**record, "finished": False}), encoding="utf-8")
    content = (folder / TOKENS).read_bytes()
    (folder / TOKENS).write_bytes(content[:-4])
    with pytest.raises(ValueError, match="is damaged: it is shorter than recorded"):
        TokenStore(folder, [source], TOKENIZER).fill()
    monkeypatch.setattr(module, "STALLED_SECONDS", 0.0)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    with pytest.raises(RuntimeError, match="is not being filled any more"):
        TokenStore(folder, [source], TOKENIZER).wait()
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    (folder / TOKENS).write_bytes(content)
    TokenStore(folder, [source], TOKENIZER).wait()
    with open(folder / TOKENS, "ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=r"tokens.int32 is damaged"):
        TokenStore(folder, [source], TOKENIZER).blocks(16)
    (folder / RECORD).write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="is not the record of a store"):
        TokenStore(folder, [source], TOKENIZER)
    (folder / RECORD).unlink()
    with pytest.raises(ValueError, match=r"is in use and holds no store\.json"):
        TokenStore(folder, [source], TOKENIZER)


def test_no_text_and_too_little_text_are_said(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" ", encoding="utf-8")
    with pytest.raises(ValueError, match="No text is in"):
        TokenStore(tmp_path / "none", [str(tmp_path / "empty.txt")], TOKENIZER).fill()
    (tmp_path / "short.txt").write_text("Short.", encoding="utf-8")
    store = TokenStore(tmp_path / "few", [str(tmp_path / "short.txt")], TOKENIZER)
    store.fill()
    with pytest.raises(ValueError, match="fewer than one block of 64"):
        store.blocks(64)


@pytest.mark.filterwarnings("ignore:2 documents are empty")
@pytest.mark.filterwarnings("ignore:Skipped 2 of")
def test_a_run_on_a_store_is_the_run_on_text(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"scheme: bipe-alibi-auto\n"
        f"data: {{train: ['{source}'], validation: ['{source}'], tokenizer: '{tmp_path / 'tokenizer'}', train_length: 16}}\n"
        "model: {hidden_size: 16, num_attention_heads: 2, intermediate_size: 16, num_hidden_layers: 1}\n"
        "training: {steps: 4, batch_size: 2, log_every: 1}\n",
        encoding="utf-8",
    )
    histories = []
    for name, more in (("memory", ()), ("store", ("--data.store", str(tmp_path / "tokens")))):
        assert run(app, ["train", str(recipe), "--out", str(tmp_path / name), *more]) == 0
        rows = map(json.loads, (tmp_path / name / "history.jsonl").read_text(encoding="utf-8").splitlines())
        histories.append([{**row, "tokens_per_second": 0} for row in rows])
    assert histories[0] == histories[1]
    # Where the tokens lie is not what a run is.
    assert run(app, ["train", str(recipe), "--out", str(tmp_path / "store")]) == 0
    capsys.readouterr()
    for change, said in (
        ({"validation": "null"}, "name validation text as well"),
        ({"tokenizer": "null"}, "needs a tokenizer"),
    ):
        arguments = [part for key, value in change.items() for part in (f"--data.{key}", value)]
        command = ["train", str(recipe), "--out", str(tmp_path / "no"), "--data.store", str(tmp_path / "t2")]
        assert run(app, [*command, *arguments]) == 2
        assert said in capsys.readouterr().err
