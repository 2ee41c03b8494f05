"""What is read as a document, under which name, what is skipped or refused, and how documents are split."""

import json
import os
import warnings
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from bipe.data import Document, load_documents, split_documents


def write(folder: Path, **files: str | bytes) -> Path:
    """Write files named `name_suffix` as `name.suffix`."""
    for key, content in files.items():
        path = folder / key.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def named(documents: list[Document]) -> dict[str, str]:
    return {document.name: document.text for document in documents}


class TestSources:
    def test_folder_gives_its_text_files_sorted_below_it(self, tmp_path: Path) -> None:
        write(tmp_path, b_md="B", a_txt="A", sub__c_rst="C", sub__d_TEX="D", e_py="E", image_png="no text")
        assert named(load_documents(str(tmp_path))) == {
            "a.txt": "A",
            "b.md": "B",
            "e.py": "E",
            "sub/c.rst": "C",
            "sub/d.TEX": "D",
        }
        assert [document.text for document in load_documents(str(tmp_path))] == ["A", "B", "E", "C", "D"]

    def test_hidden_folders_are_left_out(self, tmp_path: Path) -> None:
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv" / "x.py").write_text("x")
        assert named(load_documents(str(write(tmp_path, a_txt="A")))) == {"a.txt": "A"}

    def test_named_file_of_any_kind_is_text(self, tmp_path: Path) -> None:
        write(tmp_path, notes_log="a log")
        assert named(load_documents(str(tmp_path / "notes.log"))) == {"notes.log": "a log"}

    def test_glob_names_below_its_fixed_part(self, tmp_path: Path) -> None:
        write(tmp_path, x__b_txt="B", x__y__c_txt="C", x__d_md="D")
        assert named(load_documents(str(tmp_path / "x" / "**" / "*.txt"))) == {"b.txt": "B", "y/c.txt": "C"}

    def test_names_do_not_depend_on_where_the_data_lie(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, corpus__a_txt="A", corpus__sub__b_txt="B")
        absolute = load_documents(str(tmp_path / "corpus"))
        monkeypatch.chdir(tmp_path / "corpus")
        assert load_documents(".") == load_documents("**/*.txt") == absolute

    def test_several_sources_keep_their_order_and_a_file_is_read_once(self, tmp_path: Path) -> None:
        write(tmp_path, b_txt="B", a_txt="A")
        documents = load_documents([str(tmp_path / "b.txt"), str(tmp_path), str(tmp_path / "a.*")])
        assert documents == [Document("b.txt", "B"), Document("a.txt", "A")]

    def test_limit_caps_each_source(self, tmp_path: Path) -> None:
        lines = "".join(json.dumps({"text": str(i)}) + "\n" for i in range(9))
        write(tmp_path, a_jsonl=lines, b_jsonl=lines)
        documents = load_documents([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], limit=2)
        assert [document.name for document in documents] == [
            "a.jsonl:1",
            "a.jsonl:2",
            "b.jsonl:1",
            "b.jsonl:2",
        ]
        with pytest.raises(ValueError, match="1 or more; got 0"):
            load_documents(str(tmp_path), limit=0)

    def test_missing_path_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"No file or folder matches '.*gone\.txt'\. Name a file"):
            load_documents(str(tmp_path / "gone.txt"))
        with pytest.raises(ValueError, match=r"No file or folder matches '.*\*\.nothing'"):
            load_documents(str(tmp_path / "*.nothing"))

    def test_no_source(self) -> None:
        with pytest.raises(ValueError, match="No source of text is given"):
            load_documents([])

    def test_folder_without_text_says_what_is_looked_for(self, tmp_path: Path) -> None:
        write(tmp_path, image_png="no text")
        with pytest.raises(
            ValueError, match=r"No document was found in '.*'; folders.*\.txt \.md .*\.parquet"
        ):
            load_documents(str(tmp_path))

    def test_file_without_documents(self, tmp_path: Path) -> None:
        write(tmp_path, a_jsonl="")
        with pytest.raises(ValueError, match=r"No text is left of '.*'\. No document was found\."):
            load_documents(str(tmp_path))


class TestText:
    def test_line_ends_and_byte_order_mark(self, tmp_path: Path) -> None:
        write(tmp_path, a_txt=b"\xef\xbb\xbfone\r\ntwo\rthree\n\x00")
        assert load_documents(str(tmp_path))[0].text == "one\ntwo\nthree\n\x00"

    def test_empty_and_undecodable_files_are_skipped_with_one_warning(self, tmp_path: Path) -> None:
        write(tmp_path, a_txt="A", b_txt="", c_txt=" \n", d_txt=b"caf\xe9", e_txt=b"\xed\xa0\x80")
        message = r"Skipped 4 of 5 documents: 2 empty \(b.txt, c.txt\), 2 not UTF-8 \(d.txt, e.txt\)\."
        with pytest.warns(UserWarning, match=message) as caught:
            documents = load_documents(str(tmp_path))
        assert len(caught) == 1
        assert documents == [Document("a.txt", "A")]

    def test_nothing_left_names_the_files(self, tmp_path: Path) -> None:
        write(tmp_path, b_txt="", d_txt=b"caf\xe9")
        with pytest.raises(
            ValueError, match=r"No text is left of .*1 empty \(b.txt\), 1 not UTF-8 \(d.txt\)"
        ):
            load_documents(str(tmp_path))

    def test_warning_counts_what_it_does_not_name(self, tmp_path: Path) -> None:
        write(tmp_path, a_jsonl='{"text": "x"}\n' + '{"text": ""}\n' * 12)
        with pytest.warns(UserWarning, match=r"12 empty \(a.jsonl:2, .*a.jsonl:11 and 2 more\)"):
            load_documents(str(tmp_path))


class TestJsonl:
    def test_lines_are_documents(self, tmp_path: Path) -> None:
        rows = [{"text": "one\r\n"}, {"id": 3, "text": "two\u2028still two"}]
        write(tmp_path, a_jsonl="\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
        assert named(load_documents(str(tmp_path))) == {
            "a.jsonl:1": "one\n",
            "a.jsonl:3": "two\u2028still two",
        }

    def test_missing_field_names_file_and_line(self, tmp_path: Path) -> None:
        write(tmp_path, a_jsonl='{"text": "x"}\n{"body": "y", "id": 1}\n')
        with pytest.raises(ValueError, match=r"a\.jsonl, line 2 must .*'text'; got the fields body, id\."):
            load_documents(str(tmp_path))

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("not json", r"a\.jsonl, line 1 is not JSON: Expecting value"),
            ('["text"]', r"a\.jsonl, line 1 must be an object .*got a list"),
            ('{"text": 3}', r"The 'text' of .*a\.jsonl, line 1 must be a string; got int"),
        ],
    )
    def test_bad_lines_are_named(self, tmp_path: Path, line: str, message: str) -> None:
        write(tmp_path, a_jsonl=line)
        with pytest.raises(ValueError, match=message):
            load_documents(str(tmp_path))

    def test_lone_surrogates_and_nulls_are_skipped(self, tmp_path: Path) -> None:
        write(tmp_path, a_jsonl='{"text": "\\ud800"}\n{"text": null}\n{"text": "\\ud83d\\ude00"}\n')
        with pytest.warns(UserWarning, match=r"1 empty \(a.jsonl:2\), 1 not UTF-8 \(a.jsonl:1\)"):
            documents = load_documents(str(tmp_path))
        assert documents == [Document("a.jsonl:3", "\N{GRINNING FACE}")]


class TestParquet:
    def test_rows_are_documents(self, tmp_path: Path) -> None:
        parquet.write_table(pa.table({"id": [1, 2], "text": ["one\r\n", "two"]}), tmp_path / "a.parquet")
        assert named(load_documents(str(tmp_path))) == {"a.parquet:1": "one\n", "a.parquet:2": "two"}

    def test_missing_column_names_the_columns(self, tmp_path: Path) -> None:
        parquet.write_table(pa.table({"id": [1], "body": ["one"]}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=r"a\.parquet must .*column 'text'; its columns are id, body\."):
            load_documents(str(tmp_path))

    def test_broken_file_is_named(self, tmp_path: Path) -> None:
        write(tmp_path, a_parquet="no parquet")
        with pytest.raises(ValueError, match=r"a\.parquet is not a readable \.parquet file"):
            load_documents(str(tmp_path))


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    for split, texts in {"train": ["one", "two", ""], "test": ["three"]}.items():
        rows = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    return folder


class TestHub:
    """A local folder of data files goes through the same streaming as a data set of the hub."""

    def test_default_split_is_train(self, dataset_folder: Path) -> None:
        with pytest.warns(UserWarning, match=rf"1 empty \({dataset_folder}:3\)"):
            documents = load_documents(f"hf:{dataset_folder}")
        assert named(documents) == {f"{dataset_folder}:1": "one", f"{dataset_folder}:2": "two"}

    @pytest.mark.parametrize("choice", ["test", ":test", "default:test"])
    def test_config_and_split(self, dataset_folder: Path, choice: str) -> None:
        assert [document.text for document in load_documents(f"hf:{dataset_folder}:{choice}")] == ["three"]

    def test_single_part_that_is_a_config(self, dataset_folder: Path) -> None:
        assert [document.text for document in load_documents(f"hf:{dataset_folder}:default", limit=2)] == [
            "one",
            "two",
        ]

    def test_unknown_split_lists_the_splits(self, dataset_folder: Path) -> None:
        with pytest.raises(ValueError, match=r"split 'dev'\): .*train.*test"):
            load_documents(f"hf:{dataset_folder}:dev")

    def test_grammar(self) -> None:
        for source in ("hf:", "hf:a:b:c:d"):
            with pytest.raises(ValueError, match=rf"hf:NAME\[:config\]\[:split\].*got '{source}'"):
                load_documents(source)

    def test_parquet_with_one_column_of_strings(self, tmp_path: Path) -> None:
        parquet.write_table(pa.table({"id": [1, 2], "body": ["one", "two"]}), tmp_path / "train.parquet")
        assert [document.text for document in load_documents(f"hf:{tmp_path}")] == ["one", "two"]

    def test_two_columns_of_strings_are_refused(self, tmp_path: Path) -> None:
        parquet.write_table(pa.table({"title": ["t"], "body": ["one"]}), tmp_path / "train.parquet")
        with pytest.raises(ValueError, match=r"no column 'text' and 2 columns of strings.*title, body"):
            load_documents(f"hf:{tmp_path}")


def test_stdlib_is_read_without_warning_in_a_fixed_order() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        documents = load_documents("stdlib")
    names = [document.name for document in documents]
    assert names == sorted(set(names))
    assert {"abc.py", "json/decoder.py"} <= set(names)
    assert not [name for name in names if "site-packages" in name or os.path.isabs(name)]
    assert "pydoc_data/topics.py" not in names
    assert dict(zip(names, documents, strict=True))["this.py"].text.startswith('s = """Gur Mra bs Clguba')


documents_of_any_name = st.lists(st.text(max_size=8), min_size=2, max_size=40).map(
    lambda names: [Document(name, f"text {i}") for i, name in enumerate(names)]
)


class TestSplit:
    @given(documents_of_any_name, st.floats(0.01, 0.99))
    def test_is_disjoint_complete_ordered_and_never_empty(
        self, documents: list[Document], fraction: float
    ) -> None:
        train, test = split_documents(documents, fraction)
        assert train and test
        assert sorted(train + test, key=documents.index) == documents
        assert train == sorted(train, key=documents.index) and test == sorted(test, key=documents.index)

    def test_assignment_never_changes(self) -> None:
        documents = [Document(f"chapter{i}.txt", "text") for i in range(40)]
        test = split_documents(documents)[1]
        assert [document.name for document in test] == EXPECTED_TEST_NAMES

    def test_share_is_about_the_fraction(self) -> None:
        documents = [Document(f"{i}.txt", "text") for i in range(2000)]
        assert len(split_documents(documents)[1]) == pytest.approx(200, abs=40)

    def test_more_documents_move_none(self) -> None:
        documents = [Document(f"chapter{i}.txt", "text") for i in range(80)]
        few, many = split_documents(documents[:40])[1], split_documents(documents)[1]
        assert few == [document for document in many if document in documents[:40]]

    def test_larger_test_set_holds_the_smaller_one(self) -> None:
        """So what one side gets lest it be empty is what is nearest to it."""
        documents = [Document(f"chapter{i}.txt", "text") for i in range(40)]
        fractions = (1e-9, 0.1, 0.3, 0.5, 0.7, 0.9, 1 - 1e-9)
        tests = [split_documents(documents, fraction)[1] for fraction in fractions]
        for smaller, larger in pairwise(tests):
            assert all(document in larger for document in smaller)
        assert (len(tests[0]), len(tests[-1])) == (1, 39)

    def test_single_document_is_cut_at_a_line_break(self) -> None:
        text = "".join(f"line {i}\n" for i in range(100))
        (train,), (test,) = split_documents([Document("book.txt", text)])
        assert train.text + test.text == text
        assert test.text.startswith("line 9") and train.text.endswith("\n")
        assert len(test.text) == pytest.approx(len(text) / 10, abs=8)
        assert (train.name, test.name) == ("book.txt (start)", "book.txt (end)")

    @pytest.mark.parametrize("text", ["x" * 100, "title\n" + "x" * 94, "x" * 99 + "\n"])
    def test_single_document_without_a_near_line_break_is_cut_all_the_same(self, text: str) -> None:
        (train,), (test,) = split_documents([Document("book.txt", text)])
        assert train.text + test.text == text
        assert len(test.text.rstrip()) == 10

    def test_single_document_with_blank_lines_at_its_end_has_two_parts(self) -> None:
        train, test = split_documents([Document("a", "Some text. More.\n" * 5 + "\n" * 200)])
        assert test[0].text.strip() and train[0].text.strip()

    @given(st.text(min_size=2).filter(lambda text: len(text.rstrip()) > 1), st.floats(0.01, 0.99))
    def test_single_document_loses_nothing(self, text: str, fraction: float) -> None:
        (train,), (test,) = split_documents([Document("book.txt", text)], fraction)
        assert train.text and test.text
        assert train.text + test.text == text

    def test_what_cannot_be_split_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no document to split"):
            split_documents([])
        with pytest.raises(ValueError, match="'a' has 1 characters"):
            split_documents([Document("a", "x")])
        with pytest.raises(ValueError, match=r"between 0 and 1; got 1\.5"):
            split_documents([Document("a", "x")], 1.5)


EXPECTED_TEST_NAMES = ["chapter22.txt", "chapter26.txt", "chapter27.txt"]
