"""Feed-forward layers that compute Boolean functions exactly, put together from named channels."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

TOLERANCE = 1 / 4
"""How far a sum of zeros and ones may be off and still be rounded exactly."""


class Slots:
    """Names for ranges of channels."""

    def __init__(self) -> None:
        self.width = 0
        self.named: dict[str, range] = {}

    def add(self, name: str, size: int) -> None:
        """Give the next channels a name."""
        self.named[name] = range(self.width, self.width + size)
        self.width += size

    def __getitem__(self, name: str) -> range:
        return self.named[name]


class Maps:
    """A linear map given entry by entry."""

    def __init__(self) -> None:
        self.rows: list[dict[int, float]] = []
        self.constants: list[float] = []

    def add(self, entries: dict[int, float] | Iterable[int], constant: float = 0.0) -> int:
        """Add an output: a weighted sum of inputs, by number, and a constant; the sum, where only named."""
        weights = entries if isinstance(entries, dict) else dict.fromkeys(entries, 1.0)
        self.rows.append(weights)
        self.constants.append(constant)
        return len(self.rows) - 1

    def linear(self, inputs: int) -> nn.Linear:
        """The map as a layer."""
        layer = nn.Linear(inputs, len(self.rows))
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor(self.constants))
            for row, weights in enumerate(self.rows):
                for column, weight in weights.items():
                    layer.weight[row, column] += weight
        return layer


class Gate(nn.Module):
    """A feed-forward part that computes Boolean functions exactly: two hidden layers of ReLUs.

    A threshold of a sum is two ReLUs, `relu(s (x - t) + 1/2) - relu(s (x - t) - 1/2)`, exactly 0 or 1
    wherever `x` is further than `1 / (2 s)` from `t`; thresholds lie halfway between whole numbers.
    """

    def __init__(self, first: Maps, second: Maps, third: Maps, width: int) -> None:
        super().__init__()
        self.first = first.linear(width)
        self.second = second.linear(len(first.rows))
        self.third = third.linear(len(second.rows))

    def forward(self, states: Tensor) -> Tensor:
        """From `(B, T, D)` to what is added to it."""
        return self.third(relu(self.second(relu(self.first(states)))))


class GateBuilder:
    """Collects what a `Gate` computes."""

    SLOPE = 1 / (1 - 2 * TOLERANCE)  # 2, so that sums of whole numbers are exact in any float

    def __init__(self) -> None:
        self.first, self.second, self.third = Maps(), Maps(), Maps()
        self.outputs: dict[int, dict[int, float]] = {}

    def test(self, weights: dict[int, float] | Iterable[int], threshold: float) -> dict[int, float]:
        """Whether a weighted sum of channels exceeds a threshold: weights of hidden units giving 0 or 1."""
        return self._pair(self.first, weights, threshold)

    def write(self, channel: int, weights: dict[int, float], threshold: float) -> None:
        """Put into a channel whether a weighted sum of tests exceeds a threshold; see `clear`."""
        target = self.outputs.setdefault(channel, {})
        for unit, weight in self._pair(self.second, weights, threshold).items():
            target[unit] = target.get(unit, 0.0) + weight

    def clear(self, channel: int) -> None:
        """Take out what a channel held, which is not negative; `write` only adds."""
        kept = self.second.add({self.first.add({channel: 1.0}): 1.0})
        target = self.outputs.setdefault(channel, {})
        target[kept] = target.get(kept, 0.0) - 1.0

    def _pair(
        self, maps: Maps, weights: dict[int, float] | Iterable[int], threshold: float
    ) -> dict[int, float]:
        given = weights if isinstance(weights, dict) else dict.fromkeys(weights, 1.0)
        steep = times(given, self.SLOPE)
        return {
            maps.add(steep, 0.5 - self.SLOPE * threshold): 1.0,
            maps.add(steep, -0.5 - self.SLOPE * threshold): -1.0,
        }

    def build(self, width: int) -> Gate:
        """The feed-forward part."""
        for channel in range(width):
            self.third.add(self.outputs.get(channel, {}))
        return Gate(self.first, self.second, self.third, width)


def merged(*parts: dict[int, float]) -> dict[int, float]:
    """The sum of weighted sums."""
    total: dict[int, float] = {}
    for part in parts:
        for place, weight in part.items():
            total[place] = total.get(place, 0.0) + weight
    return total


def times(part: dict[int, float], factor: float) -> dict[int, float]:
    """A weighted sum times a number."""
    return {place: factor * weight for place, weight in part.items()}
