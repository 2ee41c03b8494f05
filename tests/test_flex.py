"""FlexAttention against the oracle: compiled in a process of its own, which it can end on a CPU."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.kernel.flex import flex_attention as lowering
from torch.fx import GraphModule
from transformers import DynamicCache

from bipe import SCHEMES, BipeForCausalLM
from bipe.attention import flex
from bipe.encodings.inter import INTER_ENCODINGS

ModelMaker = Callable[..., BipeForCausalLM]
ACCEPTED = sorted(
    name for name, scheme in SCHEMES.items() if not INTER_ENCODINGS[scheme.inter["type"]].reads_content
)

FORWARD = """
import torch
from bipe import BipeConfig, BipeForCausalLM
from bipe.attention.visible import Visible

looked_at, make = [], Visible.block_mask


def counted(visible, near=None):
    mask, every = make(visible, near), make(visible)
    heads = mask.shape[1] / every.shape[1]
    some, all = (int((part.kv_num_blocks + part.full_kv_num_blocks).sum()) for part in (mask, every))
    looked_at.append(some / (heads * all * mask.shape[0] / every.shape[0]))
    return mask


Visible.block_mask = counted
fields = dict(vocab_size=12, hidden_size=64, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.3, end_token_ids=[1, 4, 7], max_offset=16)


def batch_of(tokens, packed):
    draw = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randint(12, (2, tokens), generator=draw)}
    if packed:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][0, : tokens // 7] = 0
        batch["document_ids"] = (torch.arange(tokens) > tokens // 2).long().expand(2, -1)
    return batch


for scheme, tokens, packed in [("bipe-rope", 150, True), ("bipe-t5", 150, False), ("bipe-fire", 150, False),
        ("bipe-alibi", 1200, False), ("bipe-alibi", 1200, True)]:
    models, batch = [], batch_of(tokens, packed)
    for attention in ("flex", "eager"):
        torch.manual_seed(1)
        config = BipeConfig.from_scheme(scheme, attn_implementation=attention, **fields)
        models.append(BipeForCausalLM(config).eval())
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    looked_at.clear()
    with torch.inference_mode():
        fast, slow = (model(**batch).logits[real] for model in models)
    print(scheme, tokens, packed, looked_at[0], float((fast - slow).abs().max()))
"""


@pytest.mark.slow
def test_flex_matches_eager() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORWARD], capture_output=True, text=True, check=False
    )
    if "BackendCompilerFailed" in done.stderr or "InductorError" in done.stderr or done.returncode < 0:
        pytest.skip(f"FlexAttention does not run here: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 5
    for scheme, tokens, _, looked_at, difference in lines:
        assert float(difference) < 1e-4, scheme
        if int(tokens) > 150:
            assert float(looked_at) < 0.8, "blocks are left out"
        else:
            assert float(looked_at) == 1


LEARNED_LEVELS = {"inter": {"type": "alibi_levels", "learned": True}}
EVERY = pytest.mark.parametrize(
    ("scheme", "fields"),
    [(name, {}) for name in ACCEPTED] + [("bipe3-alibi", LEARNED_LEVELS)],
    ids=[*ACCEPTED, "learned levels"],
)
QUIET = pytest.mark.filterwarnings("ignore")  # torch warns of what it does itself

Compiler = Callable[[GraphModule, Any], Callable[..., Any]]


@pytest.fixture
def compile_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a CPU have FlexAttention's backward pass, with compilers of a test's own."""

    def change(forward: Compiler, backward: Compiler, decompositions: Any = None) -> None:
        backend = aot_autograd(fw_compiler=forward, bw_compiler=backward, decompositions=decompositions)
        compiled = flex.compiled.__wrapped__(backend)
        monkeypatch.setattr("bipe.attention.flex.compiled", lambda: compiled)

    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
    monkeypatch.setattr("bipe.attention.flex.refuse_unsupported", lambda *arguments: None)
    torch.compiler.reset()
    return change


def as_it_is(graph: GraphModule, inputs: Any) -> Callable[..., Any]:
    return make_boxed_func(graph)


def logits_and_gradients(model: BipeForCausalLM) -> tuple[Tensor, dict[str, Tensor]]:
    ids = torch.randint(12, (2, 50), generator=torch.Generator().manual_seed(0))
    mask, documents = torch.ones_like(ids), torch.zeros_like(ids)
    mask[0, :10] = 0
    documents[1, 30:] = 1
    logits = cast("Tensor", model(ids, attention_mask=mask, document_ids=documents).logits)[mask.bool()]
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    (logits * weights).sum().backward()
    named = cast("Any", model).named_parameters()
    return logits.detach(), {name: part.grad for name, part in named if part.grad is not None}


@pytest.mark.slow
@QUIET
@EVERY
def test_gradients_are_those_of_eager(
    make_model: ModelMaker, compile_with: Callable[..., None], scheme: str, fields: dict[str, Any]
) -> None:
    compiled = []

    def backward(graph: GraphModule, inputs: Any) -> Callable[..., Any]:
        compiled.append(graph)
        return make_boxed_func(graph)

    compile_with(as_it_is, backward)
    fast, slow = (
        logits_and_gradients(make_model(scheme, attn_implementation=attention, **fields))
        for attention in ("flex", "eager")
    )
    assert len(compiled) == 1, "once for both layers"
    torch.testing.assert_close(fast[0], slow[0], rtol=1e-4, atol=1e-4)
    assert fast[1].keys() == slow[1].keys()
    for name, gradient in slow[1].items():
        assert (fast[1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


@QUIET
def test_under_autocast_the_kernel_gets_one_dtype(
    make_model: ModelMaker, compile_with: Callable[..., None]
) -> None:
    dtypes: list[torch.dtype] = []

    def forward(graph: GraphModule, inputs: Any) -> Callable[..., Any]:
        dtypes.extend(part.dtype for part in inputs if part.ndim == 4 and part.dtype.is_floating_point)
        return make_boxed_func(graph)

    compile_with(forward, as_it_is)
    with torch.autocast("cpu", torch.bfloat16):
        make_model("bipe-rope", attn_implementation="flex")(torch.tensor([[1, 2, 3]]), use_cache=False)
    assert dtypes == [torch.bfloat16] * 3


@QUIET
@pytest.mark.parametrize("scheme", ["bipe-alibi", "bipe-kerple", "bipe-fire", "bipe-rope"])
@torch.no_grad()
def test_lengths_that_round_up_to_the_same_are_compiled_once(
    make_model: ModelMaker, compile_with: Callable[..., None], scheme: str
) -> None:
    compiled = []

    def forward(graph: GraphModule, inputs: Any) -> Callable[..., Any]:
        compiled.append(graph)
        return make_boxed_func(graph)

    compile_with(forward, as_it_is)
    model = make_model(scheme, attn_implementation="flex")
    ids = torch.randint(12, (1, 60), generator=torch.Generator().manual_seed(0))
    whole, cache, parts = model(ids).logits, DynamicCache(config=model.config), []
    for part in ids.split([50, 1, 1, 8], dim=1):
        parts.append(model(part, past_key_values=cache).logits)
    assert len(compiled) == 1
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not flex.MANY, reason="this torch has no limit of its own for a function")
@torch.no_grad()
def test_more_lengths_are_compiled_than_dynamo_takes_by_itself(
    make_model: ModelMaker, compile_with: Callable[..., None]
) -> None:
    compiled = []

    def forward(graph: GraphModule, inputs: Any) -> Callable[..., Any]:
        compiled.append(graph)
        return make_boxed_func(graph)

    compile_with(forward, as_it_is)
    model = make_model("bipe-rope", attn_implementation="flex")
    for tokens in range(100, 1400, 128):
        model(torch.ones(1, tokens, dtype=torch.int64), use_cache=False)
    assert len(compiled) == 11


class LoweredError(Exception):
    """The compiler has come to the kernel itself, which there is none of for a CPU."""


@pytest.mark.slow
@QUIET
@EVERY
def test_the_backward_pass_can_be_lowered(
    make_model: ModelMaker,
    compile_with: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    fields: dict[str, Any],
) -> None:
    """By the code that lowers it for a GPU, up to the kernel."""
    added_up: list[int] = []
    outputs = lowering.process_joint_outputs

    def stop(*arguments: Any) -> None:
        added_up.append(len(outputs(*arguments).captured_grads_compute))
        raise LoweredError

    def nothing(graph: GraphModule, inputs: Any) -> Callable[..., Any]:
        outputs = [node.meta["val"] for node in graph.graph.output_node().args[0]]
        return make_boxed_func(
            lambda *given: [torch.empty_strided(out.shape, out.stride(), dtype=out.dtype) for out in outputs]
        )

    monkeypatch.setattr(lowering, "process_joint_outputs", stop)
    compile_with(nothing, compile_fx_inner, select_decomp_table())
    model = make_model(scheme, attn_implementation="flex", **fields)
    with pytest.raises(Exception, match="LoweredError"):
        logits_and_gradients(model)
    assert bool(list(model.model.inter.parameters())) == (added_up[0] > 0)


def test_flex_on_a_cpu_has_no_backward(make_model: ModelMaker) -> None:
    model = make_model("bipe-alibi", attn_implementation="flex")
    with pytest.raises(ValueError, match="no backward pass on a CPU"):
        model(torch.tensor([[1, 2, 3]]))


def test_flex_has_no_dropout(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope", attn_implementation="flex", attention_dropout=0.1).train()
    with pytest.raises(ValueError, match="no dropout"):
        model(torch.tensor([[1, 2, 3]]))
