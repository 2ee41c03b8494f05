"""On a CUDA device against the same on a CPU, which the rest of the suite holds to oracles (make test-gpu)."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from bipe import SCHEMES, BipeForCausalLM, BoundedCache
from bipe.attention import Visible
from bipe.attention.segment_local import WORTH_FINDING, near_blocks
from bipe.data.packing import pack
from bipe.encodings.inter import INTER_ENCODINGS
from bipe.encodings.inter.alibi import AlibiBias
from bipe.evaluation.arithmetic import answered_right
from bipe.evaluation.losses import window_losses
from bipe.evaluation.windows import PROTOCOLS
from bipe.models.checkpoint import load_model
from bipe.training.material import Arithmetic
from bipe.training.recipe import ArithmeticSettings, TrainingSettings
from bipe.training.train import train_model

pytestmark = pytest.mark.gpu

ModelMaker = Callable[..., BipeForCausalLM]
KINDS = {name: INTER_ENCODINGS[scheme.inter["type"]] for name, scheme in SCHEMES.items()}
DECAYING = sorted(name for name, kind in KINDS.items() if kind.decays)
FOR_FLEX = sorted(name for name, kind in KINDS.items() if not kind.reads_content)
PAIRS = [("sdpa", name) for name in sorted(SCHEMES)] + [("segment_local", name) for name in DECAYING]


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.fail("These tests need a CUDA device.")
    monkeypatch.setitem(WORTH_FINDING, "cuda", 512)  # or short texts would have none left out
    yield
    torch.cuda.synchronize()


def ids_of(rows: int, tokens: int) -> Tensor:
    return torch.randint(12, (rows, tokens), generator=torch.Generator().manual_seed(tokens))


def batch_of(tokens: int) -> dict[str, Tensor]:
    """Two rows, the first padded on the left, and two documents in the second."""
    mask, documents = torch.ones(2, tokens, dtype=torch.int64), torch.zeros(2, tokens, dtype=torch.int64)
    mask[0, : tokens // 5] = 0
    documents[1, tokens // 2 :] = 1
    return {"input_ids": ids_of(2, tokens), "attention_mask": mask, "document_ids": documents}


def on_gpu(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cuda() for name, tensor in batch.items()}


def moved(model: BipeForCausalLM, dtype: torch.dtype = torch.float32) -> BipeForCausalLM:
    return cast("Any", copy.deepcopy(model)).to("cuda", dtype)


def logits_and_gradients(
    model: BipeForCausalLM, batch: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    logits = cast("Tensor", model(**batch).logits)[batch["attention_mask"].bool()].float()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5)).to(logits.device)
    (logits * weights).sum().backward()
    return logits.detach().cpu(), {
        name: part.grad.cpu() for name, part in model.named_parameters() if part.grad is not None
    }


@pytest.mark.parametrize("tokens", [20, 600])
@pytest.mark.parametrize(("attention", "scheme"), PAIRS)
def test_logits_and_gradients_are_those_of_a_cpu(
    make_model: ModelMaker, attention: str, scheme: str, tokens: int
) -> None:
    batch = batch_of(tokens)
    slow = logits_and_gradients(make_model(scheme, attn_implementation="eager"), batch)
    fast = logits_and_gradients(moved(make_model(scheme, attn_implementation=attention)), on_gpu(batch))
    torch.testing.assert_close(fast[0], slow[0], rtol=1e-3, atol=1e-3)
    assert fast[1].keys() == slow[1].keys()
    for name, gradient in slow[1].items():
        tolerance = 1e-4 * max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(fast[1][name], gradient, rtol=1e-2, atol=tolerance, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("attention", "scheme"), PAIRS)
def test_half_precision_is_near_the_exact_logits(
    make_model: ModelMaker, attention: str, scheme: str, dtype: torch.dtype
) -> None:
    batch, model = batch_of(600), make_model(scheme, attn_implementation=attention, initializer_range=0.1)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        exact = cast("Tensor", model(**batch).logits)[real]
        found = cast("Tensor", moved(model, dtype)(**on_gpu(batch)).logits)[real.cuda()].float().cpu()
    error = float((found - exact).norm() / exact.norm())
    assert error < (0.03 if dtype == torch.bfloat16 else 0.006), error


LEARNED_LEVELS = {"inter": {"type": "alibi_levels", "learned": True}}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which torch's own tracing reads
@pytest.mark.parametrize(
    ("scheme", "fields"),
    [(name, {}) for name in FOR_FLEX] + [("bipe3-alibi", LEARNED_LEVELS)],
    ids=[*FOR_FLEX, "learned levels"],
)
def test_flex_matches_eager_in_logits_and_gradients(
    make_model: ModelMaker, scheme: str, fields: dict[str, Any]
) -> None:
    torch.compiler.reset()
    batch, fields = batch_of(150), {"hidden_size": 64, "num_hidden_layers": 1, **fields}
    slow = logits_and_gradients(make_model(scheme, attn_implementation="eager", **fields), batch)
    fast = logits_and_gradients(
        moved(make_model(scheme, attn_implementation="flex", **fields)), on_gpu(batch)
    )
    flex_is_near(fast, slow)


def flex_is_near(fast: tuple[Tensor, dict[str, Tensor]], slow: tuple[Tensor, dict[str, Tensor]]) -> None:
    """Triton multiplies float32 in tf32."""
    assert float((fast[0] - slow[0]).norm() / slow[0].norm()) < 5e-3
    assert fast[1].keys() == slow[1].keys()
    for name, gradient in slow[1].items():
        if float(gradient.norm()) > 1e-3:
            assert float((fast[1][name] - gradient).norm() / gradient.norm()) < 2e-2, name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("scheme", ["bipe-alibi", "bipe-alibi-learned", "bipe-sliding-rope"])
def test_flex_leaves_out_blocks_of_a_long_text(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    torch.compiler.reset()
    near: list[Tensor] = []

    def find(*arguments: Any) -> Tensor:
        near.append(near_blocks(*arguments))
        return near[-1]

    monkeypatch.setattr("bipe.attention.flex.near_blocks", find)
    batch, fields = batch_of(1200), {"hidden_size": 64, "num_hidden_layers": 1}
    slow = logits_and_gradients(make_model(scheme, attn_implementation="eager", **fields), batch)
    fast = logits_and_gradients(
        moved(make_model(scheme, attn_implementation="flex", **fields)), on_gpu(batch)
    )
    assert near[0].shape == (2, 4, 10, 10)
    assert float(near[0].tril().sum() / near[0].numel()) < 0.45, "of 0.55 up to the diagonal"
    flex_is_near(fast, slow)


def test_blocks_for_flex_are_found_without_waiting_and_without_a_mask_of_all() -> None:
    tokens, heads = 32768, 4
    index = (torch.arange(tokens, device="cuda") // 25)[None]
    query, key = torch.randn(2, 1, heads, tokens, 16, device="cuda")
    bias = AlibiBias(torch.tensor([0.5, 1.0, 8.0, 48.0], device="cuda"), index, index)
    document = torch.arange(tokens, device="cuda")[None] // 9000
    visible = Visible(tokens, tokens, documents=document, real=document > -1, device=query.device)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        visible.block_mask(near_blocks(query, key, bias, visible, 0.25))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before < 64 * 2**20, "a byte for each pair would be 2**30"


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@torch.no_grad()
def test_a_cache_in_pieces_gives_the_logits_of_the_whole(make_model: ModelMaker, scheme: str) -> None:
    model = moved(make_model(scheme))
    if not model.model.inter.cacheable:
        pytest.skip("no cache")
    ids, cache, parts = ids_of(2, 60).cuda(), DynamicCache(config=model.config), []
    for piece in (ids[:, :40], ids[:, 40:55], *ids[:, 55:].split(1, dim=1)):
        parts.append(model(piece, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scheme", ["rope", "bipe-rope", "bipe-alibi", "bipe-t5", "bipe3-rope"])
def test_generation_is_that_of_a_cpu(make_model: ModelMaker, scheme: str) -> None:
    model, ids = make_model(scheme), ids_of(3, 40)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    options: dict[str, Any] = {
        "max_new_tokens": 16,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    expected = cast("Any", model).generate(ids, attention_mask=mask, **options)
    gpu, given = cast("Any", moved(model)), {"attention_mask": mask.cuda(), **options}
    assert gpu.generate(ids.cuda(), **given).cpu().equal(expected)
    static = StaticCache(config=model.config, max_cache_len=64)
    assert gpu.generate(ids.cuda(), past_key_values=static, **given).cpu().equal(expected)
    assert gpu.generate(ids.cuda(), cache_implementation="offloaded", **given).cpu().equal(expected)


@pytest.mark.parametrize("scheme", ["bipe-alibi", "alibi-learned", "bipe-kerple", "bipe3-alibi", "rope"])
def test_how_far_heads_read_is_told_as_on_a_cpu(make_model: ModelMaker, scheme: str) -> None:
    model, ids = make_model(scheme), ids_of(1, 200)
    expected = model.reach(ids)
    found = moved(model).reach(ids.cuda())
    torch.testing.assert_close(found.bound.cpu(), expected.bound, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_bounded_cache_gives_the_logits_of_a_full_one(make_model: ModelMaker) -> None:
    model, ids = (
        moved(make_model("bipe-alibi", inter={"type": "alibi", "scale": 2000.0})),
        ids_of(2, 600).cuda(),
    )
    cache, parts = BoundedCache(model), []
    for piece in ids.split([350, *[1] * 250], dim=1):
        parts.append(model(piece, past_key_values=cache).logits)
    assert cache.layers[0].keys.shape[-2] < 600
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["rope", "bipe-rope", "bipe-alibi", "bipe-t5"])
def test_a_compiled_step_is_the_plain_one(make_model: ModelMaker, scheme: str) -> None:
    torch.compiler.reset()
    batch = on_gpu(batch_of(100))
    plain = logits_and_gradients(moved(make_model(scheme)), batch)
    model = moved(make_model(scheme))
    compiled = logits_and_gradients(cast("Any", torch.compile(model)), batch)
    torch.testing.assert_close(compiled[0], plain[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
@pytest.mark.parametrize("scheme", ["rope", "bipe-rope", "bipe-alibi"])
def test_a_length_curve_is_that_of_a_cpu(make_model: ModelMaker, scheme: str, protocol: str) -> None:
    model, documents = make_model(scheme), [ids_of(1, 8000)[0]]
    options: dict[str, Any] = {"lengths": [32, 128], "protocol": protocol, "max_windows": 256}
    expected, found = (
        window_losses(model, documents, **options),
        window_losses(moved(model), documents, **options),
    )
    for length, losses in expected.items():
        assert found[length].nll == pytest.approx(losses.nll, rel=1e-4)
        assert found[length].tokens_per_segment == losses.tokens_per_segment


def test_answers_are_those_of_a_cpu(make_model: ModelMaker) -> None:
    blocks = Arithmetic(
        ArithmeticSettings(operators=3, problems=10, validation_problems=300)
    ).validation_blocks()
    model = make_model("bipe-rope", vocab_size=21, end_token_ids=[9])
    assert answered_right(moved(model), blocks).cpu().equal(answered_right(model, blocks))


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("scheme", ["rope", "bipe-rope", "bipe-alibi", "bipe-cope"])
def test_training_goes_as_on_a_cpu_and_resumes(
    make_model: ModelMaker, tmp_path: Path, scheme: str, bf16: bool
) -> None:
    chain = [torch.tensor([1 + (7 * n * n + row) % 11 for n in range(400)]) for row in range(4)]
    blocks = pack(chain, 16, eos_token_id=0)
    config = make_model(scheme).config
    config.initializer_range = 0.02
    settings = TrainingSettings(
        steps=60,
        batch_size=8,
        learning_rate=3e-3,
        bf16=bf16,
        evaluate_every=20,
        checkpoint_every=20,
        log_every=5,
    )
    whole = train_model(config, blocks, blocks, settings, tmp_path / "whole", seed=1)
    assert whole.model.device.type == "cuda"
    losses = [row["validation_loss"] for row in whole.history if "validation_loss" in row]
    assert losses[-1] < 0.9 * losses[0]

    class Stopped(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["step"] >= 45:
            raise Stopped

    with pytest.raises(Stopped):
        train_model(config, blocks, blocks, settings, tmp_path / "broken", seed=1, on_progress=stop)
    resumed = train_model(config, blocks, blocks, settings, tmp_path / "broken", seed=1)
    for name, weight in resumed.model.state_dict().items():
        torch.testing.assert_close(weight, whole.model.state_dict()[name], rtol=1e-2, atol=1e-3, msg=name)
    environment = json.loads((tmp_path / "whole" / "environment.json").read_text())
    assert environment["device"] == torch.cuda.get_device_name()
    assert cast("BipeForCausalLM", load_model(tmp_path / "whole")).device.type == "cuda"
