"""Segments made visible: each token with its segment and its offset, in the terminal and on a page."""

import codecs
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import rich.table
import torch
from rich.text import Text
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bipe.data.documents import Document
from bipe.data.tokens import encode
from bipe.positions import MultilevelPositions, multilevel_positions
from bipe.report.pages import render
from bipe.report.tables import Table, segment_table
from bipe.segmentation.base import Segmenter, levels_of, read_ends
from bipe.segmentation.statistics import SegmentStatistics
from bipe.vocabulary import token_texts

LINE_BREAK = "⏎"
_STYLES = ("cyan", "yellow")


@dataclass(frozen=True)
class SegmentRow:
    """One segment of a document; token k of it has offset k."""

    document: str
    """Name of the document."""
    segment: int
    """Index of the segment in the document."""
    start: int
    """Index in the document of the segment's first token."""
    pieces: tuple[str, ...]
    """The text of each token; a character spread over several tokens stands at the last of them."""
    outer: tuple[int, ...] = ()
    """Index in the document of each longer segment that this one is in, the shortest first."""

    @property
    def label(self) -> str:
        """The indices of all levels, the longest segment's first, such as `2.17`."""
        return ".".join(map(str, (*reversed(self.outer), self.segment)))

    def to_dict(self) -> dict[str, Any]:
        """Return document, indices, first token, the token after the last, their number and the text."""
        tokens = len(self.pieces)
        return {
            "document": self.document,
            "segment": self.segment,
            **({"outer": list(self.outer)} if self.outer else {}),
            "start": self.start,
            "end": self.start + tokens,
            "tokens": tokens,
            "text": "".join(self.pieces),
        }


def segment_rows(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, segmenter: Segmenter
) -> Iterator[SegmentRow]:
    """Yield the segments of each document, at the positions that a model gets.

    >>> from bipe.data.tokens import train_tokenizer
    >>> from bipe.segmentation.token_set import TokenSet
    >>> tokenizer = train_tokenizer(["."], 257)
    >>> rows = segment_rows([Document("a", "No. Yes.")], tokenizer, TokenSet.from_tokenizer(tokenizer))
    >>> [(row.segment, row.start, "".join(row.pieces)) for row in rows]
    [(0, 0, 'No.'), (1, 3, ' Yes.')]
    """
    texts = token_texts(tokenizer)
    for document in documents:
        ids = encode([document], tokenizer)[0]
        if not len(ids):
            continue
        pieces = _pieces(ids, tokenizer, texts)
        ends = read_ends(segmenter, ids[None], torch.arange(len(ids))[None]).ends
        positions = multilevel_positions(ends, levels_of(segmenter))
        outer = positions.outer[0] if isinstance(positions, MultilevelPositions) else None
        starts = (positions.offset[0] == 0).nonzero().flatten().tolist()
        for segment, (start, end) in enumerate(zip(starts, [*starts[1:], len(ids)], strict=True)):
            longer = () if outer is None else tuple(outer[start].tolist())
            yield SegmentRow(document.name, segment, start, tuple(pieces[start:end]), longer)


def segments_text(rows: Iterable[SegmentRow]) -> Text:
    r"""Return a line for each segment for the terminal: index, offsets, and the text in alternating colours.

    Every second token is underlined; line breaks show as `⏎`, other control characters as their symbols.

    >>> print(segments_text([SegmentRow("a.txt", 3, 17, ("The", " end", ".", "\n"))]))
    (3, 0-3) The end.⏎
    <BLANKLINE>
    """
    text = Text()
    for row in rows:
        last = f"-{len(row.pieces) - 1}" if len(row.pieces) > 1 else ""
        text.append(f"({row.label}, 0{last}) ", style="dim")
        for offset, piece in enumerate(row.pieces):
            underline = " underline" if offset % 2 else ""
            text.append(_visible(piece), style=_STYLES[row.segment % 2] + underline)
        text.append("\n")
    return text


def statistics_table(statistics: Mapping[int, SegmentStatistics]) -> Table:
    """Return a row for each text length: number of segments and the distribution of tokens per segment."""
    return segment_table({"lengths": {length: row.to_dict() for length, row in statistics.items()}})


def terminal_table(table: Table, title: str) -> rich.table.Table:
    """Return a table for the terminal, all columns flush right."""
    drawn = rich.table.Table(
        *(rich.table.Column(name, justify="right") for name in table.header), title=title
    )
    for row in table.rows:
        drawn.add_row(*(cell.text for cell in row))
    return drawn


def segments_html(
    rows: Iterable[SegmentRow],
    *,
    title: str,
    statistics: Mapping[int, SegmentStatistics] | None = None,
    token_limit: int = 20_000,
) -> str:
    """Return a self-contained page: segments in two colours, each token with its offset in small type.

    Args:
        rows: the segments, document by document.
        title: heading of the page, plain text.
        statistics: by text length; adds their table.
        token_limit: tokens shown; the page says so where it leaves any out.
    """
    shown, left_out = _limited(rows, token_limit)
    documents = [(name, list(group)) for name, group in groupby(shown, key=lambda row: row.document)]
    values = {"title": title, "documents": documents, "left_out": left_out, "visible": _visible}
    return render("segments.html", values | {"statistics": statistics and statistics_table(statistics)})


def _pieces(ids: Tensor, tokenizer: PreTrainedTokenizerBase, texts: Sequence[bytes | None]) -> list[str]:
    """Return the text of each token; parts of a character are held back until it is whole."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    splits_at_spaces = not any(b" " in text for text in texts if text)
    pieces: list[str] = []
    for index in ids.tolist():
        text, token = texts[index], str(tokenizer.convert_ids_to_tokens(index))
        if text is None:
            pieces.append(decoder.decode(b"", final=True) + token)
            decoder.reset()
        else:
            # A vocabulary without spaces marks what continues a word, so the other tokens begin one.
            begins_word = splits_at_spaces and pieces and token.encode() == text
            pieces.append(" " * bool(begins_word) + decoder.decode(text))
    pieces[-1] += decoder.decode(b"", final=True)
    return pieces


def _visible(text: str) -> str:
    """Show control characters as symbols, so that a text can neither command a terminal nor break a page."""
    return "".join(_symbol(c) if unicodedata.category(c) == "Cc" else c for c in text)


def _symbol(control: str) -> str:
    if control == "\n":
        return LINE_BREAK
    return chr(0x2400 + ord(control)) if control < "\x20" else "\N{REPLACEMENT CHARACTER}"


def _limited(rows: Iterable[SegmentRow], token_limit: int) -> tuple[list[SegmentRow], int]:
    """Return the first rows of at most so many tokens, and the number of tokens in the others."""
    shown: list[SegmentRow] = []
    taken = left_out = 0
    for row in rows:
        taken += len(row.pieces)
        if taken <= token_limit:
            shown.append(row)
        else:
            left_out += len(row.pieces)
    return shown, left_out
