"""Names and texts read from sources: files, folders, globs, data sets of `datasets`, the standard library."""

import glob
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from bipe.plain import read_json

# A document's name and its text, None where the bytes are not UTF-8.
Entry = tuple[str, str | None]


def read_entries(source: str, seen: set[Path]) -> Iterator[Entry]:
    """Read the documents of one source; `load_documents` says what a source is.

    Args:
        source: a file, a folder, a glob, `hf:NAME[:config][:split]` or `stdlib`.
        seen: the files read so far, which are not read again; those of this source are added.

    Raises:
        ValueError: the source does not exist, or has no text where it should.
    """
    if source == "stdlib":
        return _read_stdlib()
    if source.startswith("hf:"):
        return _read_hub(source)
    return _read_files(_find_files(source), seen)


def file_sizes(source: str) -> list[tuple[str, int]]:
    """Name and bytes of every file that a source stands for; of data sets and the standard library none.

    Raises:
        ValueError: the source does not exist, or is a folder without text.
    """
    if source == "stdlib" or source.startswith("hf:"):
        return []
    return [(name, path.stat().st_size) for name, path in _find_files(source)]


def _read_files(files: Sequence[tuple[str, Path]], seen: set[Path]) -> Iterator[Entry]:
    for name, path in files:
        resolved = path.resolve()
        if resolved not in seen:
            seen.add(resolved)
            yield from READERS.get(path.suffix.lower(), _read_text)(name, path)


def _find_files(source: str) -> list[tuple[str, Path]]:
    """List the files that a file name, a folder or a glob stands for, each with its document's name."""
    if not source:
        raise ValueError(
            "A source of text is an empty name. Name a file, a folder, a glob, 'hf:NAME' or 'stdlib'."
        )
    path = Path(source)
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.suffix.lower() in READERS and file.is_file())
        visible = [file for file in files if not _is_hidden(file.relative_to(path))]
        if not visible:
            raise ValueError(
                f"No document was found in {source!r}; folders are searched for {' '.join(READERS)}."
            )
        return _named_below(path, visible)
    matched = [Path(match) for match in glob.glob(source, recursive=True)]
    if not matched:
        raise ValueError(
            f"No file or folder matches {source!r}. Name a file, a folder, a glob, 'hf:NAME' or 'stdlib'."
        )
    return _named_below(_fixed_part(source), [file for file in matched if file.is_file()])


def _named_below(folder: Path, files: Sequence[Path]) -> list[tuple[str, Path]]:
    return sorted((file.relative_to(folder).as_posix(), file) for file in files)


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _fixed_part(pattern: str) -> Path:
    """Return the folder of a glob above its first wildcard."""
    path = Path(pattern)
    while glob.has_magic(str(path)):
        path = path.parent
    return path


def _read_text(name: str, path: Path) -> Iterator[Entry]:
    yield name, _decode(path.read_bytes())


def _decode(data: bytes) -> str | None:
    try:
        return _plain_newlines(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return None


def _plain_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_jsonl(name: str, path: Path) -> Iterator[Entry]:
    lines = _decode(path.read_bytes())
    if lines is None:
        yield name, None
        return
    # Not splitlines(), which also cuts at the line separators that JSON allows inside its strings.
    for number, line in enumerate(lines.split("\n"), start=1):
        if line.strip():
            yield f"{name}:{number}", _text_of_json(line, f"{path}, line {number}")


def _text_of_json(line: str, place: str) -> str | None:
    try:
        row = read_json(line)
    except ValueError as error:
        raise ValueError(f"{place} is not JSON: {error}. A .jsonl file holds one object a line.") from None
    if not isinstance(row, dict) or "text" not in row:
        found = f"the fields {', '.join(row)}" if isinstance(row, dict) else f"a {type(row).__name__}"
        raise ValueError(f"{place} must be an object with the document in its field 'text'; got {found}.")
    return _text_of_cell(row["text"], place)


def _text_of_cell(cell: Any, place: str) -> str | None:
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise ValueError(f"The 'text' of {place} must be a string; got {type(cell).__name__}.")
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell a lone surrogate, which no tokenizer takes
        return None
    return _plain_newlines(cell)


def _read_parquet(name: str, path: Path) -> Iterator[Entry]:
    from pyarrow import parquet  # heavy, and needed for this format alone

    try:
        opened = parquet.ParquetFile(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a readable .parquet file: {error}") from error
    with opened as file:
        columns = file.schema_arrow.names
        if "text" not in columns:
            raise ValueError(
                f"{path} must hold its documents in a column 'text'; its columns are {', '.join(columns)}."
            )
        batches = file.iter_batches(columns=["text"])
        cells = (cell for batch in batches for cell in batch.column(0).to_pylist())
        for number, cell in enumerate(cells, start=1):
            yield f"{name}:{number}", _text_of_cell(cell, f"{path}, row {number}")


READERS: dict[str, Callable[[str, Path], Iterator[Entry]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".py": _read_text,
    ".tex": _read_text,
    ".rst": _read_text,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _read_stdlib() -> Iterator[Entry]:
    folder = Path(sysconfig.get_path("stdlib"))
    files = (file for file in folder.rglob("*.py") if file.is_file())
    # pydoc_data is no code but the manual, in one string; of the held-out tenth it would be a quarter.
    others = {"site-packages", "dist-packages", "pydoc_data"}
    own = [file for file in files if others.isdisjoint(file.relative_to(folder).parts)]
    for name, path in _named_below(folder, own):
        text = _decode(path.read_bytes())
        # Empty packages and deliberately broken test files: nothing that the user chose or could mend.
        if text and not text.isspace():
            yield name, text


def _read_hub(source: str) -> Iterator[Entry]:
    name, config, split = _hub_parts(source)
    try:
        rows = iter(_stream(name, config, split))
        first = next(rows, None)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source!r} could not be opened as hf:NAME[:config][:split] (split {split!r}): {error}"
        ) from error
    if first is None:
        return
    column = _text_column(source, first)
    yield f"{name}:1", _text_of_cell(first[column], f"{source}, row 1")
    for number, row in enumerate(rows, start=2):
        yield f"{name}:{number}", _text_of_cell(row.get(column), f"{source}, row {number}")


def _hub_parts(source: str) -> tuple[str, str | None, str]:
    """Split `hf:NAME[:config][:split]`; a single part after the name is a split if it is no config."""
    name, *rest = source.removeprefix("hf:").split(":")
    if not name or len(rest) > 2:
        raise ValueError(
            "A data set is named as hf:NAME[:config][:split], such as hf:wikitext:wikitext-2-raw-v1:test; "
            f"got {source!r}."
        )
    if len(rest) == 1:
        rest = [rest[0], ""] if rest[0] in _configurations(source, name) else ["", rest[0]]
    config, split = rest or ["", ""]
    return name, config or None, split or "train"


def _configurations(source: str, name: str) -> list[str]:
    from datasets import get_dataset_config_names

    try:
        return get_dataset_config_names(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source!r} could not be opened as hf:NAME[:config][:split]: {error}") from error


def _stream(name: str, config: str | None, split: str) -> Any:
    from datasets import load_dataset  # takes a second to import, and no other source needs it

    return load_dataset(name, config, split=split, streaming=True)


def _text_column(source: str, row: dict[str, Any]) -> str:
    strings = [column for column, cell in row.items() if isinstance(cell, str)]
    if "text" in row:
        return "text"
    if len(strings) == 1:
        return strings[0]
    raise ValueError(
        f"{source!r} has no column 'text' and {len(strings)} columns of strings, so that none is the text; "
        f"its columns: {', '.join(row)}."
    )
