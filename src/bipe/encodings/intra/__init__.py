"""The encodings inside segments, by name."""

from .base import IntraEncoding
from .learned import Learned
from .randomized import Randomized
from .sinusoidal import Sinusoidal
from .zero import ZeroIntra

INTRA_ENCODINGS: dict[str, type[IntraEncoding]] = {
    "learned": Learned,
    "randomized": Randomized,
    "sinusoidal": Sinusoidal,
    "zero": ZeroIntra,
}
