"""Tokens read in pieces against the same tokens read at once."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from bipe import BipeForCausalLM, EveryToken, FixedLength, Never, TokenSet, bilevel_positions
from bipe.models.cache import TokenState, read_tokens
from bipe.positions import token_index
from bipe.segmentation.base import Segmenter


@pytest.mark.parametrize(
    "segmenter",
    [TokenSet([0]), EveryToken(), Never(), FixedLength(3)],
    ids=lambda found: type(found).__name__,
)
@given(st.data())
def test_pieces_have_the_state_of_the_whole(segmenter: Segmenter, data: st.DataObject) -> None:
    rows, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 14))

    def table(cells: list[int]) -> torch.Tensor:
        line = st.lists(st.sampled_from(cells), min_size=length, max_size=length)
        return torch.tensor([data.draw(line) for _ in range(rows)])

    ids, real, documents = table([0, 1, 2]), table([0, 1, 1]).bool(), table([0, 0, 0, 1]).cumsum(dim=1)
    is_end = segmenter(ids, token_index(real, documents))
    whole = TokenState(*bilevel_positions(is_end, documents, real), documents, is_end, real)

    cuts = sorted(data.draw(st.sets(st.integers(1, length), max_size=4)) | {0, length})
    state = None
    for start, stop in pairwise(cuts):
        piece = slice(start, stop)
        new = read_tokens(segmenter, ids[:, piece], real[:, piece], documents[:, piece], state)
        state = (
            new
            if state is None
            else TokenState(*(torch.cat(both, dim=1) for both in zip(state, new, strict=True)))
        )
    assert state is not None
    for name in ("segment", "offset", "token", "document_ids", "real"):
        assert torch.equal(getattr(state, name), getattr(whole, name)), name
    assert torch.equal(state.is_end & real, is_end & real)  # on padding nobody reads it


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
