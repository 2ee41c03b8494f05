"""What `test_sequence_parallel.py` runs on each of some processes; each leaves how far off it is."""

import json
import sys
from pathlib import Path

import torch

from bipe.models import BipeConfig, BipeForCausalLM
from bipe.models.sequence_parallel import hidden_states_of_stretch
from bipe.processes import join, rank


def main(folder: Path, schemes: list[str]) -> None:
    join()
    found = {}
    for scheme in schemes:
        name, _, implementation = scheme.partition("/")
        config = BipeConfig.from_scheme(
            name,
            end_token_ids=[3],
            vocab_size=50,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_offset=64,
            tokens_per_segment=6.0,
        )
        torch.manual_seed(0)
        model = BipeForCausalLM(config).eval()
        model.set_attn_implementation(implementation or "sdpa")
        worst = 0.0
        for tokens in (41, 64):
            ids = torch.randint(0, 50, (2, tokens), generator=torch.Generator().manual_seed(tokens))
            with torch.no_grad():
                whole = model.model(ids, use_cache=False).last_hidden_state
            part, start = hidden_states_of_stretch(model, ids)
            assert part.shape[1] in (
                -(-tokens // 2),
                tokens // 2,
                -(-tokens // 3),
                tokens - 2 * -(-tokens // 3),
            )
            worst = max(worst, float((whole[:, start : start + part.shape[1]] - part).abs().max()))
        found[scheme] = worst
    (folder / f"{rank()}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
