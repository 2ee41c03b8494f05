"""Paragraphs, sections and levels found from a tokenizer, on text."""

import re
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bipe.data.documents import Document
from bipe.data.tokens import train_tokenizer
from bipe.report.segments import segment_rows, segments_html, segments_text
from bipe.segmentation import Levels, NewlineRun, TokenSet, build_segmenter, segmenter_of
from bipe.segmentation.newline_run import newlines_of

TEXT = """Emma

By Jane Austen


Chapter I

Emma Woodhouse, handsome.
She was the youngest. \t
  \t
A paragraph after blanks.\r\n\r\nAnd one of Windows.



The last section.
"""


def of_characters(*merged: str, added: tuple[AddedToken, ...] = (), eos: str | None = None) -> Any:
    """A tokenizer of single bytes and of these strings."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([*(AddedToken(text) for text in merged), *added])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)


TOKENIZERS = {
    "bytes": lambda: of_characters(),
    "fused": lambda: of_characters("\n\n", ".\n", " \t\n", "\n\n\n\n", "\r\n", "\n  "),
    "bpe": lambda: train_tokenizer([TEXT * 20], 300),
}


def cut(tokenizer: Any, rule: str, text: str = TEXT) -> list[str]:
    """The text's segments by a rule."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ends = segmenter_of(tokenizer, rule)(torch.tensor([ids]))[0].tolist()
    segments, start = [], 0
    for index, is_end in enumerate(ends):
        if is_end or index == len(ids) - 1:
            segments.append(tokenizer.decode(ids[start : index + 1]))
            start = index + 1
    return segments


def printed(segments: list[str]) -> list[str]:
    """What is printed of each, without those that print nothing."""
    return [text for segment in segments if (text := " ".join(segment.split()))]


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
@pytest.mark.parametrize(("rule", "newlines"), [("paragraph", 2), ("block", 2), ("section", 3)])
def test_segments_end_where_so_many_newlines_follow_each_other(name: str, rule: str, newlines: int) -> None:
    expected = re.split(rf"\n(?:\s*?\n){{{newlines - 1},}}\s*", TEXT)
    assert printed(cut(TOKENIZERS[name](), rule)) == printed(expected)
    assert "".join(cut(TOKENIZERS[name](), rule)) == TEXT


def test_blanks_of_every_script_are_blank() -> None:
    assert newlines_of("\u00a0\n\u3000".encode()) == (1, 0, 1, 1)
    assert newlines_of("é\n".encode()[1:]) == (0, 0, 1, 0)  # half a character is printed


@pytest.mark.parametrize("special", [True, False])
def test_files_end_at_their_separator_and_at_the_eos(special: bool) -> None:
    separator = AddedToken("<|file_sep|>", special=special)
    tokenizer = of_characters("</s>", added=(separator,), eos="</s>")
    segmenter = segmenter_of(tokenizer, "file")
    assert isinstance(segmenter, TokenSet)
    names = tokenizer.convert_ids_to_tokens(list(segmenter.end_token_ids))
    assert sorted(names) == ["</s>", "<|file_sep|>"]


def test_without_an_end_of_files_the_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="neither an eos nor a separator"):
        segmenter_of(of_characters(), "file")


def test_a_rule_of_several_names_has_several_levels() -> None:
    segmenter = segmenter_of(TOKENIZERS["fused"](), "sentence/paragraph/section")
    assert isinstance(segmenter, Levels)
    assert [type(level) for level in segmenter.segmenters] == [TokenSet, NewlineRun, NewlineRun]
    assert build_segmenter(segmenter.to_spec()) == segmenter
    with pytest.raises(
        ValueError, match=r"Unknown rule .page.\. Choose one of: block, equals, file, line, paper"
    ):
        segmenter_of(TOKENIZERS["bytes"](), "sentence/page")


@pytest.mark.parametrize(
    "rule", ["sentence/sentence", "paragraph/sentence", "block/paragraph", "file/section"]
)
def test_levels_must_get_longer(rule: str) -> None:
    with pytest.raises(ValueError, match="must get longer"):
        segmenter_of(TOKENIZERS["bytes"](), rule)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"type": "newline_run", "count": 0, "tokens": [[1, 1, 0, 1, 1]]},
            "at least 1; got 0",
        ),
        ({"type": "newline_run", "count": 2, "tokens": None}, "list of tokens; got None"),
        ({"type": "newline_run", "count": 2, "tokens": 5}, "list of tokens; got 5"),
        ({"type": "newline_run", "count": 2, "tokens": []}, "no tokens"),
        ({"type": "newline_run", "count": 2, "tokens": [5]}, r"\[id, head, inner, tail, blank\].*got 5"),
        ({"type": "newline_run", "count": 2, "tokens": [[1, -1, 0, 1, 1]]}, "at least 0"),
        ({"type": "newline_run", "count": 2, "tokens": [[1, 99, 0, 1, 1]]}, "at most 15 newlines"),
        ({"type": "newline_run", "count": 2, "tokens": [[1, 1, 0, 1, 1]] * 2}, "names a token twice"),
        ({"type": "levels", "segmenters": 5}, "list of segmenters; got 5"),
        ({"type": "levels", "segmenters": [{"type": "never"}]}, "two to 8 segmenters.*got 1"),
        ({"type": "levels", "segmenters": [{"type": "never"}] * 9}, "two to 8 segmenters.*got 9"),
        ({"type": "levels", "segmenters": [{"type": "nevr"}] * 2}, "Unknown segmenter 'nevr'"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_segmenter(spec)


def test_levels_have_no_levels_of_their_own() -> None:
    inner = {"type": "levels", "segmenters": [{"type": "every_token"}, {"type": "never"}]}
    with pytest.raises(ValueError, match="one level"):
        build_segmenter({"type": "levels", "segmenters": [inner, {"type": "never"}]})


def test_every_level_is_shown() -> None:
    tokenizer = TOKENIZERS["fused"]()
    document = Document("a.txt", "One.\nTwo.\n\nThree.\nFour.")
    rows = list(segment_rows([document], tokenizer, segmenter_of(tokenizer, "line/paragraph")))
    shown = [(row.label, "".join(row.pieces)) for row in rows]
    assert shown == [
        ("0.0", "One.\n"),
        ("0.1", "Two.\n"),
        ("0.2", "\n"),
        ("1.3", "Three.\n"),
        ("1.4", "Four."),
    ]
    assert rows[3].to_dict()["outer"] == [1]
    assert "(1.3, 0-5) Three." in segments_text(rows).plain
    assert 'data-segment="1.4"' in segments_html(rows, title="a")
