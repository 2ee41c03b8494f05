"""Options of encodings out of their range, which have to be named."""

import pytest

from bipe import BipeForCausalLM

from .formula_models import config_of
from .formulas import Spec


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
