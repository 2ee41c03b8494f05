"""Every encoding's formula as its paper has it, written out a pair of tokens at a time in float64.

Nothing here is taken from the encodings: the query and key vectors are made from the weights by hand, the
logit of a query and a key from the formula.
"""

import cmath
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

Spec = dict[str, Any]


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

EVERY = pytest.mark.parametrize("inter", SPECS.values(), ids=SPECS.keys())


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
