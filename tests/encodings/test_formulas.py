"""Every encoding against its paper's formula, written out a pair of tokens at a time in float64.

Nothing here is taken from the encodings: the query and key vectors are made from the weights by hand, the
logit of a query and a key from the formula, and the attention weights are compared with the model's.
"""

import cmath
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple, cast

import pytest
import scipy.stats
import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from bipe import SCHEMES, BilevelPositions, BipeConfig, BipeForCausalLM

Spec = dict[str, Any]

ENDS = (3, 5)
VOCABULARY = 12
SEGMENTS: Spec = {"type": "token_set", "end_token_ids": list(ENDS)}
TOKENS: Spec = {"type": "every_token"}


def config_of(inter: Spec, segmenter: Spec = SEGMENTS, **fields: Any) -> BipeConfig:
    tiny = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    return BipeConfig(**{**tiny, "segmenter": segmenter, "inter": inter, **fields})


def make(inter: Spec, segmenter: Spec = SEGMENTS, seed: int = 0, **fields: Any) -> BipeForCausalLM:
    """A model whose tables are not what they start as; the same for every `attn_implementation`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BipeForCausalLM(config_of(inter, segmenter, **fields)).eval()
        with torch.no_grad():
            for parameter in (*model.model.inter.parameters(), *model.model.intra.parameters()):
                parameter.add_(0.5 * torch.randn(parameter.shape))
            for layer in model.model.layers:
                norm = cast("Any", layer).input_layernorm.weight
                norm.add_(0.2 * torch.randn(norm.shape))
    return model


def random_ids(tokens: int, rows: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


class Place(NamedTuple):
    segment: int
    offset: int
    token: int
    document: int


def places_of(
    ids: Iterable[int], ends: Callable[[int], bool], real: Iterable[int], documents: Iterable[int]
) -> list[Place | None]:
    """Where each token of a row stands, None for padding."""
    places: list[Place | None] = []
    last: Place | None = None
    ended, name = False, None
    for token_id, is_real, document in zip(ids, real, documents, strict=True):
        if not is_real:
            places.append(None)
            continue
        if last is None or document != name:
            last = Place(0, 0, 0, 0 if last is None else last.document + 1)
        elif ended:
            last = Place(last.segment + 1, 0, last.token + 1, last.document)
        else:
            last = Place(last.segment, last.offset + 1, last.token + 1, last.document)
        ended, name = ends(token_id), document
        places.append(last)
    return places


@dataclass
class Text:
    """One row of a batch with what the formulas read; `weights` by the names of the model's parameters."""

    inter: Spec
    heads: int
    weights: dict[str, Tensor]
    places: list[Place | None]
    queries: list[list[list[float]]]
    keys: list[list[list[float]]]
    stretched: list[int]

    def place(self, i: int) -> Place:
        place = self.places[i]
        assert place is not None
        return place

    def index(self, i: int) -> int:
        return self.place(i).token if self.inter.get("index") == "token" else self.place(i).segment

    def distance(self, i: int, j: int) -> int:
        return self.index(i) - self.index(j)

    def sees(self, i: int, j: int) -> bool:
        query, key = self.places[i], self.places[j]
        return j <= i and query is not None and key is not None and query.document == key.document

    def parameter(self, name: str) -> Any:
        return self.weights[f"model.inter.{name}"].tolist()

    def vectors(self, head: int, i: int, j: int) -> tuple[list[float], list[float]]:
        return self.queries[i][head], self.keys[j][head // (self.heads // len(self.keys[j]))]

    def dot(self, head: int, i: int, j: int) -> float:
        query, key = self.vectors(head, i, j)
        return sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(len(query))

    def turned(
        self,
        head: int,
        i: int,
        j: int,
        relative: Callable[[int], int],
        damped: Callable[[int], float] = lambda c: 1.0,
    ) -> float:
        """The product where the query is turned on by `relative(c)` steps from the key in pair c."""
        query, key = self.vectors(head, i, j)
        half, theta = len(query) // 2, self.inter.get("theta", 10000.0)
        total = 0.0
        for c in range(half):
            angle = relative(c) * theta ** (-2 * c / len(query))
            product = complex(query[c], -query[c + half]) * complex(key[c], key[c + half])
            total += damped(c) * (product * cmath.exp(complex(0, -angle))).real
        return total / math.sqrt(len(query))


def slope_of(head: int, heads: int) -> float:
    return 2.0 ** (-8 * (head + 1) / heads)


def rope(text: Text, head: int, i: int, j: int) -> float:
    return text.turned(head, i, j, lambda c: text.distance(i, j))


def alibi(text: Text, head: int, i: int, j: int) -> float:
    inter = text.inter
    slope = inter.get("scale", 1.0) * slope_of(head, text.heads)
    if inter.get("learned"):
        slope = math.exp(text.parameter("log_slopes")[head])
    return text.dot(head, i, j) - slope * text.distance(i, j) / inter.get("factor", 1.0)


def alibi2(text: Text, head: int, i: int, j: int) -> float:
    inter = text.inter
    between = inter["scale"] * slope_of(head, text.heads)
    inside = inter.get("inside_scale", 1.0) * slope_of(head, text.heads)
    if inter.get("learned"):
        between = math.exp(text.parameter("log_slopes")[head])
        inside = math.exp(text.parameter("log_inside")[head])
    query, key = text.place(i), text.place(j)
    within = query.offset - key.offset if query.segment == key.segment else query.offset
    segments = (query.segment - key.segment) / inter.get("factor", 1.0)
    return text.dot(head, i, j) - between * segments - inside * within


def xpos(text: Text, head: int, i: int, j: int) -> float:
    gamma, base = text.inter.get("gamma", 0.4), text.inter.get("scale_base", 512)
    half, distance = len(text.queries[i][head]) // 2, text.distance(i, j)

    def damped(c: int) -> float:
        return (((c / half + gamma) / (1 + gamma)) ** (1 / base)) ** distance

    return text.turned(head, i, j, lambda c: distance, damped)


def exact_bucket(distance: int, buckets: int, max_distance: int) -> int:
    """T5's bucket of a causal distance, without rounding: its logarithms compared as powers."""
    exact = buckets // 2
    if distance < exact:
        return distance
    bucket = exact
    while bucket < buckets - 1:
        power = bucket + 1 - exact
        left = Fraction(distance, exact) ** (buckets - exact)
        if left < Fraction(max_distance, exact) ** power:
            break
        bucket += 1
    return bucket


def t5(text: Text, head: int, i: int, j: int) -> float:
    options = text.inter.get("buckets", 32), text.inter.get("max_distance", 128)
    return text.dot(head, i, j) + text.parameter("table")[exact_bucket(text.distance(i, j), *options)][head]


def kerple_fall(kernel: str, distance: float, first: float, second: float) -> float:
    if kernel == "log":
        return math.exp(first) * math.log(1 + math.exp(second) * distance)
    return math.exp(first) * distance ** (2 / (1 + math.exp(-second)))


def kerple(text: Text, head: int, i: int, j: int) -> float:
    first, second = text.parameter("raw")
    kernel = text.inter.get("kernel", "log")
    return text.dot(head, i, j) - kerple_fall(kernel, text.distance(i, j), first[head], second[head])


def fire_bias(index: int, distance: int, parameter: Callable[[str], Any], head: int) -> float:
    c, threshold = (math.exp(value) for value in parameter("logarithms"))
    ratio = math.log(1 + c * distance) / math.log(1 + c * max(index, threshold))
    weights, biases = parameter("hidden")
    units = [max(0.0, weight * ratio + bias) for weight, bias in zip(weights, biases, strict=True)]
    return sum(out * unit for out, unit in zip(parameter("out")[head], units, strict=True))


def fire(text: Text, head: int, i: int, j: int) -> float:
    return text.dot(head, i, j) + fire_bias(text.index(i), text.distance(i, j), text.parameter, head)


def cope(text: Text, head: int, i: int, j: int) -> float:
    table = text.parameter("table")
    position = 0.0
    for k in range(j, i + 1):
        if text.sees(i, k) and (text.inter.get("index") == "token" or text.place(k).offset == 0):
            position += 1 / (1 + math.exp(-text.dot(head, i, k)))
    position = min(position, len(table) - 1)
    low = math.floor(position)
    high, part = min(low + 1, len(table) - 1), position - low
    query = text.queries[i][head]
    value = sum(
        q * ((1 - part) * a + part * b) for q, a, b in zip(query, table[low], table[high], strict=True)
    )
    return text.dot(head, i, j) + value / math.sqrt(len(query))


def hirope(text: Text, head: int, i: int, j: int) -> float:
    query, key = text.place(i), text.place(j)
    width = len(text.queries[i][head])
    return text.turned(
        head, i, j, lambda c: query.token - key.token if 4 * c < width else query.segment - key.segment
    )


def rerope(text: Text, head: int, i: int, j: int) -> float:
    return text.turned(head, i, j, lambda c: min(text.distance(i, j), text.inter["window"]))


def selfextend(text: Text, head: int, i: int, j: int) -> float:
    window, group = text.inter["window"], text.inter["group"]
    relative = text.distance(i, j)
    if relative >= window:
        relative = text.index(i) // group + window - window // group - text.index(j) // group
    return text.turned(head, i, j, lambda c: relative)


def randomized_rope(text: Text, head: int, i: int, j: int) -> float:
    return text.turned(head, i, j, lambda c: text.stretched[i] - text.stretched[j])


FORMULAS: dict[str, Callable[[Text, int, int, int], float]] = {
    "alibi": alibi,
    "alibi2": alibi2,
    "cope": cope,
    "fire": fire,
    "hirope": hirope,
    "kerple": kerple,
    "randomized_rope": randomized_rope,
    "rerope": rerope,
    "rope": rope,
    "selfextend": selfextend,
    "t5": t5,
    "xpos": xpos,
}

SPECS: dict[str, Spec] = {
    "rope": {"type": "rope"},
    "alibi": {"type": "alibi", "scale": 3.0},
    "alibi-factor": {"type": "alibi", "scale": 3.0, "factor": 4.0},
    "alibi-learned": {"type": "alibi", "scale": 3.0, "learned": True, "factor": 2.0},
    "alibi2": {"type": "alibi2", "scale": 4.0, "inside_scale": 0.5, "factor": 1.5},
    "alibi2-learned": {"type": "alibi2", "scale": 4.0, "inside_scale": 0.5, "learned": True},
    "xpos": {"type": "xpos"},
    "xpos-strong": {"type": "xpos", "gamma": 0.3, "scale_base": 3},
    "t5": {"type": "t5"},
    "t5-small": {"type": "t5", "buckets": 8, "max_distance": 12},
    "kerple-log": {"type": "kerple", "kernel": "log"},
    "kerple-power": {"type": "kerple", "kernel": "power"},
    "fire": {"type": "fire"},
    "fire-near": {"type": "fire", "c": 0.5, "threshold": 3.0},
    "cope": {"type": "cope", "positions": 64},
    "cope-few": {"type": "cope", "positions": 4},
    "hirope": {"type": "hirope"},
    "rerope": {"type": "rerope", "window": 3},
    "selfextend": {"type": "selfextend", "window": 4, "group": 3},
    "randomized-rope": {"type": "randomized_rope"},
    "randomized-rope-stretched": {"type": "randomized_rope", "evaluation_stretch": 3.0, "seed": 5},
}
NO_INDEX = ("alibi2", "hirope")
EVERY = pytest.mark.parametrize("inter", SPECS.values(), ids=SPECS.keys())


def texts_of(
    model: BipeForCausalLM,
    inter: Spec,
    ids: Tensor,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    changed: dict[str, Tensor] | None = None,
) -> list[Text]:
    """The rows of a batch, with queries and keys made from the weights, in float64."""
    config = model.config
    segmenter = cast("Spec", config.segmenter)
    weights = {name: value.detach().double() for name, value in model.named_parameters()}
    weights.update(changed or {})
    every = segmenter["type"] == "every_token"
    layer = "model.layers.0."
    width = config.hidden_size // config.num_attention_heads
    texts = []
    for row, row_ids in enumerate(ids.tolist()):
        places = places_of(
            row_ids,
            lambda token: every or token in ENDS,
            [1] * len(row_ids) if attention_mask is None else attention_mask[row].tolist(),
            [0] * len(row_ids) if document_ids is None else document_ids[row].tolist(),
        )
        hidden = weights["model.embed_tokens.weight"][row_ids]
        if cast("Spec", config.intra)["type"] != "zero":
            offsets = [0 if place is None else place.offset for place in places]
            hidden = hidden + weights["model.intra.embedding.weight"][offsets]
        norm = (hidden.square().mean(dim=-1, keepdim=True) + config.rms_norm_eps).sqrt()
        normed = hidden / norm * weights[f"{layer}input_layernorm.weight"]
        queries, keys = (
            (normed @ weights[f"{layer}self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, width)).tolist()
            for name in "qk"
        )
        text = Text(inter, config.num_attention_heads, weights, places, queries, keys, [])
        if inter["type"] == "randomized_rope":
            indices = [0 if place is None else text.index(i) for i, place in enumerate(places)]
            stretched = indices
            if inter.get("evaluation_stretch", 1.0) > 1:
                stretch = cast("Any", model.model.inter).stretched
                stretched = stretch(torch.tensor([indices]))[0].tolist()
            text.stretched = stretched
        texts.append(text)
    return texts


def logits_of(text: Text, head: int, i: int) -> dict[int, float]:
    formula = FORMULAS[text.inter["type"]]
    return {j: formula(text, head, i, j) for j in range(i + 1) if text.sees(i, j)}


def weights_of(text: Text) -> Tensor:
    """Attention weights by the formula, `(H, T, T)` float64; rows of padding are zero."""
    count = len(text.places)
    weights = torch.zeros(text.heads, count, count, dtype=torch.float64)
    for head in range(text.heads):
        for i in range(count):
            logits = logits_of(text, head, i)
            if logits:
                highest = max(logits.values())
                total = sum(math.exp(value - highest) for value in logits.values())
                for j, value in logits.items():
                    weights[head, i, j] = math.exp(value - highest) / total
    return weights


def attentions_of(model: BipeForCausalLM, ids: Tensor, **given: Any) -> Tensor:
    attentions = model(ids, output_attentions=True, **given).attentions
    return attentions[0]


def assert_as_formula(
    inter: Spec, segmenter: Spec, ids: Tensor, tolerance: float = 1e-5, **given: Any
) -> None:
    """Eager's weights are those of the formula, and the default implementation's logits are eager's."""
    fields = {key: given.pop(key) for key in ("intra",) if key in given}
    eager = make(inter, segmenter, attn_implementation="eager", **fields)
    default = make(inter, segmenter, **fields)
    with torch.no_grad():
        attentions = attentions_of(eager, ids, **given)
        assert torch.isfinite(attentions).all()
        texts = texts_of(eager, inter, ids, **given)
        found = eager.positions(ids, **given)
        for row, text in enumerate(texts):
            real = torch.tensor([place is not None for place in text.places])
            for name, index in found._asdict().items():
                by_hand = [getattr(place, name) for place in text.places if place is not None]
                assert index[row][real].tolist() == by_hand
            torch.testing.assert_close(
                attentions[row][:, real].double(), weights_of(text)[:, real], rtol=tolerance, atol=2e-7
            )
        expected, actual = eager(ids, **given).logits, default(ids, **given).logits
        assert torch.isfinite(actual).all()
        shown = given.get("attention_mask", torch.ones_like(ids)).bool()
        torch.testing.assert_close(actual[shown], expected[shown], rtol=1e-4, atol=2e-5)


PADDING = torch.tensor([[0] * 7 + [1] * 33, [1] * 40])
DOCUMENTS = torch.tensor([[4] * 13 + [1] * 20 + [4] * 7, [0] * 1 + [1] * 24 + [2] * 15])


@EVERY
def test_weights_between_segments_are_the_formulas(inter: Spec) -> None:
    assert_as_formula(inter, SEGMENTS, random_ids(40, 2))


@EVERY
def test_weights_between_tokens_are_the_formulas(inter: Spec) -> None:
    assert_as_formula(inter, TOKENS, random_ids(40, 2, seed=1))


@EVERY
def test_weights_by_the_token_index_are_the_formulas(inter: Spec) -> None:
    if inter["type"] in NO_INDEX:
        with pytest.raises(ValueError, match="index"):
            config_of({**inter, "index": "token"})
    else:
        assert_as_formula({**inter, "index": "token"}, SEGMENTS, random_ids(40, 2, seed=2))


@EVERY
def test_weights_of_padded_and_packed_text_are_the_formulas(inter: Spec) -> None:
    ids = random_ids(40, 2, seed=3)
    assert_as_formula(inter, SEGMENTS, ids, attention_mask=PADDING)
    assert_as_formula(inter, SEGMENTS, ids, document_ids=DOCUMENTS)


@EVERY
def test_weights_with_learned_offsets_padding_and_documents_are_the_formulas(inter: Spec) -> None:
    if inter["type"] not in NO_INDEX:
        inter = {**inter, "index": "token"}
    intra = {"type": "learned", "max_offset": 40}
    given: dict[str, Any] = {"attention_mask": PADDING, "document_ids": DOCUMENTS}
    assert_as_formula(inter, SEGMENTS, random_ids(40, 2, seed=4), intra=intra, **given)


@pytest.mark.parametrize("name", ["rope", "xpos-strong", "hirope", "rerope", "selfextend", "randomized-rope"])
def test_weights_of_another_theta_are_the_formulas(name: str) -> None:
    assert_as_formula({**SPECS[name], "theta": 50.0}, SEGMENTS, random_ids(40, 2, seed=5))


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("name", ["alibi", "alibi2", "kerple-log", "hirope", "cope"])
def test_weights_of_other_numbers_of_heads_are_the_formulas(name: str, heads: int) -> None:
    model = make(
        SPECS[name],
        attn_implementation="eager",
        num_attention_heads=heads,
        num_key_value_heads=1,
        hidden_size=8 * heads,
    )
    ids = random_ids(24, seed=6)
    with torch.no_grad():
        weights = weights_of(texts_of(model, SPECS[name], ids)[0])
        torch.testing.assert_close(attentions_of(model, ids)[0].double(), weights, rtol=1e-5, atol=2e-7)


def decoded(model: BipeForCausalLM, ids: Tensor, sizes: Iterable[int], **given: Any) -> Tensor:
    """The logits of a text read in pieces with a cache."""
    cache, at, pieces = None, 0, []
    for size in sizes:
        part = {name: value[:, : at + size] for name, value in given.items() if name == "attention_mask"}
        if "document_ids" in given:
            part["document_ids"] = given["document_ids"][:, at : at + size]
        out = model(ids[:, at : at + size], past_key_values=cache, use_cache=True, **part)
        cache, at = out.past_key_values, at + size
        pieces.append(out.logits)
    return torch.cat(pieces, dim=1)


@EVERY
@pytest.mark.parametrize("implementation", [None, "eager"])
def test_reading_with_a_cache_equals_reading_at_once(inter: Spec, implementation: str | None) -> None:
    ids = random_ids(40, 2, seed=7)
    model = make(inter, attn_implementation=implementation, num_hidden_layers=2)
    with torch.no_grad():
        for given in ({}, {"attention_mask": PADDING}, {"document_ids": DOCUMENTS}):
            shown = given.get("attention_mask", torch.ones_like(ids)).bool()
            whole = model(ids, **given).logits
            sizes = [1] * 40 if implementation is None else [9, 1, 13, 1, 1, 15]
            pieces = decoded(model, ids, sizes, **given)
            torch.testing.assert_close(pieces[shown], whole[shown], rtol=1e-4, atol=1e-4)


@EVERY
def test_text_longer_than_a_block_is_alike_in_every_implementation(inter: Spec) -> None:
    ids = random_ids(600, 2, seed=8)
    documents = torch.cat((torch.zeros(2, 290), torch.ones(2, 310)), dim=1).long()
    eager, default = make(inter, attn_implementation="eager"), make(inter)
    with torch.no_grad():
        for given in ({}, {"document_ids": documents}):
            expected, actual = eager(ids, **given).logits, default(ids, **given).logits
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=5e-5)


# xPos where its damping is strong


@pytest.mark.parametrize("base", [3, 512])
def test_xpos_is_the_formula_where_the_powers_would_overflow(base: int) -> None:
    inter = {"type": "xpos", "scale_base": base}
    assert_as_formula(inter, TOKENS, random_ids(300, seed=9), 2e-5)


@pytest.mark.parametrize("base", [3, 512])
def test_xpos_in_bfloat16_is_near_the_same_weights_in_float32(base: int) -> None:
    ids = random_ids(300, seed=10)
    low = make({"type": "xpos", "scale_base": base}, TOKENS, initializer_range=0.1).bfloat16()
    high = make({"type": "xpos", "scale_base": base}, TOKENS, initializer_range=0.1).float()
    high.load_state_dict({name: value.float() for name, value in low.state_dict().items()}, strict=False)
    with torch.no_grad():
        actual, expected = low(ids).logits.float(), high(ids).logits
    assert torch.isfinite(actual).all()
    assert (actual - expected).abs().max() <= 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_xpos_of_a_long_text_is_finite(dtype: torch.dtype) -> None:
    model = make({"type": "xpos", "scale_base": 3}, TOKENS, num_attention_heads=1, num_key_value_heads=1)
    ids = random_ids(6000, seed=11)
    with torch.no_grad():
        assert torch.isfinite(cast("Any", model).to(dtype)(ids).logits).all()


def test_strong_xpos_is_read_with_a_cache_as_at_once() -> None:
    model, ids = make({"type": "xpos", "scale_base": 3}, TOKENS), random_ids(300, seed=12)
    with torch.no_grad():
        pieces = decoded(model, ids, [1] * 150 + [100, 1, 49])
        torch.testing.assert_close(pieces, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("segmenter", [TOKENS, SEGMENTS])
def test_padding_inside_a_text_changes_nothing_of_strong_xpos(segmenter: Spec) -> None:
    model, ids = make({"type": "xpos", "scale_base": 3}, segmenter), random_ids(300, seed=23)
    mask = torch.ones_like(ids)
    mask[:, 70:190] = 0
    with torch.no_grad():
        padded = model(ids, attention_mask=mask).logits[mask.bool()]
        torch.testing.assert_close(padded, model(ids[mask.bool()][None]).logits[0], rtol=1e-4, atol=1e-4)


# Biases at any distance


def bias_of(model: BipeForCausalLM, queries: list[int], keys: list[int]) -> Tensor:
    """The bias of queries and keys that are the first tokens of the segments given, `(H, t, s)`."""
    query, key = (
        BilevelPositions(torch.tensor([row]), torch.zeros(1, len(row), dtype=torch.long), torch.tensor([row]))
        for row in (queries, keys)
    )
    with torch.no_grad():
        bias = model.model.inter(query, key, torch.float32).bias
        block = cast("Any", bias).block(slice(0, len(queries)), slice(0, len(keys)))
    assert block.dtype == torch.float32
    return block[0]


@pytest.mark.parametrize(
    ("buckets", "max_distance"),
    [(32, 128), (32, 1000), (32, 17), (8, 64), (16, 100), (2, 2), (64, 2000), (20, 333), (4, 9), (32, 256)],
)
def test_t5_buckets_are_those_of_transformers(buckets: int, max_distance: int) -> None:
    model = make({"type": "t5", "buckets": buckets, "max_distance": max_distance})
    table = cast("Any", model.model.inter).table
    with torch.no_grad():
        table.copy_(torch.arange(buckets)[:, None].expand_as(table))
    ours = bias_of(model, [3000], list(range(3001)))[0, 0].flip(0).long()
    theirs = cast("Any", T5Attention)._relative_position_bucket(
        -torch.arange(3001), bidirectional=False, num_buckets=buckets, max_distance=max_distance
    )
    exact = torch.tensor([exact_bucket(d, buckets, max_distance) for d in range(3001)])
    wrong = (ours != exact).nonzero().flatten().tolist()
    assert not wrong, f"distances {wrong}: {ours[wrong].tolist()} for {exact[wrong].tolist()}"
    wrong = (ours != theirs).nonzero().flatten().tolist()
    assert not wrong, f"distances {wrong}: {ours[wrong].tolist()}, transformers {theirs[wrong].tolist()}"


@pytest.mark.parametrize(
    "name",
    ["alibi-factor", "alibi-learned", "alibi2", "alibi2-learned", "kerple-log", "kerple-power", "fire-near"],
)
def test_bias_of_far_tokens_is_the_formula(name: str) -> None:
    model = make(SPECS[name])
    inter = SPECS[name]
    queries, keys = [0, 1, 77, 999_983, 1_000_000], [0, 1, 5, 76, 500_000, 999_982, 999_983]
    bias = bias_of(model, queries, keys)
    places: list[Place | None] = [Place(n, 0, n, 0) for n in (*keys, *queries)]
    zeros = [[[0.0] * 8] * 4] * len(places)
    weights = {name: value.detach().double() for name, value in model.named_parameters()}
    text = Text(inter, 4, weights, places, zeros, zeros, [])
    for head in range(4):
        for row, n in enumerate(queries):
            for column, m in enumerate(keys):
                if m <= n:
                    expected = FORMULAS[inter["type"]](text, head, len(keys) + row, column)
                    assert bias[head, row, column].item() == pytest.approx(expected, rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("nats", [0.01, 1.0, 7.0, 30.0])
@pytest.mark.parametrize("name", ["alibi", "alibi-learned", "alibi-factor", "kerple-log", "kerple-power"])
def test_reach_is_the_last_distance_that_has_not_fallen_by_more(name: str, nats: float) -> None:
    model = make(SPECS[name])
    inter = SPECS[name]
    positions = BilevelPositions(*(torch.zeros(1, 1, dtype=torch.long) for _ in range(3)))
    with torch.no_grad():
        reach = cast("Any", model.model.inter(positions, positions, torch.float32).bias).reach(nats)
    assert reach.shape == (4,)
    weights = {name: value.detach().double() for name, value in model.named_parameters()}

    def fall(head: int, distance: float) -> float:
        if inter["type"] == "kerple":
            first, second = weights["model.inter.raw"].tolist()
            return kerple_fall(inter.get("kernel", "log"), distance, first[head], second[head])
        slope = inter["scale"] * slope_of(head, 4)
        if inter.get("learned"):
            slope = math.exp(weights["model.inter.log_slopes"][head].item())
        return slope * distance / inter.get("factor", 1.0)

    for head, value in enumerate(reach.double().tolist()):
        assert value >= 0
        beyond = math.floor(value) + 1
        if math.isfinite(value):
            assert fall(head, beyond) > nats * (1 - 1e-6)
        near = min(value, 1e300) * (1 - 1e-4) - 1
        assert near <= 0 or fall(head, near) <= nats


def test_learned_parameters_start_as_the_options_say() -> None:
    def start(inter: Spec) -> dict[str, Tensor]:
        inter_of = BipeForCausalLM(config_of(inter)).model.inter
        return {name: value.detach().double() for name, value in inter_of.named_parameters()}

    slopes = torch.tensor([slope_of(head, 4) for head in range(4)], dtype=torch.float64)
    torch.testing.assert_close(start(SPECS["alibi-learned"])["log_slopes"].exp(), 3 * slopes)
    torch.testing.assert_close(start(SPECS["alibi2-learned"])["log_slopes"].exp(), 4 * slopes)
    torch.testing.assert_close(start(SPECS["alibi2-learned"])["log_inside"].exp(), 0.5 * slopes)
    logarithms = start({"type": "fire", "c": 0.25, "threshold": 20.0})["logarithms"]
    torch.testing.assert_close(logarithms.exp(), torch.tensor([0.25, 20.0], dtype=torch.float64))


def test_a_kernel_starts_spread_over_the_heads() -> None:
    """From head to head r1 rises and r2 falls."""
    for kernel, shape in (("log", torch.exp), ("power", lambda raw: 2 * raw.sigmoid())):
        first, second = BipeForCausalLM(config_of({"type": "kerple", "kernel": kernel})).model.inter.raw
        torch.testing.assert_close(first.exp(), torch.tensor([0.25, 0.75, 1.25, 1.75]))
        torch.testing.assert_close(shape(second), torch.tensor([0.875, 0.625, 0.375, 0.125]))


# Randomized RoPE


def stretched(inter: Spec, index: Tensor, training: bool = False) -> Tensor:
    model = make({"type": "randomized_rope", **inter}).train(training)
    return cast("Any", model.model.inter).stretched(index)


def gaps(seed: int, stretch: float, count: int) -> Tensor:
    index = torch.arange(count + 1)[None]
    return stretched({"evaluation_stretch": stretch, "seed": seed}, index)[0].diff()


def test_randomized_rope_is_rope_where_nothing_is_stretched_and_only_there() -> None:
    ids = random_ids(60, 2, seed=13)
    stretch = {"type": "randomized_rope", "evaluation_stretch": 4.0}
    with torch.no_grad():
        plain, random, stretched = (
            make(inter)(ids).logits for inter in ({"type": "rope"}, {"type": "randomized_rope"}, stretch)
        )
        training = make({"type": "randomized_rope"}).train()(ids).logits
    assert torch.equal(plain, random)
    assert not torch.allclose(plain, stretched, atol=1e-2)
    assert not torch.allclose(plain, training, atol=1e-2)


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize("stretch", [1.5, 4.0, 16.0])
def test_randomized_gaps_are_geometric_and_independent(seed: int, stretch: float) -> None:
    drawn, count = gaps(seed, stretch, 30_000), 30_000
    assert drawn.min() == 1
    longest = next(k for k in range(1, 500) if count * (1 - 1 / stretch) ** k < 20)
    chances = [(1 - 1 / stretch) ** (k - 1) / stretch for k in range(1, longest)]
    chances.append(1 - sum(chances))
    seen = torch.bincount(drawn.clamp(max=longest), minlength=longest + 1)[1:].tolist()
    assert scipy.stats.chisquare(seen, [count * chance for chance in chances]).pvalue > 1e-4
    cut = max(2, round(stretch))
    short = (drawn < cut).long()
    for lag in (1, 2, 3, 64, 1024):
        table = torch.bincount(2 * short[:-lag] + short[lag:], minlength=4).view(2, 2)
        assert scipy.stats.chi2_contingency(table.numpy()).pvalue > 1e-4  # pyright: ignore


def test_randomized_gaps_of_another_seed_are_others_and_not_the_same_ones_moved() -> None:
    first = gaps(0, 4.0, 5000)
    agreeing = sum((0.75 ** (k - 1) / 4) ** 2 for k in range(1, 200))
    for seed in (1, 2, 3, 2**31, 2**32):
        second = gaps(seed, 4.0, 5000)
        for move in range(-3, 4):
            same = (first == second.roll(move)).double().mean().item()
            assert same == pytest.approx(agreeing, abs=0.04), (seed, move)


def test_randomized_positions_depend_on_seed_and_index_alone() -> None:
    inter = {"evaluation_stretch": 4.0, "seed": 3}
    whole = stretched(inter, torch.arange(3000)[None])
    assert whole.dtype == torch.int64
    assert whole[0, 0] == 0
    assert (whole.diff() > 0).all()
    index = torch.randint(0, 3000, (3, 50), generator=torch.Generator().manual_seed(0))
    assert torch.equal(stretched(inter, index), whole[0][index])
    assert torch.equal(stretched(inter, torch.arange(17)[None]), whole[:, :17])
    torch.manual_seed(99)
    model = make({"type": "randomized_rope", **inter})
    late = cast("Any", model.model.inter).stretched(torch.tensor([[2999]]))
    assert torch.equal(late, whole[:, -1:])
    small = cast("Any", model.model.inter).stretched(torch.tensor([[0, 1], [5, 7]]))
    assert torch.equal(small, whole[0][torch.tensor([[0, 1], [5, 7]])])


def test_randomized_evaluation_leaves_torchs_generator_alone() -> None:
    model = make({"type": "randomized_rope", "evaluation_stretch": 4.0})
    state = torch.get_rng_state()
    with torch.no_grad():
        model(random_ids(30))
    assert torch.equal(state, torch.get_rng_state())


def test_randomized_training_draws_each_row_of_each_forward_anew() -> None:
    inter, index = {"stretch": 16.0}, torch.arange(400).expand(4, 400)
    model = make({"type": "randomized_rope", **inter}).train()
    stretch = cast("Any", model.model.inter).stretched
    torch.manual_seed(0)
    first, second = stretch(index), stretch(index)
    torch.manual_seed(0)
    assert torch.equal(first, stretch(index))
    rows = torch.cat((first, second))
    assert len({tuple(row) for row in rows.tolist()}) == 8
    assert (rows.diff() > 0).all()
    means = rows.diff().double().mean(dim=1)
    assert (means >= 1).all() and (means <= 16 * 1.3).all()
    many = torch.cat([stretch(torch.arange(2000).expand(64, 2000)) for _ in range(4)])
    means = many.diff().double().mean(dim=1)
    assert means.min() < 4 and means.max() > 10
    assert means.max() <= 16 * 1.15  # five standard deviations


def test_mean_gaps_of_randomized_training_are_even_in_their_logarithm() -> None:
    means = stretched({"stretch": 16.0}, torch.full((1000, 1), 2000), training=True)[:, 0] / 2000
    assert scipy.stats.kstest((means.log() / math.log(16)).tolist(), "uniform").pvalue > 1e-3


def test_randomized_training_gives_equal_indices_equal_positions_and_a_seed_repeats_the_output() -> None:
    model = make({"type": "randomized_rope", "stretch": 8.0}).train()
    index = torch.tensor([[0, 0, 1, 1, 1, 2, 5, 5]])
    drawn = cast("Any", model.model.inter).stretched(index)[0].tolist()
    assert drawn[0] == drawn[1] and drawn[2] == drawn[3] == drawn[4] and drawn[6] == drawn[7]
    assert drawn[0] < drawn[2] < drawn[5] < drawn[6] - 2
    ids = random_ids(60, 2)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model(ids).logits.detach())
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


# Randomized offsets


def rows_of(model: BipeForCausalLM, offset: Tensor) -> Tensor:
    """The rows of the table that offsets are given, found by filling each row with its number."""
    table = cast("Any", model.model.intra).embedding.weight
    with torch.no_grad():
        table.copy_(torch.arange(len(table))[:, None].expand_as(table))
        # Each segment starts at an offset of 0.
        segment = (offset == 0).long().cumsum(dim=1) - 1
        token = torch.arange(offset.shape[1]).expand_as(offset)
        vectors = model.model.intra(BilevelPositions(segment, offset, token), torch.float32)
    assert vectors is not None
    assert (vectors == vectors[..., :1]).all()
    return vectors[..., 0].long()


def segments_of(*lengths: int) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths])


@pytest.mark.parametrize("trained", [None, 0, 5, 100])
def test_randomized_offsets_are_themselves_in_evaluation(trained: int | None) -> None:
    intra = {"type": "randomized", "max_offset": 20}
    model = make({"type": "zero"}, intra=intra, max_trained_offset=trained)
    offset = segments_of(30, 5, 1, 8).expand(2, -1)
    assert torch.equal(rows_of(model, offset), offset.clamp(max=19))


def test_randomized_offsets_increase_at_random_in_training_and_use_all_rows() -> None:
    model = make({"type": "zero"}, intra={"type": "randomized", "max_offset": 20}).train()
    offset = segments_of(6, 5, 1, 6).expand(8, -1)
    used: set[int] = set()
    drawn: set[tuple[int, ...]] = set()
    for _ in range(100):
        for row, offsets in zip(rows_of(model, offset).tolist(), offset.tolist(), strict=True):
            mapping: dict[int, int] = {}
            for chosen, at in zip(row, offsets, strict=True):
                assert mapping.setdefault(at, chosen) == chosen
            chosen = [mapping[at] for at in range(6)]
            assert chosen[0] == 0
            assert all(a < b or a == b == 19 for a, b in pairwise(chosen))
            drawn.add(tuple(chosen))
            used.update(chosen)
    assert used == set(range(20))
    assert len(drawn) > 100


def test_randomized_offsets_of_a_segment_longer_than_the_table_end_in_its_last_row() -> None:
    model = make({"type": "zero"}, intra={"type": "randomized", "max_offset": 6}).train()
    for _ in range(20):
        row = rows_of(model, segments_of(12, 3)[None])[0].tolist()
        assert row[0] == row[12] == 0
        assert row[6:12] == [5] * 6
        assert all(a < b or a == b == 5 for a, b in pairwise(row[:12]))


# Offsets by segment with distances by token


@pytest.mark.parametrize("name", ["rope", "alibi"])
def test_the_token_index_with_offsets_is_the_encoding_on_tokens_with_offsets_added(name: str) -> None:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.3,
    }
    assert f"offset+{name}" in SCHEMES
    config = BipeConfig.from_scheme(f"offset+{name}", end_token_ids=list(ENDS), max_offset=40, **sizes)
    both = BipeForCausalLM(config).eval()
    plain = BipeForCausalLM(BipeConfig.from_scheme(name, **sizes)).eval()
    plain.load_state_dict(both.state_dict(), strict=False)
    ids = random_ids(50, 2, seed=14)
    with torch.no_grad():
        offsets = both.positions(ids).offset
        embeds = both.model.embed_tokens(ids) + cast("Any", both.model.intra).embedding.weight[offsets]
        expected = plain(inputs_embeds=embeds, positions=plain.positions(ids)).logits
        torch.testing.assert_close(both(ids).logits, expected, rtol=1e-5, atol=1e-5)


# Options


@pytest.mark.parametrize(
    ("inter", "named"),
    [
        ({"type": "t5", "buckets": 7}, "buckets"),
        ({"type": "t5", "buckets": 0}, "buckets"),
        ({"type": "t5", "buckets": True}, "buckets"),
        ({"type": "t5", "buckets": "32"}, "buckets"),
        ({"type": "t5", "buckets": 32, "max_distance": 16}, "max_distance"),
        ({"type": "kerple", "kernel": "exp"}, "kernel"),
        ({"type": "kerple", "kernel": 3}, "kernel"),
        ({"type": "fire", "c": 0}, "c"),
        ({"type": "fire", "c": -1.0}, "c"),
        ({"type": "fire", "threshold": float("nan")}, "threshold"),
        ({"type": "fire", "threshold": 0}, "threshold"),
        ({"type": "fire", "threshold": float("inf")}, "threshold"),
        ({"type": "fire", "threshold": "512"}, "threshold"),
        ({"type": "cope", "positions": 0}, "positions"),
        ({"type": "cope", "positions": 2.5}, "positions"),
        ({"type": "cope", "positions": None}, "positions"),
        ({"type": "rerope", "window": 0}, "window"),
        ({"type": "rerope", "window": 1.5}, "window"),
        ({"type": "selfextend", "group": 0}, "group"),
        ({"type": "selfextend", "window": 0}, "window"),
        ({"type": "randomized_rope", "stretch": 0.5}, "stretch"),
        ({"type": "randomized_rope", "stretch": float("inf")}, "stretch"),
        ({"type": "randomized_rope", "evaluation_stretch": 0.5}, "evaluation_stretch"),
        ({"type": "randomized_rope", "evaluation_stretch": float("nan")}, "evaluation_stretch"),
        ({"type": "randomized_rope", "seed": -1}, "seed"),
        ({"type": "randomized_rope", "seed": 0.5}, "seed"),
        ({"type": "xpos", "gamma": 0}, "gamma"),
        ({"type": "xpos", "gamma": float("nan")}, "gamma"),
        ({"type": "xpos", "gamma": 1e30}, "gamma"),  # every factor would round to 1
        ({"type": "xpos", "scale_base": 0}, "scale_base"),
        ({"type": "alibi", "factor": 0.5}, "factor"),
        ({"type": "alibi", "scale": 0, "learned": True}, "scale"),
        ({"type": "alibi", "scale": float("nan")}, "scale"),
        ({"type": "alibi", "learned": "yes"}, "learned"),
        ({"type": "alibi2", "scale": 4.0, "inside_scale": 0}, "inside_scale"),
        ({"type": "rope", "index": "segmnt"}, "index"),
        ({"type": "fire", "index": "segmnt"}, "index"),
        ({"type": "cope", "index": None}, "index"),
        ({"type": "hirope", "scaling": {"rope_type": "linear", "factor": 2.0}}, "scaling"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_an_option_out_of_range_is_named(inter: Spec, named: str) -> None:
    with pytest.raises(ValueError, match=rf"\b{named}\b"):
        BipeForCausalLM(config_of(inter))


# Gradients


def gradients(
    model: BipeForCausalLM, ids: Tensor, mix: Tensor | None = None, **given: Any
) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    out = model(ids, **given)
    scalar = out.loss if mix is None else (out.logits * mix).sum()
    assert scalar is not None
    scalar.backward()
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad.clone()
        for name, value in model.named_parameters()
    }


def assert_close_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        assert torch.isfinite(actual[name]).all(), name
        if name.startswith("model.inter."):
            assert gradient.abs().max() > 0, name
        error = (actual[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error <= 1e-4, f"{name}: {error.item():.2e}"


@EVERY
def test_gradients_are_those_of_eager(inter: Spec) -> None:
    eager, default = make(inter, attn_implementation="eager"), make(inter)
    for tokens in (40, 600):
        ids = random_ids(tokens, 2 if tokens == 40 else 1, seed=15)
        mix = torch.randn(*ids.shape, VOCABULARY, generator=torch.Generator().manual_seed(0))
        mix = mix / ids.numel() ** 0.5
        assert_close_gradients(gradients(default, ids, mix), gradients(eager, ids, mix))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@EVERY
def test_checkpointed_gradients_are_those_of_eager(inter: Spec) -> None:
    ids = random_ids(150, 2, seed=16)
    eager = make(inter, attn_implementation="eager", num_hidden_layers=2).train()
    default = make(inter, num_hidden_layers=2).train()
    default.gradient_checkpointing_enable({"use_reentrant": True})
    assert_close_gradients(
        gradients(default, ids, labels=ids, use_cache=False),
        gradients(eager, ids, labels=ids, use_cache=False),
    )


@EVERY
def test_gradients_are_the_slopes_of_the_formula(inter: Spec) -> None:
    model = make(inter, attn_implementation="eager")
    ids = random_ids(20, seed=17)
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(4, 20, 20, generator=generator, dtype=torch.float64)
    (attentions_of(model, ids)[0] * mix).sum().backward()
    names = [name for name, _ in model.model.inter.named_parameters(prefix="model.inter")]
    names += [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk"]
    for name in names:
        parameter = model.get_parameter(name)
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        step, sums = 1e-6, []
        for sign in (1, -1):
            changed = {name: parameter.detach().double() + sign * step * direction}
            text = texts_of(model, inter, ids, changed=changed)[0]
            sums.append((weights_of(text) * mix).sum().item())
        slope = (sums[0] - sums[1]) / (2 * step)
        assert (parameter.grad.double() * direction).sum().item() == pytest.approx(slope, rel=1e-3, abs=1e-5)


@EVERY
def test_training_keeps_no_tensor_of_all_pairs(inter: Spec) -> None:
    tokens, heads = 1536, 2
    model = make(inter, num_attention_heads=heads, num_key_value_heads=1, hidden_size=16).train()
    ids = random_ids(tokens, seed=18)
    largest, storages = 0, {}

    def keep(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    assert largest < tokens * tokens
    assert sum(storages.values()) < 4 * heads * tokens * tokens


@EVERY
@pytest.mark.parametrize("implementation", [None, "eager"])
def test_training_under_bfloat16_autocast_is_near_that_in_float32(
    inter: Spec, implementation: str | None
) -> None:
    model = make(inter, attn_implementation=implementation, initializer_range=0.1)
    ids = random_ids(150, 2, seed=19)
    expected = model(ids, labels=ids, use_cache=False).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids, use_cache=False).loss
    assert loss.item() == pytest.approx(expected.item(), abs=0.02)
    loss.backward()
    assert all(torch.isfinite(cast("Tensor", value.grad)).all() for value in model.parameters())


@pytest.mark.parametrize("width", [2, 4, 6, 16])
@pytest.mark.parametrize("name", ["rope", "xpos-strong", "hirope", "cope", "selfextend"])
def test_weights_of_other_head_widths_are_the_formulas(name: str, width: int) -> None:
    model = make(SPECS[name], attn_implementation="eager", hidden_size=4 * width)
    ids = random_ids(24, seed=20)
    with torch.no_grad():
        weights = weights_of(texts_of(model, SPECS[name], ids)[0])
        torch.testing.assert_close(attentions_of(model, ids)[0].double(), weights, rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize(
    ("name", "options", "segmenter"),
    [
        *((name, {}, TOKENS) for name in ("alibi", "alibi-learned", "kerple-log", "kerple-power")),
        *((name, {"index": "token"}, SEGMENTS) for name in ("alibi-learned", "kerple-power")),
        *((name, {}, SEGMENTS) for name in ("alibi-learned", "alibi2", "alibi2-learned")),
    ],
)
def test_leaving_out_far_keys_changes_neither_logits_nor_gradients(
    name: str, options: Spec, segmenter: Spec
) -> None:
    inter = {**SPECS[name], **options}
    eager, default = (
        make(inter, segmenter, attn_implementation=implementation, initializer_range=0.1)
        for implementation in ("eager", None)
    )
    ids = random_ids(1000, seed=21)
    documents = (torch.arange(1000) >= 290).long()[None]
    mix = torch.randn(1, 1000, VOCABULARY, generator=torch.Generator().manual_seed(0)) / 30
    with torch.no_grad():
        expected, actual = (model(ids, document_ids=documents).logits for model in (eager, default))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)
    assert_close_gradients(
        gradients(default, ids, mix, document_ids=documents),
        gradients(eager, ids, mix, document_ids=documents),
    )


@pytest.mark.parametrize("name", ["alibi2", "xpos-strong", "fire", "cope", "rerope", "hirope"])
def test_the_measured_reach_holds_the_share_of_the_formulas_weights(name: str) -> None:
    model, ids = make(SPECS[name]), random_ids(30, seed=22)
    text = texts_of(model, SPECS[name], ids)[0]
    weights = weights_of(text)
    mass = model.reach(ids, share=0.8).mass
    assert mass is not None
    for head in range(4):
        for unit, found in mass._asdict().items():
            held: dict[int, float] = {}
            for i in range(15, 30):
                for j in range(i + 1):
                    distance = getattr(text.place(i), unit[:-1]) - getattr(text.place(j), unit[:-1])
                    held[distance] = held.get(distance, 0.0) + weights[head, i, j].item()
            total, within = sum(held.values()), 0.0
            for distance in sorted(held):
                within += held[distance]
                if within >= 0.8 * total:
                    assert found[0, head] == distance
                    break
