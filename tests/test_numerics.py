"""Small floats and large positions: finite, and as near to float64 as float32 allows.

Five steps of training a scheme here; `make test-numerics` takes 500. BIPE_STEPS chooses.
"""

import math
import os
from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytest
import torch

from bipe.models import SCHEMES, BipeForCausalLM
from bipe.positions import MultilevelPositions

ModelMaker = Callable[..., BipeForCausalLM]
STEPS = int(os.environ.get("BIPE_STEPS", "5"))
FAR = 2**31
"""Segments before the text."""
LONG = 131_071
"""The last position of a context of 128 Ki tokens."""

ROTATING = sorted(
    name
    for name, scheme in SCHEMES.items()
    if scheme.inter["type"] in ("rope", "hirope", "rope_levels", "xpos", "sliding_rope")
)


def shifted(model: BipeForCausalLM, ids: torch.Tensor, by: int) -> Any:
    """The positions of a text with so many segments, and tokens, before it."""
    positions = model.positions(ids)
    moved = positions._replace(segment=positions.segment + by, token=positions.token + by)
    return moved._replace(outer=moved.outer + by) if isinstance(moved, MultilevelPositions) else moved


def losses_of_training(model: BipeForCausalLM, dtype: torch.dtype) -> list[float]:
    """Of so many steps on texts of which every other token is known, under autocast."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(STEPS):
        ids = torch.randint(0, 12, (4, 32), generator=generator)
        ids[:, 1::2] = ids[:, ::2]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_training_in_half_precision_stays_finite_and_goes_as_in_float32(
    scheme: str, make_model: ModelMaker, record_property: Callable[[str, object], None]
) -> None:
    """How far each precision is from float32 goes to pytest's --junitxml."""
    whole = losses_of_training(make_model(scheme, initializer_range=0.02).train(), torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        model = make_model(scheme, initializer_range=0.02).train()
        losses = losses_of_training(model, dtype)
        assert all(torch.isfinite(weight).all() for weight in model.parameters()), dtype
        assert all(math.isfinite(loss) for loss in losses), dtype
        # Steps go apart as roundings add up; what is learned does not.
        nearness = fmean(losses[-20:]) / fmean(whole[-20:])
        record_property(str(dtype), nearness)
        assert nearness == pytest.approx(1, rel=0.05), dtype


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_step_needs_no_algorithm_that_is_not_deterministic(scheme: str, make_model: ModelMaker) -> None:
    model = make_model(scheme).train()
    ids = torch.randint(0, 12, (2, 24), generator=torch.Generator().manual_seed(1))
    torch.use_deterministic_algorithms(True)
    try:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_two_thousand_million_segments_do_not_overflow(scheme: str, make_model: ModelMaker) -> None:
    model = make_model(scheme).eval()
    ids = torch.randint(0, 12, (1, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        near, far = (model(ids, positions=shifted(model, ids, by)).logits for by in (0, FAR))
    assert torch.isfinite(far).all()
    if SCHEMES[scheme].inter["type"] in ("alibi", "alibi2", "alibi_levels", "t5", "kerple", "zero", "cope"):
        # Distances are of whole numbers, however far they are from 0.
        torch.testing.assert_close(far, near, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scheme", ROTATING)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast_does_not_reach_the_angles(scheme: str, dtype: torch.dtype, make_model: ModelMaker) -> None:
    model = make_model(scheme).eval()
    ids = torch.randint(0, 12, (1, 16), generator=torch.Generator().manual_seed(1))
    positions = shifted(model, ids, LONG)
    plain = model.model.inter(positions, positions, torch.float32)
    with torch.autocast("cpu", dtype):
        inside = model.model.inter(positions, positions, dtype)
    for name in ("query_rotation", "key_rotation"):
        for here, there in zip(getattr(plain, name), getattr(inside, name), strict=True):
            torch.testing.assert_close(there.float(), here, rtol=0, atol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("scheme", ["rope", "bipe-rope"])
def test_the_rotation_at_131071_is_that_of_float64(scheme: str, make_model: ModelMaker) -> None:
    """The frequencies are Llama's, in float32: an angle is off by its size times 2^-24, 0.008 at most."""
    model = make_model(scheme).eval()
    ids = torch.randint(0, 12, (1, 16), generator=torch.Generator().manual_seed(1))
    positions = shifted(model, ids, LONG - 16)
    index = positions.segment if scheme == "bipe-rope" else positions.token
    with torch.autocast("cpu", torch.bfloat16):
        cosine, sine = model.model.inter(positions, positions, torch.float32).query_rotation
    channels = model.config.head_dim
    frequencies = 10_000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    angles = (index.double()[..., None] * frequencies).repeat(1, 1, 2)
    for here, exact in ((cosine, angles.cos()), (sine, angles.sin())):
        assert here.dtype == torch.float32
        torch.testing.assert_close(here.double(), exact, rtol=0, atol=0.008)
