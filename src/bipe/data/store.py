"""Text longer than memory: read once as a stream, kept as token ids on a disk, read from there by block."""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bipe.plain import read_object
from bipe.processes import is_first
from bipe.registry import check_number
from bipe.storage import LOCK, discard_drafts, is_draft, sole_writer, write_whole
from bipe.vocabulary import vocabulary_size

from .documents import Document
from .packing import PackedBlocks
from .sources import file_sizes, read_entries
from .tokens import encode, opening_ids

RECORD, TOKENS, STARTS = "store.json", "tokens.int32", "starts.int64"
CHUNK_CHARACTERS = 4_000_000
"""Text that is encoded, written and recorded at a time."""
PROBE = (
    "The naïve CAT's 1,024 dogs; don't x_y = (a+b)**2 // 10.5\n\n\tif A: return \"Straße\"\r\n"
    "e.g. https://example.org/a?b=c  \ufb01 中文。日本語、ελληνικά 😀 re-read\u00a0it...  END"
)
"""Text by which tokenizers are told apart: letters large and small, digits, spaces, code, other scripts."""
POLL_SECONDS = 1.0
STALLED_SECONDS = 3600.0


class TokenStore:
    """Documents one after another as token ids, each with the end of text behind it, in files.

    >>> import tempfile
    >>> from bipe.data.tokens import train_tokenizer
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "text.txt").write_text("One. Two. Three.")
    >>> store = TokenStore(folder / "store", [str(folder / "text.txt")], train_tokenizer(["One."], 257))
    >>> store.fill()
    >>> len(store.blocks(8)), store.documents(1)[0].shape
    (2, torch.Size([16]))

    Args:
        folder: where it is, or will be.
        sources: what `load_documents` takes.
        tokenizer: cuts the text; its vocabulary is part of what the store is.
        limit: documents read from each source at most; None reads all.

    Raises:
        ValueError: the folder holds other text, as names and sizes of files and the tokenizer tell, or files
            that are none of a store.
    """

    def __init__(
        self,
        folder: str | Path,
        sources: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        limit: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.tokenizer = tokenizer
        self.identity = {
            "sources": list(sources),
            "limit": limit,
            "files": _sizes(sources),
            "tokenizer": _cut_by(tokenizer),
        }
        self._read_record()

    def _read_record(self) -> dict[str, Any]:
        path = self.folder / RECORD
        if not path.exists():
            if is_first() and self.folder.exists() and not all(map(self._is_passing, self.folder.iterdir())):
                raise ValueError(f"{self.folder} is in use and holds no {RECORD}. Choose another folder.")
            return {**self.identity, "read": 0, "documents": 0, "tokens": 0, "finished": False}
        try:
            record = read_object(path)
            for name in ("read", "documents", "tokens"):
                check_number(name, record.get(name), 0, whole=True)
        except ValueError:
            raise ValueError(f"{path} is not the record of a store of tokens. Delete the folder.") from None
        for name, value in self.identity.items():
            if record.get(name) != value and not (name == "files" and value is None):
                raise ValueError(
                    f"{self.folder} holds other text: {name} is {record.get(name)!r} there and {value!r} "
                    "here. Choose another folder, or delete it."
                )
        return record

    @staticmethod
    def _is_passing(path: Path) -> bool:
        return path.name == LOCK or is_draft(path, RECORD)

    def fill(self) -> None:
        """Read the sources to their end and keep their tokens; what is there already is not read again.

        A stop at any moment loses the chunk that was being read, and nothing else. Where another process is
        at it, that one is waited for.

        Raises:
            ValueError: a source does not exist, or no text is in any.
        """
        if self.is_finished:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with sole_writer(self.folder, wait=True):
            self._fill()

    def _fill(self) -> None:
        record = self._read_record()
        discard_drafts(self.folder)
        if record["finished"]:
            return
        for source in self.identity["sources"]:
            file_sizes(source)  # or the folder would be that of files that are not there
        write_whole(self.folder / RECORD, json.dumps(record))  # so that the files are known to be ours
        entries = _entries(self.identity["sources"], self.identity["limit"])
        for _ in islice(entries, record["read"]):
            pass
        with open(self.folder / TOKENS, "ab") as tokens, open(self.folder / STARTS, "ab") as starts:
            for file, size in ((tokens, record["tokens"] * 4), (starts, record["documents"] * 8)):
                if file.tell() < size:
                    raise ValueError(
                        f"{file.name} is damaged: it is shorter than recorded. Delete the folder."
                    )
                file.truncate(size)  # what was written behind the last record is written again
            for read, documents in _chunks(entries):
                for ids in self._with_ends(encode(documents, self.tokenizer)):
                    starts.write(record["tokens"].to_bytes(8, "little"))
                    tokens.write(ids.to(torch.int32).numpy().tobytes())
                    record["tokens"] += len(ids)
                    record["documents"] += 1
                record["read"] += read
                for file in (tokens, starts):
                    file.flush()
                    os.fsync(file.fileno())
                write_whole(self.folder / RECORD, json.dumps(record))
        if not record["documents"]:
            raise ValueError(f"No text is in {', '.join(map(repr, self.identity['sources']))}.")
        if skipped := record["read"] - record["documents"]:
            warnings.warn(f"{skipped:,} documents are empty, blank or not UTF-8.", stacklevel=2)
        write_whole(self.folder / RECORD, json.dumps({**record, "finished": True}))

    def _with_ends(self, documents: Sequence[Tensor]) -> Iterator[Tensor]:
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        for ids in documents:
            yield torch.cat((ids, torch.tensor(end, dtype=torch.int64)))

    @property
    def is_finished(self) -> bool:
        """Whether all text has been read."""
        return bool(self._read_record()["finished"])

    def wait(self) -> None:
        """Wait until another process has filled it.

        Raises:
            RuntimeError: for an hour that process has written nothing.
        """
        record, changed = self._read_record(), time.monotonic()
        while not record["finished"]:
            time.sleep(POLL_SECONDS)
            before, record = record, self._read_record()
            if record != before:
                changed = time.monotonic()
            elif time.monotonic() > changed + STALLED_SECONDS:
                raise RuntimeError(
                    f"{self.folder} is not being filled any more; the process that did has ended."
                )

    def blocks(self, length: int, vocab_size: int | None = None) -> PackedBlocks:
        """Blocks of so many tokens, each read from the disk when it is asked for.

        Args:
            length: tokens in a block.
            vocab_size: where given, the number of ids that the model knows.

        Raises:
            ValueError: the text does not fill one, or the tokenizer has more ids than the model.
        """
        largest = vocabulary_size(self.tokenizer) - 1
        if vocab_size is not None and largest >= vocab_size:
            raise ValueError(
                f"The tokenizer has ids up to {largest}, and the model a vocabulary of {vocab_size}."
            )
        stream, starts = self._mapped()
        if len(stream) < length:
            raise ValueError(
                f"The text in {self.folder} has {len(stream)} tokens, fewer than one block of {length}."
            )
        return PackedBlocks(stream, starts, length)

    def documents(self, most: int) -> list[Tensor]:
        """The first documents, each `(n,)` int64, without what ends them."""
        stream, starts = self._mapped()
        borders = [*starts[: most + 1].tolist()]
        if len(borders) <= most:
            borders.append(len(stream))
        ends = 0 if self.tokenizer.eos_token_id is None else 1
        return [stream[start : end - ends].long() for start, end in pairwise(borders)]

    def _mapped(self) -> tuple[Tensor, Tensor]:
        record = self._read_record()
        sizes = {TOKENS: (record["tokens"], torch.int32), STARTS: (record["documents"], torch.int64)}
        mapped = []
        for name, (size, dtype) in sizes.items():
            path = self.folder / name
            if not path.exists() or path.stat().st_size != size * dtype.itemsize:
                raise ValueError(f"{path} is damaged: its size is not that of the record. Delete the folder.")
            mapped.append(torch.from_file(str(path), shared=False, size=size, dtype=dtype))
        return mapped[0], mapped[1]


def _entries(sources: Sequence[str], limit: int | None) -> Iterator[tuple[str, str | None]]:
    seen: set[Path] = set()
    for source in sources:
        yield from islice(read_entries(source, seen), limit)


def _chunks(entries: Iterator[tuple[str, str | None]]) -> Iterator[tuple[int, list[Document]]]:
    """Documents in chunks, each with how many entries it is made from."""
    read, size, documents = 0, 0, []
    for name, text in entries:
        read += 1
        if text and not text.isspace():
            documents.append(Document(name, text))
            size += len(text)
        if size >= CHUNK_CHARACTERS:
            yield read, documents
            read, size, documents = 0, 0, []
    if read:
        yield read, documents


def _cut_by(tokenizer: PreTrainedTokenizerBase) -> str:
    """A checksum of what a tokenizer does: its vocabulary, and how it cuts a text of many kinds.

    Of its settings as such there is none, since a newer release writes the same ones in other words.
    """
    cut = opening_ids(tokenizer) + tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"]
    return _checksum([sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id, cut])


def _sizes(sources: Sequence[str]) -> str | None:
    """A checksum of the files' names and sizes; None where they are gone, which a full store survives."""
    try:
        return _checksum([file_sizes(source) for source in sources])
    except ValueError:
        return None


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
