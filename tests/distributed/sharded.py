"""What `test_fsdp.py` runs on each of two processes; the first leaves what came out in found.json."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from bipe.models import BipeConfig, BipeForCausalLM
from bipe.models.initialization import initialize_by_name
from bipe.training.sharding import whole, whole_weights

CONFIG = BipeConfig.from_scheme(
    "bipe-rope",
    end_token_ids=[3],
    vocab_size=500,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_offset=128,
)
IDS = torch.randint(0, 500, (8, 128), generator=torch.Generator().manual_seed(1))


def made() -> BipeForCausalLM:
    model = BipeForCausalLM(CONFIG)
    initialize_by_name(model, 0)
    return model.train()


def sharded(model: BipeForCausalLM) -> BipeForCausalLM:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def trained(model: BipeForCausalLM, blocks: torch.Tensor) -> list[list[float]]:
    """Loss and norm of the gradient of three steps."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    rows = []
    for _ in range(3):
        loss = model(input_ids=blocks, labels=blocks, use_cache=False).loss
        loss.backward()
        norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        if len(blocks) < len(IDS):
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        rows.append([float(mean), float(norm)])
    return rows


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    part = IDS[rank :: dist.get_world_size()]
    model, alone = sharded(made()), made()
    found = {"are_shards": all(isinstance(weight, DTensor) for weight in model.parameters())}
    found["here"] = sum(weight.to_local().numel() for weight in model.parameters()) / model.num_parameters()
    found["sharded"], found["alone"] = trained(model, part), trained(alone, IDS)

    # From two processes to one.
    weights = whole_weights(model)
    if rank == 0:
        model.save_pretrained(folder / "sharded", state_dict=weights)
        alone.save_pretrained(folder / "alone", state_dict=whole_weights(alone))
    dist.barrier()
    # From one to two: the next steps are the same again.
    again = sharded(made())
    loaded = BipeForCausalLM.from_pretrained(folder / "alone").state_dict()
    set_model_state_dict(again, loaded, options=StateDictOptions(full_state_dict=True))
    found["sharded_again"], found["alone_again"] = trained(again, part), trained(alone, IDS)
    found["peak"] = peak(part)
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def peak(part: torch.Tensor) -> int:
    """Bytes that are there at once in two steps, at most."""
    measured = sharded(made())
    optimizer = torch.optim.AdamW(measured.parameters(), fused=True)
    tracker = FSDPMemTracker(measured, optimizer)
    tracker.track_inputs((part,))
    with tracker:
        for _ in range(2):
            tracker.reset_mod_stats()
            measured(input_ids=part, labels=part, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
