import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bipe.records import append_record, read_records

RECORDS = st.lists(
    st.dictionaries(st.text(), st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)),
    min_size=1,
    max_size=4,
)


@given(records=RECORDS)
def test_what_is_appended_is_read(records: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("records") / "scores.jsonl"
    for record in records:
        append_record(path, record)
    assert read_records(path) == records


@given(cut=st.integers(1, 40))
def test_a_file_broken_off_anywhere_keeps_its_whole_records(
    cut: int, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.mktemp("records") / "scores.jsonl"
    for n in range(3):
        append_record(path, {"n": n, "text": "größer\nnext"})
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    whole = content[: len(content) - cut + 1].count(b"\n")  # a line that lacks only its break is whole
    append_record(path, {"n": 9})
    assert [record["n"] for record in read_records(path)] == [*range(whole), 9]


def test_a_missing_file_holds_no_records(tmp_path: Path):
    assert read_records(tmp_path / "none.jsonl") == []


def test_a_torn_last_line_is_dropped_with_a_warning(tmp_path: Path):
    path = tmp_path / "scores.jsonl"
    path.write_text('{"n": 1}\n{"n": 2')
    with pytest.warns(UserWarning, match=r"scores\.jsonl: dropped line 2, which was broken off"):
        assert read_records(path) == [{"n": 1}]


def test_a_whole_last_line_without_line_break_is_a_record(tmp_path: Path):
    path = tmp_path / "scores.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}')
    assert read_records(path) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("line", ['{"n": 2', "[1, 2]", '{"n": NaN}', '{"n": Infinity}', "\udcff"])
def test_a_broken_line_elsewhere_names_file_and_line(line: str, tmp_path: Path):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(f'{{"n": 1}}\n{line}\n{{"n": 3}}\n'.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"scores\.jsonl, line 2 .* Repair or delete the line\."):
        read_records(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, {"inner": -math.inf}, Path("x")])
def test_what_json_cannot_hold_is_refused_and_leaves_the_file(value: object, tmp_path: Path):
    path = tmp_path / "scores.jsonl"
    append_record(path, {"n": 1})
    with pytest.raises(ValueError, match="A record holds finite numbers and JSON values"):
        append_record(path, {"value": value})
    assert read_records(path) == [{"n": 1}]
