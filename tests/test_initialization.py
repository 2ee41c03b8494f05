"""Initial values by name: they depend on the seed and the name of a parameter alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bipe import SCHEMES, BipeForCausalLM
from bipe.models.initialization import initialize_by_name

ModelMaker = Callable[..., BipeForCausalLM]
SCHEME_NAMES = sorted(SCHEMES)


def test_initial_values_are_shared_by_all_schemes(make_model: ModelMaker) -> None:
    models = [make_model(scheme, seed=index) for index, scheme in enumerate(SCHEME_NAMES)]
    for index, model in enumerate(models):
        torch.manual_seed(index)
        initialize_by_name(model, 7)
    seen: dict[str, Tensor] = {}
    for model in models:
        for name, parameter in model.named_parameters():
            # What an encoding between segments is told makes it another one.
            key = f"{model.config.inter} {name}" if ".inter." in name else name
            assert torch.equal(seen.setdefault(key, parameter), parameter), name


def test_initial_values_leave_the_global_generator_alone(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    initialize_by_name(model, 7)
    assert torch.equal(torch.rand(4), expected)


def test_initial_values_differ_by_seed_and_by_name(make_model: ModelMaker) -> None:
    first, second = make_model("bipe-rope"), make_model("bipe-rope")
    initialize_by_name(first, 1)
    initialize_by_name(second, 2)
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)
    queries = [first.get_parameter(f"model.layers.{n}.self_attn.q_proj.weight") for n in (0, 1)]
    assert not torch.equal(*queries)


def test_initial_values_have_the_configured_spread(make_model: ModelMaker) -> None:
    model = make_model("bipe-rope", hidden_size=96, vocab_size=500, initializer_range=0.02, max_offset=200)
    initialize_by_name(model, 0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.05), name


def test_tied_embeddings_stay_tied_when_initialised_by_name(make_model: ModelMaker) -> None:
    tied, untied = (make_model("bipe-rope", tie_word_embeddings=tie) for tie in (True, False))
    for model in (tied, untied):
        initialize_by_name(model, 3)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert torch.equal(tied.model.embed_tokens.weight, untied.model.embed_tokens.weight)
