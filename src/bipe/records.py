"""Files of JSON lines: what a run has measured so far, readable while it still runs."""

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from bipe.storage import write_whole

Record = Mapping[str, Any]
"""A line: values by name."""


def append_record(path: str | Path, record: Record) -> None:
    """Append `record` to `path` as one line of JSON and flush it.

    A line that an earlier process broke off is cut away first: the new record never joins onto its rest.

    Args:
        path: the file; it and its folder are made when missing.
        record: a mapping of JSON values.

    Raises:
        ValueError: a value is NaN, infinite, or no JSON value.
    """
    path, line = Path(path), _line(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        _mend(file)
        file.write(line.encode())
        file.flush()


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Put these records in place of what is in `path`, all of them or, where the writer is stopped, none.

    Raises:
        ValueError: as `append_record`.
    """
    write_whole(Path(path), "".join(map(_line, records)))


def _line(record: Record) -> str:
    try:
        return json.dumps(dict(record), allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"A record holds finite numbers and JSON values; {error}: {dict(record)!r}."
        ) from None


def read_records(path: str | Path) -> list[dict[str, Any]]:
    r"""Read the records of `path` in their order; a missing file holds none.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "scores.jsonl"
    >>> append_record(path, {"length": 128, "value": 41.5})
    >>> read_records(path)
    [{'length': 128, 'value': 41.5}]

    A last line without its line break that does not parse was broken off when the writer stopped: it is
    dropped with a warning.

    Raises:
        ValueError: any other line is no JSON object of finite numbers; the message names file and line.
    """
    path = Path(path)
    if not path.exists():
        return []
    *lines, tail = path.read_bytes().split(b"\n")
    records = [_parse(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if tail.strip():
        try:
            records.append(_parse(tail, path, len(lines) + 1))
        except ValueError:
            warnings.warn(f"{path}: dropped line {len(lines) + 1}, which was broken off.", stacklevel=2)
    return records


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}, line {number} is no JSON record ({error}). Repair or delete the line."
        ) from None
    if not isinstance(record, dict):
        raise ValueError(
            f"{path}, line {number} holds {line[:40]!r}, not a JSON object. Repair or delete the line."
        )
    return record


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a finite number")


def _mend(file: BinaryIO) -> None:
    """End the file with a line break, cutting away a last line that is not whole."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - 1, 0))
    if file.read(1) in (b"", b"\n"):
        return
    file.seek(0)
    head, newline, tail = file.read().rpartition(b"\n")
    try:
        whole = isinstance(json.loads(tail), dict)
    except ValueError:
        whole = False
    if whole:
        file.write(b"\n")
    else:
        file.truncate(len(head + newline))
