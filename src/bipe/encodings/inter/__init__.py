"""The encodings between segments, by name."""

from .alibi import Alibi
from .alibi2 import Alibi2
from .alibi_levels import AlibiLevels
from .base import InterEncoding, Relation
from .cope import Cope
from .fire import Fire
from .hirope import Hirope
from .kerple import Kerple
from .randomized_rope import RandomizedRope
from .rerope import Rerope
from .rope import Rope
from .rope_levels import RopeLevels
from .selfextend import SelfExtend
from .sliding_rope import SlidingRope
from .t5 import T5
from .xpos import Xpos
from .zero import ZeroInter

INTER_ENCODINGS: dict[str, type[InterEncoding]] = {
    "alibi": Alibi,
    "alibi2": Alibi2,
    "alibi_levels": AlibiLevels,
    "cope": Cope,
    "fire": Fire,
    "hirope": Hirope,
    "kerple": Kerple,
    "randomized_rope": RandomizedRope,
    "rerope": Rerope,
    "rope": Rope,
    "rope_levels": RopeLevels,
    "selfextend": SelfExtend,
    "sliding_rope": SlidingRope,
    "t5": T5,
    "xpos": Xpos,
    "zero": ZeroInter,
}

__all__ = ["INTER_ENCODINGS", "InterEncoding", "Relation"]
