"""Tokens read in pieces against the same tokens read at once."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from bipe import BipeForCausalLM, EveryToken, FixedLength, Never, TokenSet
from bipe.models.cache import TokenState, read_tokens
from bipe.segmentation import Levels, NewlineRun, Segmenter
from bipe.segmentation.newline_run import newlines_of

NEWLINES = {0: b"\n", 1: b".", 2: b" ", 3: b".\n", 4: b"\n\n", 5: b"a"}
TOKENS = [(index, *newlines_of(text)) for index, text in NEWLINES.items()]


def run_ends(count: int) -> Callable[[list[int]], bool]:
    """Whether the last token of a document so far is the one with which a run of newlines is long enough."""

    def last_ends(tokens: list[int]) -> bool:
        before, after = (b"".join(NEWLINES[index] for index in part) for part in (tokens[:-1], tokens))
        return _borders(after, count) > _borders(before, count)

    return last_ends


def _borders(text: bytes, count: int) -> int:
    """How many runs of white space hold so many newlines."""
    return sum(run.count(b"\n") >= count for run in re.split(rb"\S+", text))


def fixed_ends(n: int) -> Callable[[list[int]], bool]:
    return lambda tokens: len(tokens) % n == 0


LEVELS: dict[str, tuple[Segmenter, list[Callable[[list[int]], bool]]]] = {
    "token_set": (TokenSet([0]), [lambda tokens: tokens[-1] == 0]),
    "every_token": (EveryToken(), [lambda tokens: True]),
    "never": (Never(), [lambda tokens: False]),
    "fixed_length": (FixedLength(3), [fixed_ends(3)]),
    "paragraphs": (NewlineRun(2, TOKENS), [run_ends(2)]),
    "sections": (NewlineRun(3, TOKENS), [run_ends(3)]),
    "levels": (
        Levels([TokenSet([1, 3]), NewlineRun(2, TOKENS), NewlineRun(3, TOKENS)]),
        [lambda tokens: tokens[-1] in (1, 3), run_ends(2), run_ends(3)],
    ),
}
"""Segmenters, and for each level whether a document's last token so far ends it."""


def read_one_by_one(
    ends: list[Callable[[list[int]], bool]], ids: list[int], real: list[bool], documents: list[int]
) -> list[dict[str, Any]]:
    """Positions of a row found by going through it, None for padding."""
    found: list[dict[str, Any]] = []
    document, tokens, counts, offset = None, list[int](), [0] * len(ends), 0
    for index, is_real, name in zip(ids, real, documents, strict=True):
        if not is_real:
            found.append({})
            continue
        if name != document:
            document, tokens, counts, offset = name, [], [0] * len(ends), 0
        tokens.append(index)
        found.append(
            {"segment": counts[0], "offset": offset, "token": len(tokens) - 1, "outer": list(counts[1:])}
        )
        level = max((place + 1 for place, end in enumerate(ends) if end(tokens)), default=0)
        counts = [count + (place < level) for place, count in enumerate(counts)]
        offset = 0 if level else offset + 1
    return found


@pytest.mark.parametrize("name", sorted(LEVELS))
@given(st.data())
def test_pieces_have_the_state_of_a_row_gone_through(name: str, data: st.DataObject) -> None:
    segmenter, ends = LEVELS[name]
    rows, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 14))

    def table(cells: list[int]) -> list[list[int]]:
        line = st.lists(st.sampled_from(cells), min_size=length, max_size=length)
        return [data.draw(line) for _ in range(rows)]

    ids, real = torch.tensor(table([0, 1, 2, 3, 4, 5])), torch.tensor(table([0, 1, 1])).bool()
    documents = torch.tensor(table([0, 0, 0, 1])).cumsum(dim=1)
    cuts = sorted(data.draw(st.sets(st.integers(1, length), max_size=4)) | {0, length})
    state = None
    for start, stop in pairwise(cuts):
        piece = slice(start, stop)
        new = read_tokens(segmenter, ids[:, piece], real[:, piece], documents[:, piece], state)
        parts = [new] if state is None else [state, new]
        state = TokenState(*(torch.cat(both, dim=1) for both in zip(*parts, strict=True)))
    assert state is not None
    assert torch.equal(state.real, real)
    for row in range(rows):
        expected = read_one_by_one(ends, ids[row].tolist(), real[row].tolist(), documents[row].tolist())
        for column, token in enumerate(expected):
            for field, value in token.items():
                assert getattr(state, field)[row, column].tolist() == value, (field, row, column)
        padding = ~real[row]
        for field in ("segment", "offset", "token", "outer"):
            assert not getattr(state, field)[row, padding].any()


def test_a_document_goes_on_behind_padding_of_another_name(
    make_model: Callable[..., BipeForCausalLM],
) -> None:
    model = make_model("bipe-alibi")
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 12, (2, 30)), torch.ones(2, 30, dtype=torch.int64)
    mask[1, 15:20] = 0
    documents = torch.where(mask.bool(), 5, 0)
    cache = DynamicCache()
    model(ids[:, :20], attention_mask=mask[:, :20], document_ids=documents[:, :20], past_key_values=cache)
    later = model(ids[:, 20:], attention_mask=mask, past_key_values=cache).logits
    whole = model(ids, attention_mask=mask, use_cache=False).logits[:, 20:]
    torch.testing.assert_close(later, whole, rtol=1e-4, atol=1e-5)
