"""Documents from files, folders, globs, `datasets` and the standard library, and their train-test split."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from .sources import Entry, read_entries


@dataclass(frozen=True)
class Document:
    """A text and the name that says where it came from.

    >>> Document("emma.txt", "Emma Woodhouse, handsome, clever, and rich.").name
    'emma.txt'

    Args:
        name: where the text came from; the split into train and test depends on it.
        text: the text, its line ends all a plain newline.
    """

    name: str
    text: str


def load_documents(sources: str | Sequence[str], *, limit: int | None = None) -> list[Document]:
    r"""Read every document of the sources, in their order.

    A document is named by its path below the folder named, below the fixed part of a glob, or by its file
    name alone, so that a split does not depend on where the data lie. A file that several sources name is
    read once.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "a.txt").write_text("One.\n")
    ...     _ = pathlib.Path(folder, "b.jsonl").write_text('{"text": "Two."}\n{"text": "Three."}')
    ...     for document in load_documents(folder):
    ...         print(document)
    Document(name='a.txt', text='One.\n')
    Document(name='b.jsonl:1', text='Two.')
    Document(name='b.jsonl:2', text='Three.')

    Args:
        sources: one source or several; a source is
            a file: .jsonl has a document a line, in field `text`; .parquet a document a row, in column
            `text`; any other is one document;
            a folder: all .txt .md .py .tex .rst .jsonl .parquet files below it, sorted, but hidden ones;
            a glob such as `books/**/*.txt`: the files it matches, sorted;
            `hf:NAME[:config][:split]`: a data set of the hub or a local folder, streamed through `datasets`;
            the split is `train` where none is given, the text is column `text`, else the one with strings;
            `stdlib`: the Python standard library's sources, each file with text in UTF-8, without the manual
            that `pydoc_data` holds.
        limit: the largest number of documents to read from each source, such as the head of a data set too
            large for memory; None reads everything.

    Raises:
        ValueError: a source does not exist or has no text where it should, or no document is left.

    Warns:
        UserWarning: documents that are empty, blank or not UTF-8 were skipped; one warning counts and names
            them. Those of `stdlib` go without a word.
    """
    named = [sources] if isinstance(sources, str) else list(sources)
    if not named:
        raise ValueError("No source of text is given. Name a file, a folder, a glob, 'hf:NAME' or 'stdlib'.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is the number of documents read from each source, 1 or more; got {limit}.")
    seen: set[Path] = set()
    entries = [entry for source in named for entry in islice(read_entries(source, seen), limit)]
    documents = [Document(name, text) for name, text in entries if text and not text.isspace()]
    skipped = _describe_skipped(entries)
    if not documents:
        raise ValueError(
            f"No text is left of {', '.join(map(repr, named))}. {skipped or 'No document was found.'}"
        )
    if skipped:
        warnings.warn(skipped, stacklevel=2)
    return documents


def split_documents(
    documents: Sequence[Document], fraction: float = 0.1
) -> tuple[list[Document], list[Document]]:
    r"""Split documents in train and test, whole and by name: more data moves none to the other side.

    A document is for testing where the hash of its name, as a number in [0, 1), is below `fraction`; were one
    side empty, the document nearest to it is moved there. A single document is cut instead: its end is the
    test, from the line break nearest to that fraction of the text (or right there, where no line break is
    near).

    >>> train, test = split_documents([Document("poem.txt", "a line\n" * 10)])
    >>> test
    [Document(name='poem.txt (end)', text='a line\n')]

    Args:
        documents: the documents to split.
        fraction: the share of documents, or of the characters of a single one, that goes to the test: more
            than 0 and less than 1.

    Returns:
        The train and the test documents, in their old order, none of the two empty.

    Raises:
        ValueError: there is no document, a single one has fewer than two characters, or `fraction` is not
            between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"The share of text to test on lies between 0 and 1; got {fraction}.")
    if not documents:
        raise ValueError("There is no document to split into train and test.")
    if len(documents) == 1:
        return _cut_document(documents[0], fraction)
    hashes = [_name_hash(document.name) for document in documents]
    is_test = [value < fraction for value in hashes]
    if not any(is_test):
        is_test[hashes.index(min(hashes))] = True
    elif all(is_test):
        is_test[hashes.index(max(hashes))] = False
    train = [document for document, chosen in zip(documents, is_test, strict=True) if not chosen]
    test = [document for document, chosen in zip(documents, is_test, strict=True) if chosen]
    return train, test


def _describe_skipped(entries: Sequence[Entry]) -> str:
    undecodable = [name for name, text in entries if text is None]
    blank = [name for name, text in entries if text is not None and (not text or text.isspace())]
    if not undecodable and not blank:
        return ""
    groups = [(blank, "empty"), (undecodable, "not UTF-8")]
    parts = [f"{len(names)} {reason} ({_first_names(names)})" for names, reason in groups if names]
    return f"Skipped {len(undecodable) + len(blank)} of {len(entries)} documents: {', '.join(parts)}."


def _first_names(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _name_hash(name: str) -> float:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _cut_document(document: Document, fraction: float) -> tuple[list[Document], list[Document]]:
    text = document.text
    size = len(text.rstrip())  # a cut behind that would leave one part blank
    if size < 2:
        raise ValueError(f"{document.name!r} has {size} characters, too few to split into train and test.")
    aim = min(max(round(size * (1 - fraction)), 1), size - 1)
    breaks = [text.rfind("\n", 0, aim) + 1, text.find("\n", aim) + 1]
    # In a text of few lines the nearest break may be far off and leave next to nothing on one side.
    near = [cut for cut in breaks if 0 < cut < size and abs(cut - aim) <= size * fraction / 2]
    cut = min(near, key=lambda place: abs(place - aim), default=aim)
    start, end = (
        Document(f"{document.name} (start)", text[:cut]),
        Document(f"{document.name} (end)", text[cut:]),
    )
    return [start], [end]
