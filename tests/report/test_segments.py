"""Segments in the terminal and on a page: what is shown is the text, harmless, at the model's positions."""

import html
import re

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bipe.data.documents import Document
from bipe.data.tokens import train_tokenizer
from bipe.report.segments import (
    SegmentRow,
    segment_rows,
    segments_html,
    segments_text,
    statistics_table,
    terminal_table,
)
from bipe.segmentation import EveryToken, TokenSet
from bipe.segmentation.statistics import SegmentStatistics, tokens_per_segment

TOKENIZER = train_tokenizer(["It rains. It pours. 他来了。"], 300)
PAPER = TokenSet.from_tokenizer(TOKENIZER, "paper")
ROWS = [SegmentRow("a.txt", 0, 0, ("It", " rains", ".")), SegmentRow("a.txt", 1, 3, ("\n",))]


def texts_of(page: str) -> list[str]:
    return [
        html.unescape(token) for token in re.findall(r"<i data-offset=\"\d+\">(.*?)</i>", page, re.DOTALL)
    ]


@given(text=st.text(max_size=60))
def test_segments_hold_the_whole_text(text: str) -> None:
    rows = list(segment_rows([Document("a", text), Document("empty", "")], TOKENIZER, PAPER))
    assert "".join(row.to_dict()["text"] for row in rows) == text
    assert [row.segment for row in rows] == list(range(len(rows)))
    assert [row.to_dict()["end"] for row in rows[:-1]] == [row.start for row in rows[1:]]


def test_segments_are_those_that_the_statistics_count() -> None:
    text = "It rains.\nIt pours. And on"
    rows = list(segment_rows([Document("a", text)], TOKENIZER, PAPER))
    ids = TOKENIZER(text, return_tensors="pt")["input_ids"]
    assert [row.to_dict()["tokens"] for row in rows] == tokens_per_segment(PAPER(ids)).tolist()
    assert [row.to_dict()["text"] for row in rows] == ["It rains.", "\n", "It pours.", " And on"]


def test_a_character_stands_at_its_last_token() -> None:
    rows = list(segment_rows([Document("a", "a😀b")], train_tokenizer(["ab"], 257), EveryToken()))
    assert ["".join(row.pieces) for row in rows] == ["a", "", "", "", "😀", "b"]


def test_words_without_spaces_are_set_apart() -> None:
    backend = Tokenizer(
        models.WordPiece({"<unk>": 0, "play": 1, "##ing": 2, "now": 3, ".": 4}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    (row,) = segment_rows([Document("a", "playing now.")], tokenizer, TokenSet([4]))
    assert row.pieces == ("play", "ing", " now", " .")


def test_the_terminal_shows_segment_and_offsets() -> None:
    text = segments_text([*ROWS, SegmentRow("a.txt", 2, 4, ("[red]\x1b[2J\x9b",))])
    assert text.plain == "(0, 0-2) It rains.\n(1, 0) ⏎\n(2, 0) [red]␛[2J\N{REPLACEMENT CHARACTER}\n"
    assert {str(span.style) for span in text.spans} == {"dim", "cyan", "cyan underline", "yellow"}


@given(pieces=st.lists(st.text(max_size=8), min_size=1, max_size=8), name=st.text(max_size=8))
def test_the_page_escapes_what_it_shows(pieces: list[str], name: str) -> None:
    page = segments_html([SegmentRow(name, 0, 0, tuple(pieces))], title=name)
    tags = set(re.findall(r"</?[a-z!][^<>]*>", page.partition("<body>")[2], re.IGNORECASE))
    allowed = {"h1", "h2", "p", "input", "label", "span", "i", "br", "body", "html"}
    assert {re.sub(r"\W", "", tag.split()[0]) for tag in tags} <= allowed
    assert len(texts_of(page)) == len(pieces)


def test_the_page_carries_segment_and_offset() -> None:
    page = segments_html(ROWS, title="<Rule> paper")
    assert re.findall(r'data-segment="(\d+)"', page) == ["0", "1"]
    assert re.findall(r'data-offset="(\d+)"', page) == ["0", "1", "2", "0"]
    assert texts_of(page) == ["It", " rains", ".", "⏎"]
    assert "<title>&lt;Rule&gt; paper</title>" in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"https?:|<script|<link|@import", page)


def test_the_page_says_what_it_leaves_out() -> None:
    rows = [SegmentRow("a.txt", index, 3 * index, ("a", "b", ".")) for index in range(500)]
    page = segments_html(rows, title="long", token_limit=30)
    assert page.count("data-segment=") == 10
    assert "1,470 tokens are left out" in page
    assert "left out" not in segments_html(rows, title="long")


def test_statistics_stand_in_both_tables() -> None:
    statistics = {128: SegmentStatistics(1200, 10.25, 9, 22, 1_234_567, (0, 1))}
    cells = ["128", "1,200", "10.2", "9", "22", "1,234,567"]
    table = statistics_table(statistics)
    assert [cell.text for cell in table.rows[0]] == cells
    drawn = terminal_table(table, "Tokens per segment")
    assert [(column.header, *column.cells) for column in drawn.columns] == list(
        zip(table.header, cells, strict=True)
    )
    page = segments_html(ROWS, title="paper", statistics=statistics)
    assert [text for text in cells if f">{text}<" in page] == cells
