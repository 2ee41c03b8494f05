"""The order in which a run sees its blocks, and what is recorded of those it has seen."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from bipe.training.order import SeededOrder
from bipe.training.trainer import BlockTrainer


def test_every_scheme_sees_the_same_blocks_in_the_same_order(fit, make_config, monkeypatch):
    seen = []
    compute_loss = BlockTrainer.compute_loss

    def watch(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        seen.append(inputs["input_ids"].clone())
        return compute_loss(self, model, inputs, num_items_in_batch=num_items_in_batch)

    monkeypatch.setattr(BlockTrainer, "compute_loss", watch)
    orders = []
    for scheme in ("bipe-rope", "rope", "sinusoidal"):
        fit(scheme, config=make_config(scheme))
        orders.append(torch.cat(seen))
        seen.clear()
    assert torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])


@pytest.mark.parametrize("blocks", [1, 2, 5, 64])
def test_an_order_visits_every_block_once_a_pass(blocks):
    whole, begun = 3 * blocks, blocks // 2
    order = list(SeededOrder(blocks, whole + begun, seed=1))
    for start in range(0, whole, blocks):
        assert sorted(order[start : start + blocks]) == list(range(blocks))
    assert len(set(order[whole:])) == len(order[whole:]) == begun


def test_an_order_depends_on_the_seed_and_differs_from_pass_to_pass():
    order = list(SeededOrder(64, 128, seed=1))
    assert order == list(SeededOrder(64, 128, seed=1))
    assert order != list(SeededOrder(64, 128, seed=2))
    assert order[:64] != order[64:]


def test_what_an_order_draws_is_what_it_yields_and_few_stand_for_many():
    order = SeededOrder(40, 13, seed=3)
    assert order.drawn(100) == sorted(order) and SeededOrder(5, 13, seed=3).drawn(100) == list(range(5))
    few = order.drawn(4)
    assert len(few) == 4 and set(few) < set(order) and few[0] == min(order) and few[-1] == max(order)


def test_the_longest_offset_of_the_blocks_seen_is_recorded(fit, make_config, blocks):
    assert fit("all", config=make_config("learned")).model.config.max_trained_offset == 15
    config = make_config("bipe-rope")
    trained = fit("few", config=config, steps=1, warmup_steps=0, batch_size=2)
    seen = SeededOrder(len(blocks), 2, seed=7).drawn(1000)
    offsets = [trained.model.positions(**without_labels(blocks[index])).offset.max() for index in seen]
    assert trained.model.config.max_trained_offset == max(offsets)
    assert AutoModelForCausalLM.from_pretrained(trained.directory).config.max_trained_offset == max(offsets)
    assert config.max_trained_offset is None


def test_the_segments_of_ninety_nine_blocks_in_a_hundred_are_recorded(fit, make_config, blocks):
    trained = fit("run", config=make_config("bipe-rope"), steps=60, warmup_steps=0, batch_size=2)
    seen = SeededOrder(len(blocks), 120, seed=7).drawn(1000)
    segments = sorted(
        int(trained.model.positions(**without_labels(blocks[index])).segment.max()) + 1 for index in seen
    )
    assert len(segments) == 112
    assert trained.model.config.original_max_segments == segments[110]  # the 111th of 112


def without_labels(block):
    return {name: tensor[None] for name, tensor in block.items() if name != "labels"}
